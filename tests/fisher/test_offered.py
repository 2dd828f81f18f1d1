"""Items that are not on offer take no part in the softmax: a model of only the others has the same diagonal."""

import pytest
import torch
from fisher_cases import ITEMS, assert_close, encoder, histories
from torch import Tensor

from raymerge.errors import ConfigError, InputError
from raymerge.fisher import estimate


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"estimator": "topk", "samples": 3},
        {"estimator": "rank", "samples": 3},
        {"estimator": "target", "targets": [5, 4, 5, 9, 7]},
        {"estimator": "random", "samples": 7},
        {"estimator": "random_unweighted", "samples": 7},
        {"estimator": "random_unweighted", "samples": 7, "batch_size": 2},
        {"estimator": "topk", "samples": 2, "batch_size": 2},
    ],
)
def test_items_not_on_offer_might_as_well_not_exist(bias: bool, arguments: dict) -> None:
    offered = torch.tensor([1, 2, 3, 4, 5, 7, 9])
    module = encoder(6, output_bias=bias)
    alone = encoder(0, items=len(offered), output_bias=bias)
    state = module.state_dict()
    rows = torch.cat([torch.tensor([0]), offered, torch.tensor([ITEMS + 1])])
    state["item_embedding.weight"] = state["item_embedding.weight"][rows]
    state |= {"output_bias": module.output_bias[offered - 1]} if bias else {}
    alone.load_state_dict(state)
    small = {**arguments}
    if "targets" in arguments:
        arguments = {**arguments, "targets": torch.tensor(arguments["targets"])}
        small["targets"] = torch.searchsorted(offered, arguments["targets"]) + 1
    users = histories()
    renumbered = torch.where(users > 0, torch.searchsorted(offered, users) + 1, 0)
    expected = estimate(alone, renumbered, **small)
    for name, row in {"item_embedding.weight": rows, **({"output_bias": offered - 1} if bias else {})}.items():
        whole = torch.zeros_like(module.get_parameter(name))
        expected[name] = whole.detach().index_copy(0, row, expected[name])
    mask = torch.zeros(ITEMS, dtype=torch.bool).index_fill_(0, offered - 1, True)
    assert_close(estimate(module, users, offered=mask, **arguments), expected)


def test_items_of_the_history_that_are_not_on_offer_have_no_probability() -> None:
    module, mask = encoder(6), torch.arange(ITEMS) < 5
    found = estimate(module, histories(), offered=mask)
    with torch.no_grad():
        module.output_bias[~mask] = -1e9
    expected = estimate(module, histories())
    assert_close(found, expected)
    assert not found["output_bias"][~mask].any() and found["repeat_direction"].all()


@pytest.mark.parametrize("estimator", ["random", "random_unweighted"])
@pytest.mark.parametrize("batch_size", [None, 2])
def test_items_not_on_offer_are_never_drawn(estimator: str, batch_size: int | None) -> None:
    module, mask = encoder(6), torch.arange(ITEMS) < 5
    users = histories().clamp(max=5)
    found = estimate(module, users, offered=mask, estimator=estimator, samples=2, batch_size=batch_size)
    assert torch.equal(found["output_bias"] > 0, mask)
    with pytest.raises(ConfigError, match="at most the 5 items"):
        estimate(module, users, offered=mask, estimator=estimator, samples=6)


@pytest.mark.parametrize(
    ("offered", "expected"), [(torch.ones(4, dtype=torch.bool), "4 true of 4"), (torch.zeros(9) > 0, "0 true of 9")]
)
def test_an_invalid_offer_is_refused(offered: Tensor, expected: str) -> None:
    with pytest.raises(InputError, match=f"bool.V. for V = 9 items, at least one of them true, got {expected}"):
        estimate(encoder(), histories(), offered=offered)
