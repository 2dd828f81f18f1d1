"""Rows of logs on their way to the spill: ids and times are parsed, bad rows counted, items and markets numbered.

Shapes: n rows of a batch, k distinct ids among them.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from raymerge.data.ids import are_whole_numbers, encode_ids
from raymerge.data.interactions import LogConfig, LogReader, open_log
from raymerge.data.sequences import Items
from raymerge.data.spill import Spill
from raymerge.data.timestamps import parse_timestamps
from raymerge.errors import InputError

BAD_ROWS = ("malformed_rows", "bad_ids", "bad_timestamps", "bad_markets")  # a row counts as the first that applies
MAX_MARKETS = 1000  # far more than can be intended; they are stored in 16 bits


@dataclass
class Intake:
    """Rows of logs on their way to the spill: bad ones are counted, items numbered in order of appearance.

    With a `closed` catalogue the numbers are given, and rows with other items are counted and dropped.
    """

    spill: Spill
    closed: bool = False
    counts: dict[str, int] = field(
        default_factory=lambda: {"rows": 0, **dict.fromkeys((*BAD_ROWS, "unknown_items"), 0)}
    )
    item_codes: dict[str, int] = field(default_factory=dict)
    market_codes: dict[str, int] = field(default_factory=dict)
    unknown_item: str | None = None  # an example
    whole_number_users: bool = True
    whole_number_items: bool = True

    @classmethod
    def of(cls, spill: Spill, catalogue: Items | None) -> "Intake":
        """An intake for a given catalogue, or for one built from the logs."""
        if catalogue is None:
            return cls(spill)
        codes = {text: code for code, text in enumerate(catalogue.ids.cast(pa.string()).to_pylist())}
        if len(codes) < len(catalogue):
            raise InputError(f"the catalogue lists {len(catalogue)} items, but only {len(codes)} different ones")
        return cls(spill, True, item_codes=codes, whole_number_items=pa.types.is_integer(catalogue.ids.type))

    @property
    def good(self) -> int:
        """Rows that were spilled."""
        return self.counts["rows"] - sum(count for name, count in self.counts.items() if name != "rows")

    def read(self, url: str, config: LogConfig, tell: Callable[[int], None]) -> None:
        """Spill all good rows of a log; `tell` is called with the number of bytes read so far."""
        with open_log(url, config) as log:
            for batch in log.batches:
                self._add(batch)
                tell(log.position())
            self._add_malformed(log)

    def _add_malformed(self, log: LogReader) -> None:
        self.counts["rows"] += log.malformed
        self.counts["malformed_rows"] += log.malformed

    def _add(self, batch: pa.RecordBatch) -> None:
        users, user_codes = encode_ids(batch["user"])
        items, item_codes = encode_ids(batch["item"])
        known = (user_codes >= 0) & (item_codes >= 0)
        timed = np.ones(len(batch), bool)
        whole, fraction = np.zeros(len(batch), np.int64), np.zeros(len(batch))
        if "timestamp" in batch.schema.names:
            whole, fraction, timed = parse_timestamps(batch["timestamp"])
        market_names, market_codes = pa.array([""]), np.zeros(len(batch), np.int64)
        if "market" in batch.schema.names:
            market_names, market_codes = encode_ids(batch["market"])
        placed = market_codes >= 0
        good = known & timed & placed
        self.counts["rows"] += len(batch)
        self.counts["bad_ids"] += int((~known).sum())
        self.counts["bad_timestamps"] += int((known & ~timed).sum())
        self.counts["bad_markets"] += int((known & timed & ~placed).sum())
        items, item_codes = _used(items, item_codes[good])
        numbers = self._numbered(items)[item_codes]
        listed = numbers >= 0
        self.counts["unknown_items"] += int((~listed).sum())
        users, user_codes = _used(users, user_codes[good][listed])
        self.whole_number_users &= bool(are_whole_numbers(users).all())
        market_names, market_codes = _used(market_names, market_codes[good][listed])
        markets = self._markets_numbered(market_names)[market_codes]
        self.spill.append(users, user_codes, [numbers[listed], whole[good][listed], fraction[good][listed], markets])

    def _markets_numbered(self, names: pa.StringArray) -> np.ndarray:
        """The number of each market, in order of appearance: int16[k]."""
        codes = self.market_codes
        numbers = [codes.setdefault(name, len(codes)) for name in names.to_pylist()]
        if len(codes) > MAX_MARKETS:
            raise InputError(
                f"the log has more than {MAX_MARKETS:,} markets ({', '.join(list(codes)[:3])}, …); "
                "prepare.market must name the column that holds each row's market"
            )
        return np.array(numbers, np.int16)

    def _numbered(self, items: pa.StringArray) -> np.ndarray:
        """The number of each item, −1 if it is not in a closed catalogue."""
        codes = self.item_codes
        if self.closed:
            numbers = np.fromiter((codes.get(item, -1) for item in items.to_pylist()), np.int32, len(items))
            if (numbers < 0).any():
                self.unknown_item = items[int(numbers.argmin())].as_py()
            return numbers
        self.whole_number_items &= bool(are_whole_numbers(items).all())
        return np.fromiter((codes.setdefault(item, len(codes)) for item in items.to_pylist()), np.int32, len(items))

    def refuse_bad(self, max_share: float) -> None:
        """Raise InputError if there are no rows, more bad ones than the share allows, or none with a known item."""
        rows = self.counts["rows"]
        kinds = {name: self.counts[name] for name in BAD_ROWS}
        bad = sum(kinds.values())
        if not rows:
            raise InputError("the interaction log has no rows")
        if bad > max_share * rows:
            found = ", ".join(f"{name} {count}" for name, count in kinds.items() if count)
            raise InputError(
                f"{bad} of {rows} rows are bad ({found}), more than prepare.max_bad_share={max_share} allows; "
                "correct the columns or the log, or raise prepare.max_bad_share"
            )
        if bad == rows:
            raise InputError(f"all {rows} rows are bad: correct the columns or the log")
        if not self.good and self.unknown_item is not None:
            raise InputError(
                f"the catalogue lists no item of the log, such as {self.unknown_item!r}: prepare.item must name the "
                "column with the ids used in prepare.catalogue"
            )


def _used(distinct: pa.StringArray, codes: np.ndarray) -> tuple[pa.StringArray, np.ndarray]:
    """The ids in use, and each row's code among them."""
    used = np.bincount(codes, minlength=len(distinct)) > 0
    return distinct.filter(pa.array(used)), (np.cumsum(used) - 1)[codes]
