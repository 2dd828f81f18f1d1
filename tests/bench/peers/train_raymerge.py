"""Training with this package, in turns: train_raymerge.py LOG OBJECTIVE:ATTENTION[:processes] BATCH THREADS.

With `processes`, each of the threads is a single-threaded process, a data-parallel rank.
"""

import math
import os
import subprocess
import sys
from itertools import count

import torch
from interactions import read
from torch import distributed as dist
from turns import Turns

from raymerge.data.sequences import Sequences
from raymerge.models.encoder import EncoderConfig, SequenceEncoder
from raymerge.models.objectives import ObjectiveConfig, build_objective
from raymerge.training.batches import bucket_steps, epoch_batches, make_windows, plan_epoch
from raymerge.training.collectives import sum_over_ranks
from raymerge.training.config import TrainingConfig
from raymerge.training.same_target import index_same_targets
from raymerge.training.step import Stepper


def main(log: str, what: str, batch_size: int, threads: int, rank: int = 0) -> None:
    name, attention, *processes = what.split(":")
    turns = None if rank else Turns()
    torch.set_num_threads(1 if processes else threads)
    torch.manual_seed(0)
    histories, items = read(log)
    if processes:
        meet(rank, threads)
        histories = share(histories, rank, threads)
    config = EncoderConfig(attention=attention)
    encoder, objective = SequenceEncoder(items, config).train(), build_objective(ObjectiveConfig(name), config)
    stepper = Stepper(encoder, objective, TrainingConfig(batch_size=batch_size))
    stride = config.max_length
    windows = make_windows([histories], width=objective.window, stride=stride, device=torch.device("cpu"))
    same_target = None
    candidates = objective.same_target_candidates
    if candidates is not None:
        same_target = index_same_targets([histories], length=objective.window - 1, candidates=candidates, seed=0)
    steps = math.ceil(int(sum_over_ranks(torch.tensor(len(windows)))) / batch_size)
    bucket = bucket_steps(partitions=threads, batch_size=batch_size)
    for epoch in count():
        plan = plan_epoch(windows, steps=steps, bucket=bucket, seed=0, epoch=epoch)
        for batch in epoch_batches(windows, plan, same_target):
            figures = stepper.step(batch, rate=1e-3)
            if turns is not None:
                turns.done(tokens=int(figures.tokens), targets=int(figures.counts[0]), columns=int(figures.columns))


def meet(rank: int, ranks: int) -> None:
    """Join the other ranks by a file in the working folder; the first one starts them, and they end when it does."""
    if not rank:
        for other in range(1, ranks):
            subprocess.Popen([sys.executable, *sys.argv, str(other)], stdin=subprocess.DEVNULL)
    place = f"file://{os.getcwd()}/ranks-{os.getppid() if rank else os.getpid()}"
    dist.init_process_group("gloo", init_method=place, rank=rank, world_size=ranks)


def share(histories: Sequences, rank: int, ranks: int) -> Sequences:
    """Every `ranks`-th user."""
    users = torch.arange(rank, len(histories), ranks)
    return histories.select(users, histories.offsets[users], histories.offsets[users + 1])


if __name__ == "__main__":
    _, path, wanted, size, number, *rest = sys.argv
    main(path, wanted, *map(int, (size, number, *rest)))
