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


@given(problems(), st.sampled_from([np.float64, np.float32, np.float16]), st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_many_models_are_each_leep(problem, dtype, seed):
    theta, labels = problem
    rng = np.random.default_rng(seed)
    models = [theta.astype(dtype), rng.dirichlet(np.ones(3), len(labels)).astype(dtype), theta[:, ::-1].astype(dtype)]
    expected = [leep(m, labels) for m in models]
    found = leep_many(models, labels)
    assert found == pytest.approx(expected, rel=1e-12, abs=1e-14) and found.dtype == np.float64
    assert ((-entropy(labels.tolist()) - 1e-12 <= found) & (found <= 0)).all()
    assert leep_many(np.stack(models[::2]), labels).tolist() == found[::2].tolist(), "a list and an array agree"


def test_many_reads_what_numpy_can_hold():
    theta = np.array([[0.25, 0.75], [1.0, 0.0], [0.0, 1.0]])
    labels = [3, -1, 3]
    expected = [leep(theta, labels)] * 2
    given_twice = np.stack([theta, theta])
    frozen = given_twice.astype(np.float32)
    frozen.flags.writeable = False
    for same in (
        given_twice, frozen, given_twice.astype(">f4"), np.asfortranarray(given_twice), given_twice.astype(np.float16),
        given_twice.tolist(), [theta.astype(np.float16), theta.astype(np.float32)],
        np.repeat(given_twice, 2, axis=2)[:, :, ::2], given_twice.astype(np.longdouble),
    ):  # fmt: skip
        assert leep_many(same, labels) == pytest.approx(expected, rel=1e-12)
    whole = np.eye(3, dtype=int)[[0, 1, 1]]
    assert leep_many([whole], labels) == pytest.approx([leep(whole, labels)])
    assert leep_many([], labels).shape == (0,) and leep_many(np.empty((0, 3, 2)), labels).shape == (0,)


def test_half_precision_keeps_its_special_numbers():
    tiny = np.float16(6e-8)  # the smallest there is, a subnormal
    theta = np.array([[tiny, 1.0], [-0.0, 1.0], [0.5, 0.5]], np.float16)
    assert leep_many([theta], [0, 1, 1]) == pytest.approx([leep(theta, [0, 1, 1])], rel=1e-12)
    for bad in (np.nan, np.inf, -tiny, -np.inf):
        wrong = theta.copy()
        wrong[2, 0] = bad
        with pytest.raises(DataError, match="1 of 2 models"):
            leep_many([theta, wrong], [0, 1, 1])


def test_many_lists_the_models_that_cannot_be_scored():
    good, labels = np.full((4, 2), 0.5), [0, 1, 0, 1]
    nan = good.copy()
    nan[1] = np.nan, 1.0
    models = [good, nan, good * 3, good[:3], good, np.array([[2.0, -1.0]] * 4), np.empty((4, 0)), good.astype(str)]
    with pytest.raises(DataError, match="6 of 8 models") as caught:
        leep_many(models, labels)
    assert [p.split(":")[0] for p in caught.value.problems] == [f"model {m}" for m in (1, 2, 3, 5, 6, 7)]
    with pytest.raises(DataError, match="class numbers"):
        leep_many([good], [0.0, 1.0, 0.0, 1.0])
    with pytest.raises(DataError, match="class numbers"):
        leep_many([good], [])


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
