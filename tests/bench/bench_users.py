"""Fisher and evaluation as users grow: `python tests/bench/bench_users.py [--users 250 1000 4000]`.

Generated logs (see bench_prepare) with the same catalogue and partition size, a random model of d 16 with one block
over 20 items, and the stages as `raymerge fisher` and `raymerge evaluate` run them. Peaks are of resident memory since
the stage began, of the driver and of its largest process: neither should depend on the number of users.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from bench_prepare import PER_USER, write_log
from random_models import random_model

from raymerge.artifacts import Artifact, Output
from raymerge.execution.deadline import Deadline
from raymerge.execution.pool import Pool
from raymerge.execution.runtime import session
from raymerge.recipes import configure
from raymerge.stages.context import Context
from raymerge.stages.evaluate import evaluate
from raymerge.stages.fisher import fisher
from raymerge.stages.prepare import prepare

SETTINGS = (
    *("encoder.max_length=20", "encoder.dim=16", "encoder.blocks=1", "encoder.feed_forward=64", "encoder.heads=2"),
    *("cluster.actors=2", "evaluation.rankings=[full]"),
)


def context_of(folder: str, *overrides: str) -> Context:
    """A context that prints nothing."""
    return Context(configure("default", (*SETTINGS, *overrides)), Output(folder), lambda _: None, Deadline(36_000))


def prepared(folder: str, users: int, items: int, *overrides: str) -> tuple[Context, Artifact]:
    """A log of this many users, prepared."""
    context = context_of(f"{folder}/{users}", *overrides)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        log = Path(scratch) / "log.parquet"
        write_log(log, users * PER_USER, catalogue=items)
        return context, prepare(context, [str(log)])


def write_catalogue(path: Path, items: int) -> None:
    """All items of the generated logs, including those missing from a short log."""
    columns = {"index": np.arange(1, items + 1), "item": np.arange(items), "count": np.zeros(items, np.int64)}
    pq.write_table(pa.table(columns), path)


def forget_peak(piece: int = 0) -> None:
    """Reset this process's peak memory."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_mib(piece: int = 0) -> float:
    """Peak resident memory of this process since the reset."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1024


def in_each(pool: Pool, function: Callable[[int], float | None]) -> list[float | None]:
    """The results of the function in this process and in those of the pool."""
    pieces = {str(number): (number,) for number in range(pool.size)}
    return [function(0), *(result for _, result in pool.run(function, pieces, doing="memory"))]


def run(context: Context, pool: Pool, data: Artifact, model: Artifact) -> None:
    """Both stages on one log, one line each."""
    users = data.counts["users"]
    for stage in (fisher, evaluate):
        in_each(pool, forget_peak)
        began = time.perf_counter()
        stage(context, pool, data, {"random": model})
        rate = users / (time.perf_counter() - began)
        driver, *others = in_each(pool, peak_mib)
        memory = f"driver {driver:,.0f} MiB   largest process {max(others):,.0f} MiB"
        print(
            f"{users:9,d} users  {stage.__name__:9s}{rate:10,.1f} users/s   {memory}", file=sys.__stdout__, flush=True
        )


def main() -> None:
    """Parse the options and print two lines for each number of users."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", nargs="*", type=int, default=[250, 1000, 4000])
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--partition", type=int, default=125, help="users per partition")
    parser.add_argument("--estimator", default="exact")
    parser.add_argument("--samples", type=int, help="n of an estimator that samples")
    parser.add_argument("--scratch", help="folder for the temporary data; default: the system's")
    options = parser.parse_args()
    estimator = options.estimator + (f", n = {options.samples}" if options.samples else "")
    print(f"\nFisher ({estimator}) and evaluation, {options.items:,} items, 2 processes")
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder, session(configure("default").cluster):
        write_catalogue(Path(folder) / "items.parquet", options.items)
        settings = [f"fisher.estimator={options.estimator}", f"fisher.samples={options.samples or 'null'}"]
        settings += [f"prepare.catalogue={folder}/items.parquet"]
        logs = []
        for users in options.users:
            partitions = f"prepare.partitions={max(1, users // options.partition)}"
            logs.append(prepared(folder, users, options.items, *settings, partitions))
        model = random_model(*logs[0])
        with context_of(folder).pool() as pool:
            for context, data in logs:
                run(context, pool, data, model)


if __name__ == "__main__":
    main()
