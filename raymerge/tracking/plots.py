"""Plots of a run: pure functions of histories, diagonals and the report. The only module that imports matplotlib.

The colours are Okabe and Ito's ("Color universal design", 2008); line styles or text distinguish them as well.
"""

import io
from collections.abc import Mapping, Sequence
from itertools import cycle
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from torch import Tensor

from raymerge.evaluation.report_schema import Interpolation, Kind, Overlap, Results, seen_items
from raymerge.evaluation.validation import METRIC
from raymerge.fisher.study import Spread, Study
from raymerge.models.layers import by_layer

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = "osD^v"
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)), (0, (8, 2)))
KINDS: dict[Kind, tuple[str, str]] = {  # a report row's kind: its label and colour
    "base": ("base that the members start from", "#999999"),
    "member": ("single model", "#56B4E9"),
    "mean": ("mean of the single models (not a model)", "#B5DDF4"),
    "control": ("control: a single model with the extra epochs", "#666666"),
    "average": ("uniform average", "#E69F00"),
    "round": ("merge of an early round", "#80B9D9"),
    "merged": ("merge", "#0072B2"),
    "fine-tuned": ("merge + fine-tuning", "#009E73"),
    "ceiling": ("one model trained on all data", "#CC79A7"),
    "ensemble": ("ensemble, several times the cost", "#DDDDDD"),
}
FILE_KINDS = ("png", "svg", "pdf")
RESOLUTION_DPI = 120
PANELS_A_ROW = 4
ENTRIES_SHOWN = 2**20  # per tensor in a histogram


def training_curves(histories: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    """Training loss and validation NDCG@10 by epoch: model → one mapping per epoch with `epoch`, `loss`, `ndcg`."""
    figure = _figure(10, 4.2)
    panels = {
        "loss": ("Training loss (mean over steps, nats)", figure.add_subplot(1, 2, 1)),
        "ndcg": ("Validation NDCG@10 (full ranking; ● best epoch)", figure.add_subplot(1, 2, 2)),
    }
    for key, (title, axes) in panels.items():
        for (model, epochs), (colour, line) in zip(histories.items(), _styles(len(histories)), strict=True):
            steps, values = [row["epoch"] for row in epochs], [row[key] for row in epochs]
            marker = "." if len(epochs) == 1 else ""  # a single epoch draws no line
            axes.plot(steps, values, color=colour, linestyle=line, marker=marker, linewidth=1.8, label=model)
            if key == "ndcg" and values:
                best = int(np.argmax(values))
                axes.plot(steps[best], values[best], "o", color=colour)
        axes.set_title(title, loc="left")
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        _tidy(axes, grid="both")
    _legend_above(figure)
    return figure


def metric_bars(report: Results) -> Figure:
    """One bar per model with its interval, best first, coloured by kind."""
    protocol = report["protocol"]
    ranking = protocol["ranking"]
    rows = sorted(report["rows"], key=lambda row: row["metrics"][ranking][METRIC]["mean"])
    measured = [row["metrics"][ranking][METRIC] for row in rows]
    means = np.array([one["mean"] for one in measured])
    ends = [(one["mean"] - one["low"], one["high"] - one["mean"]) for one in measured]
    spread = np.maximum(ends, 0).T  # bootstrap percentiles need not enclose the mean
    figure = _figure(8, 1.9 + 0.42 * len(rows))
    axes = figure.add_subplot()
    for kind in dict.fromkeys(row["kind"] for row in reversed(rows)):
        label, colour = KINDS[kind]
        places = [place for place, row in enumerate(rows) if row["kind"] == kind]
        axes.barh(places, means[places], color=colour, height=0.68, label=label)
    axes.errorbar(means, range(len(rows)), xerr=spread, fmt="none", ecolor="#333333", capsize=3)
    for place, one in enumerate(measured):
        _annotate(axes, f"{one['mean']:.4f}", one["high"], place)
    axes.set_yticks(range(len(rows)), [row["name"] for row in rows])
    axes.set_xlim(0, 1.14 * max(one["high"] for one in measured) or 1)
    seen = seen_items(filtered=protocol["seen_filtered"])
    axes.set_title(f"{METRIC.upper()} on {protocol['split']} ({ranking} ranking, {seen})", loc="left")
    axes.set_xlabel(f"mean over {protocol['users']:,} users; lines are bootstrap intervals")
    _legend_below(figure, columns=3)
    _tidy(axes, grid="x")
    return figure


def hit_overlap(overlap: Overlap, model: str) -> Figure:
    """How many users each group of members hits, and how many of them `model` also hits."""
    missed, *groups = overlap["groups"]  # the first group, hit by no member, is most users and has no bar
    figure = _figure(8, 1.9 + 0.42 * len(groups))
    axes = figure.add_subplot()
    users, kept = [group["users"] for group in groups], [group["hits"][model] for group in groups]
    places = range(len(groups) - 1, -1, -1)
    axes.barh(places, users, color="#CCCCCC", height=0.68, label="hit by these members")
    axes.barh(places, kept, color=COLOURS[0], height=0.4, label=f"also hit by {model}")
    for place, all_of, some in zip(places, users, kept, strict=True):
        _annotate(axes, f"{some:,} of {all_of:,}", all_of, place)
    axes.set_yticks(places, [group["members"] for group in groups])
    axes.set_xlim(0, 1.25 * max(users) or 1)
    axes.set_title(f"Users whose item is among the first {overlap['k']} ({overlap['ranking']} ranking)", loc="left")
    axes.set_xlabel(f"users; {model} also hits {missed['hits'][model]:,} of {missed['users']:,} that no member hits")
    _legend_below(figure, columns=2)
    _tidy(axes, grid="x")
    return figure


def lines_between(interpolation: Interpolation) -> Figure:
    """Validation NDCG@10 on the straight lines between members' parameters: a dip would be a barrier."""
    figure = _figure(8, 4.2)
    axes = figure.add_subplot()
    lines = interpolation["lines"]
    for between, (colour, style), marker in zip(lines, _styles(len(lines)), cycle(MARKERS)):
        label = f"{between['first']} to {between['second']}"
        axes.plot(interpolation["points"], between["scores"], color=colour, linestyle=style, marker=marker, label=label)
    axes.set_title("Validation NDCG@10 of the models between two members", loc="left")
    axes.set_xlabel("t: parameters are (1 - t) · first + t · second")
    _legend_below(figure, columns=3)
    _tidy(axes, grid="both")
    return figure


def diagonal_histograms(diagonals: Mapping[str, Mapping[str, Tensor]]) -> Figure:
    """Histograms of the diagonals' entries by layer: model → parameter → diagonal; zeros are counted separately."""
    layers = by_layer(next(iter(diagonals.values())))
    rows = ceil(len(layers) / PANELS_A_ROW)
    figure = _figure(12, 0.9 + 2.1 * rows)
    figure.suptitle("Fisher information of single parameters, by layer (mean over users)", x=0.01, ha="left")
    shared = None
    for place, (layer, names) in enumerate(layers.items()):
        axes = figure.add_subplot(rows, PANELS_A_ROW, place + 1, sharex=shared)
        shared = shared or axes
        _histogram(axes, {model: _values(diagonal, names) for model, diagonal in diagonals.items()})
        axes.set_title(layer, loc="left", fontsize=10)
        if place >= len(layers) - PANELS_A_ROW:
            axes.set_xlabel("log₁₀ F")
        if place % PANELS_A_ROW == 0:
            axes.set_ylabel("share of entries")
    _legend_above(figure)
    return figure


def _histogram(axes: Axes, values: Mapping[str, np.ndarray]) -> None:
    logs = {model: np.log10(entries[entries > 0]) for model, entries in values.items()}
    every = np.concatenate(list(logs.values()))
    number = int(np.clip(len(every) ** 0.5, 8, 40))  # fewer bins for fewer entries, or most bins would be empty
    bins = np.linspace(every.min(), every.max() + 1e-9, number + 1) if len(every) else np.array([-1.0, 1.0])
    for (model, log), (colour, line) in zip(logs.items(), _styles(len(logs)), strict=True):
        share = np.histogram(log, bins)[0] / max(1, len(values[model]))
        axes.stairs(share, bins, color=colour, linestyle=line, linewidth=1.5, label=model)
    zero = 1 - sum(map(len, logs.values())) / max(1, sum(map(len, values.values())))
    if zero > 0:
        axes.text(0.03, 0.94, f"{zero:.1%} are 0", transform=axes.transAxes, va="top", fontsize=8, color="#555555")
    _tidy(axes, grid="y")


def layer_shares(
    shares: Mapping[str, Sequence[float]], sizes: Mapping[str, int], models: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Each model's share of each layer of a merge, mean over the layer's entries: layer → model → share.

    `shares` is what `raymerge.merging.methods.shares` returns, parameter → one number for each of `models`; `sizes` is
    parameter → number of entries.
    """
    layers = {}
    for layer, names in by_layer(shares).items():
        parts = np.average([shares[name] for name in names], axis=0, weights=[sizes[name] for name in names])
        layers[layer] = dict(zip(models, parts.tolist(), strict=True))
    return layers


def share_map(shares: Mapping[str, Mapping[str, float]]) -> Figure:
    """How much each model weighs in each layer of the merge: a heat map of `layer_shares`."""
    layers, models = list(shares), list(next(iter(shares.values())))
    table = np.array([[shares[layer][model] for model in models] for layer in layers])
    figure = _figure(3.2 + 1.3 * len(models), 1.5 + 0.36 * len(layers))
    axes = figure.add_subplot()
    darkest = max(1.5 / len(models), table.max())
    axes.pcolormesh(table, cmap="Blues", vmin=0, vmax=darkest, edgecolors="white", linewidth=2)
    axes.invert_yaxis()
    for (row, column), share in np.ndenumerate(table):
        colour = "white" if share > 0.6 * darkest else "black"
        axes.text(column + 0.5, row + 0.5, f"{share:.0%}", ha="center", va="center", color=colour)
    axes.set_xticks(np.arange(len(models)) + 0.5, models, rotation=20 if len(models) > 4 else 0)
    axes.set_yticks(np.arange(len(layers)) + 0.5, layers)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    figure.suptitle(
        "Share of each model in each layer of the merge\n(mean over entries)", x=0.02, ha="left", fontsize=11
    )
    return figure


def error_over_cost(study: Study) -> Figure:
    """Error against the exact diagonal over seconds per user: a line per estimator, a point per number of samples."""
    figure = _figure(15, 5.4)
    overall = [row["overall"] for row in study["rows"]]
    panels = {
        "Relative error, raw": [one["error"] for one in overall],
        "After the best single scale": [one["scaled_error"] for one in overall],
        "1 - cosine": [Spread(mean=1 - one["cosine"]["mean"], spread=one["cosine"]["spread"]) for one in overall],
    }
    for place, (title, errors) in enumerate(panels.items()):
        axes = figure.add_subplot(1, 3, place + 1)
        _draw_study(axes, study, errors)
        axes.set_title(f"{title} ({study['users']:,} users)", loc="left")
    _legend_below(figure, columns=5)
    return figure


def error_over_cost_by_layer(study: Study) -> Figure:
    """The same for each layer, after the best single scale for the whole diagonal."""
    layers = list(study["rows"][0]["layers"])
    rows = ceil(len(layers) / PANELS_A_ROW)
    figure = _figure(14, 1.2 + 2.7 * rows)
    for place, layer in enumerate(layers):
        axes = figure.add_subplot(rows, PANELS_A_ROW, place + 1)
        _draw_study(axes, study, [row["layers"][layer]["scaled_error"] for row in study["rows"]])
        axes.set_title(layer, loc="left", fontsize=10)
    _legend_below(figure, columns=5)
    return figure


def _draw_study(axes: Axes, study: Study, errors: Sequence[Spread]) -> None:
    """Lines with the spread between seeds; biased estimators have hollow markers, and `exact` is a vertical line."""
    costs = [1000 * row["seconds_per_user"] for row in study["rows"]]
    lines: dict[str, list[int]] = {}
    for place, row in enumerate(study["rows"]):
        if row["estimator"] == "exact":
            label = f"exact in {study['precision']}: {100 * row['overall']['error']['mean']:.1g}%"
            axes.axvline(costs[place], color="#999999", linewidth=3, label=label)
        else:
            lines.setdefault(row["line"], []).append(place)
    for (line, places), (colour, style), marker in zip(lines.items(), _styles(len(lines)), cycle(MARKERS)):
        means, spreads = ([errors[place][part] for place in places] for part in ("mean", "spread"))
        below = [min(spread, 0.9 * mean) for mean, spread in zip(means, spreads, strict=True)]
        unbiased = study["rows"][places[0]]["unbiased"]
        axes.errorbar(
            [costs[place] for place in places],
            means,
            yerr=[below, spreads],
            color=colour,
            linestyle=style,
            marker=marker,
            markersize=5,
            markerfacecolor=colour if unbiased else "white",
            label=line if unbiased else f"{line} (biased)",
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis, labels in (
        (axes.xaxis, FormatStrFormatter("%g")),
        (axes.yaxis, FuncFormatter(lambda value, _: f"{100 * value:g}%")),
    ):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(labels)
        axis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("ms per user, on one core or GPU")
    _tidy(axes, grid="both")


def to_png(figure: Figure) -> bytes:
    """The figure as a PNG file."""
    return to_file(figure, "png")


def save_pngs(figures: Mapping[str, Figure], folder: Path) -> list[Path]:
    """Write each figure to a PNG file named after its title."""
    files = []
    for title, figure in figures.items():
        files.append(folder / f"{title.replace(' ', '-').lower()}.png")
        files[-1].write_bytes(to_png(figure))
    return files


def to_file(figure: Figure, kind: str) -> bytes:
    """The figure as a file of one of the `FILE_KINDS`, without a date: the same figure gives the same bytes."""
    buffer = io.BytesIO()
    stamp = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}[kind]
    with rc_context({"svg.hashsalt": "raymerge"}):
        figure.savefig(buffer, format=kind, dpi=RESOLUTION_DPI, metadata=stamp)
    return buffer.getvalue()


def _values(tensors: Mapping[str, Tensor], names: Sequence[str]) -> np.ndarray:
    """Entries of these tensors, evenly spaced ones of a huge tensor: plotting it needs no copy of it."""
    flat = [tensors[name].detach().reshape(-1) for name in names]
    return np.concatenate([one[:: ceil(len(one) / ENTRIES_SHOWN) or 1].cpu().double().numpy() for one in flat])


def _figure(width: float, height: float) -> Figure:
    """A figure with its own canvas, size in inches: without pyplot nothing is global and no window can open."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _styles(number: int) -> list[tuple[str, Any]]:
    places = [(place % len(COLOURS), (place + place // len(COLOURS)) % len(LINES)) for place in range(number)]
    return [(COLOURS[colour], LINES[line]) for colour, line in places]


def _tidy(axes: Axes, *, grid: str) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    axes.grid(axis=grid, color="#DDDDDD", linewidth=0.7)  # type: ignore[arg-type]


def _annotate(axes: Axes, text: str, x: float, y: float) -> None:
    """Write to the right of a bar's end."""
    axes.annotate(text, (x, y), xytext=(6, 0), textcoords="offset points", va="center")


def _legend_below(figure: Figure, *, columns: int) -> None:
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)


def _legend_above(figure: Figure) -> None:
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=min(len(labels), 5), frameon=False)
