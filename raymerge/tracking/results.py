"""What a finished run leaves in MLflow besides metrics: the report, plots, the configuration and the merged model."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from raymerge.artifacts import Artifact, load_diagonal, open_artifact
from raymerge.evaluation.report_schema import REPORT_FILE, Merge, Report
from raymerge.files import storage
from raymerge.merging.methods import shares
from raymerge.redaction import redact
from raymerge.tracking import plots
from raymerge.tracking.registration import RegisteredVersion, Score, register
from raymerge.tracking.runs import PIPELINE, Tracker


def plots_of(content: Report, output: str) -> dict[str, plots.Figure]:
    """Plots of a run by title, drawn from its report and the artifacts that it names in the output folder."""
    models, diagonals = (
        {name: open_artifact(storage.join(output, place)) for name, place in content["artifacts"][kind].items()}
        for kind in ("models", "diagonals")
    )
    trained = {name: one for name, one in models.items() if one.manifest["stage"] == "train"}
    drawn = {"NDCG@10 with intervals": plots.metric_bars(content)}
    drawn["training curves"] = plots.training_curves({name: one.json("history.json") for name, one in trained.items()})
    if "overlap" in content:
        drawn["users by the members that hit them"] = plots.hit_overlap(content["overlap"], content["final"])
    if "interpolation" in content:
        drawn["lines between members"] = plots.lines_between(content["interpolation"])
    if diagonals:
        loaded = {name: load_diagonal(diagonal.url) for name, diagonal in diagonals.items()}
        drawn["diagonals by layer"] = plots.diagonal_histograms(loaded)
        if content["merge"]["method"] == "fisher":
            drawn["weights by layer"] = plots.share_map(_shares(content["merge"], loaded))
    return drawn


def _shares(merge: Merge, diagonals: Mapping[str, Mapping[str, Tensor]]) -> dict[str, dict[str, float]]:
    """Each model's share of each layer of the merge, by the merge's own formula and settings."""
    coefficients = [merge["coefficients"][name] for name in diagonals]
    parts = shares(
        list(diagonals.values()),
        coefficients=coefficients,
        normalise=merge["normalise"],
        epsilon=merge["epsilon"],
        power=merge["power"],
    )
    sizes = {name: tensor.numel() for name, tensor in next(iter(diagonals.values())).items()}
    return plots.layer_shares(parts, sizes, list(diagonals))


def log_results(
    tracker: Tracker,
    *,
    configuration: Mapping[str, Any],
    report_url: str,
    drawn: Mapping[str, plots.Figure],
    model: Artifact,
    score: Score,
    model_name: str,
) -> RegisteredVersion:
    """Upload report, configuration and plots to the pipeline's run and register the model."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / REPORT_FILE).write_bytes(storage.read_bytes(report_url))
        (folder / "configuration.yaml").write_text(
            redact(yaml.safe_dump(dict(configuration), sort_keys=False)), encoding="utf-8"
        )
        tracker.log_artifacts(PIPELINE, [folder / REPORT_FILE, folder / "configuration.yaml"])
        tracker.log_artifacts(PIPELINE, plots.save_pngs(drawn, folder), "plots")
        copy = storage.fetch_folder(model.file("model"), folder / "model")
        return register(tracker, PIPELINE, copy, name=model_name, score=score)
