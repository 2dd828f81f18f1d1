"""A simulated interaction log, for a first run without any data: people who watch series.

Items are parts of series, `noir.3.2` being part 2 of series 3, in the genre noir; their popularity has a long tail. In
a session a person stays in one genre, where they go on with the series that they watched there last (perhaps many
sessions ago) or choose by their taste, which leans towards what people of their habits like after the item before; now
and then they click on what is popular. Interests and taste drift. So the next item depends on the last one, on older
ones, on what alike people chose, and on chance.

Shapes: U users, V items, G genres, T steps. Items are 0..V−1 here.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raymerge.errors import ConfigError

GENRES = ("noir", "space", "heist", "magic", "court", "spy", "satire", "western", "epic", "doctor", "ghost", "jazz")
SHIPPED_SEED = 2307
NONE = -1
FIRST_DAY_S, DAY_S = 1_700_000_000, 86_400  # times are seconds since 1970

INTEREST_SHAPE = 0.4  # of a gamma distribution: the smaller, the fewer genres a person likes
GENRE_POPULARITY = 1 / np.arange(1, len(GENRES) + 1) ** 0.7
TRAITS = 8
TASTE, FLOW = 3.0, 0.4  # strengths: how much a person's taste and the last item decide
HABITS = 3  # kinds of people, each with its own way from item to item
POPULARITY_SPREAD = 1.5
MIDDLE_PENALTY = 1.0  # log odds against starting a series elsewhere than at part 1
SEEN_PENALTY = 50.0  # only who has seen all of a genre sees something again
MEAN_SESSION = 1.7
INTEREST_CHANGE = 0.1  # chance, a session, that one interest gives way to another
TASTE_MEMORY = 0.98  # of a taste, from one session to the next
CONTINUE, POPULAR = 0.2, 0.1  # chances of going on with a series and of what is popular; else a choice by taste


@dataclass(frozen=True)
class World:
    """What there is to watch.

    `names`, `genre`, `part` (0 the first), `following` (next part or NONE), `appeal` (log popularity) are [V]; `traits`
    [V, TRAITS]; `flow` [HABITS, V, TRAITS] the traits that are sought after an item by people of a habit; `shelves`
    [G, widest genre] holds each genre's items, then NONE.
    """

    names: np.ndarray
    genre: np.ndarray
    part: np.ndarray
    following: np.ndarray
    appeal: np.ndarray
    traits: np.ndarray
    flow: np.ndarray
    shelves: np.ndarray


def generate(*, seed: int = SHIPPED_SEED, users: int = 3500, items: int = 600) -> pa.Table:
    """An interaction log with columns `user` (int64), `item` (string) and `timestamp` (int64, s), in order of time.

    A user has between 10 and 60 interactions, 26 on average, hardly ever two with the same item. The log is a function
    of the arguments alone. Raises ConfigError for fewer than 1 user or 100 items.
    """
    if users < 1 or items < 100:
        raise ConfigError(f"the demo needs at least 1 user and 100 items, got {users} and {items}")
    random = np.random.default_rng(seed)
    world = _world(random, items)
    lengths = np.clip(random.lognormal(3.2, 0.45, users).astype(np.int64), 10, 60)
    watched, new_session = _watch(random, world, lengths)
    times = _times(random, new_session)
    real = watched != NONE
    owner = np.broadcast_to(np.arange(1, users + 1)[:, None], watched.shape)[real]
    order = np.argsort(times[real], kind="stable")
    columns = {"user": owner[order], "item": world.names[watched[real][order]], "timestamp": times[real][order]}
    return pa.table(columns)


def write(folder: Path) -> Path:
    """Write the log as `demo.parquet` into a folder; gives the file."""
    pq.write_table(generate(), folder / "demo.parquet")
    return folder / "demo.parquet"


def _world(random: np.random.Generator, items: int) -> World:
    lengths = 1 + random.geometric(0.3, items)
    series = np.repeat(np.arange(items), lengths)[:items]  # item → series; the last may be cut short
    starts = np.searchsorted(series, np.arange(series[-1] + 1))
    part = np.arange(items) - starts[series]
    genre = np.concatenate([np.arange(len(GENRES)), random.integers(0, len(GENRES), items)])[series]
    last = np.append(series[1:] != series[:-1], True)
    appeal = random.normal(0, POPULARITY_SPREAD, len(starts))[series] + random.normal(0, 0.3, items) - 0.1 * part
    traits = 0.9 * random.normal(size=(len(starts), TRAITS))[series] + 0.5 * random.normal(size=(items, TRAITS))
    turns = np.linalg.qr(random.normal(size=(HABITS, TRAITS, TRAITS)))[0]
    return World(
        names=np.array([f"{GENRES[g]}.{s + 1}.{p + 1}" for g, s, p in zip(genre, series, part, strict=True)]),
        genre=genre,
        part=part,
        following=np.where(last, NONE, np.arange(items) + 1),
        appeal=appeal,
        traits=traits,
        flow=traits @ turns,
        shelves=_shelves(genre),
    )


def _shelves(genre: np.ndarray) -> np.ndarray:
    order = np.argsort(genre, kind="stable")
    sizes = np.bincount(genre, minlength=len(GENRES))
    shelves = np.full((len(GENRES), sizes.max()), NONE)
    shelves[np.arange(sizes.max()) < sizes[:, None]] = order
    return shelves


class Audience:
    """The state of all users between two steps."""

    def __init__(self, random: np.random.Generator, world: World, users: int) -> None:
        self.random, self.world, self.users = random, world, users
        self.interests = (random.gamma(INTEREST_SHAPE, size=(users, len(GENRES))) + 1e-3) * GENRE_POPULARITY
        self.taste = random.normal(size=(users, TRAITS))
        self.habit = random.integers(0, HABITS, users)
        self.genre = np.zeros(users, np.int64)
        self.flowing = np.zeros((users, TRAITS))
        self.bookmarks = np.full((users, len(GENRES)), NONE)
        self.seen = np.zeros((users, len(world.names)), bool)

    def start_sessions(self, who: np.ndarray) -> None:
        """Interests and taste drift a little, and a genre is chosen, for the users `who` (positions)."""
        change = who[self.random.random(len(who)) < INTEREST_CHANGE]
        old, new = self.random.integers(0, len(GENRES), (2, len(change)))
        self.interests[change, old], self.interests[change, new] = (
            self.interests[change, new],
            self.interests[change, old],
        )
        fresh = self.random.normal(size=(len(who), TRAITS))
        self.taste[who] = TASTE_MEMORY * self.taste[who] + np.sqrt(1 - TASTE_MEMORY**2) * fresh
        self.genre[who] = _draw(self.random, self.interests[who])

    def step(self, who: np.ndarray) -> np.ndarray:
        """The next items of the users `who`: int64[n] → int64[n]."""
        kind = self.random.random(len(who))
        item = np.where(kind < CONTINUE, self.bookmarks[who, self.genre[who]], NONE)
        item = np.where(kind > 1 - POPULAR, self._popular(len(who)), item)
        undecided = np.flatnonzero((item == NONE) | self.seen[who, item])
        item[undecided] = self._by_taste(who[undecided])
        self._remember(who, item)
        return item

    def _popular(self, number: int) -> np.ndarray:
        weights = np.exp(self.world.appeal)
        return self.random.choice(len(weights), number, p=weights / weights.sum())

    def _by_taste(self, who: np.ndarray) -> np.ndarray:
        """An unseen item of the session's genre: log odds are appeal + sought traits · its traits (Gumbel's trick)."""
        world, shelf = self.world, self.world.shelves[self.genre[who]]
        sought = (TASTE * self.taste[who] + FLOW * self.flowing[who]) / np.sqrt(TRAITS)
        odds = np.take_along_axis(sought @ world.traits.T, shelf, axis=1) + self.random.gumbel(size=shelf.shape)
        odds += (world.appeal - MIDDLE_PENALTY * (world.part > 0))[shelf]
        odds -= SEEN_PENALTY * self.seen[who[:, None], shelf]
        odds[shelf == NONE] = -np.inf
        return shelf[np.arange(len(who)), odds.argmax(axis=1)]

    def _remember(self, who: np.ndarray, item: np.ndarray) -> None:
        self.seen[who, item] = True
        self.flowing[who] = self.world.flow[self.habit[who], item]
        self.genre[who] = self.world.genre[item]
        self.bookmarks[who, self.genre[who]] = self.world.following[item]


def _draw(random: np.random.Generator, weights: np.ndarray) -> np.ndarray:
    """One column a row, with probability in proportion to the weights: [n, k] → int64[n]."""
    cumulated = np.cumsum(weights, axis=1)
    return (cumulated < random.random((len(weights), 1)) * cumulated[:, -1:]).sum(axis=1)


def _watch(random: np.random.Generator, world: World, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What every user watches at each step, int64[U, T], NONE after the last, and where sessions begin, bool[U, T]."""
    audience = Audience(random, world, len(lengths))
    new_session = random.random((len(lengths), lengths.max())) < 1 / MEAN_SESSION
    new_session[:, 0] = True
    watched = np.full(new_session.shape, NONE)
    for step in range(lengths.max()):
        present = lengths > step
        audience.start_sessions(np.flatnonzero(present & new_session[:, step]))
        watched[present, step] = audience.step(np.flatnonzero(present))
    return watched, new_session


def _times(random: np.random.Generator, new_session: np.ndarray) -> np.ndarray:
    """When each step happens, int64[U, T] in s: an hour or so after the last, days after it if a session begins."""
    within = 1800 + random.exponential(1800, new_session.shape)
    between = random.exponential(3 * DAY_S, new_session.shape)
    start = random.uniform(0, 90 * DAY_S, (len(new_session), 1))
    return FIRST_DAY_S + (start + np.cumsum(within + new_session * between, axis=1)).astype(np.int64)
