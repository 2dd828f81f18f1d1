"""Processes that each hold some of the partitions, or none, train the same model as one; so do smaller chunks."""

from pathlib import Path

import pytest
import torch
from partitions import from_lists, random_histories
from torch import distributed as dist
from torch import multiprocessing as mp

from raymerge.data.sequences import Sequences
from raymerge.errors import ScoreError
from raymerge.execution import chunking
from raymerge.models.encoder import EncoderConfig, SequenceEncoder
from raymerge.models.objectives import ObjectiveConfig, build_objective
from raymerge.training.config import TrainingConfig
from raymerge.training.loop import train, validate
from raymerge.training.state import TrainingState

ITEMS = 20
OWN = [[0, 1], [2], []]  # the partitions of each rank: uneven on purpose
CASES = {
    "bert4rec": ("bidirectional", {}),
    "next_item": ("causal", {}),
    "next_item sampled": ("causal", {"loss": "sampled", "negatives": 6}),
    "cl4srec": ("bidirectional", {"weight": 1.0, "projection": True}),
    "cl4srec causal": ("causal", {"weight": 1.0, "similarity": "dot", "temperature": 2.0}),
    "duorec": ("bidirectional", {"weight": 1.0, "mode": "both"}),
    "duorec causal": ("causal", {"weight": 1.0, "mode": "supervised", "candidates": 2}),
}


def partitions() -> list[Sequences]:
    sizes, users = [25, 3, 14], 0
    parts = []
    for number, size in enumerate(sizes):
        histories = random_histories(size, ITEMS, longest=20, seed=number)
        parts.append(from_lists(histories, list(range(users, users + size))))
        users += size
    return parts


def train_case(case: str, parts: list[Sequences], *, seed: int) -> TrainingState:
    attention, settings = CASES[case]
    torch.manual_seed(seed)
    config = EncoderConfig(
        attention=attention,
        max_length=6,
        dim=8,
        heads=2,
        feed_forward=16,
        dropout=0.0,
        distance_bias=True,  # without rows it gets no gradient from torch
        repeat_direction=True,
    )
    encoder = SequenceEncoder(ITEMS, config).double()
    objective = build_objective(ObjectiveConfig(case.split()[0], settings), config).double()
    return train(encoder, objective, parts, TrainingConfig(epochs=2, batch_size=7, learning_rate=1e-2, patience=0))


def join(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=len(OWN))


def run_rank(rank: int, folder: str) -> None:
    join(rank, folder)
    everything = partitions()
    own = [everything[p] for p in OWN[rank]]
    states = {case: train_case(case, own, seed=rank) for case in CASES}  # others must take rank 0's parameters
    torch.save({case: (state.encoder, state.to_json()) for case, state in states.items()}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def by_rank(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    folder: Path = tmp_path_factory.mktemp("ranks")
    mp.spawn(run_rank, args=(str(folder),), nprocs=len(OWN))
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(len(OWN))]


@pytest.mark.parametrize("case", list(CASES))
def test_training_in_smaller_chunks_gives_the_same_model(case: str) -> None:
    usual = train_case(case, partitions(), seed=0)
    with chunking.chunks(smaller=True):
        smaller = train_case(case, partitions(), seed=0)
    for name, expected in usual.encoder.items():
        torch.testing.assert_close(smaller.encoder[name], expected, rtol=1e-6, atol=1e-8, msg=f"{case}: {name}")


@pytest.mark.parametrize("case", list(CASES))
def test_several_ranks_train_the_same_model_as_one(case: str, by_rank: list[dict]) -> None:
    alone = train_case(case, partitions(), seed=0)
    for parameters, numbers in (states[case] for states in by_rank):
        for name, expected in alone.encoder.items():
            torch.testing.assert_close(parameters[name], expected, rtol=1e-6, atol=1e-8, msg=f"{case}: {name}")
        for report, lone in zip(numbers["history"], alone.history, strict=True):
            assert report["ndcg"] == pytest.approx(lone.ndcg)
            assert report["loss"] == pytest.approx(lone.loss)
            assert (report["tokens"], report["targets"]) == (lone.tokens, lone.targets)


def validate_rank(rank: int, folder: str) -> None:
    join(rank, folder)
    everything = partitions()
    encoder = SequenceEncoder(ITEMS, EncoderConfig(dim=8, heads=2))
    torch.nn.init.constant_(encoder.output_bias[:1], torch.nan)
    with pytest.raises(ScoreError, match="scores in validation are not finite numbers"):
        validate(encoder, [everything[p] for p in OWN[rank]], filter_seen=True)
    dist.destroy_process_group()


def test_scores_that_are_not_finite_end_all_ranks_also_those_without_users(tmp_path: Path) -> None:
    mp.spawn(validate_rank, args=(str(tmp_path),), nprocs=len(OWN))
