"""Nearest vectors of a space, with and without a filter; `pytest tests/benchmarks --benchmark-enable` measures."""

import numpy as np
import pytest

from tests.benchmarks.timing import against
from zoo.index import Space, cosine

DIM = 512


@pytest.fixture(scope="module")
def spaces():
    """{n: (space, vectors, query)}, tasks in clusters as embeddings of label sets are."""
    made = {}

    def of(n):
        if n not in made:
            rng = np.random.default_rng(0)
            centres = rng.normal(size=(50, DIM)).astype(np.float32)
            vectors = centres[rng.integers(0, 50, n)] + 0.5 * rng.normal(size=(n, DIM)).astype(np.float32)
            made[n] = Space("s", [f"id{i:06d}" for i in range(n)], vectors), vectors, vectors[0] + 0.1
        return made[n]

    return of


def exact(space, vectors, query, rows):
    scores = cosine(query, vectors[rows])
    return [(space.ids[rows[i]], scores[i]) for i in np.argsort(-scores)[:10]]


@pytest.mark.parametrize("n", [1000, 20_000])
@pytest.mark.parametrize("share", [1.0, 0.5, 0.01])
def test_nearest_ten(n, share, spaces, benchmark):
    space, vectors, query = spaces(n)
    allowed = np.random.default_rng(1).random(n) < share if share < 1 else None
    rows = np.arange(n) if allowed is None else np.flatnonzero(allowed)
    assert space.search(query, 10, allowed) == exact(space, vectors, query, rows)
    against(
        benchmark, lambda: space.search(query, 10, allowed), lambda: exact(space, vectors, query, rows),
        "float64 cosine of all allowed",
    )  # fmt: skip


@pytest.mark.parametrize("n", [1000, 20_000])
def test_build(n, spaces, benchmark):
    _, vectors, _ = spaces(n)
    ids = [str(i) for i in range(n)]
    assert len(benchmark(lambda: Space("s", ids, vectors))) == n


def test_add_and_remove_one(spaces, benchmark):
    space, vectors, _ = spaces(20_000)

    def run():
        space.add(["one more"], vectors[:1])
        space.remove(["one more"])

    benchmark(run)
    assert len(space) == 20_000
