"""FAISS spaces against a comparison with every vector in float64."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo.errors import DataError, OptionError
from zoo.index import Space, cosine, unit


def naive_search(query, ids, vectors, k):
    def cos(a, b):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        return a @ b / (np.linalg.norm(a) * np.linalg.norm(b))

    return sorted(((cos(query, v), i) for i, v in zip(ids, vectors)), key=lambda x: (-round(x[0], 12), x[1]))[:k]


@given(st.integers(1, 60), st.integers(1, 40), st.integers(1, 12), st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_search_finds_the_nearest(n, dim, k, seed):
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(n, dim)).astype(np.float32)
    query = rng.normal(size=dim).astype(np.float32)
    ids = [f"id{i:03d}" for i in rng.permutation(n)]
    found = Space("s", ids, vectors).search(query, k)
    expected = naive_search(query, ids, vectors, k)
    assert [score for _, score in found] == pytest.approx([score for score, _ in expected], abs=1e-9)
    if dim > 1:  # in one dimension all are ties up to rounding
        assert [id for id, _ in found] == [id for _, id in expected]


def test_ties_are_ordered_by_id_even_across_the_cut():
    vectors = np.tile(np.array([1.0, 2.0], np.float32), (50, 1)) * np.arange(1, 51, dtype=np.float32)[:, None]
    ids = [f"id{i:03d}" for i in reversed(range(50))]
    assert [id for id, _ in Space("s", ids, vectors).search([1, 2], 3)] == ["id000", "id001", "id002"]


def test_proposal_holds_vectors_that_float32_cannot_tell_apart():
    base = np.ones(512, np.float64)
    vectors = [base + 1e-6 * np.random.default_rng(i).normal(size=512) for i in range(30)]
    proposed = Space("s", [str(i) for i in range(30)], vectors).propose(base, 2)
    best = np.argsort(-cosine(base, np.stack([np.asarray(v, np.float32) for v in vectors])))[:2]
    assert set(best.tolist()) <= set(proposed.tolist())


def test_k_beyond_the_space_is_all_and_an_empty_space_is_empty():
    space = Space("s", ["a", "b"], np.eye(2))
    assert len(space.search([1, 0], 9)) == 2
    assert Space("s", [], []).dim == 0


@pytest.mark.parametrize("bad", [[np.nan, 1], [np.inf, 1], [0, 0], [1, 2, 3], 5.0])
def test_vectors_that_faiss_would_drop_are_refused(bad):
    with pytest.raises(DataError, match="bad-id"):
        Space("s", ["fine", "bad-id"], [[1, 2], bad])
    with pytest.raises(DataError, match="query"):
        Space("s", ["fine"], [[1, 2]]).search(bad, 1)


def test_ids_and_k_are_checked():
    with pytest.raises(DataError, match="one vector an id"):
        Space("s", ["a", "a"], np.eye(2))
    with pytest.raises(OptionError):
        Space("s", ["a"], np.ones((1, 2))).search([1, 0], 0)


def test_unit_survives_tiny_and_huge_values():
    rows = unit([[1e-300, 1e-300], [1e300, 1e300]])
    assert np.allclose(rows, 0.5**0.5)
    assert cosine([1, 1], rows) == pytest.approx([1, 1])


def test_a_score_does_not_depend_on_the_other_rows():
    rng = np.random.default_rng(0)
    vectors, query = rng.normal(size=(20, 33)), rng.normal(size=33)
    assert cosine(query, vectors).tolist() == [cosine(query, v[None])[0] for v in vectors]
