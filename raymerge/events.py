"""Messages of stages: plain values that any process can send; only the driver records and shows them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True)
class Event:
    """One metric of one run, recorded once per (run, key, step).

    `run` is its stage and model ("prepare", "train/duorec", "merge"), or "" for the pipeline as a whole; `key` names
    the metric ("loss", "ndcg@10"); `step` is the epoch or trial from 1, percent of the way along a line between
    members, or 0 for a single value.
    """

    run: str
    key: str
    step: int
    value: float


@dataclass(frozen=True)
class Progress:
    """How far a run is: `done` of `total` units, with a `note` for the reader."""

    run: str
    done: float
    total: float
    note: str = ""


@dataclass(frozen=True)
class Place:
    """URL of the artifact of a run, which need not be committed yet."""

    run: str
    url: str


Message: TypeAlias = Event | Progress | Place
Emit: TypeAlias = Callable[[Message], None]
