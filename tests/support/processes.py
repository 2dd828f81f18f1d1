"""Processes of the tests on this machine, where other Rays may be running."""

import os
import time
from pathlib import Path


def named(name: str) -> list[int]:
    """Pids of this process's descendants whose command line begins with this."""
    parents = {pid: parent for pid in _all() if (parent := _parent(pid))}
    return [pid for pid in parents if _read(pid, "cmdline").startswith(name.encode()) and _is_below(pid, parents)]


def of_home(home: str) -> list[int]:
    """Pids of the processes started with this home, except those that have overwritten their environment."""
    return [pid for pid in _all() if f"HOME={home}".encode() in _read(pid, "environ").split(b"\0")]


def wait_until_gone(home: str, seconds: float = 20) -> None:
    """Wait until no process with this home is left; fails after some seconds."""
    end = time.monotonic() + seconds
    while left := of_home(home):
        assert time.monotonic() < end, left
        time.sleep(0.2)


def _all() -> list[int]:
    return [int(process.name) for process in Path("/proc").glob("[0-9]*")]


def _read(pid: int, file: str) -> bytes:
    """A file in /proc of a process; empty if it has ended."""
    try:
        return Path(f"/proc/{pid}/{file}").read_bytes()
    except OSError:
        return b""


def _parent(pid: int) -> int:
    fields = _read(pid, "stat").rpartition(b")")[2].split()
    return int(fields[1]) if fields else 0


def _is_below(pid: int, parents: dict[int, int]) -> bool:
    while pid in parents and pid != os.getpid():
        pid = parents[pid]
    return pid == os.getpid()
