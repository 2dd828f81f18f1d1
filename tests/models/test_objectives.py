"""Every registered objective: its loss against a naive one, its gradients, its settings, and what it must not see."""

from dataclasses import dataclass, fields, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles_training import info_nce_sum, item_loss, state_at_end
from partitions import random_histories
from torch import Tensor

from raymerge.errors import ConfigError, UnknownNameError
from raymerge.models.augmentations import AUGMENTATIONS, two_views
from raymerge.models.batch import Batch
from raymerge.models.encoder import EncoderConfig, SequenceEncoder
from raymerge.models.item_losses import ClozeSettings, hide
from raymerge.models.objectives import (
    OBJECTIVES,
    Cl4srec,
    Cl4srecSettings,
    ObjectiveConfig,
    build_objective,
    check_objective,
    complete_settings,
)

ITEMS = 12
PAIRS = [
    (name, attention)
    for name in OBJECTIVES
    for attention in ("bidirectional", "causal")
    if OBJECTIVES[name].attention in (None, attention)
]
EVERY = pytest.mark.parametrize(("name", "attention"), PAIRS)


def make(attention: str, dropout: float = 0.0, repeats: bool = True) -> SequenceEncoder:
    torch.manual_seed(1)
    shape = {"max_length": 7, "dim": 8, "heads": 2, "feed_forward": 16}
    config = EncoderConfig(attention=attention, dropout=dropout, repeat_direction=repeats, **shape)
    encoder = SequenceEncoder(ITEMS, config).double()
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    encoder.item_embedding.weight.data[0] = 0
    return encoder


def padded(rows: list[list[int]], width: int) -> Tensor:
    return torch.tensor([[0] * (width - len(row)) + row for row in rows])


def make_batch(width: int, *, rows: int = 5, seed: int = 0) -> Batch:
    windows = padded(random_histories(rows, ITEMS, longest=width, shortest=2, seed=seed), width)
    others = padded(random_histories(rows, ITEMS, longest=width - 1, seed=seed + 1), width - 1)
    return Batch(windows, torch.arange(rows) + 100 * seed, others)


def unpadded(rows: Tensor) -> list[list[int]]:
    return [[item for item in row if item] for row in rows.tolist()]


def naive_recommendation(encoder: SequenceEncoder, batch: Batch, given: ClozeSettings) -> tuple[Tensor, int]:
    losses = []
    if encoder.config.cloze:
        inputs, _, _ = hide(batch.windows, batch.seeds, given, mask_index=encoder.mask_index)
        for window, shown in zip(unpadded(batch.windows), unpadded(inputs), strict=True):
            hidden = [i for i, item in enumerate(shown) if item == encoder.mask_index]
            losses += [item_loss(encoder, shown, i, window[i]) for i in hidden]
    else:
        for window in unpadded(batch.windows):
            losses += [item_loss(encoder, window[:-1], i, window[i + 1]) for i in range(len(window) - 1)]
    return torch.stack(losses).sum(), len(losses)


def naive_contrasts(name: str, encoder: SequenceEncoder, batch: Batch, given: object) -> list[Tensor]:
    def states(views: Tensor) -> Tensor:
        return torch.stack([state_at_end(encoder, view) for view in unpadded(views)])

    history, targets = batch.windows[:, :-1], None
    if name == "cl4srec":
        shares = [(kind, getattr(given, kind)) for kind in given.augmentations]
        pairs = [two_views(history, batch.seeds, shares=shares, mask_index=encoder.mask_index)]
    else:
        others = {"unsupervised": [history], "supervised": [batch.same_target], "both": [history, batch.same_target]}
        pairs = [(history, other) for other in others[given.mode]]
        targets = batch.windows[:, -1].tolist()
    return [
        info_nce_sum(
            states(first), states(second), similarity=given.similarity, temperature=given.temperature, targets=targets
        )
        for first, second in pairs
    ]


@EVERY
@pytest.mark.parametrize(("seed", "repeats"), [(0, True), (1, True), (2, False)])
def test_losses_equal_the_naive_version(name: str, attention: str, seed: int, repeats: bool) -> None:
    encoder = make(attention, repeats=repeats)
    objective = build_objective(ObjectiveConfig(name), encoder.config).double()
    batch = make_batch(objective.window, seed=seed)
    first, *contrasts = objective(encoder, batch)
    total, count = naive_recommendation(encoder, batch, objective.settings)
    assert int(first.count) == count
    torch.testing.assert_close(first.total, total, rtol=1e-9, atol=1e-9)
    expected = naive_contrasts(name, encoder, batch, objective.settings) if name in ("cl4srec", "duorec") else []
    for term, naive in zip(contrasts, expected, strict=True):
        assert int(term.count) == 2 * len(batch.seeds) and term.weight == objective.settings.weight
        torch.testing.assert_close(term.total, naive, rtol=1e-9, atol=1e-9)


@EVERY
def test_as_many_negatives_as_items_give_the_full_softmax(name: str, attention: str) -> None:
    encoder = make(attention)
    full = build_objective(ObjectiveConfig(name), encoder.config).double()
    sampled = build_objective(ObjectiveConfig(name, {"loss": "sampled", "negatives": ITEMS}), encoder.config).double()
    batch = make_batch(full.window)
    for expected, term in zip(full(encoder, batch), sampled(encoder, batch), strict=True):
        assert term.count == expected.count
        torch.testing.assert_close(term.total, expected.total, rtol=1e-10, atol=1e-10)


@EVERY
def test_gradients_are_finite_and_reach_every_parameter(name: str, attention: str) -> None:
    encoder = make(attention, dropout=0.2).train()
    objective = build_objective(ObjectiveConfig(name), encoder.config).double()
    terms = objective(encoder, make_batch(objective.window))
    sum(term.weight * term.total / term.count for term in terms).backward()
    for parameter_name, parameter in encoder.named_parameters():
        assert parameter.grad is not None and bool(parameter.grad.isfinite().all()), parameter_name
        assert bool((parameter.grad != 0).any()), parameter_name


@EVERY
def test_items_not_on_offer_take_no_part(name: str, attention: str) -> None:
    encoder = make(attention)
    objective = build_objective(ObjectiveConfig(name), encoder.config).double()
    whole = make_batch(objective.window)
    offered = torch.arange(2, ITEMS + 1, 3)  # no run, so that a column and its place among these differ
    kept = torch.isin(whole.windows, offered) * whole.windows
    rows = (kept > 0).sum(1) >= 2
    windows = padded([row for row in unpadded(kept[rows]) if row], kept.shape[1])
    batch = Batch(windows, whole.seeds[rows], whole.same_target[rows], offered - 1)
    term = objective(encoder, batch)[0]
    term.total.backward()
    with torch.no_grad():
        others = torch.ones(ITEMS, dtype=torch.bool).index_fill_(0, offered - 1, False)
        encoder.output_bias[others] = -torch.inf
    naive, _ = naive_recommendation(encoder, replace(batch, offered_columns=None), objective.settings)
    torch.testing.assert_close(term.total.detach(), naive.detach(), rtol=1e-9, atol=1e-9)
    assert not encoder.output_bias.grad[others].any()
    assert encoder.output_bias.grad[~others].all()


@EVERY
def test_padding_on_the_left_changes_no_loss(name: str, attention: str) -> None:
    encoder = make(attention)
    objective = build_objective(ObjectiveConfig(name), encoder.config)
    batch = make_batch(objective.window - 3)
    wider = replace(batch, windows=torch.nn.functional.pad(batch.windows, (3, 0)))
    for narrow, wide in zip(objective(encoder, batch), objective(encoder, wider), strict=True):
        assert narrow.count == wide.count
        torch.testing.assert_close(narrow.total, wide.total, rtol=1e-10, atol=1e-10)


@EVERY
def test_no_rows_give_no_loss(name: str, attention: str) -> None:
    encoder = make(attention, dropout=0.2).train()
    objective = build_objective(ObjectiveConfig(name), encoder.config).double()
    whole = make_batch(objective.window)
    empty = Batch(whole.windows[:0], whole.seeds[:0], whole.same_target[:0])
    for term in objective(encoder, empty):
        assert float(term.total.detach()) == 0 and int(term.count) == 0
        term.total.backward(retain_graph=True)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.lists(st.integers(1, ITEMS), min_size=1, max_size=10), min_size=1, max_size=6),
    st.sampled_from([0.0, 0.15, 0.2, 0.5, 1.0]),
    st.sampled_from([0.0, 0.5, 1.0]),
    st.integers(0, 10**6),
)
def test_cloze_hides_the_configured_share_or_only_the_last_item(
    rows: list[list[int]], rate: float, last_only: float, seed: int
) -> None:
    windows, given = padded(rows, 10), ClozeSettings(mask_rate=rate, last_only=last_only)
    inputs, columns, hidden = hide(windows, torch.arange(len(rows)) + seed, given, mask_index=99)
    changed = inputs != windows
    assert bool((inputs[changed] == 99).all()) and not bool((changed & (windows == 0)).any())
    for row, places, wanted in zip(range(len(rows)), columns, hidden, strict=True):
        assert sorted(places[wanted].tolist()) == changed[row].nonzero()[:, 0].tolist()
        number = max(1, round(rate * len(rows[row])))
        last_alone = changed[row].nonzero()[:, 0].tolist() == [9]
        assert last_alone if last_only == 1 else (last_alone and last_only > 0) or int(changed[row].sum()) == number


def test_hidden_items_are_nowhere_in_the_input() -> None:
    windows, seeds = padded(random_histories(50, ITEMS, longest=10, shortest=10, seed=3), 10), torch.arange(50)
    inputs, columns, hidden = hide(windows, seeds, ClozeSettings(), mask_index=99)
    others = windows.clone()
    others[torch.arange(50)[:, None].expand_as(columns)[hidden], columns[hidden]] = 7
    assert torch.equal(hide(others, seeds, ClozeSettings(), mask_index=99)[0], inputs)


@pytest.mark.parametrize(("name", "attention"), [pair for pair in PAIRS if pair[0] in ("cl4srec", "duorec")])
def test_the_target_of_a_window_does_not_reach_the_contrasted_states(name: str, attention: str) -> None:
    encoder = make(attention, dropout=0.1).eval()
    settings_given = {} if name == "cl4srec" else {"mode": "unsupervised"}
    objective = build_objective(ObjectiveConfig(name, settings_given), encoder.config)
    batch = make_batch(objective.window)
    other = replace(batch, windows=torch.cat([batch.windows[:, :-1], batch.windows[:, -1:] % ITEMS + 1], 1))
    assert torch.equal(objective(encoder, batch)[1].total, objective(encoder, other)[1].total)


def test_the_projection_belongs_only_to_the_objective() -> None:
    encoder = make("causal")
    objective = build_objective(ObjectiveConfig("duorec", {"projection": True}), encoder.config).double()
    before = set(dict(encoder.named_parameters()))
    terms = objective(encoder, make_batch(objective.window))
    sum(term.total for term in terms).backward()
    assert all(p.grad is not None for p in objective.parameters()) and len(list(objective.parameters())) == 4
    assert set(dict(encoder.named_parameters())) == before


@pytest.mark.parametrize(("name", "attention"), [("bert4rec", "causal"), ("next_item", "bidirectional")])
def test_an_encoder_of_the_wrong_direction_is_refused(name: str, attention: str) -> None:
    with pytest.raises(ConfigError, match=f"objective {name} needs encoder.attention .* got {attention}"):
        check_objective(ObjectiveConfig(name), EncoderConfig(attention=attention))


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("cl4srec", {"mask_rate": 0.3}, "cl4srec masks nothing for a causal encoder, so leave out its mask_rate"),
        ("duorec", {"last_only": 0.5}, "duorec masks nothing for a causal encoder, so leave out its last_only"),
        ("duorec", {"mode": "unsupervised"}, "duorec needs encoder.dropout above 0"),
    ],
)
def test_settings_that_an_encoder_gives_no_effect_are_refused(
    name: str, given: dict[str, object], expected: str
) -> None:
    objective = ObjectiveConfig(name, given)
    with pytest.raises(ConfigError, match=expected):
        check_objective(objective, EncoderConfig(attention="causal", dropout=0.0))
    check_objective(objective, EncoderConfig(attention="bidirectional", dropout=0.1))


def test_complete_settings_are_settings_again() -> None:
    complete = ObjectiveConfig("cl4srec", complete_settings(ObjectiveConfig("cl4srec")))
    assert complete.resolved() == ObjectiveConfig("cl4srec").resolved()
    check_objective(complete, EncoderConfig(attention="causal", dropout=0.0))


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("bert4rec", {"mask_rate": 1.5}, "mask_rate must be between 0 and 1, got 1.5"),
        ("bert4rec", {"mask_rate": "much"}, "mask_rate must be a number between 0 and 1, got 'much'"),
        ("bert4rec", {"temperature": 1.0}, "bert4rec has no setting 'temperature'; known: loss, negatives, mask_rate"),
        ("next_item", {"mask_rate": 0.2}, "next_item has no setting 'mask_rate'; known: loss, negatives"),
        ("next_item", {"loss": "half"}, "loss must be one of full, sampled, got 'half'"),
        ("next_item", {"loss": "sampled", "negatives": 0}, "negatives must be between 1 and .*, got 0"),
        ("cl4srec", {"temperature": 0}, "temperature must be between 0.0001 and 1,000, got 0"),
        ("cl4srec", {"similarity": "l2"}, "similarity must be one of cosine, dot, got 'l2'"),
        ("cl4srec", {"augmentations": []}, "augmentations must be a list of some of crop, mask, reorder, got"),
        ("cl4srec", {"augmentations": ["mask"], "crop": 0.5}, r"crop is not among the augmentations \['mask'\]"),
        ("duorec", {"mode": "semi"}, "mode must be one of supervised, unsupervised, both, got 'semi'"),
        ("duorec", {"candidates": 2.5}, "candidates must be a whole number between 1 and 1,000, got 2.5"),
    ],
)
def test_impossible_settings_are_refused(name: str, given: dict[str, object], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        ObjectiveConfig(name, given)


def test_unknown_names_are_refused_with_the_known_ones() -> None:
    with pytest.raises(UnknownNameError, match="bert4rec, next_item, cl4srec, duorec"):
        ObjectiveConfig("sasrec")
    with pytest.raises(UnknownNameError, match="crop, mask, reorder"):
        ObjectiveConfig("cl4srec", {"augmentations": ["flip"]})


def test_an_augmentation_registered_by_a_user_needs_a_setting_for_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    shares = []

    def nothing(histories: Tensor, seeds: Tensor, *, share: float, mask_index: int) -> Tensor:
        shares.append(share)
        return histories

    @dataclass(frozen=True)
    class WithNothing(Cl4srecSettings):
        augmentations: tuple[str, ...] = ("nothing",)
        nothing: float = 0.5

    class Another(Cl4srec):
        Settings = WithNothing

    monkeypatch.setitem(AUGMENTATIONS._entries, "nothing", nothing)
    monkeypatch.setitem(OBJECTIVES._entries, "another", Another)
    with pytest.raises(ConfigError, match="Cl4srecSettings has no setting 'nothing' for the share"):
        ObjectiveConfig("cl4srec", {"augmentations": ["crop", "nothing"]})
    with pytest.raises(ConfigError, match="nothing must be between 0 and 1, got 2.0"):
        ObjectiveConfig("another", {"nothing": 2.0})
    encoder = make("causal")
    objective = build_objective(ObjectiveConfig("another", {"nothing": 0.25}), encoder.config).double()
    assert bool(objective(encoder, make_batch(objective.window))[1].total.isfinite())
    assert shares == [0.25, 0.25]


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_settings_are_complete_and_documented(name: str) -> None:
    assert set(complete_settings(ObjectiveConfig(name))) == {f.name for f in fields(OBJECTIVES[name].Settings)}
    assert OBJECTIVES[name].Settings.__doc__ and OBJECTIVES[name].__doc__
