"""A plain torch loop over the windows of all histories, in turns: train_plain.py LOG ATTENTION BATCH THREADS."""

import sys

import torch
from interactions import read
from plain import LENGTH, PlainTraining
from torch import Tensor
from turns import Turns


def windows(log: str, width: int) -> tuple[Tensor, int]:
    """Successive runs of at most `width` items of each training part, padded on the right, and the number of items."""
    histories, items = read(log)
    rows = []
    for start, end in zip(histories.offsets[:-1].tolist(), (histories.offsets[1:] - 2).tolist(), strict=True):
        rows += [run for run in histories.items[start:end].long().split(width) if len(run) > 1]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True), items


def main(log: str, attention: str, batch_size: int, threads: int) -> None:
    turns = Turns()
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    causal = attention == "causal"
    rows, items = windows(log, LENGTH + causal)
    training = PlainTraining(items, causal)
    while True:
        for picked in torch.randperm(len(rows)).split(batch_size):
            batch = rows[picked]
            targets = training.step(batch)
            tokens = int((batch != 0).sum()) - causal * len(batch)  # the last item of a causal window is not an input
            turns.done(tokens=tokens, targets=targets, columns=len(batch) * LENGTH)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
