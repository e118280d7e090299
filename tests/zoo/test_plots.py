"""The figures: what is drawn where, and that nothing global is touched."""

import subprocess
import sys

import numpy as np
import pytest
from fakes import FAMILIES, base_row, make_plan, make_snapshot, similar_zoo, sub_row
from matplotlib.collections import PolyCollection

import zoo.errors as errors
from zoo.depth import iou_against, iou_by_depth
from zoo.plots import plot_channels, plot_widths

PNG = b"\x89PNG"


def lines(ax):
    return {line.get_label(): line for line in ax.get_lines() if not line.get_label().startswith("_")}


def small():
    """Three layers, the last one kept whole."""
    subs = [
        sub_row("s-one", "t1", FAMILIES["sea"], channels={"a0": [0, 3], "a1": [1, 2, 5]}),
        sub_row("s-two", "t2", FAMILIES["pets"], channels={"a0": [1], "a1": [5]}),
    ]
    return make_snapshot(subs, bases=[base_row(plan=make_plan([4, 6, 2]))])


def test_study_plot_has_a_line_and_band_a_group_and_the_floor(tmp_path):
    study = iou_by_depth(similar_zoo(24), bootstrap=20)
    figure = study.plot(tmp_path / "iou.png")
    assert (tmp_path / "iou.png").read_bytes().startswith(PNG)
    (ax,) = figure.axes
    found = lines(ax)
    assert list(found) == ["1 (most similar)", "2", "3", "4", "5 (least similar)", "random sets (expected)"]
    assert np.array_equal(found["2"].get_ydata(), study.iou.mean[:, 1], equal_nan=True)
    assert found["2"].get_xdata().tolist() == [unit.depth for unit in study.units]
    assert found["random sets (expected)"].get_ydata().tolist() == study.floor.tolist()
    assert len(ax.collections) == 5 and ax.get_xlabel() and ax.get_ylabel()


def test_gap_plot_draws_the_gap():
    study = iou_by_depth(similar_zoo(24), bootstrap=20)
    (ax,) = study.plot_gap().axes
    data = [line.get_ydata() for line in ax.get_lines() if len(line.get_ydata()) == len(study)]
    assert any(np.array_equal(y, study.unit_gap.mean[:, 0]) for y in data)
    assert "group 1 - group 5" in ax.get_ylabel()


def test_blocks_have_a_panel_a_kind():
    plan = make_plan([4, 10, 4, 10], kinds=["head", "node"] * 2, blocks=["b.0", "b.0", "b.1", "b.1"])
    names = list(FAMILIES)
    subs = [
        sub_row(f"s{i}", f"t{i}", FAMILIES[names[i]], channels={a: [i % 4, 3 - i % 2] if i % 4 != 3 - i % 2 else [0]
                                                                for a in plan["axes"]})
        for i in range(6)
    ]  # fmt: skip
    study = iou_by_depth(make_snapshot(subs, bases=[base_row(plan=plan)]), per="block", bootstrap=5)
    axes = study.plot().axes
    assert [ax.get_title() for ax in axes] == ["heads and nodes together", "heads", "nodes"]
    assert lines(axes[1])["2"].get_xdata().tolist() == [0, 1]
    assert [label.get_text() for label in axes[0].get_xticklabels()] == ["0", "1"]


def test_plot_without_intervals_works():
    assert iou_by_depth(similar_zoo(12), bootstrap=0).plot().axes


def test_against_plot_has_a_line_a_set():
    zoo = similar_zoo(12)
    against = iou_against(zoo, {"voted": ["s0001"], "random": ["s0002"]}, reference=["s0003", "s0004"])
    (ax,) = against.plot().axes
    assert list(lines(ax)) == ["voted (1)", "random (1)", "random sets (expected)"]


def test_channels_are_drawn_at_their_index(tmp_path):
    figure = plot_channels(small(), ["s-one", "s-two"], tmp_path / "c.svg", names=["one", "two"])
    assert (tmp_path / "c.svg").stat().st_size > 0
    (ax,) = figure.axes
    drawn = {c.get_label(): c for c in ax.collections if isinstance(c, PolyCollection)}
    bottoms = {
        k: sorted((round(p.vertices[0, 0]), int(p.vertices[0, 1])) for p in c.get_paths()) for k, c in drawn.items()
    }
    assert bottoms == {"one": [(0, 0), (0, 3), (1, 1), (1, 2), (1, 5)], "two": [(0, 1), (1, 5)]}
    assert [t.get_text() for t in ax.get_xticklabels()] == ["layer0", "layer1"], "layer2 is pruned by neither"
    assert ax.get_ylim()[1] >= 6


def test_many_layers_go_into_rows_with_scales_of_their_own():
    zoo = similar_zoo(4, widths=[8] * 25 + [64] * 25)
    axes = plot_channels(zoo, ["s0000", "s0001"]).axes
    names = [t.get_text() for ax in axes for t in ax.get_xticklabels()]
    assert len(axes) == 3 and names == [f"layer{i}" for i in range(50)]
    assert axes[0].get_ylim()[1] < 10 < axes[2].get_ylim()[1]


def test_widths_are_the_kept_shares():
    (ax,) = plot_widths(small(), ["s-one", "s-two"]).axes
    heights = [[bar.get_height() for bar in bars] for bars in ax.containers]
    assert heights == [[2 / 4, 3 / 6], [1 / 4, 1 / 6]]
    zoo = similar_zoo(12)
    (many,) = plot_widths(zoo, zoo.subnetworks["id"].to_pylist()).axes
    assert lines(many)["mean of 12"].get_ydata()[0] == pytest.approx(5 / 16)


def test_what_cannot_be_drawn():
    zoo = similar_zoo(12)
    with pytest.raises(errors.EmptyZooError):
        plot_channels(zoo, [])
    with pytest.raises(errors.OptionError):
        plot_channels(zoo, zoo.subnetworks["id"].to_pylist())
    with pytest.raises(errors.OptionError):
        plot_widths(zoo, ["s0000"], names=["a", "b"])
    with pytest.raises(errors.OptionError):
        plot_widths(zoo, "s0000")
    with pytest.raises(errors.NotFoundError):
        plot_widths(zoo, ["nobody"])
    other = make_snapshot(
        [sub_row("a", channels={"a0": [0]}), sub_row("b", channels={"a0": [0]}, base_id="base-2")],
        bases=[base_row(), base_row("2")],
    )
    with pytest.raises(errors.MixtureError):
        plot_channels(other, ["a", "b"])


def test_nothing_heavy_is_imported_before_it_is_needed():
    code = (
        "import sys, zoo.query, zoo.depth, zoo.plots, zoo.leep, zoo.index; "
        "print([m for m in ('torch', 'matplotlib', 'pandas', 'faiss', 'duckdb', 'nltk', 'mvp') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_pyplot_is_never_loaded():
    before = "matplotlib.pyplot" in sys.modules
    iou_by_depth(similar_zoo(6), bootstrap=2).plot()
    assert ("matplotlib.pyplot" in sys.modules) == before
