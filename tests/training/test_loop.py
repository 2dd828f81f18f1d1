"""The loop: it learns, is deterministic, resumes bit for bit, stops in time and reports what went wrong."""

import gc
import json
from dataclasses import replace

import pytest
import torch
from oracles_training import ndcg_at_10
from partitions import from_lists, random_histories
from safetensors.torch import load, save
from torch import Tensor

from raymerge.data.sequences import Sequences
from raymerge.errors import ArtifactError, ConfigError, InputError, ScoreError
from raymerge.models.batch import Batch
from raymerge.models.encoder import EncoderConfig, SequenceEncoder
from raymerge.models.objectives import OBJECTIVES, Objective, ObjectiveConfig, build_objective
from raymerge.training.config import TrainingConfig, learning_rate
from raymerge.training.loop import CHECK_STEPS, BadStep, StepReport, is_finished, train, validate
from raymerge.training.state import EpochReport, TrainingState
from raymerge.training.step import StepFigures

ITEMS = 15
CONFIG = TrainingConfig(epochs=2, batch_size=32, learning_rate=3e-3)


def cyclic(users: int = 40, parts: int = 2) -> list[Sequences]:
    """Histories in which item i + 1 follows item i: there is something to learn."""
    histories = [[(start + i) % ITEMS + 1 for i in range(6 + start % 9)] for start in range(users)]
    ids = list(range(users))
    return [from_lists(histories[p::parts], ids[p::parts]) for p in range(parts)]


def make(name: str = "next_item", seed: int = 0, **settings: object) -> tuple[SequenceEncoder, Objective]:
    torch.manual_seed(seed)
    attention = OBJECTIVES[name].attention or "causal"
    config = EncoderConfig(
        attention=attention, max_length=8, dim=16, heads=2, feed_forward=32, dropout=0.1, repeat_direction=True
    )
    return SequenceEncoder(ITEMS, config), build_objective(ObjectiveConfig(name, settings), config)


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_every_objective_learns(name: str) -> None:
    encoder, objective = make(name)
    before = validate(encoder, cyclic(), filter_seen=False)
    config = replace(CONFIG, epochs=30, batch_size=16, learning_rate=1e-2, patience=0)
    state = train(encoder, objective, cyclic(), config, filter_seen=False)
    assert state.best_ndcg > max(0.6, before + 0.2)
    assert state.history[-1].loss < state.history[0].loss
    assert validate(encoder, cyclic(), filter_seen=False) == pytest.approx(state.best_ndcg)


def test_only_sums_of_the_steps_are_kept() -> None:
    kept: list[int] = []

    def count(report: EpochReport, state: TrainingState) -> None:
        gc.collect()
        living = [one for one in gc.get_objects() if isinstance(one, StepFigures)]
        assert not any(term.total.requires_grad for figures in living for term in figures.terms)
        kept.append(len(living))

    config = replace(CONFIG, batch_size=1)
    state = train(*make("cl4srec"), cyclic(users=200), config, on_epoch=count)
    assert state.history[0].steps > 3 * CHECK_STEPS > 3 * max(kept)


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_resuming_from_a_saved_state_equals_never_stopping(name: str) -> None:
    settings = {"projection": True} if name == "duorec" else {}
    config = replace(CONFIG, epochs=4, average_epochs=3, schedule="cosine", warmup_steps=3)
    through = train(*make(name, **settings), cyclic(), config)
    saved: list[tuple[bytes, str]] = []

    def save_state(report: EpochReport, state: TrainingState) -> None:
        if report.epoch == 2:
            saved.append((save(state.to_tensors()), json.dumps(state.to_json())))

    train(*make(name, **settings), cyclic(), config, on_epoch=save_state)
    tensors, numbers = saved[0]
    again = TrainingState.restore(load(tensors), json.loads(numbers))
    torch.manual_seed(12345)
    resumed = train(*make(name, seed=99, **settings), cyclic(), config, resume=again)
    for section in ("encoder", "objective", "optimizer", "average", "best"):
        assert equal(getattr(through, section), dict(sorted_like(getattr(resumed, section), getattr(through, section))))
    scores = [[report.ndcg for report in state.history] for state in (through, resumed)]
    assert scores[0] == scores[1] and len(scores[0]) == 4
    assert (through.best_epoch, through.best_ndcg) == (resumed.best_epoch, resumed.best_ndcg)


def test_the_last_epochs_give_their_average_while_training_continues_from_its_own_parameters() -> None:
    config = replace(CONFIG, epochs=5, learning_rate=1e-2, patience=0)
    plain: list[TrainingState] = []
    train(*make(), cyclic(), config, on_epoch=lambda report, state: plain.append(state))
    encoder, objective = make()
    averaged: list[TrainingState] = []
    config = replace(config, average_epochs=3)
    last = train(encoder, objective, cyclic(), config, on_epoch=lambda report, state: averaged.append(state))
    probe, _ = make(seed=7)
    for number, (mine, theirs) in enumerate(zip(averaged, plain, strict=True), start=1):
        assert equal(mine.encoder, theirs.encoder)
        given = [state.encoder for state in plain[2:number]] or [theirs.encoder]
        mean = {name: torch.stack([one[name] for one in given]).mean(0) for name in theirs.encoder}
        assert all(torch.allclose(mine.average[name], mean[name], atol=1e-6) for name in mine.average)
        assert bool(mine.average) == (number >= 3)
        probe.load_state_dict(mine.average or mine.encoder)
        assert mine.history[-1].ndcg == validate(probe, cyclic(), filter_seen=True)
    best = averaged[last.best_epoch - 1]
    assert equal(last.best, best.average or best.encoder) and equal(encoder.state_dict(), last.best)


def sorted_like(tensors: dict[str, Tensor], pattern: dict[str, Tensor]) -> dict[str, Tensor]:
    assert set(tensors) == set(pattern)
    return {name: tensors[name] for name in pattern}


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_bf16_learns_like_float32(name: str) -> None:
    reports = [
        train(*make(name), cyclic(), replace(CONFIG, epochs=3, precision=precision)).history
        for precision in ("float32", "bf16")
    ]
    for exact, rough in zip(*reports, strict=True):
        assert rough.loss == pytest.approx(exact.loss, rel=0.02) and rough.loss != exact.loss


def test_the_same_seed_trains_the_same_model_and_another_seed_another() -> None:
    states = [train(*make(), cyclic(), replace(CONFIG, seed=seed)) for seed in (1, 1, 2)]
    assert equal(states[0].encoder, states[1].encoder)
    assert not equal(states[0].encoder, states[2].encoder)


@pytest.mark.parametrize(
    ("epoch", "best_epoch", "average", "expected"),
    [
        (12, 9, 1, True),
        (11, 9, 1, False),
        (12, 2, 10, False),
        (13, 2, 10, True),
        (19, 17, 10, False),
        (20, 20, 10, True),
    ],
)
def test_patience_starts_with_the_averaged_epochs(epoch: int, best_epoch: int, average: int, expected: bool) -> None:
    config = replace(CONFIG, epochs=20, patience=3, average_epochs=average)
    assert is_finished(TrainingState(epoch=epoch, best_epoch=best_epoch), config) is expected


def test_stops_when_patience_ends_and_keeps_the_best() -> None:
    encoder, objective = make()
    state = train(encoder, objective, cyclic(), replace(CONFIG, epochs=50, learning_rate=0.0, patience=3))
    assert state.epoch == 4 and state.best_epoch == 1
    assert [report.improved for report in state.history] == [True, False, False, False]
    assert equal(encoder.state_dict(), state.best)


def test_a_finished_training_does_nothing_more() -> None:
    state = train(*make(), cyclic(), CONFIG)
    encoder, objective = make(seed=5)
    assert train(encoder, objective, cyclic(), CONFIG, resume=state) is state
    assert equal(encoder.state_dict(), state.best)


def test_validation_is_the_mean_ndcg_user_by_user() -> None:
    encoder, _ = make()
    histories = random_histories(30, ITEMS, longest=12, seed=0)
    total, users = 0.0, 0
    for history in histories:
        if len(history) < 3:
            continue
        scores = encoder.eval()(torch.tensor([history[:-2]]))[0]
        rivals = [j for j in range(1, ITEMS + 1) if j not in history[:-2] and j != history[-2]]
        total += ndcg_at_10(1 + sum(bool(scores[j - 1] >= scores[history[-2] - 1]) for j in rivals))
        users += 1
    found = validate(encoder, [from_lists(histories[:9]), from_lists(histories[9:])], filter_seen=True)
    assert found == pytest.approx(total / users)


def test_reports_count_what_was_trained() -> None:
    reports: list[EpochReport] = []
    train(*make(), cyclic(), replace(CONFIG, epochs=1), on_epoch=lambda report, state: reports.append(report))
    (report,) = reports
    lengths = [min(6 + start % 9 - 2, 9) - 1 for start in range(40)]  # a window of at most 9, its last item not read
    longer = [start for start in range(40) if 6 + start % 9 - 2 > 9]
    assert report.tokens == report.targets == sum(lengths) + 8 * len(longer)
    assert report.steps == -(-(40 + len(longer)) // 32)
    assert 0.7 < report.useful_share <= 1 and report.tokens_per_second > 0
    assert report.terms == {"recommendation": pytest.approx(report.loss)}


def test_steps_in_which_no_partition_has_a_window_do_not_count() -> None:
    parts = [from_lists([[1, 2, 3, 4, 5, 6]] * 5, list(range(first, first + 5))) for first in (0, 5)]
    config = TrainingConfig(epochs=6, batch_size=1, learning_rate=0.0, patience=0)
    sizes: set[int] = set()
    encoder, objective = make()
    objective.register_forward_pre_hook(lambda _, arguments: sizes.add(len(arguments[1].windows)))
    state = train(encoder, objective, parts, config)
    assert 0 in sizes, "else this shows nothing"
    untrained = torch.tensor(ITEMS).log().item()
    assert [report.loss for report in state.history] == [pytest.approx(untrained, rel=0.02)] * 6
    assert {report.targets for report in state.history} == {10 * 3}


def test_progress_is_reported_within_an_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raymerge.training.loop.SECONDS_BETWEEN_REPORTS", 0.0)
    told: list[StepReport] = []
    train(*make(), cyclic(), replace(CONFIG, batch_size=10), on_step=told.append)
    assert [(r.epoch, r.step) for r in told] == [(e, s) for e in (1, 2) for s in range(1, told[0].steps + 1)]
    assert all(report.tokens_per_second > 0 for report in told)


def test_a_loss_that_is_not_finite_names_its_epoch_and_step() -> None:
    encoder, objective = make()
    torch.nn.init.constant_(encoder.output_bias, torch.nan)
    with pytest.raises(ScoreError, match="loss of epoch 1, step 1 of 2, is nan.*learning_rate"):
        train(encoder, objective, cyclic(), CONFIG)


def test_the_batch_of_a_loss_that_is_not_finite_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raymerge.training.loop.SECONDS_BETWEEN_REPORTS", 0.0)
    encoder, objective = make()
    batches: list[Batch] = []
    objective.register_forward_pre_hook(lambda _, arguments: batches.append(arguments[1]))
    bad: list[BadStep] = []

    def poison(report: StepReport) -> None:
        if (report.epoch, report.step) == (2, 1):
            torch.nn.init.constant_(encoder.output_bias, torch.nan)

    def keep(step: BadStep) -> str:
        bad.append(step)
        return "; kept"

    with pytest.raises(ScoreError, match=r"epoch 2, step 2 of \d, is nan.*; kept"):
        train(encoder, objective, cyclic(), replace(CONFIG, batch_size=10), on_step=poison, on_bad_step=keep)
    [step] = bad
    steps = len(batches) // 2
    assert (step.epoch, step.step) == (2, 2)
    assert torch.equal(step.batch.windows, batches[steps + 1].windows)
    assert torch.equal(step.batch.seeds, batches[steps + 1].seeds)


def test_nothing_to_train_on_is_refused() -> None:
    with pytest.raises(InputError, match="at least 2 items besides those held out"):
        train(*make(), [from_lists([[1, 2, 3], [4]])], CONFIG)


def test_the_shortest_users_train() -> None:
    shortest = [from_lists([[1, 2, 3, 4], [5], [2, 3, 4]])]
    for name in OBJECTIVES:
        state = train(*make(name), shortest, replace(CONFIG, epochs=1))
        assert all(bool(tensor.isfinite().all()) for tensor in state.encoder.values())


def test_a_state_of_another_model_is_refused() -> None:
    state = train(*make(), cyclic(), replace(CONFIG, epochs=1))
    encoder = SequenceEncoder(ITEMS + 1, make()[0].config)
    with pytest.raises(ArtifactError, match="of another model"):
        train(encoder, make()[1], cyclic(), CONFIG, resume=state)
    with pytest.raises(ArtifactError, match="not the state of a training"):
        TrainingState.restore({"weights": torch.zeros(1)}, {})


@pytest.mark.parametrize(
    "setting",
    [
        {"epochs": 0},
        {"batch_size": 0},
        {"learning_rate": -1.0},
        {"schedule": "step"},
        {"stride": 0},
        {"stride": 2, "windows": "last"},
    ],
)
def test_impossible_settings_are_refused(setting: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=f"training.{next(iter(setting))} must be"):
        TrainingConfig(**setting)


def test_schedules_warm_up_and_end_at_zero() -> None:
    for schedule in ("linear", "cosine"):
        config = TrainingConfig(learning_rate=2.0, warmup_steps=10, schedule=schedule)
        rates = [learning_rate(config, step, 100) for step in range(101)]
        assert rates[:10] == [pytest.approx(0.2 * (i + 1)) for i in range(10)]
        assert rates[10] == 2.0 and rates[100] == pytest.approx(0)
        assert sorted(rates[10:], reverse=True) == rates[10:]
