from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import oracles_evaluation as oracles
import pytest
import torch
from evaluation.cases import TableScorer, ragged, sampled_ranks
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from raymerge.errors import ConfigError, InputError, ScoreError
from raymerge.evaluation import ranking
from raymerge.evaluation.config import EvaluationConfig
from raymerge.evaluation.ranking import full_ranks, negatives_for, rank_targets
from raymerge.evaluation.scoring import States
from raymerge.evaluation.top_k import top_k
from raymerge.models.encoder import EncoderConfig, SequenceEncoder

BUDGETS = [1, 5_000, 1 << 28]  # one column a block, a few, the whole catalogue


Users = tuple[Tensor, Tensor, Tensor, list[list[int]]]


@st.composite
def scored_users(draw: st.DrawFn) -> Users:
    """Users whose scores are small integers, so that ties are common: table, histories, targets, seen rows."""
    num_items = draw(st.integers(1, 12))
    item = st.integers(1, num_items)
    score = st.integers(-2, 2).map(float)
    table = draw(
        st.lists(
            st.lists(score, min_size=num_items, max_size=num_items), min_size=num_items + 1, max_size=num_items + 1
        )
    )
    count = draw(st.integers(1, 8))
    last, targets = (draw(st.lists(item, min_size=count, max_size=count)) for _ in range(2))
    seen = draw(st.lists(st.lists(item, max_size=6), min_size=count, max_size=count))
    histories = torch.tensor([[0, 1, i] for i in last])
    return torch.tensor(table, dtype=torch.float64), histories, torch.tensor(targets), seen


@settings(max_examples=40, deadline=None)
@given(scored_users(), st.sampled_from(BUDGETS), st.booleans(), st.sets(st.integers(1, 12)))
def test_full_ranks_equal_counting_item_by_item(drawn: Users, memory: int, filtered: bool, missing: set[int]) -> None:
    table, histories, targets, seen = drawn
    hidden = ragged(seen) if filtered else None
    offered = torch.tensor([item not in missing for item in range(1, table.shape[1] + 1)]) if missing else None
    found = full_ranks(TableScorer(table), histories, targets, seen=hidden, offered=offered, memory_bytes=memory)
    for rank, last, target, items in zip(found.tolist(), histories[:, -1], targets.tolist(), seen, strict=True):
        assert rank == oracles.rank(table[last].tolist(), target, missing | set(items) if filtered else missing)


@settings(max_examples=40, deadline=None)
@given(scored_users(), st.sampled_from(BUDGETS), st.integers(1, 12), st.sets(st.integers(1, 12)))
def test_top_k_equals_sorting_the_catalogue(drawn: Users, memory: int, k: int, missing: set[int]) -> None:
    table, histories, _, seen = drawn
    k = min(k, table.shape[1])
    offered = torch.tensor([item not in missing for item in range(1, table.shape[1] + 1)]) if missing else None
    items, scores = top_k(TableScorer(table), histories, k, exclude=ragged(seen), offered=offered, memory_bytes=memory)
    for row, values, last, hidden in zip(items.tolist(), scores.tolist(), histories[:, -1], seen, strict=True):
        assert row == oracles.top_k(table[last].tolist(), k, missing | set(hidden))
        assert values == [table[last, item - 1].item() if item else -torch.inf for item in row]


@settings(max_examples=40, deadline=None)
@given(scored_users(), st.sampled_from(BUDGETS), st.data())
def test_sampled_ranks_equal_counting_negative_by_negative(drawn: Users, memory: int, data: st.DataObject) -> None:
    table, histories, targets, _ = drawn
    items = st.lists(st.integers(0, table.shape[1]), min_size=4, max_size=4)
    negatives = [[i for i in data.draw(items) if i != target] for target in targets.tolist()]
    padded = torch.tensor([row + [0] * (4 - len(row)) for row in negatives])
    found = sampled_ranks(TableScorer(table), histories, targets, padded, memory_bytes=memory)
    for rank, last, target, row in zip(found.tolist(), histories[:, -1], targets.tolist(), negatives, strict=True):
        assert rank == 1 + sum(table[last, i - 1] >= table[last, target - 1] for i in row if i)


def encoder(
    num_items: int = 40, attention: str = "bidirectional", dtype: torch.dtype = torch.float64, **settings_: Any
) -> SequenceEncoder:
    torch.manual_seed(0)
    config = EncoderConfig(attention=attention, dim=16, heads=2, feed_forward=32, max_length=12, **settings_)
    module = SequenceEncoder(num_items, config).to(dtype)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
        module.item_embedding.weight[0] = 0
    return module


def histories_of(lengths: list[int], num_items: int = 40, columns: int = 12) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    histories = torch.randint(1, num_items + 1, (len(lengths), columns), generator=generator)
    histories[torch.arange(columns) < columns - torch.tensor(lengths)[:, None]] = 0
    return histories


@pytest.mark.parametrize("attention", ["bidirectional", "causal"])
@pytest.mark.parametrize("repeats", [True, False])
@pytest.mark.parametrize("memory", BUDGETS)
def test_ranks_of_an_encoder_equal_its_own_scores_user_by_user(attention: str, repeats: bool, memory: int) -> None:
    module, histories = encoder(attention=attention, repeat_direction=repeats), histories_of([1, 12, 5, 2, 12, 7, 1])
    targets = torch.tensor([3, 40, 1, 17, 8, 25, 39])
    seen = [row[row > 0].tolist() for row in histories]
    ranks = full_ranks(module, histories, targets, seen=ragged(seen), memory_bytes=memory)
    best, _ = top_k(module, histories, 9, exclude=ragged(seen), memory_bytes=memory)
    module.eval()
    for i, history in enumerate(histories):
        scores = module(history[None])[0].tolist()
        assert ranks[i] == oracles.rank(scores, int(targets[i]), set(seen[i]))
        assert best[i].tolist() == oracles.top_k(scores, 9, set(seen[i]))


@pytest.mark.parametrize("memory", BUDGETS)
def test_items_of_the_history_rank_by_their_own_scores_unless_left_out(memory: int) -> None:
    module, histories = encoder(repeat_direction=True), histories_of([1, 12, 5, 2, 12, 7, 1])
    targets = torch.stack([histories[:, -1], torch.tensor([3, 40, 1, 17, 8, 25, 39])], dim=1)
    values = top_k(module, histories, 9, memory_bytes=memory)[1]
    for column in range(2):
        ranks = full_ranks(module, histories, targets[:, column], memory_bytes=memory)
        negatives = torch.cat([targets[:, 1 - column, None], histories[:, :-1]], dim=1)
        sampled = sampled_ranks(module, histories, targets[:, column], negatives, memory_bytes=memory)
        for i, history in enumerate(histories):
            scores, target = module.eval()(history[None])[0].tolist(), int(targets[i, column])
            assert ranks[i] == oracles.rank(scores, target, set())
            others = [j for j in negatives[i].tolist() if j]
            assert sampled[i] == 1 + sum(scores[j - 1] >= scores[target - 1] for j in others)
            assert values[i].tolist() == pytest.approx(sorted(scores, reverse=True)[:9])


def test_ranks_do_not_depend_on_the_order_or_company_of_users() -> None:
    module, histories = encoder(), histories_of([1, 12, 5, 2, 12, 7, 1, 3])
    targets = torch.arange(1, 9)
    whole = full_ranks(module, histories, targets)
    shuffled = torch.tensor([5, 2, 7, 0, 1, 4, 3, 6])
    assert full_ranks(module, histories[shuffled], targets[shuffled]).equal(whole[shuffled])
    alone = [full_ranks(module, histories[i : i + 1], targets[i : i + 1]) for i in range(8)]
    assert torch.cat(alone).equal(whole)


def test_short_histories_are_encoded_without_their_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raymerge.evaluation.scoring.USERS_AT_ONCE", (2, 2))
    module = TableScorer(torch.zeros(41, 40))
    full_ranks(module, histories_of([12, 2, 1, 2, 12, 3]), torch.arange(1, 7))
    assert module.batches == [(2, 2), (2, 3), (2, 12)]


@pytest.mark.parametrize("memory", BUDGETS)
def test_a_constant_scorer_gets_the_last_rank(memory: int) -> None:
    targets = torch.tensor([1, 20, 40])
    assert full_ranks(TableScorer(torch.full((41, 40), 0.3)), histories_of([3, 3, 3]), targets).tolist() == [40] * 3
    collapsed = encoder(dtype=torch.float32, output_bias=False)
    with torch.no_grad():
        collapsed.item_embedding.weight[1:] = collapsed.item_embedding.weight[1]
    ranks = full_ranks(collapsed, histories_of([3, 1, 12]), targets, memory_bytes=memory)
    assert ranks.tolist() == [40] * 3, "equal up to the rounding of the matrix product is a tie"
    negatives = torch.tensor([[2, 3, 4, 5, 6]] * 3)
    assert sampled_ranks(collapsed, histories_of([3, 1, 12]), targets, negatives).tolist() == [6] * 3


@pytest.mark.parametrize("memory", BUDGETS)
@pytest.mark.parametrize("sign", [-100.0, 100.0])
def test_repeats_of_a_constant_scorer_tie_with_each_other(memory: int, sign: float) -> None:
    collapsed = encoder(attention="causal", dtype=torch.float32, output_bias=False, repeat_direction=True)
    histories, targets = torch.arange(29, 41).repeat(3, 1), torch.tensor([29, 35, 40])
    with torch.no_grad():
        collapsed.item_embedding.weight[1:] = collapsed.item_embedding.weight[1]
        states = collapsed.eval().encode(collapsed.embed(histories), histories)
        collapsed.repeat_direction.copy_(sign * states.mean(0))
    expected = [12 if sign > 0 else 40] * 3
    assert full_ranks(collapsed, histories, targets, memory_bytes=memory).tolist() == expected


@pytest.mark.parametrize("dim", [3, 50, 64, 300])
@pytest.mark.parametrize("users", [1, 3, 7, 193])
def test_equal_rows_tie_in_any_tile_of_the_matrix_product(dim: int, users: int) -> None:
    generator = torch.Generator().manual_seed(dim)
    states = torch.randn(users, dim, generator=generator)
    for num_items in (5, 17, 513):
        weight = torch.randn(1, dim, generator=generator).expand(num_items, dim).contiguous()
        made = States(SimpleNamespace(), weight, None, states, states)
        targets = torch.randint(1, num_items + 1, (users,), generator=generator)
        assert ranking._full_ranks(made, targets, None, 1 << 28).tolist() == [num_items] * users


class LargestTensor(TorchDispatchMode):
    """Remembers the bytes of the largest tensor that any operation allocates."""

    def __init__(self, known: list[Tensor]) -> None:
        super().__init__()
        self.known = {tensor.untyped_storage().data_ptr() for tensor in known}
        self.bytes = 0

    def __torch_dispatch__(
        self, func: Callable, types: Sequence[type], args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() not in self.known:
                self.bytes = max(self.bytes, tensor.untyped_storage().nbytes())
        return result


def test_nothing_larger_than_the_budget_is_allocated_for_a_large_catalogue() -> None:
    module, budget = encoder(num_items=20_000, dtype=torch.float32), 1 << 20
    histories = histories_of([12] * 150, num_items=20_000)
    negatives = torch.randint(1, 20_001, (150, 100))
    with LargestTensor([*module.parameters(), histories, negatives]) as largest:
        full_ranks(module, histories, torch.arange(1, 151), memory_bytes=budget)
        top_k(module, histories, 10, memory_bytes=budget)
        sampled_ranks(module, histories, torch.arange(1, 151), negatives, memory_bytes=budget)
    assert 0 < largest.bytes <= budget


def test_modes_are_restored_even_after_an_error_and_dropout_is_off() -> None:
    module, histories = encoder(dropout=0.5), histories_of([5, 6])
    module.train()
    module.blocks[0].eval()
    before = [part.training for part in module.modules()]
    first, second = (full_ranks(module, histories, torch.tensor([1, 2])) for _ in range(2))
    assert first.equal(second)
    with torch.no_grad():
        module.output_bias[7] = torch.nan
    for call in (
        lambda: full_ranks(module, histories, torch.tensor([1, 2])),
        lambda: top_k(module, histories, 3),
        lambda: sampled_ranks(module, histories, torch.tensor([1, 2]), torch.tensor([[8], [8]])),
    ):
        with pytest.raises(ScoreError, match="must be finite numbers"):
            call()
    assert [part.training for part in module.modules()] == before
    assert not any(part.requires_grad for part in top_k(encoder(), histories, 3))


def test_infinite_scores_are_refused() -> None:
    table = torch.zeros(41, 40)
    table[:, 3] = -torch.inf
    with pytest.raises(ScoreError):
        full_ranks(TableScorer(table), histories_of([2]), torch.tensor([1]))


@pytest.mark.parametrize("repeats", [False, True])
def test_half_precision_models_are_scored_in_single_precision(repeats: bool) -> None:
    module, histories = encoder(dtype=torch.float32, repeat_direction=repeats).bfloat16(), histories_of([5, 6, 7])
    _, scores = top_k(module, histories, 40)
    assert scores.dtype == torch.float32
    assert all(len(set(row)) > 35 for row in scores.tolist()), "bfloat16 has 8 bits: it would tie many of 40 scores"


def test_no_users_give_no_ranks() -> None:
    nobody = torch.zeros(0, 12, dtype=torch.int64)
    for module in (encoder(), encoder(repeat_direction=True)):
        assert full_ranks(module, nobody, torch.zeros(0, dtype=torch.int64)).shape == (0,)
        assert top_k(module, nobody, 3)[0].shape == (0, 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, h: full_ranks(m, h, torch.tensor([1, 41])), r"targets must be item indices in 1\.\.40, found 41"),
        (lambda m, h: full_ranks(m, h, torch.tensor([1])), "targets must be of the same users .* got 1 and 2"),
        (lambda m, h: full_ranks(m, h, torch.tensor([1, 2]), seen=ragged([[1]])), "seen items .* got 1 and 2"),
        (lambda m, h: full_ranks(m, h, torch.tensor([1, 2]), seen=ragged([[1], [0]])), "seen items .* found 0"),
        (lambda m, h: sampled_ranks(m, h, torch.tensor([1, 2]), torch.tensor([[1]])), "negatives .* got 1 and 2"),
        (lambda m, h: sampled_ranks(m, h, torch.tensor([1, 2]), torch.tensor([[1], [-3]])), "negatives .* found -3"),
        (lambda m, h: top_k(m, h, 41), r"between 1 and 40 items .* got 41"),
        (lambda m, h: top_k(m, h, 0), r"got 0"),
    ],
)
def test_mismatched_arguments_are_refused(call: Callable[[SequenceEncoder, Tensor], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        call(encoder(), histories_of([3, 4]))


def examples_of(lengths: list[int]) -> SimpleNamespace:
    histories = histories_of(lengths)
    return SimpleNamespace(
        histories=histories,
        targets=torch.arange(1, len(lengths) + 1),
        keys=torch.arange(len(lengths)) * 31,
        seen=ragged([row[row > 0].tolist() for row in histories]),
    )


@pytest.mark.parametrize("filtered", [False, True])
def test_rank_targets_gives_every_configured_ranking(filtered: bool) -> None:
    module, examples, counts = encoder(), examples_of([3, 4, 12, 1]), torch.arange(40, 0, -1)
    config = EvaluationConfig(rankings=("full", "uni5", "pop7"), filter_seen=filtered, seed=3)
    found = rank_targets(module, examples, config=config, counts=counts)
    assert list(found) == ["full", "uni5", "pop7"]
    seen = examples.seen if filtered else None
    assert found["full"].equal(full_ranks(module, examples.histories, examples.targets, seen=seen))
    for name, n in (("uni5", 5), ("pop7", 7)):
        negatives = negatives_for(name, examples, 40, 3, counts)
        assert negatives.shape == (4, n)
        assert found[name].equal(sampled_ranks(module, examples.histories, examples.targets, negatives))


def test_items_not_on_offer_are_in_no_ranking() -> None:
    module, examples, counts = encoder(), examples_of([3, 4, 12, 1]), torch.arange(40, 0, -1)
    offered = torch.arange(40) % 3 != 1  # items 1, 3, 4, 6, …
    examples.targets = torch.tensor([1, 3, 4, 6])
    config = EvaluationConfig(rankings=("full", "uni5", "pop7"), filter_seen=False, seed=3)
    found = rank_targets(module, examples, config=config, counts=counts, offered=offered)
    scores = module.eval()(examples.histories)
    own = scores.gather(1, examples.targets[:, None] - 1)
    assert found["full"].tolist() == ((scores >= own) & offered).sum(1).tolist()
    for name in ("uni5", "pop7"):
        negatives = negatives_for(name, examples, 40, 3, counts, offered)
        assert offered[negatives - 1].all()
        assert found[name].equal(sampled_ranks(module, examples.histories, examples.targets, negatives))


def test_popular_negatives_need_counts() -> None:
    with pytest.raises(ConfigError, match="pop100 needs the items' popularity counts"):
        rank_targets(encoder(), examples_of([3]), config=EvaluationConfig())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rankings": ("top",)}, "unknown ranking 'top'; known: full, uniN and popN, such as uni100, N below 10,000"),
        ({"rankings": ("uni0",)}, "unknown ranking 'uni0'"),
        ({"rankings": ()}, "evaluation.rankings needs at least one entry"),
        ({"ks": (5, 5)}, r"none twice, got \[5, 5\]"),
        ({"ks": (0,)}, "evaluation.ks must be between 1 and 1,000,000, got 0"),
        ({"replicates": 1}, "evaluation.replicates must be between 100"),
        ({"confidence": 95}, "evaluation.confidence must be at least .5 and below 1, got 95"),
        ({"seed": -1}, "evaluation.seed"),
        ({"memory_mib": 0}, "evaluation.memory_mib"),
    ],
)
def test_settings_out_of_range_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EvaluationConfig(**change)
