"""A training step as the catalogue grows: `python tests/bench/bench_catalogue.py [--catalogues 10000 100000 1000000]`.

Windows of 50 items, d 64, 2 blocks, causal; the softmax over all items and the sampled one. Each line is measured in
its own process. `state` is what training always keeps: weights, gradients and two moments; `logits` is what
positions × items would take, which nothing may hold. bench_fisher has the Fisher engine's table of catalogues.
"""

import argparse
import itertools
import json
import time

import torch
from machine import in_fresh_process, peak_mib

from raymerge.execution.runtime import WORKER_ENVIRONMENT
from raymerge.models.batch import Batch
from raymerge.models.encoder import EncoderConfig, SequenceEncoder
from raymerge.models.objectives import ObjectiveConfig, build_objective
from raymerge.training.config import TrainingConfig
from raymerge.training.step import Stepper

LENGTH, DIM = 50, 64


def measure(items: int, loss: str, batch: int, steps: int) -> dict[str, float]:
    """Seconds of the fastest step, and the process's peak memory in MiB."""
    torch.set_num_threads(2)
    torch.manual_seed(0)
    config = EncoderConfig(attention="causal", max_length=LENGTH, dim=DIM)
    encoder = SequenceEncoder(items, config).train()
    settings = {} if loss == "full" else {"loss": "sampled"}
    stepper = Stepper(encoder, build_objective(ObjectiveConfig("next_item", settings), config), TrainingConfig())
    stepper.step(_batch(items, 1), rate=1e-3)  # allocates the moments
    began = [time.perf_counter()]
    for _ in range(steps):
        stepper.step(_batch(items, batch), rate=1e-3)
        began.append(time.perf_counter())
    state = 4 * sum(parameter.numel() * 4 for parameter in encoder.parameters())
    return {
        "s/step": min(after - before for before, after in itertools.pairwise(began)),
        "peak MiB": peak_mib(),
        "state MiB": state / 2**20,
        "logits MiB": batch * LENGTH * items * 4 / 2**20,
    }


def _batch(items: int, rows: int) -> Batch:
    """Windows of items from a long-tailed distribution."""
    windows = (items ** torch.rand(rows, LENGTH + 1)).long().clamp_(1, items)
    return Batch(windows, torch.randint(2**60, (rows,)))


def main() -> None:
    """Parse the options and print one line per catalogue and loss."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--catalogues", nargs="*", type=int, default=[10**4, 10**5, 10**6])
    parser.add_argument("--losses", nargs="*", default=["full", "sampled"])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(measure(*json.loads(options.case))))
        return
    print(f"\na training step, {options.batch} windows of {LENGTH}")
    for loss in options.losses:
        for items in options.catalogues:
            found = in_fresh_process(__file__, (items, loss, options.batch, options.steps), **WORKER_ENVIRONMENT)
            figures = "   ".join(f"{value:,.2f} {unit}" for unit, value in found.items())
            print(f"{loss:8s}{items:10,d} items   {figures}", flush=True)


if __name__ == "__main__":
    main()
