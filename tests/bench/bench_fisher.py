"""Speed and memory of the Fisher diagonal: `python tests/bench/bench_fisher.py` (see --help to keep it short).

One table of estimators at the size of MovieLens-1M, with the machine's float32 matrix products measured in the same
run, one of catalogues from 10⁴ to 10⁶ items, and one of other ways to compute the exact diagonal, alternating every two
seconds. Each row runs in its own process, so that peak memory is its own.
"""

import argparse
import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[2]))

from machine import in_fresh_process, peak_mib, product_rate
from race import Contestant, race

from raymerge.fisher import FisherConfig, accumulate
from raymerge.fisher.engine import MEMORY_BYTES
from raymerge.fisher.study import line_of
from raymerge.models.encoder import EncoderConfig, SequenceEncoder

ROWS = (
    FisherConfig("exact"),
    FisherConfig("exact", precision="bf16"),
    FisherConfig("model", 10),
    FisherConfig("model", 10, precision="bf16"),
    FisherConfig("model", 10, batch_size=32),
    FisherConfig("random", 30),
    FisherConfig("random", 30, precision="bf16"),
    FisherConfig("random", 30, batch_size=32),
    FisherConfig("random_unweighted", 30),
    FisherConfig("topk", 50),
    FisherConfig("topk", 50, batch_size=32, align="identity"),
    FisherConfig("rank", 50),
    FisherConfig("rank", 8),
    FisherConfig("rank_unbiased", 8),
    FisherConfig("hutchinson", 1),
    FisherConfig("target"),
)
GROUP = 32  # users whose products are counted: a whole batch of the batch-wise estimators


@dataclass
class Case:
    """One measurement: all histories are full (length 50), the hardest case for an engine that skips padding."""

    users: int
    items: int = 3416
    config: FisherConfig = ROWS[0]
    threads: int = 1
    memory_mib: int = MEMORY_BYTES >> 20


def measure(case: Case) -> dict[str, float]:
    """Users per second, float32 products (GFLOP/s), the share of that rate that the engine reaches, and peak MiB."""
    torch.set_num_threads(case.threads)
    torch.manual_seed(0)
    module = SequenceEncoder(case.items, EncoderConfig(attention="causal")).eval()
    module.item_embedding.weight.data[1:].normal_(std=0.3)
    histories = torch.stack([torch.randperm(case.items)[:50] + 1 for _ in range(case.users)])
    targets = histories[:, 0]

    def run(users: int) -> float:
        start = time.perf_counter()
        accumulate(
            module, histories[:users], config=case.config, targets=targets[:users], memory_bytes=case.memory_mib << 20
        )
        return time.perf_counter() - start

    run(2)
    rates, seconds = [product_rate()], run(case.users)
    rates.append(product_rate())
    before = peak_mib()
    work = products_of_a_user(module, histories[:GROUP], case.config, targets[:GROUP])
    rate = sum(rates) / 2
    parameters = sum(p.numel() for p in module.parameters())
    return {
        "users/s": case.users / seconds,
        "GFLOP/s": rate,
        "share": work * case.users / seconds / rate / 1e9,
        "GFLOP/user": work / 1e9,
        "peak MiB": before,
        "parameters and sums MiB": parameters * 12 / 2**20,
    }


def added_product(total: torch.Size, a: torch.Size, b: torch.Size, **_: object) -> int:
    """Operations of total += a @ b, which the counter does not know."""
    return 2 * a.numel() * b[-1]


def products_of_a_user(
    module: SequenceEncoder, histories: torch.Tensor, config: FisherConfig, targets: torch.Tensor
) -> float:
    """Floating-point operations in matrix products for one user, counted on one thread."""
    from raymerge.fisher import engine

    threaded, engine.in_order = engine.in_order, map  # the counter sees only its own thread
    in_place = dict.fromkeys((torch.ops.aten.addmm_, torch.ops.aten.baddbmm_), added_product)
    with FlopCounterMode(display=False, custom_mapping=in_place) as counter:
        accumulate(module, histories, config=config, targets=targets)
    engine.in_order = threaded
    return counter.get_total_flops() / len(histories)


def measured(case: Case, processes: int) -> dict[str, float]:
    """What this many processes reach at once: the sum of rates, and the largest of everything else."""
    with ThreadPoolExecutor(processes) as starting:
        found = list(starting.map(lambda one: in_fresh_process(__file__, asdict(one)), [case] * processes))
    return {unit: (sum if unit.endswith("/s") else max)(one[unit] for one in found) for unit in found[0]}


def table(title: str, rows: dict[str, Case], processes: int) -> None:
    """Measure and print one line per case."""
    print(f"\n{title}, {processes} processes" if rows else "")
    for name, case in rows.items():
        found = measured(case, processes)
        print(f"{name:42s} " + "   ".join(f"{value:,.2f} {unit}" for unit, value in found.items()), flush=True)


def peers(turns: int, threads: int) -> None:
    """The exact diagonal next to a plain loop over items and a plain vmap over probes, at 3416 items."""
    if not turns:
        return
    ways = {"raymerge": "exact", "vmap": "torch.func, vmap over 64 probes", "naive": "one backward pass per item"}
    contestants = {way: Contestant(sys.executable, "fisher.py", way, 3416, threads) for way in ways}
    before = product_rate()
    totals = race(contestants, turns)
    for contestant in contestants.values():
        contestant.stop()
    rates = {name: totals[way].rate("users") for way, name in ways.items()}
    print(f"\nexact over 3416 items; matrix products {(before + product_rate()) / 2:,.0f} GFLOP/s")
    for name, rate in rates.items():
        print(f"{name:40s}{rate:12,.3f} users/s   1/{rates['exact'] / rate:,.0f} of ours")


def main() -> None:
    """Parse the options and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--users", type=int, default=6040, help="users of the first table")
    parser.add_argument(
        "--estimators", nargs="*", default=[config.estimator for config in ROWS], help="rows of the first table"
    )
    parser.add_argument("--catalogues", nargs="*", type=int, default=[10**4, 10**5, 10**6], help="items, second table")
    parser.add_argument("--catalogue-users", type=int, default=64, help="users of the second table")
    parser.add_argument(
        "--processes",
        type=int,
        default=torch.get_num_threads(),
        help="run at once, like the actors of a stage; each does all users",
    )
    parser.add_argument("--threads", type=int, default=1, help="per process")
    parser.add_argument("--memory-mib", type=int, default=MEMORY_BYTES >> 20, help="memory budget per thread")
    parser.add_argument("--turns", type=int, default=8, help="two-second turns per row of the third table")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.case:
        case = json.loads(options.case)
        print(json.dumps(measure(Case(**case | {"config": FisherConfig(**case["config"])}))))
        return
    common = {"threads": options.threads, "memory_mib": options.memory_mib}
    rows = {
        f"{line_of(config)} n={config.samples or ''} {config.precision}": Case(options.users, config=config, **common)
        for config in ROWS
        if config.estimator in options.estimators
    }
    table(f"3416 items, {options.users} users, {options.threads} threads", rows, options.processes)
    sizes = {f"{items:,} items": Case(options.catalogue_users, items=items, **common) for items in options.catalogues}
    table(f"exact, {options.catalogue_users} users", sizes, options.processes)
    peers(options.turns, options.threads)


if __name__ == "__main__":
    main()
