"""From interaction logs to user partitions, in memory bounded by one partition and the catalogue.

Four passes: the log is read and its rows spilled by user; each partition is sorted; rare items and users are dropped;
the partitions and the catalogue are written.

One engine serves every size: Arrow, in one process, with spill files of its own. A second one for large logs (Ray Data)
would have to give the same bytes and shuffle the whole log through the object stores, to save a reading that takes one
process under an hour for a billion rows (`raymerge.execution.costs`). Memory: a batch of rows, one partition (about 100
bytes per row) and the catalogue's ids (about 200 bytes per item); on disk the spilled rows, about 30 bytes each.
"""

import json
import math
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import torch
from pyarrow import compute as pc
from torch import Tensor

from raymerge.data.cleaning import Duplicates, Histories, count_items, keep_frequent, sorted_histories
from raymerge.data.ids import own_ids, stable_keys
from raymerge.data.intake import MAX_MARKETS, Intake
from raymerge.data.interactions import LogConfig, open_log
from raymerge.data.sequences import Items, Sequences, read_items, write_items, write_partition
from raymerge.data.spill import Spill
from raymerge.data.split import MIN_LENGTH, drawn_to_validate, evaluated_users, training_part
from raymerge.errors import InputError
from raymerge.files.storage import join, list_files
from raymerge.redaction import without_credentials
from raymerge.settings_checks import check_choices, check_ranges

Core = Literal["iterated", "once"]
Tell = Callable[[str, int, int], None]
"""Called with the stage, how much of it is done, and how much there is to do."""

PARTITIONS_FOLDER = "partitions"
ITEMS_FILE = "items.parquet"
MARKETS_FILE = "markets.json"
MAX_PARTITIONS = 65536


@dataclass(frozen=True)
class PrepareConfig(LogConfig):
    """How an interaction log becomes user partitions.

    `duplicates` are kept, dropped if equal in user, item and time (`exact`; needs times), or dropped except the `first`
    or `last` of a user with an item, each within one market if the log has several. `core` says how rare items and
    users are dropped: `once` drops items with fewer than `min_item_count` interactions and then users with fewer than
    `min_user_count` left, in one pass each, as is common for SASRec; `iterated` repeats this until everything left has
    the counts (the k-core). `catalogue` names the items of other prepared data: their indices are used, all their items
    stay, and interactions with other items are dropped and counted, so that models trained on both can be merged. Only
    items that the log has are on offer here, and a model that starts from a given one learns to choose among them
    alone. Up to `max_bad_share` of the rows may lack a user, an item, a parsable timestamp or a market (if used); they
    are dropped and counted. Of more than `validation_users` users about that many are drawn to validate, by the hash of
    their id; the second-to-last items of the others train.
    """

    duplicates: Duplicates = "keep"  # repetitions of a user with an item
    core: Core = "iterated"  # once drops rare items, then users; iterated repeats this until none is rare
    min_item_count: int = 5  # interactions that an item needs
    min_user_count: int = 5
    partitions: int = 8  # of the users: the units of work
    catalogue: str | None = None  # URL of prepared data or of its items.parquet
    max_bad_share: float = 0.01  # of rows that may lack a user, an item or a parsable time
    validation_users: int | None = None  # about how many; second-to-last items of the others train; null: all users

    def __post_init__(self) -> None:
        super().__post_init__()
        counts = dict.fromkeys(("min_item_count", "min_user_count", "validation_users"), (1, math.inf))
        check_ranges(self, "prepare", partitions=(1, MAX_PARTITIONS), max_bad_share=(0, 1), **counts)
        check_choices(self, "prepare")


def prepare(sources: list[str], config: PrepareConfig, folder: Path, *, progress: Tell | None = None) -> dict[str, int]:
    """Write `partitions/part-*.parquet` and `items.parquet` below a local folder; return what was counted.

    A partition has columns `user` (own id), `key` (int64, the id's stable hash) and `items` (list<int32>, the whole
    history in order of time as item indices 1..V), sorted by user, and unless all users validate `validates` (bool).
    `items.parquet` has `index`, `item` (own id; indices follow its order) and `count` (interactions that train); with a
    given catalogue also `offered` (whether the log has the item). With a column of markets, partitions also have
    `markets` (list<int16>): numbers from 1 of the names in `markets.json`, the sorted names of markets that have any
    interactions left. The bytes depend only on the log and the configuration.

    Counts: `files`, `rows`, those dropped as `malformed_rows`, `bad_ids`, `bad_timestamps`, `bad_markets` and
    `unknown_items`, then `duplicates` and `rare` interactions, the `users`, `items`, `interactions` and `partitions`
    that are left, and the `validation_users`; with a given catalogue, how many of its items are `offered`, and with a
    column of markets, how many `markets` are left.

    Raises InputError for a log that cannot be read, before anything is written, for too many bad rows or markets, and
    if no row is left or nobody was drawn to validate.
    """
    tell = progress or (lambda what, done, total: None)
    catalogue = read_items(catalogue_file(config.catalogue)) if config.catalogue else None
    files = [file for source in sources for file in list_files(source)]
    sizes = list(_check(files, config))
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".spill-", dir=folder) as scratch:
        intake = Intake.of(Spill(Path(scratch), config.partitions), catalogue)
        starts = np.cumsum([0, *sizes]).tolist()
        for file, start in zip(files, starts[:-1], strict=True):
            intake.read(file, config, partial(_tell_read, tell, start, starts[-1]))
        intake.refuse_bad(config.max_bad_share)
        partitions = [Path(scratch) / f"histories-{number:05d}.arrow" for number in range(config.partitions)]
        counts = _sort(intake, partitions, config, tell)
        interactions = int(counts.sum())
        counts, evaluated = _keep_core(partitions, counts, config, tell)
        validating = 1.0 if config.validation_users is None else config.validation_users / max(1, evaluated)
        markets = _markets(partitions, intake) if config.market is not None else None
        written = _write(partitions, _Kept(intake, counts, markets, validating), folder, tell)
    dropped = {"duplicates": intake.good - interactions, "rare": interactions - written["interactions"]}
    return {"files": len(files), **intake.counts, **dropped, **written}


def catalogue_file(url: str) -> str:
    """The file of a catalogue, given by its own URL or that of the prepared data it is part of."""
    return url if url.endswith(".parquet") else join(url, ITEMS_FILE)


def _tell_read(tell: Tell, start: int, total: int, done: int) -> None:
    tell("read", start + done, total)


def _check(files: list[str], config: PrepareConfig) -> Iterator[int]:
    """Sizes in bytes of files that can all be opened as logs."""
    for file in files:
        yield check_log(file, config)


def check_log(file: str, config: PrepareConfig) -> int:
    """Size in bytes of a file; InputError unless it opens as a log with everything the configuration needs."""
    with open_log(file, config) as log:
        if config.duplicates == "exact" and "timestamp" not in log.schema.names:
            raise InputError(
                f"{without_credentials(file)} has no times, so there are no exact duplicates: "
                "set prepare.duplicates to keep, first or last"
            )
        return log.size


def _sort(intake: Intake, partitions: list[Path], config: PrepareConfig, tell: Tell) -> np.ndarray:
    """Turn spilled rows into histories, partition by partition; return the counts of items int64[number of codes]."""
    counts = np.zeros(len(intake.item_codes), np.int64)
    for number, path in enumerate(_each(partitions, "sort", tell)):
        rows = intake.spill.take(number)
        histories = sorted_histories(rows, whole_numbers=intake.whole_number_users, duplicates=config.duplicates)
        histories.save(path)
        counts += count_items(histories, len(counts))
    return counts


def _each(partitions: list[Path], what: str, tell: Tell) -> Iterable[Path]:
    for number, path in enumerate(partitions):
        yield path
        tell(what, number + 1, len(partitions))


def _keep_core(partitions: list[Path], counts: np.ndarray, config: PrepareConfig, tell: Tell) -> tuple[np.ndarray, int]:
    """Drop rare items and users, once or until none is rare; return item counts and the number of evaluated users."""
    least = 1 if config.catalogue else config.min_item_count  # a given catalogue keeps its items
    while True:
        left, evaluated = np.zeros_like(counts), 0
        for path in _each(partitions, "filter", tell):
            histories = keep_frequent(Histories.load(path), counts, min_item=least, min_user=config.min_user_count)
            histories.save(path)
            left += count_items(histories, len(left))
            evaluated += int((histories.lengths >= MIN_LENGTH).sum())
        if not left.any():
            raise InputError(
                f"nothing is left: no user has {config.min_user_count} interactions with items that have {least}; "
                "lower prepare.min_item_count and prepare.min_user_count"
            )
        if config.core == "once" or left.sum() == counts.sum():
            return left, evaluated
        counts = left


def _markets(partitions: list[Path], intake: Intake) -> dict[str, int]:
    """The markets with any interactions left, sorted by name, and the intake's number of each."""
    left = {number for path in partitions for number in np.unique(Histories.load(path).markets).tolist()}
    return {name: number for name, number in sorted(intake.market_codes.items()) if number in left}


@dataclass(frozen=True)
class _Kept:
    """What is left of the log once rare items and users are dropped."""

    intake: Intake
    counts: np.ndarray  # int64, interactions by the intake's item codes
    markets: dict[str, int] | None  # the intake's numbers, sorted by name; None without a column of markets
    validating: float  # share of the users that validates


def _write(partitions: list[Path], kept: _Kept, folder: Path, tell: Tell) -> dict[str, int]:
    """Write the partitions, the catalogue and the names of the markets; return their counts."""
    ids, codes = _catalogue(kept)
    training, users, validation_users = _write_partitions(partitions, kept, codes, folder / PARTITIONS_FOLDER, tell)
    totals = {
        "users": users,
        "items": len(ids),
        "interactions": int(kept.counts.sum()),
        "partitions": len(partitions),
        "validation_users": validation_users,
    }
    offered = torch.from_numpy(kept.counts[codes] > 0) if kept.intake.closed else None
    write_items(Items(ids, training, offered), folder / ITEMS_FILE)
    if offered is not None:
        totals["offered"] = int(offered.sum())
    if kept.markets is not None:
        (folder / MARKETS_FILE).write_text(json.dumps(list(kept.markets)) + "\n", encoding="utf-8")
        totals["markets"] = len(kept.markets)
    return totals


def _catalogue(kept: _Kept) -> tuple[pa.Array, np.ndarray]:
    """The catalogue's ids, as given or else sorted, and the intake's code of each: V ids, int64[V]."""
    codes = np.arange(len(kept.counts)) if kept.intake.closed else np.flatnonzero(kept.counts)
    texts = pa.array(list(kept.intake.item_codes), pa.string()).take(pa.array(codes))
    ids = own_ids(texts, whole_numbers=kept.intake.whole_number_items)
    if kept.intake.closed:
        return ids, codes
    order = pc.sort_indices(ids)
    return ids.take(order), codes[order.to_numpy()]


def _market_places(kept: _Kept) -> np.ndarray | None:
    """The number, from 1, each of the intake's markets is written as, 0 if none of it is left: int16[MAX_MARKETS]."""
    return None if kept.markets is None else _places(list(kept.markets.values()), MAX_MARKETS).astype(np.int16)


def _places(codes: Sequence[int] | np.ndarray, size: int) -> np.ndarray:
    """Position of each of 0..size−1, from 1, in a list of some of them, 0 if it is not there: int[V] → int32[size]."""
    places = np.zeros(size, np.int32)
    places[codes] = np.arange(1, len(codes) + 1)
    return places


def _write_partitions(
    partitions: list[Path], kept: _Kept, codes: np.ndarray, folder: Path, tell: Tell
) -> tuple[Tensor, int, int]:
    """Write the partitions; how often each item trains int64[V], the users, and the users who validate."""
    index_of, market_places = _places(codes, len(kept.counts)), _market_places(kept)
    training, users, validation_users = torch.zeros(len(codes) + 1, dtype=torch.int64), 0, 0
    folder.mkdir(exist_ok=True)
    for number, path in enumerate(_each(partitions, "write", tell)):
        histories = Histories.load(path)
        histories = replace(histories, items=index_of[histories.items])
        sequences = _sequences(histories, kept.intake, market_places)
        if kept.validating < 1:
            sequences = replace(sequences, validates=drawn_to_validate(sequences.keys, kept.validating))
        write_partition(sequences, folder / f"part-{number:05d}.parquet")
        training += training_part(sequences).items.bincount(minlength=len(training))
        users += len(sequences)
        validation_users += len(evaluated_users(sequences, "validation"))
    if kept.validating < 1 and not validation_users:
        raise InputError(f"of {users:,} users none was drawn to validate: raise prepare.validation_users")
    return training[1:], users, validation_users


def _sequences(histories: Histories, intake: Intake, places: np.ndarray | None) -> Sequences:
    """Histories as they are stored; `places` int16 maps the intake's market numbers to those written, if any."""
    return Sequences(
        items=torch.from_numpy(histories.items),
        offsets=torch.from_numpy(histories.offsets),
        keys=torch.from_numpy(stable_keys(histories.users)),
        users=own_ids(histories.users, whole_numbers=intake.whole_number_users),
        markets=None if places is None else torch.from_numpy(places[histories.markets]),
    )
