"""From an interaction log, given or the recipe's own, to user partitions."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace

from raymerge import recipes
from raymerge.artifacts import Artifact, Key, file_digest
from raymerge.data.prepare import catalogue_file, check_log
from raymerge.data.prepare import prepare as prepare_log
from raymerge.data.split import MIN_LENGTH
from raymerge.errors import InputError
from raymerge.files import storage
from raymerge.stages.context import Context, TrackedDraft


def source(context: Context, given: str | None) -> list[str]:
    """Files of the interaction log: those of `--input`, or those that the recipe makes or downloads."""
    if given is not None:
        return storage.list_files(storage.absolute(given))
    name = context.config.recipe
    entry = recipes.RECIPES[name] if name in recipes.RECIPES else None
    if entry is None or entry.source is None:
        raise InputError(f"recipe {name} needs a log: give it with --input, or try --recipe demo")
    inputs = {"recipe": name, "made by": file_digest(inspect.getfile(entry.source))}  # other code may make another log
    write_log = entry.source

    def fetch(draft: TrackedDraft) -> None:
        draft.progress(0, 1, "the log of the recipe")
        draft.counts["log"] = write_log(draft.folder).relative_to(draft.folder).as_posix()
        draft.progress(1, 1)

    made = context.find_or_make("source", Key("source", inputs), fetch)
    return [made.file(made.counts["log"])]


def check_logs(context: Context, files: Sequence[str]) -> None:
    """Raise InputError unless each file is a log with the configured columns, and a given catalogue exists."""
    catalogue = context.config.prepare.catalogue
    if catalogue and not storage.exists(file := catalogue_file(storage.absolute(catalogue))):
        raise InputError(f"prepare.catalogue names no prepared data or items.parquet: there is no {file}")
    for file in files:
        check_log(file, context.config.prepare)


def prepare(context: Context, files: Sequence[str]) -> Artifact:
    """User partitions, the catalogue and the counts of an interaction log."""
    inputs = {"log": [file_digest(file) for file in files]}
    settings = context.config.prepare
    if settings.catalogue:
        settings = replace(settings, catalogue=storage.absolute(settings.catalogue))
        inputs["catalogue"] = [file_digest(catalogue_file(str(settings.catalogue)))]
    configuration = asdict(settings)
    del configuration["catalogue"]  # it is among the inputs

    def fill(draft: TrackedDraft) -> None:
        passes = ["read", "sort", "filter", "write"]

        def tell(what: str, done: int, total: int) -> None:
            draft.progress(passes.index(what) + min(done / max(total, 1), 0.99), len(passes), what)

        draft.progress(0, len(passes))
        counts = prepare_log(list(files), settings, draft.folder, progress=tell)
        _check_enough(counts)
        draft.counts.update(counts)
        for key, value in counts.items():
            draft.tell(key, value)
        summary = f"{counts['users']:,} users, {counts['items']:,} items, {counts['interactions']:,} interactions"
        draft.progress(1, 1, summary)

    return context.find_or_make("prepare", Key("prepare", inputs, configuration), fill)


def _check_enough(counts: Mapping[str, int]) -> None:
    """Raise InputError for a log that nothing could be learned or chosen on."""
    if counts["items"] < 2:
        raise InputError("one item is left, so there is nothing to rank; lower prepare.min_item_count")
    if not counts["validation_users"]:
        raise InputError(f"none of the {counts['users']:,} users has the {MIN_LENGTH} items that it takes to validate")
