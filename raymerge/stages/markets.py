"""Which data each model is trained on: all of them, or those of its own market."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial

import torch

from raymerge.artifacts import Artifact, Key
from raymerge.data.markets import MarketsConfig, seen_by_base, seen_by_market
from raymerge.data.prepare import ITEMS_FILE, MARKETS_FILE, PARTITIONS_FOLDER
from raymerge.data.sequences import Items, Sequences, read_items, read_partition, write_items, write_partition
from raymerge.data.split import evaluated_users, training_lengths, training_part
from raymerge.errors import InputError
from raymerge.names import market_member_name
from raymerge.stages.context import Context, TrackedDraft
from raymerge.stages.inputs import partitions_of
from raymerge.training.batches import SHORTEST

Selection = Callable[[Sequences], Sequences]


@dataclass(frozen=True)
class TrainingData:
    """The data that each model is trained on; a merge is chosen on `validation`."""

    base: Artifact
    members: Mapping[str, Artifact]
    validation: Sequence[Artifact]

    def names_on(self, data: Artifact) -> list[str]:
        """Names of the members that are trained on these data."""
        return [name for name, own in self.members.items() if own is data]


def divide(context: Context, data: Artifact) -> TrainingData:
    """All data for every model, or a part for each market, as an artifact of its own with the same catalogue.

    The items in a part are those on offer there: a member that starts from a base learns to choose among them and does
    not unlearn the others (except by weight decay, which is on all rows). Each market validates on items of its own: a
    merge is chosen by sums that the markets report.
    """
    config, settings = context.config, context.config.markets
    if settings is None:
        return TrainingData(data, dict.fromkeys(config.members, data), [data])
    check_division(settings, data)
    markets = {
        label: _selected(context, data, f"market-{label}", partial(seen_by_market, market=number, config=settings))
        for number, label in enumerate(settings.labels, start=1)
    }
    base = data
    if config.base is not None and settings.base != "all":
        base = _selected(context, data, f"base-{settings.base}", partial(seen_by_base, config=settings))
    members = {market_member_name(name, label): market for name in config.members for label, market in markets.items()}
    return TrainingData(base, members, list(markets.values()))


def check_division(settings: MarketsConfig | None, data: Artifact) -> None:
    """Raise InputError unless the data can be divided; by column, markets.names must be the markets of the log."""
    if settings is None:
        return
    if data.manifest["stage"] == "markets":
        raise InputError(f"{data.url} is the data of one market, which cannot be divided again: --set markets=null")
    if settings.by != "column":
        return
    if MARKETS_FILE not in data.manifest["files"]:
        raise InputError(f"{data.url} has no markets: prepare the log again with prepare.market, their column")
    found, named = data.json(MARKETS_FILE), settings.own_names
    if set(found) != set(named):
        raise InputError(
            f"the log has the markets {', '.join(found)}, but markets.names lists {', '.join(named)}: "
            "list those of the log, or remove the rows of the others from it"
        )


def _selected(context: Context, data: Artifact, name: str, select: Selection) -> Artifact:
    """The data that `part` keeps of all partitions."""
    settings = context.config.markets
    assert isinstance(settings, MarketsConfig)
    run, inputs = f"markets/{name}", {"data": data.digest}
    configuration = {"part": name, "held_out": "what validates the whole", **asdict(settings)}
    partitions = partitions_of(data)

    def cut(draft: TrackedDraft) -> None:
        (draft.folder / PARTITIONS_FOLDER).mkdir()
        whole = read_items(data.file(ITEMS_FILE))
        had, training = torch.zeros(2, len(whole) + 1, dtype=torch.int64)
        learnable = False
        counts = {"users": 0, "items": len(whole), "interactions": 0, "partitions": len(partitions)}
        counts["validation_users"] = 0
        for number, partition in enumerate(partitions):
            draft.progress(number, len(partitions))
            kept = select(read_partition(partition))
            write_partition(kept, draft.folder / PARTITIONS_FOLDER / partition.rpartition("/")[2])
            counts["users"] += len(kept)
            counts["interactions"] += len(kept.items)
            counts["validation_users"] += len(evaluated_users(kept, "validation"))
            learnable |= bool((training_lengths(kept) >= SHORTEST).any())
            had += kept.items.bincount(minlength=len(had))
            training += training_part(kept).items.bincount(minlength=len(had))
        write_items(Items(whole.ids, training[1:], had[1:] > 0), draft.folder / ITEMS_FILE)
        if not learnable:
            raise InputError(
                f"no user of {name} has {SHORTEST} training items besides the held-out ones "
                f"({counts['interactions']:,} interactions): leave the market out, or merge it in later"
            )
        if not counts["validation_users"]:
            raise InputError(
                f"{name} has no validation item for any of its {counts['users']:,} users: "
                "leave the market out, merge it in later, or raise prepare.validation_users"
            )
        counts["offered"] = int((had[1:] > 0).sum())
        draft.counts.update(counts)
        for key, value in counts.items():
            draft.tell(key, value)
        users, items, interactions = (f"{counts[key]:,}" for key in ("users", "offered", "interactions"))
        draft.progress(1, 1, f"{users} users, {items} items, {interactions} interactions")

    return context.find_or_make(run, Key("markets", inputs, configuration), cut)
