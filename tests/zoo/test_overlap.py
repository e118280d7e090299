"""Means of all pairs' IoU by group against loops over Python sets, from matrices and from functions of rows."""

import numpy as np
import pytest
from fakes import naive_iou
from hypothesis import given, settings
from hypothesis import strategies as st

import zoo.overlap as overlap
from zoo.channels import pack
from zoo.errors import DataError, OptionError
from zoo.kernels import TILE
from zoo.overlap import group_means, group_rows

SIZES = {"a0": 5, "a1": 130}


@st.composite
def zoos(draw):
    """Sets of some sub-networks, empty and whole ones among them, in two units of one and three words."""
    n = draw(st.integers(1, 7))
    return [{a: sorted(draw(st.sets(st.integers(0, size - 1)))) for a, size in SIZES.items()} for _ in range(n)]


def naive(sets, group, groups, axis):
    """Mean IoU and size, (N, groups), one pair after the other."""
    n = len(sets)
    means, sizes = np.full((n, groups), np.nan), np.zeros((n, groups), int)
    for t in range(n):
        for g in range(groups):
            values = [naive_iou(sets[t][axis], sets[j][axis]) for j in range(n) if group[t, j] == g + 1]
            sizes[t, g] = len(values)
            if values:
                means[t, g] = np.mean(values)
    return means, sizes


@given(zoos(), st.integers(0, 2**32 - 1), st.integers(1, 5), st.sampled_from([np.uint8, np.int64, np.int8]))
@settings(deadline=None)
def test_group_means_equal_loops_over_python_sets(sets, seed, groups, dtype):
    group = np.random.default_rng(seed).integers(0, groups + 1, (len(sets), len(sets))).astype(dtype)
    packed = pack(sets, SIZES)
    means, sizes = group_means([packed.bits[axis] for axis in SIZES], group, groups)
    for u, axis in enumerate(SIZES):
        expected, number = naive(sets, group, groups, axis)
        np.testing.assert_allclose(means[u], expected, rtol=1e-14)
        assert (sizes == number).all()


@pytest.mark.parametrize("n", [TILE - 1, TILE, 2 * TILE + 3])
def test_tiles_join_and_equal_sets_count_as_one(n):
    rng = np.random.default_rng(n)
    words = rng.integers(0, 2, (n, 2), dtype=np.uint64)  # none, one or two channels: ties and empty sets all over
    group = rng.integers(0, 4, (n, n), dtype=np.uint8)
    sets = [{"a": np.flatnonzero(row).tolist()} for row in words]
    some = rng.permutation(n)[:5]
    means, sizes = group_means([words], group, 3)
    for t in some:
        for g in range(3):
            others = np.flatnonzero(group[t] == g + 1)
            assert sizes[t, g] == len(others)
            assert means[0, t, g] == pytest.approx(np.mean([naive_iou(sets[t]["a"], sets[j]["a"]) for j in others]))


def test_a_function_of_rows_never_needs_the_matrix(monkeypatch):
    rng = np.random.default_rng(0)
    words = rng.integers(0, 2**63, (23, 2), dtype=np.uint64)
    group = rng.integers(0, 4, (23, 23))
    at_once = group_means([words], group, 3)
    monkeypatch.setattr(overlap, "PAIRS_AT_ONCE", 50)
    asked = []

    def rows(block):
        asked.append(block)
        return group[block]

    in_blocks = group_means([words], rows, 3)
    assert np.array_equal(at_once[0], in_blocks[0], equal_nan=True) and np.array_equal(at_once[1], in_blocks[1])
    assert [b.stop - b.start for b in asked] == [2] * 11 + [1] and [b.start for b in asked] == list(range(0, 23, 2))


def test_more_groups_than_a_byte_holds():
    words = np.arange(3, dtype=np.uint64)[:, None]
    group = np.full((3, 3), 700)
    means, sizes = group_means([words], group, 700)
    assert means[0, :, 699] == pytest.approx([1 / 3, 1 / 3, 1 / 3]) and np.isnan(means[0, :, :699]).all()
    assert sizes[:, 699].tolist() == [3, 3, 3] and sizes.sum() == 9


def test_nobody_has_no_means():
    means, sizes = group_means([np.empty((0, 1), np.uint64)], np.empty((0, 0), np.uint8), 2)
    assert means.shape == (1, 0, 2) and sizes.shape == (0, 2)


@pytest.mark.parametrize(
    "group, words",
    [
        (np.full((2, 2), 3), "0..2"),
        (np.full((2, 2), -1), "-1"),
        (np.full((2, 3), 1), "shape"),
        (np.full((2, 2), 1.0), "integers"),
        (lambda rows: np.ones((1, 2), int), "shape"),
    ],
)
def test_groups_that_do_not_fit_are_refused(group, words):
    with pytest.raises(DataError, match=words):
        group_means([np.zeros((2, 1), np.uint64)], group, 2)


def test_a_group_at_least():
    with pytest.raises(OptionError):
        group_means([np.zeros((2, 1), np.uint64)], np.zeros((2, 2), int), 0)
    assert group_rows(np.eye(3, dtype=int), slice(1, 3), 3).tolist() == [[0, 1, 0], [0, 0, 1]]
