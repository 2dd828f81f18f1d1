"""Contestants, each in its own process, that take short turns, so that other work slows all of them equally."""

import json
import os
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

PEERS = Path(__file__).parent / "peers"
TURN_S = 2.0


class Broken(Exception):
    """A contestant ended unexpectedly; the message is its last line."""


@dataclass
class Totals:
    """What was counted in all turns of a contestant, and their seconds."""

    counts: dict[str, float] = field(default_factory=dict)

    def add(self, turn: dict[str, float]) -> None:
        for name, count in turn.items():
            self.counts[name] = self.counts.get(name, 0.0) + count

    def rate(self, name: str) -> float:
        """How many per second."""
        return self.counts[name] / self.counts["seconds"]


class Contestant:
    """A script in peers/ that uses `turns`, started; ready once its first unit of work is done."""

    def __init__(self, python: str, script: str, *arguments: object) -> None:
        self.totals = Totals()
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115, as long as the process
        self.folder = tempfile.TemporaryDirectory()  # some leave files in their working folder
        # not PYTHONPATH: our test folders have the names of other people's packages
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        self.process = subprocess.Popen(
            [python, str(PEERS / script), *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            env=environment,
            cwd=self.folder.name,
        )
        self._read()

    def _read(self) -> dict[str, float]:
        line = self.process.stdout.readline()
        if not line:
            self.stop()
            self.errors.seek(0)
            raise Broken((self.errors.read().strip() or "ended without a message").splitlines()[-1])
        return json.loads(line)

    def turn(self) -> None:
        """Let it work for TURN_S, and add up what it did."""
        print(TURN_S, file=self.process.stdin, flush=True)
        self.totals.add(self._read())

    def stop(self) -> None:
        """End the process."""
        self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def race(contestants: dict[str, Contestant], turns: int) -> dict[str, Totals]:
    """Let all of them take turns, after one to warm up; gives what each counted."""
    for contestant in contestants.values():
        contestant.turn()
        contestant.totals = Totals()
    for _ in range(turns):
        for contestant in contestants.values():
            contestant.turn()
    return {name: contestant.totals for name, contestant in contestants.items()}
