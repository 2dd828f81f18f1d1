"""Dropout with cheap masks."""

import pytest
import torch

from raymerge.models.dropout import Dropout, keep_scale


@pytest.mark.parametrize("rate", [0.1, 0.2, 0.5, 0.9])
def test_the_mask_drops_its_rate_and_keeps_the_mean(rate: float) -> None:
    torch.manual_seed(0)
    scale = keep_scale(torch.empty(500_001, dtype=torch.float64), rate)
    assert float((scale == 0).double().mean()) == pytest.approx(rate, abs=1 / 512 + 0.003)
    kept = scale[scale != 0].unique()
    assert len(kept) == 1
    exact_rate = round(rate * 256) / 256
    assert float(kept) == pytest.approx(1 / (1 - exact_rate), rel=1e-12)
    assert float(scale.mean()) == pytest.approx(1, abs=0.02)


def test_gradient_goes_where_the_forward_pass_went() -> None:
    x = torch.ones(1000, dtype=torch.float64, requires_grad=True)
    y = Dropout(0.3)(x)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())


def test_eval_mode_and_rate_zero_change_nothing() -> None:
    x = torch.randn(3, 4)
    assert Dropout(0.3).eval()(x) is x
    assert Dropout(0.0)(x) is x


def test_the_same_seed_gives_the_same_mask() -> None:
    masks = []
    for _ in range(2):
        torch.manual_seed(7)
        masks.append(Dropout(0.5)(torch.ones(64)))
    assert torch.equal(*masks)
