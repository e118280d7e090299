"""Packed channel sets against Python sets, and the random floor against exact fractions and simulation."""

from fractions import Fraction
from math import comb

import numpy as np
import pytest
from fakes import base_row, make_plan, make_snapshot, naive_iou, sub_row
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo.channels import (
    channel_keys,
    iou,
    iou_rows,
    pack,
    pack_column,
    paper_floor,
    random_floor,
)  # fmt: skip
from zoo.errors import DataError, OptionError
from zoo.rows import Rows

SIZES = {"a0": 5, "a1": 64, "a2": 130}
INDEX_SETS = st.sets(st.integers(0, 129))


@st.composite
def zoos(draw):
    """Channel sets of some sub-networks; every axis may be absent, which means kept whole."""
    sets = []
    for _ in range(draw(st.integers(1, 6))):
        axes = draw(st.sets(st.sampled_from(sorted(SIZES))))
        sets.append({a: sorted(draw(st.sets(st.integers(0, SIZES[a] - 1), min_size=1))) for a in axes})
    return sets


@given(INDEX_SETS, INDEX_SETS)
def test_iou_is_jaccard(a, b):
    assert iou(sorted(a), np.array(sorted(b), np.int32)) == naive_iou(a, b)
    assert iou(a, b) == iou(b, a)


def test_iou_of_empty_sets_and_bad_input():
    assert iou([], []) == 1.0
    assert iou([], [1]) == 0.0
    assert iou([1, 1, 2], [2, 1]) == 1.0
    with pytest.raises(DataError, match="flatnonzero"):
        iou(np.array([True, False]), [0])
    with pytest.raises(DataError):
        iou([0.5], [1])


@given(zoos())
def test_packed_sets_are_the_python_sets(sets):
    whole = {a: range(n) for a, n in SIZES.items()}
    packed = pack(sets, SIZES)
    assert len(packed) == len(sets)
    for axis in SIZES:
        expected = [set(s.get(axis, whole[axis])) for s in sets]
        assert [set(packed.kept(axis, i).tolist()) for i in range(len(sets))] == expected
        assert packed.whole(axis) == all(e == set(whole[axis]) for e in expected)
        found = iou_rows(packed.bits[axis], packed.bits[axis])
        assert found.tolist() == [[naive_iou(a, b) for b in expected] for a in expected]


@given(zoos())
@settings(max_examples=30, deadline=None)
def test_arrow_column_packs_like_dicts(sets):
    plan = make_plan([SIZES["a0"], SIZES["a1"], SIZES["a2"]])
    snapshot = make_snapshot([sub_row(f"s{i}", channels=s) for i, s in enumerate(sets)], bases=[base_row(plan=plan)])
    column = snapshot.subnetworks["channels"]
    expected = pack(sets, SIZES)
    for given_column, part in (
        (column, slice(None)),
        (column.slice(1), slice(1, None)),
        (column.chunk(0), slice(None)),
    ):
        packed = pack_column(given_column, SIZES)
        for axis in SIZES:
            assert (packed.bits[axis] == expected.bits[axis][part]).all()


def test_pack_lists_everything_that_does_not_fit():
    with pytest.raises(DataError) as caught:
        pack([{"a0": [0, 5], "zz": [0]}, {"a1": [-1]}], SIZES)
    assert len(caught.value.problems) == 3


def test_joined_sets_count_channels_of_all_axes():
    sets = [{"a0": [0, 1], "a1": [0]}, {"a0": [1, 2], "a1": [0, 9]}]
    words = pack(sets, SIZES).joined(["a0", "a1"])
    assert iou_rows(words, words)[0, 1] == naive_iou({"x0", "x1", "y0"}, {"x1", "x2", "y0", "y9"})


def test_paper_floor_is_the_papers():
    assert [round(paper_floor(k), 3) for k in (0.1, 0.15, 0.05)] == [0.053, 0.081, 0.026]
    assert paper_floor(1) == 1
    with pytest.raises(OptionError):
        paper_floor(0)


@given(st.integers(1, 40).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(0, n))))
def test_random_floor_is_the_hypergeometric_expectation(sizes):
    n, a, b = sizes
    expected = sum(
        Fraction(comb(a, i) * comb(n - a, b - i), comb(n, b)) * (Fraction(i, a + b - i) if a + b else 1)
        for i in range(max(0, a + b - n), min(a, b) + 1)
    )
    assert random_floor(n, a, b) == pytest.approx(float(expected), abs=1e-12)


def test_random_floor_over_several_axes_matches_simulation():
    n, a, b = [6, 40], [2, 12], [3, 10]
    rng = np.random.default_rng(0)
    draws = []
    for _ in range(4000):
        pairs = [(rng.permutation(s)[:x], rng.permutation(s)[:y]) for s, x, y in zip(n, a, b)]
        left, right = ({(j, c) for j, p in enumerate(pairs) for c in p[side].tolist()} for side in (0, 1))
        draws.append(naive_iou(left, right))
    assert random_floor(n, a, b) == pytest.approx(np.mean(draws), abs=4 * np.std(draws) / 4000**0.5)


def test_floor_of_the_paper_is_near_the_exact_one_for_wide_layers():
    assert random_floor(512, 51, 51) == pytest.approx(paper_floor(51 / 512), rel=0.03)


def test_random_floor_refuses_sizes_that_do_not_fit():
    with pytest.raises(OptionError):
        random_floor(4, 5, 1)
    with pytest.raises(OptionError):
        random_floor([4, 4], [1], [1])


def test_keys_of_both_modes_and_packing_of_one_mode():
    plan = make_plan([(4, 2), 8])
    assert channel_keys(plan, "coupled") == {"a0": 4, "a1": 8}
    assert channel_keys(plan, "independent") == {"a0@layer0": 4, "a0@layer1": 4, "a1@layer2": 8}
    subs = [
        sub_row("c", channels={"a0": [1]}),
        sub_row("i", channels={"a0@layer1": [2]}, mode="independent"),
        sub_row("e", kind="element"),
    ]
    rows = Rows(make_snapshot(subs, bases=[base_row(plan=plan)]))
    members, packed = rows.packed("base-toy", "independent")
    assert members.tolist() == [1]
    assert packed.kept("a0@layer1", 0).tolist() == [2] and packed.whole("a0@layer0")
    assert rows.packed("base-toy", "coupled")[0].tolist() == [0]
