"""Training speed compared with other packages and a plain torch loop: `python tests/bench/bench_training.py [--help]`.

All learn from the training part of MovieLens-1M (folder RAYMERGE_TEST_DATA, by default `../shared/data`; without it,
from a simulated log, and the output says so) with L 50, d 64, 2 blocks, 2 heads, dropout .2, mask rate .2 and all items
in the softmax. Each cuts rows, batches and shuffles in its own way, which is timed too. They train alternately for two
seconds each in one run, so that other work on the machine slows all of them equally, each at its fastest batch size.
Each peer is installed into its own environment; one that cannot be installed is left out.

Tokens are input items, masked or not, without padding and without the views of contrastive objectives; targets are
predicted positions, which differ between objectives; useful is the share of computed positions that are not padding.
"""

import argparse
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from environments import CACHE, REQUIREMENTS, NotInstalled, python_of
from logs import write_log
from machine import product_rate
from race import Broken, Contestant, Totals, race

from raymerge.models.objectives import OBJECTIVES

HEAT_TURNS = 2


@dataclass(frozen=True)
class Entry:
    """A row of the table: a script in peers/, its argument, and whose environment it needs."""

    script: str
    what: str
    peer: str | None = None


def entries() -> dict[str, Entry]:
    rows = {
        "plain loop, bidirectional": Entry("train_plain.py", "bidirectional"),
        "plain loop, causal": Entry("train_plain.py", "causal"),
        "RecTools BERT4Rec": Entry("train_rectools.py", "bert4rec", "RecTools"),
        "RecTools SASRec": Entry("train_rectools.py", "sasrec", "RecTools"),
        "RecBole BERT4Rec": Entry("train_recbole.py", "BERT4Rec", "RecBole"),
    }
    for name in OBJECTIVES:
        only = OBJECTIVES[name].attention
        for attention in [only] if only else ["bidirectional", "causal"]:
            rows[f"raymerge {name}, {attention}"] = Entry("train_raymerge.py", f"{name}:{attention}")
        if only:  # one single-threaded process for each of --threads
            rows[f"raymerge {name}, processes"] = Entry("train_raymerge.py", f"{name}:{only}:processes")
    return rows


def interpreters(peers: set[str], cache: Path) -> dict[str | None, str]:
    """The Python of each of these peers that can be installed, and ours (None)."""
    found: dict[str | None, str] = {None: sys.executable}
    for peer in sorted(peers):
        try:
            found[peer] = python_of(peer, cache)
        except NotInstalled as problem:
            print(f"{peer} is left out, because it cannot be installed here: {problem}")
    return found


def fastest(name: str, entry: Entry, python: str, log: Path, options: argparse.Namespace) -> tuple[str, Contestant]:
    """The entry at the batch size with the most tokens per second."""
    heat: dict[str, Contestant] = {}
    try:
        for size in options.batch:
            heat[f"{name}, batch {size}"] = Contestant(python, entry.script, log, entry.what, size, options.threads)
        if len(heat) == 1:
            return next(iter(heat.items()))
        totals = race(heat, HEAT_TURNS)
    except Broken:
        for contestant in heat.values():
            contestant.stop()
        raise
    best = max(totals, key=lambda label: totals[label].rate("tokens"))
    for label, contestant in heat.items():
        if label != best:
            contestant.stop()
    return best, heat[best]


def chosen(log: Path, options: argparse.Namespace) -> dict[str, Contestant]:
    """All rows that are wanted and can run, set up."""
    wanted = {name: entry for name, entry in entries().items() if not options.rows or name.startswith(options.rows)}
    pythons = interpreters({entry.peer for entry in wanted.values() if entry.peer}, options.cache)
    found = {}
    for name, entry in wanted.items():
        if entry.peer not in pythons:
            continue
        try:
            label, contestant = fastest(name, entry, pythons[entry.peer], log, options)
            found[label] = contestant
        except Broken as problem:
            print(f"{name} is left out, because it does not run here: {problem}")
    return found


def table(results: dict[str, Totals]) -> None:
    """Print the rates, and how many times as fast as the peers each row is."""
    peers = [name for name in results if name.startswith(tuple(REQUIREMENTS))]
    heads = [f"× {name.split(',')[0]}".rjust(21) for name in peers]
    print(f"\n{'':46}{'tokens/s':>12}{'targets/s':>12}{'useful':>8}" + "".join(heads))
    for name, totals in results.items():
        useful = totals.counts["tokens"] / totals.counts["columns"]
        ratios = [totals.rate("tokens") / results[peer].rate("tokens") for peer in peers]
        print(
            f"{name:46}{totals.rate('tokens'):12,.0f}{totals.rate('targets'):12,.0f}{useful:8.0%}"
            + "".join(f"{ratio:21.1f}" for ratio in ratios)
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=8, help="two-second turns per row")
    parser.add_argument("--batch", type=int, nargs="+", default=[128, 256], help="to try: each row uses its fastest")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--rows", type=lambda text: tuple(text.split(",")), default=(), help="only those whose names begin like this"
    )
    parser.add_argument("--cache", type=Path, default=CACHE, help="folder of the peers' environments")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log.npy"
        print(write_log(log), flush=True)
        contestants = chosen(log, options)
        before = product_rate()
        results = race(contestants, options.turns)
        for contestant in contestants.values():
            contestant.stop()
        rate = (before + product_rate()) / 2
    table(results)
    print(f"{options.threads} threads; float32 matrix products in the same run: {rate:,.0f} GFLOP/s")


if __name__ == "__main__":
    main()
