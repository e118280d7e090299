"""LEEP against the paper's equations written as loops, and its bounds."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo.errors import DataError
from zoo.leep import label_entropy, leep, leep_by_task, leep_many


def naive_leep(theta, labels):
    """Nguyen et al. 2020, Eq. 1-2, term by term."""
    n, zs = len(theta), range(len(theta[0]))
    joint = {(y, z): sum(theta[i][z] for i in range(n) if labels[i] == y) / n for y in set(labels) for z in zs}
    marginal = {z: sum(joint[y, z] for y in set(labels)) for z in zs}
    total = 0.0
    for i in range(n):
        expected = sum(joint[labels[i], z] / marginal[z] * theta[i][z] for z in zs if marginal[z] > 0)
        total += math.log(expected)
    return total / n


def entropy(labels):
    return -sum(c / len(labels) * math.log(c / len(labels)) for c in Counter(labels).values())


@st.composite
def problems(draw):
    n, z, y = draw(st.integers(1, 30)), draw(st.integers(1, 6)), draw(st.integers(1, 5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    theta = rng.dirichlet(np.full(z, draw(st.sampled_from([0.02, 0.5, 5.0]))), size=n)
    if z > 1 and draw(st.booleans()):  # a source class that never responds
        theta[:, 0] = 0
        theta[theta.sum(axis=1) == 0, 1] = 1
        theta /= theta.sum(axis=1, keepdims=True)
    return theta, rng.integers(0, y, n)


@given(problems())
def test_leep_is_the_papers(problem):
    theta, labels = problem
    assert leep(theta, labels) == pytest.approx(naive_leep(theta.tolist(), labels.tolist()), abs=1e-10)


@given(problems(), st.sampled_from([np.float64, np.float32]))
def test_leep_lies_between_minus_entropy_and_zero(problem, dtype):
    theta, labels = problem
    value = leep(theta.astype(dtype), labels)
    assert -entropy(labels.tolist()) - 1e-12 <= value <= 0
    assert label_entropy(labels) == pytest.approx(entropy(labels.tolist()), abs=1e-12)


def test_perfect_and_uninformative_sources():
    labels = np.repeat(np.arange(5), 20)
    assert leep(np.eye(5)[labels], labels) == pytest.approx(0, abs=1e-12)
    assert leep(np.full((100, 3), 1 / 3), labels) == pytest.approx(-math.log(5), abs=1e-12)
    assert leep(np.eye(5, dtype=int)[labels].tolist(), labels.tolist()) == leep(np.eye(5)[labels], labels)
    assert leep(np.eye(5)[labels], labels * 7 + 3) == pytest.approx(0, abs=1e-12), "label values do not matter"


def test_many_models_are_each_leep():
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 4, 50)
    models = [rng.dirichlet(np.ones(z), 50) for z in (2, 5, 5)]
    assert leep_many(models, labels).tolist() == [leep(m, labels) for m in models]
    assert leep_many(np.stack(models[1:]), labels).tolist() == [leep(m, labels) for m in models[1:]]


@given(st.integers(0, 2**32 - 1), st.lists(st.sets(st.integers(0, 7), min_size=1), min_size=1, max_size=6))
@settings(max_examples=50)
def test_tasks_of_one_data_set_are_leep_of_their_rows(seed, tasks):
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(8), rng.integers(0, 8, 60)])
    theta = rng.dirichlet(np.full(5, 0.3), len(labels)).astype(np.float32)
    values = leep_by_task(theta, labels, [sorted(t) for t in tasks])
    for value, task in zip(values, tasks):
        rows = np.isin(labels, sorted(task))
        assert value == pytest.approx(leep(theta[rows], labels[rows]), abs=1e-9)


def test_by_task_names_the_tasks_that_cannot_be_scored():
    with pytest.raises(DataError) as caught:
        leep_by_task(np.full((4, 2), 0.5), [0, 0, 1, 1], [(0, 1), (0, 2), (), (1, 1)])
    assert [p.split(":")[0] for p in caught.value.problems] == ["task 1", "task 2", "task 3"]


@pytest.mark.parametrize(
    "theta, labels, words",
    [
        (np.full((3, 2), 0.5), [0, 1], "do not fit"),
        (np.full((2,), 0.5), [0, 1], "do not fit"),
        (np.empty((0, 2)), np.empty(0, int), "do not fit"),
        (np.full((2, 2), 0.5), [0.0, 1.0], "class numbers"),
        (np.array([["a", "b"], ["c", "d"]]), [0, 1], "float"),
        (np.array([[np.nan, 1.0], [0.5, 0.5]]), [0, 1], "1 of 2 responses"),
        (np.array([[3.0, -2.0], [0.5, 0.5]]), [0, 1], "softmax outputs, not logits"),
        (np.array([[2.0, 3.0], [0.5, 0.5]]), [0, 1], "softmax outputs, not logits"),
    ],
)
def test_bad_input_is_refused(theta, labels, words):
    with pytest.raises(DataError, match=words):
        leep(theta, labels)
