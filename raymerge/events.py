"""What stages say while they work: plain values that any process can send and the driver alone records and shows."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True)
class Event:
    """One figure of one run, recorded once by (run, key, step).

    `run` names the stage and model it belongs to ("prepare", "train/duorec", "merge"), "" the pipeline as a whole;
    `key` the figure ("loss", "ndcg@10"); `step` the epoch or trial, from 1, or 0 where there is only one.
    """

    run: str
    key: str
    step: int
    value: float


@dataclass(frozen=True)
class Progress:
    """How far a run is: `done` of `total` units, and in `note` what a person wants to know besides."""

    run: str
    done: float
    total: float
    note: str = ""


@dataclass(frozen=True)
class Place:
    """Where the artifact of a run lies, or will lie once it is committed."""

    run: str
    url: str


Message: TypeAlias = Event | Progress | Place
Emit: TypeAlias = Callable[[Message], None]
