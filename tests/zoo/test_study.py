"""The tables of a study, from numbers put in by hand."""

import numpy as np
import pytest
from fakes import similar_zoo

from zoo.bootstrap import Estimate
from zoo.depth import iou_by_depth
from zoo.study import Against, Study
from zoo.units import Unit

UNITS = [
    Unit("stem", 0.0, 0, "filter", None, ("a0",), 8, ("conv1",)),
    Unit("b.0", 1.5, 1, "head", "b.0", ("a1", "a2"), 12, ("qkv", "fc1")),
    Unit("b.1", 3.0, 2, "node", "b.1", ("a3",), 4, ("fc2",)),
]


def numbers(*shape, start=0.0):
    """An estimate in which every number is another one: means, then low ends 0.01 below and high ends 0.02 above."""
    mean = start + np.arange(np.prod(shape)).reshape(shape) / 100
    return Estimate(mean, mean - 0.01, mean + 0.02, np.arange(np.prod(shape)).reshape(shape))


@pytest.fixture
def study():
    return Study(
        per="axis", units=UNITS, axes=UNITS, iou=numbers(3, 2), unit_gap=numbers(3, 1, start=0.3),
        floor=np.array([0.1, 0.2, 0.3]), axis_floor=np.array([0.11, 0.22, 0.33]),
        sizes=np.array([[3, 0], [1, 2]]), thirds=numbers(4, 2, start=0.5), third_gaps=numbers(5, 1, start=0.7),
        shared=numbers(4, 3, start=0.2), shared_sizes=np.array([[2, 0, 1], [3, 0, 0]]),
        about={"base": "toy (x)", "mode": "coupled", "producer": "ifp", "keep": 0.5, "generation": 0, "by": "wup",
               "version": "b1-c1-s1-t1", "subnetworks": 2, "unmapped": 0},
    )  # fmt: skip


def test_one_row_a_place_and_group(study):
    rows = study.table().rows()
    assert len(rows) == 6 and len(study) == 3 and study.groups == 2
    for i, row in enumerate(rows):
        u, g = divmod(i, 2)
        assert row == {
            "name": UNITS[u].name, "kind": UNITS[u].kind, "depth": UNITS[u].depth, "block": UNITS[u].block,
            "third": ["first third", "middle third", "last third"][u], "layers": ", ".join(UNITS[u].layers),
            "n": UNITS[u].n, "group": g + 1, "iou": study.iou.mean[u, g], "low": study.iou.low[u, g],
            "high": study.iou.high[u, g], "floor": study.floor[u], "targets": i,
        }  # fmt: skip


def test_gaps_by_place_and_by_thirds(study):
    assert study.gaps["gap"] == pytest.approx([0.3, 0.31, 0.32]) and study.gaps["depth"] == [0.0, 1.5, 3.0]
    everything, first, middle, last, trend = study.gap.rows()
    assert [r["depth"] for r in (everything, first, middle, last, trend)] == [
        "all", "first third", "middle third", "last third", "last - first"
    ]  # fmt: skip
    assert everything["axes"] == 3 and everything["floor"] == pytest.approx(0.22) and middle["floor"] == 0.22
    assert (last["group 1"], last["group 2"]) == pytest.approx((0.56, 0.57))
    assert (trend["gap"], trend["low"], trend["high"]) == pytest.approx((0.74, 0.73, 0.76)) and trend["axes"] is None


def test_numbers_of_shared_classes_that_no_pair_has_are_left_out(study):
    rows = study.shared_class_table().rows()
    assert [(r["shared"], r["depth"], r["targets"], r["pairs"]) for r in rows[::4]] == [
        (0, "all", 2, 5),
        (2, "all", 1, 1),
    ]
    assert [r["iou"] for r in rows] == pytest.approx([study.shared.mean[p, s] for s in (0, 2) for p in range(4)])


def test_group_sizes(study):
    sizes = study.size_table()
    assert sizes["mean size"] == [2, 1] and sizes["smallest"] == [1, 0] and sizes["largest"] == [3, 2]
    assert sizes["targets without"] == [0, 1]


def test_a_place_without_targets_shows_a_dash(study):
    study.iou.mean[1, 0] = study.unit_gap.mean[1, 0] = np.nan
    line = next(line for line in str(study).splitlines() if line.split()[:1] == ["b.0"])
    assert line.split()[-1] == "-" and "nan" not in line


def test_lines_of_a_comparison_with_references():
    lines = {"voted": numbers(3, 1), "random": numbers(3, 1, start=0.4)}
    against = Against("axis", UNITS, lines, {"voted": 7, "random": 2}, np.array([0.1, 0.2, 0.3]), without=4)
    rows = against.table().rows()
    assert [(r["set"], r["name"], r["floor"]) for r in rows] == [
        (name, unit.name, floor) for name in lines for unit, floor in zip(UNITS, (0.1, 0.2, 0.3))
    ]
    assert [r["iou"] for r in rows] == pytest.approx([0, 0.01, 0.02, 0.4, 0.41, 0.42])
    text = str(against)
    assert "voted (7)" in text and "random (2)" in text and "4 sub-networks have no reference" in text


def test_study_prints_and_converts():
    study = iou_by_depth(similar_zoo(12), bootstrap=10)
    text = str(study)
    assert "by=wup" in text and "a8" in text and "last - first" in text and "targets without" in text
    assert len(study.to_pandas()) == len(study) * 5 == study.to_arrow().num_rows
    assert "<table>" in study._repr_html_()
    assert study.gaps["name"] == [unit.name for unit in study.units]
