"""H-score against its definition with covariance matrices."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo.errors import DataError
from zoo.hscore import hscore


def naive_hscore(f, labels):
    """tr(cov(f)^+ cov(E[f | y])), the second over the images, each with its class's mean."""
    means = np.stack([f[labels == y].mean(axis=0) for y in labels])
    inner = np.atleast_2d(np.cov(f, rowvar=False, bias=True))
    return np.trace(np.linalg.pinv(inner, rcond=1e-10) @ np.atleast_2d(np.cov(means, rowvar=False, bias=True)))


def drawn(n, d, classes, seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=n)
    return rng.normal(size=(classes, d))[labels] + rng.normal(size=(n, d)) + 3, labels


@settings(max_examples=80, deadline=None)
@given(st.integers(2, 40), st.integers(1, 12), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_it_is_the_definition(n, d, classes, seed):
    f, labels = drawn(n, d, classes, seed)
    found = hscore(f, labels)
    assert found == pytest.approx(naive_hscore(f, labels), abs=1e-7)
    assert 0 <= found <= min(len(np.unique(labels)) - 1, d)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_dead_and_repeated_units_take_no_part(dtype):
    f, labels = (a for a in drawn(50, 4, 3, 0))
    more = np.hstack([f, np.zeros((50, 1)), np.full((50, 1), 0.1), f[:, :2]]).astype(dtype)
    assert hscore(more, labels) == pytest.approx(hscore(f, labels), abs=1e-5)


def test_it_does_not_change_under_linear_maps():
    f, labels = drawn(60, 5, 4, 1)
    turned = f @ np.random.default_rng(2).normal(size=(5, 5)) * 1e3 - 7
    assert hscore(turned, labels) == pytest.approx(hscore(f, labels), abs=1e-8)
    assert hscore(f, 10 - 3 * labels) == pytest.approx(hscore(f, labels), abs=1e-12)


def test_its_ends():
    labels = np.arange(12) % 3
    assert hscore(np.eye(3)[labels], labels) == pytest.approx(2)
    assert hscore(np.eye(3)[labels], np.zeros(12, int)) == 0
    for value in (0.0, 0.1, 1e30):
        assert hscore(np.full((12, 4), value), labels) == 0
        assert hscore(np.full((12, 4), value, np.float32), labels) == 0
    assert hscore([[1.0, 2.0]], [0]) == 0
    few = np.random.default_rng(0).normal(size=(5, 20))
    assert hscore(few, [0, 1, 2, 0, 1]) == pytest.approx(2), "more features than images: any labels follow from them"


@pytest.mark.parametrize(
    ("features", "labels", "says"),
    [(np.ones(3), [0, 1, 1], r"expected \(n, d\)"), (np.ones((3, 2)), [0, 1], "got 2, expected 3"),
     (np.full((2, 1), np.inf), [0, 1], "2 of 2 values are NaN or infinite")],
)  # fmt: skip
def test_bad_input(features, labels, says):
    with pytest.raises(DataError, match=says):
        hscore(features, labels)
