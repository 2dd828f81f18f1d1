"""From models and their diagonals to one model, chosen on the validation split."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import torch

from raymerge.artifacts import Artifact, Key, save_model
from raymerge.data.prepare import ITEMS_FILE
from raymerge.data.sequences import Items, read_items, write_items
from raymerge.errors import MergeError
from raymerge.evaluation.validation import METRIC, SCORE
from raymerge.execution.pool import Pool
from raymerge.fisher.weights import FisherConfig
from raymerge.merging.choice import choose
from raymerge.merging.coefficients import Point
from raymerge.merging.distributed import Candidate, forget, merged_model, validate
from raymerge.merging.held_out import FoldedScore
from raymerge.merging.methods import MergeConfig, MergeSetting, Trial
from raymerge.models.encoder import SequenceEncoder
from raymerge.stages.context import Context, TrackedDraft
from raymerge.stages.inputs import catalogues_of, model_digest


def average(
    context: Context,
    pool: Pool,
    data: Sequence[Artifact],
    models: Mapping[str, Artifact],
    *,
    start: Artifact | None = None,
) -> Artifact:
    """The uniform average of models, with the step of the other merges: their baseline."""
    settings = MergeConfig(method="average", step=context.config.merge.step)
    return merge(context, pool, data, models, {}, settings, start=start, name="average")


def merge(
    context: Context,
    pool: Pool | None,
    data: Sequence[Artifact],
    models: Mapping[str, Artifact],
    diagonals: Mapping[str, Artifact],
    settings: MergeConfig,
    *,
    start: Artifact | None = None,
    name: str | None = None,
) -> Artifact:
    """One model out of several; open settings are chosen on the validation split of all `data`.

    If nothing is `MergeConfig.searched`, no data are needed; the merge then has no score. `start` is the
    model that the members started from, if the settings need it; `name` is that of the merge, by default their label.
    """
    uses = list(diagonals.values()) if settings.needs_diagonals else []
    origin = start if settings.needs_start else None
    assert origin or not settings.needs_start, "there is a base, or the settings were refused"
    filter_seen = context.config.evaluation.filter_seen
    inputs: dict[str, str | list[str]] = {
        "data": [one.digest for one in data],
        "models": [model_digest(model) for model in models.values()],
        "diagonals": [diagonal.digest for diagonal in uses],
    }
    if origin:
        inputs["start"] = model_digest(origin)
    urls = tuple(model.file("model") for model in models.values())
    diagonal_urls = tuple(diagonal.url for diagonal in uses)
    start_url = origin.file("model") if origin else None
    partitions = catalogues_of(data)

    def candidate(setting: MergeSetting, point: Point) -> Candidate:
        return Candidate(urls, diagonal_urls, settings.method, point, setting, start_url)

    def score(setting: MergeSetting, point: Point) -> FoldedScore:
        assert pool is not None, "there are data to validate on"
        return validate(pool, candidate(setting, point), partitions, filter_seen=filter_seen)

    def fill(draft: TrackedDraft) -> None:
        draft.progress(0, settings.trials)
        members = len(models)
        setting, point = _chosen(draft, settings, score, members) if data else settings.given(members)
        _write_model(draft, merged_model(candidate(setting, point)), models.values())
        draft.counts.update({"method": settings.method, "coefficients": list(point), **asdict(setting)})
        draft.progress(1, 1, f"validation NDCG@10 {draft.counts[SCORE]:.4f}" if data else "nothing to choose")

    key = Key("merge", inputs, {**asdict(settings), "filter_seen": filter_seen})
    return context.find_or_make(context.run_name("merge", name or settings.label), key, fill)


def _write_model(draft: TrackedDraft, module: SequenceEncoder, members: Iterable[Artifact]) -> None:
    """Write the merged model with the catalogue of all members, which are then released from memory."""
    items = [model.file("model", ITEMS_FILE) for model in members]
    save_model(module, draft.folder / "model", items_url=items[0])
    forget()
    write_items(merged_items([read_items(url) for url in items]), draft.folder / "model" / ITEMS_FILE)


def _chosen(
    draft: TrackedDraft, settings: MergeConfig, score: Callable[[MergeSetting, Point], FoldedScore], members: int
) -> Trial:
    """The setting and the coefficients that validate best; each trial's score is emitted and kept."""
    trials: list[dict[str, object]] = []

    def scored(setting: MergeSetting, point: Point) -> FoldedScore:
        value = score(setting, point)
        trials.append({"coefficients": point, **asdict(setting), "score": value.mean})
        draft.tell(f"trial.{METRIC}", value.mean, step=len(trials))
        draft.progress(min(len(trials), settings.trials - 0.5), settings.trials, f"validation NDCG@10 {value.mean:.4f}")
        return value

    chosen = choose(scored, settings, members=members)
    draft.write_json("trials.json", trials)
    draft.counts[SCORE] = chosen.score
    draft.tell(SCORE, chosen.score)
    if len(trials) > 1:
        draft.counts |= {"held_out_gain": chosen.held_out_gain, "held_out_gain_error": chosen.gain_error}
        draft.tell(f"held_out_gain.{METRIC}", chosen.held_out_gain)
    return chosen.trial


def merged_items(catalogues: Sequence[Items]) -> Items:
    """The common catalogue of models of the same items, from their own ones.

    An item is on offer if it is for any model. Counts are of all their data; equal counts are of the same data.
    """
    of_data = {items.counts.numpy().tobytes(): items.counts for items in catalogues}
    known = [items.offered for items in catalogues if items.offered is not None]
    counts = torch.stack(list(of_data.values())).sum(0)
    return Items(catalogues[0].ids, counts, torch.stack(known).any(0) if len(known) == len(catalogues) else None)


def check_mergeable(models: Mapping[str, Artifact], diagonals: Mapping[str, Artifact]) -> None:
    """Raise MergeError unless catalogues and settings agree, and the diagonals can be compared."""
    first = next(iter(models))
    catalogue = _catalogue(models[first])
    for name, model in models.items():
        if not _catalogue(model).equals(catalogue):
            raise MergeError(f"{first} and {name} have different catalogues: their item indices mean different items")
        ours, theirs = models[first].json("model", "config.json"), model.json("model", "config.json")
        for key in ours:
            if ours[key] != theirs.get(key):
                raise MergeError(f"{first} and {name} differ in encoder.{key}: {ours[key]} and {theirs.get(key)}")
    for name, diagonal in diagonals.items():
        if _estimated_by(diagonal) != _estimated_by(diagonals[first]):
            raise MergeError(
                f"the diagonals of {first} and {name} were estimated in different ways and cannot be compared"
            )


def _estimated_by(diagonal: Artifact) -> dict[str, Any]:
    """Settings that comparable diagonals share, with defaults for those that the manifest leaves out."""
    return FisherConfig(**diagonal.manifest["configuration"]).key


def _catalogue(model: Artifact) -> pa.Array:
    """Own ids of a model's items, in the order of their indices."""
    return read_items(model.file("model", ITEMS_FILE)).ids
