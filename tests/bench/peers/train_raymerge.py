"""Training with this package, in turns: train_raymerge.py LOG OBJECTIVE:ATTENTION BATCH THREADS."""

import math
import sys
from itertools import count

import torch
from interactions import read
from turns import Turns

from raymerge.models.encoder import EncoderConfig, SequenceEncoder
from raymerge.models.objectives import ObjectiveConfig, build_objective
from raymerge.training.batches import epoch_batches, make_windows, plan_epoch
from raymerge.training.config import TrainingConfig
from raymerge.training.same_target import index_same_targets
from raymerge.training.step import Stepper


def main(log: str, what: str, batch_size: int, threads: int) -> None:
    name, attention = what.split(":")
    turns = Turns()
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    histories, items = read(log)
    config = EncoderConfig(attention=attention)
    encoder, objective = SequenceEncoder(items, config).train(), build_objective(ObjectiveConfig(name), config)
    stepper = Stepper(encoder, objective, TrainingConfig(batch_size=batch_size))
    stride = config.max_length
    windows = make_windows([histories], width=objective.window, stride=stride, device=torch.device("cpu"))
    same_target = None
    if objective.uses_same_target:
        candidates = objective.settings.candidates
        same_target = index_same_targets([histories], length=objective.window - 1, candidates=candidates, seed=0)
    steps = math.ceil(len(windows) / batch_size)
    for epoch in count():
        plan = plan_epoch(windows, steps=steps, seed=0, epoch=epoch)
        for batch in epoch_batches(windows, plan, same_target):
            figures = stepper.step(batch, rate=1e-3)
            turns.done(tokens=int(figures.tokens), targets=int(figures.counts[0]), columns=int(figures.columns))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
