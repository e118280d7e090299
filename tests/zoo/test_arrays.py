"""Arrow columns as numpy, against `to_pylist`."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo.arrays import TextLists, codes, indices, numbers

texts = st.one_of(st.none(), st.text(max_size=3))
lists = st.lists(st.lists(texts, max_size=4), max_size=6)


def column(rows, cuts, kind):
    """A chunked array with the rows cut into chunks, one of them a slice that does not begin at 0."""
    parts = np.split(np.arange(len(rows)), sorted(min(c, len(rows)) for c in cuts))
    whole = pa.array([None if kind != pa.list_(pa.string()) else [], *rows], kind)
    return pa.chunked_array([whole.slice(1 + part[0], len(part)) for part in parts if len(part)], kind)


@settings(deadline=None)
@given(st.lists(st.integers(-(2**60), 2**60)), st.lists(st.integers(0, 9), max_size=3))
def test_numbers(values, cuts):
    got = numbers(column(values, cuts, pa.int64()), "<i8")
    assert got.tolist() == values and got.dtype == np.int64


@settings(deadline=None)
@given(st.lists(st.one_of(st.none(), st.floats(allow_nan=False)), min_size=1))
def test_null_floats_are_nan(values):
    expected = [np.nan if v is None else v for v in values]
    np.testing.assert_array_equal(numbers(pa.array(values, pa.float64()), "<f8"), expected)
    np.testing.assert_array_equal(numbers(pa.array([None, *values], pa.float64()).slice(1), "<f8"), expected)


@settings(deadline=None)
@given(st.lists(texts), st.lists(st.integers(0, 9), max_size=3), st.lists(texts, unique=True, max_size=3))
def test_codes_stand_for_the_values_and_known_ones_keep_theirs(values, cuts, known):
    got, names = codes(column(values, cuts, pa.string()), known)
    assert [names[c] for c in got] == values and names[: len(known)] == known
    assert len(set(names)) == len(names) and set(names) == {*known, *values}


@settings(deadline=None)
@given(lists, st.lists(st.integers(0, 6), max_size=2), lists, st.sets(texts))
def test_text_lists(rows, cuts, more, marked):
    first = TextLists(column(rows, cuts, pa.list_(pa.string())))
    got = TextLists(column(more, cuts, pa.list_(pa.string())), first)
    expected = [tuple(row) for row in [*rows, *more]]
    assert list(first) == expected[: len(rows)] and list(got) == expected
    assert [got[i] for i in range(len(got))] == expected and got[-2:] == expected[-2:]
    assert got.lengths.tolist() == [len(row) for row in expected]
    hits = got.hits([name in marked for name in got.names] or [False])
    assert hits.tolist() == [sum(text in marked for text in row) for row in expected]
    with pytest.raises(IndexError):
        got[len(got)]


def test_indices_take_rows():
    assert pa.array(["a", "b", "c"]).take(indices(np.array([2, 0]))).to_pylist() == ["c", "a"]
