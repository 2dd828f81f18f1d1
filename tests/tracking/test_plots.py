"""Plots: they show every number they are given, as read from the drawn artists, and are valid files."""

import struct

import numpy as np
import pytest
import torch
from tracking.examples import example_report

from raymerge.evaluation.report_schema import Interpolation, Overlap
from raymerge.merging.methods import shares as merge_shares
from raymerge.models.encoder import EncoderConfig, SequenceEncoder
from raymerge.tracking import plots

HISTORIES = {
    "bert4rec": [{"epoch": epoch, "loss": 6.0 / epoch, "ndcg": 0.1 - 0.01 * abs(epoch - 2)} for epoch in (1, 2, 3)],
    "duorec": [{"epoch": 1, "loss": 5.0, "ndcg": 0.2}],
}


def diagonals() -> dict[str, dict[str, torch.Tensor]]:
    module = SequenceEncoder(7, EncoderConfig(dim=4, heads=1, feed_forward=4, max_length=4))
    torch.manual_seed(0)
    return {
        model: {name: torch.rand_like(p) for name, p in module.named_parameters()} for model in ("bert4rec", "duorec")
    }


def test_curves_hold_each_epoch_and_mark_the_best() -> None:
    loss, ndcg = plots.training_curves(HISTORIES).axes
    assert [line.get_label() for line in loss.lines] == ["bert4rec", "duorec"]
    assert loss.lines[0].get_ydata().tolist() == [6.0, 3.0, 2.0]
    marks = [line.get_xydata()[0].tolist() for line in ndcg.lines if line.get_marker() == "o"]
    assert marks == [[2, 0.1], [1, 0.2]]
    assert len({line.get_linestyle() for line in loss.lines}) == 2, "lines differ without colour too"


def test_bars_are_in_order_with_names_values_and_intervals() -> None:
    figure = plots.metric_bars(example_report())
    [axes] = figure.axes
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == ["bert4rec", "duorec", "uniform average", "Fisher merge", "merge + fine-tuning", "ensemble of 2"]
    widths = {round(bar.get_y() + bar.get_height() / 2): bar.get_width() for bar in axes.patches}
    assert [widths[place] for place in range(6)] == [0.12, 0.13, 0.136, 0.138, 0.14, 0.15]
    assert axes.texts[0].get_text() == "0.1200"
    assert axes.get_title(loc="left") == "NDCG@10 on test (full ranking, seen items filtered)"


OVERLAP: Overlap = {
    "k": 10,
    "ranking": "full",
    "groups": [
        {"members": "no member", "users": 700, "hits": {"fisher": 7, "average": 1}},
        {"members": "only bert4rec", "users": 30, "hits": {"fisher": 20, "average": 2}},
        {"members": "only duorec", "users": 20, "hits": {"fisher": 5, "average": 3}},
        {"members": "all members", "users": 250, "hits": {"fisher": 240, "average": 4}},
    ],
}
INTERPOLATION: Interpolation = {
    "points": [0.0, 0.5, 1.0],
    "lines": [{"first": "bert4rec", "second": "duorec", "scores": [0.1, 0.12, 0.11]}],
}


def test_bars_show_how_many_users_of_each_group_the_model_also_hits() -> None:
    [axes] = plots.hit_overlap(OVERLAP, "fisher").axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["only bert4rec", "only duorec", "all members"]
    assert [text.get_text() for text in axes.texts] == ["20 of 30", "5 of 20", "240 of 250"]
    assert [bar.get_width() for bar in axes.patches] == [30, 20, 250, 20, 5, 240]
    assert "fisher also hits 7 of 700 that no member hits" in axes.get_xlabel()


def test_lines_between_members_have_all_points() -> None:
    [axes] = plots.lines_between(INTERPOLATION).axes
    [line] = axes.lines
    assert line.get_xydata().tolist() == [[0, 0.1], [0.5, 0.12], [1, 0.11]]
    assert line.get_label() == "bert4rec to duorec"


def test_each_layer_has_a_histogram_whose_shares_and_zeros_add_up() -> None:
    every = diagonals()
    for diagonal in every.values():
        diagonal["item_embedding.weight"][0] = 0
    figure = plots.diagonal_histograms(every)
    panels = {axes.get_title(loc="left"): axes for axes in figure.axes}
    assert (next(iter(panels)), list(panels)[-1]) == ("item embedding", "output bias")
    assert {"norms", "block 1 attention", "block 2 feed forward", "position embedding"} <= set(panels)
    shares = [sum(patch.get_data().values) for patch in panels["item embedding"].patches]
    assert shares == pytest.approx([8 / 9, 8 / 9])
    assert panels["item embedding"].texts[0].get_text() == "11.1% are 0"
    assert not panels["norms"].texts


def test_a_layer_without_information_is_drawn_as_zeros() -> None:
    figure = plots.diagonal_histograms({"base": {"output_bias": torch.zeros(5)}})
    assert figure.axes[0].texts[0].get_text() == "100.0% are 0"


def test_shares_of_a_layer_are_means_over_its_entries() -> None:
    shares = {"blocks.0.attention.out.weight": [0.2, 0.8], "blocks.0.attention.out.bias": [0.8, 0.2]}
    sizes = {"blocks.0.attention.out.weight": 3, "blocks.0.attention.out.bias": 1}
    layers = plots.layer_shares(shares, sizes, ["a", "b"])
    assert layers == {"block 1 attention": pytest.approx({"a": 0.35, "b": 0.65})}


def example_shares() -> dict[str, dict[str, float]]:
    """The shares in a real merge with the diagonals above."""
    first, second = diagonals().values()
    sizes = {name: tensor.numel() for name, tensor in first.items()}
    return plots.layer_shares(merge_shares([first, second]), sizes, ["bert4rec", "duorec"])


def test_the_map_has_a_cell_per_layer_and_model() -> None:
    shares = example_shares()
    [axes] = plots.share_map(shares).axes
    assert len(axes.texts) == 2 * len(shares)
    first = axes.texts[0].get_text()
    assert first == f"{next(iter(shares.values()))['bert4rec']:.0%}"


@pytest.mark.parametrize(("kind", "start"), [("svg", b"<?xml"), ("pdf", b"%PDF"), ("png", b"\x89PNG")])
def test_the_same_figure_gives_the_same_bytes(kind: str, start: bytes) -> None:
    files = [plots.to_file(plots.lines_between(INTERPOLATION), kind) for _ in range(2)]
    assert files[0].startswith(start)
    assert files[0] == files[1]


@pytest.mark.parametrize("make", [
    lambda: plots.training_curves(HISTORIES),
    lambda: plots.metric_bars(example_report()),
    lambda: plots.diagonal_histograms(diagonals()),
    lambda: plots.share_map(example_shares()),
    lambda: plots.hit_overlap(OVERLAP, "fisher"),
    lambda: plots.lines_between(INTERPOLATION),
])  # fmt: skip
def test_a_figure_becomes_a_png_of_its_size(make) -> None:
    figure = make()
    png = plots.to_png(figure)
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    size = struct.unpack(">II", png[16:24])
    np.testing.assert_allclose(size, figure.get_size_inches() * plots.RESOLUTION_DPI, atol=1)
