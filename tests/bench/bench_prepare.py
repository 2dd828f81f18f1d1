"""Time and memory of `prepare` as a log grows: `python tests/bench/bench_prepare.py [--rows 2000000 20000000]`.

Makes logs in time order with long tails of items and users (on average 20 interactions per user and 200 per item),
each in a temporary folder, and prepares each in its own process, on two cores and with at most 4 GiB of address space,
libraries included. The peak is of resident memory; next to it is what the process took before it read the first row. On
a machine with other work, compare the seconds of CPU.
"""

import argparse
import itertools
import json
import os
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from machine import in_fresh_process, peak_mib

from raymerge.data.prepare import PrepareConfig, prepare

ROWS_AT_ONCE = 1 << 20
PER_USER, PER_ITEM = 20, 200
ACTIVITY_SPREAD = 0.6  # of a log-normal distribution: one in a hundred users has over 67 interactions
FIRST_DAY_S, YEAR_S = 1_700_000_000, 31_536_000


def write_log(path: Path, rows: int, *, catalogue: int | None = None, seed: int = 0) -> None:
    """A log of `rows` rows with columns user, item and timestamp, written by row groups; a function of its arguments.

    Users' activity is log-normal; items' popularity falls as 1 / rank.
    """
    random = np.random.default_rng(seed)
    users = np.cumsum(random.lognormal(0, ACTIVITY_SPREAD, max(1, rows // PER_USER)))
    items = np.cumsum(1 / np.arange(1, (catalogue or max(1, rows // PER_ITEM)) + 1))
    own_ids = random.permutation(len(items))  # so that popular items do not have adjacent ids
    schema = pa.schema([("user", pa.int64()), ("item", pa.int64()), ("timestamp", pa.int64())])
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, rows, ROWS_AT_ONCE):
            count = min(ROWS_AT_ONCE, rows - start)
            when = FIRST_DAY_S + (start + np.arange(count)) * YEAR_S // rows
            columns = [_drawn(random, users, count), own_ids[_drawn(random, items, count)], when]
            writer.write_batch(pa.record_batch([pa.array(column) for column in columns], schema))


def _drawn(random: np.random.Generator, cumulative: np.ndarray, count: int) -> np.ndarray:
    return np.searchsorted(cumulative, random.random(count) * cumulative[-1], side="right")


def measure(log: str, folder: str, memory_mib: int) -> dict[str, float]:
    """Prepare a log under a hard limit on address space; gives its counts, seconds by pass, and peak MiB."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
    resource.setrlimit(resource.RLIMIT_AS, (memory_mib << 20,) * 2)
    before, began, cpu, passes = peak_mib(), time.perf_counter(), time.process_time(), {}

    def note(what: str, done: int, total: int) -> None:
        passes[what] = time.perf_counter() - began

    counts = prepare([log], PrepareConfig(), Path(folder), progress=note)
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    ends = itertools.pairwise([0.0, *passes.values()])
    took = {f"{what} s": end - start for what, (start, end) in zip(passes, ends, strict=True)}
    found = {"seconds": seconds, "CPU s": cpu, "rows/s": counts["rows"] / seconds}
    found |= {"peak MiB": peak_mib(), "before MiB": before}
    return {**{name: counts[name] for name in ("users", "items", "interactions")}, **found, **took}


def in_process(rows: int, memory_mib: int, scratch: str) -> dict[str, float]:
    """`measure` in a fresh process, on a temporary log."""
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        log = Path(folder) / "log.parquet"
        write_log(log, rows)
        return in_fresh_process(__file__, [str(log), f"{folder}/prepared", memory_mib])


def main() -> None:
    """Parse the options, and print one line per log and the growth from the first to the last."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="*", type=int, default=[2_000_000, 20_000_000], help="interactions in each log")
    parser.add_argument("--memory-mib", type=int, default=4096, help="limit on address space")
    parser.add_argument("--scratch", help="folder for the temporary logs; default: the system's")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(measure(*json.loads(options.case))))
        return
    print(f"\nprepare, 2 cores, {options.memory_mib} MiB of address space")
    results = {}
    for rows in options.rows:
        results[rows] = found = in_process(rows, options.memory_mib, options.scratch)
        print(f"{rows:12,d} rows  " + "   ".join(f"{value:,.1f} {unit}" for unit, value in found.items()), flush=True)
    if len(results) > 1:
        first, *_, last = results
        growth = {unit: results[last][unit] / results[first][unit] for unit in ("seconds", "CPU s", "peak MiB")}
        print(f"{last / first:g} times the rows: " + ", ".join(f"{value:.2f} times {u}" for u, value in growth.items()))


if __name__ == "__main__":
    main()
