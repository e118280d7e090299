"""LogME against the evidence as it is defined, and against the paper's fixed-point steps."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo.errors import DataError
from zoo.logme import LEAST_NOISE, logme


def evidence(f, y, alpha, beta):
    """log N(y; 0, I / beta + F F' / alpha), by the density's formula with the full covariance."""
    covariance = np.eye(len(y)) / beta + f @ f.T / alpha
    sign, logdet = np.linalg.slogdet(covariance)
    assert sign > 0
    return -0.5 * (len(y) * np.log(2 * np.pi) + logdet + y @ np.linalg.solve(covariance, y))


def paper_evidence(f, y, alpha, beta):
    """The same as the paper writes it, with the weights' posterior mean m and its precision A."""
    n, d = f.shape
    a = alpha * np.eye(d) + beta * f.T @ f
    m = beta * np.linalg.solve(a, f.T @ y)
    residual = f @ m - y
    return (
        n / 2 * np.log(beta) + d / 2 * np.log(alpha) - n / 2 * np.log(2 * np.pi) - beta / 2 * residual @ residual
        - alpha / 2 * m @ m - np.linalg.slogdet(a)[1] / 2
    )  # fmt: skip


def paper_logme(f, labels, steps=3000):
    """Algorithm 1: fixed-point steps from alpha = beta = 1, with matrices, far beyond where the paper stops."""
    n, d = f.shape
    values = []
    for k in np.unique(labels):
        y, alpha, beta = (labels == k).astype(float), 1.0, 1.0
        eigenvalues = np.linalg.eigvalsh(f.T @ f)
        for _ in range(steps):
            m = beta * np.linalg.solve(alpha * np.eye(d) + beta * f.T @ f, f.T @ y)
            gamma = (beta * eigenvalues / (alpha + beta * eigenvalues)).sum()
            alpha, beta = gamma / (m @ m), (n - gamma) / ((f @ m - y) @ (f @ m - y))
        values.append(paper_evidence(f, y, alpha, beta) / n)
    return np.mean(values)


def clusters(n, d, classes, spread, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(n) % classes)
    return rng.normal(size=(classes, d))[labels] + spread * rng.normal(size=(n, d)) + 0.5, labels


@pytest.mark.parametrize(("n", "d", "classes"), [(40, 6, 3), (60, 12, 5), (30, 2, 2)])
@pytest.mark.parametrize("spread", [0.3, 1.0])
def test_it_is_the_limit_of_the_papers_algorithm(n, d, classes, spread):
    f, labels = clusters(n, d, classes, spread)
    assert logme(f, labels) == pytest.approx(paper_logme(f, labels), abs=1e-7)


def test_the_papers_evidence_is_the_density_of_the_labels():
    f, labels = clusters(20, 5, 2, 0.5)
    y = (labels == 0).astype(float)
    for alpha, beta in ((1.0, 1.0), (0.2, 30.0)):
        assert evidence(f, y, alpha, beta) == pytest.approx(paper_evidence(f, y, alpha, beta), abs=1e-8)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32 - 1), st.integers(3, 12), st.integers(1, 15), st.floats(0.05, 3),
    st.lists(st.tuples(st.floats(-6, 6), st.floats(-4, 5.9)), min_size=1, max_size=8),
)  # fmt: skip
def test_no_alpha_and_beta_explain_the_labels_better(seed, n, d, spread, pairs):
    f, labels = clusters(n, d, 2, spread, seed)
    found = logme(f, labels)
    assert -(1 + np.log(np.pi)) / 2 - 1e-6 <= found <= 6
    for log_alpha, log_beta in pairs:
        each = [evidence(f, (labels == k) + 0.0, 10**log_alpha, 10**log_beta) / n for k in np.unique(labels)]
        assert np.mean(each) <= found + 1e-6


def test_features_that_say_more_score_higher_whatever_their_scale():
    near, labels = clusters(100, 8, 4, 0.2)
    far, _ = clusters(100, 8, 4, 2.0)
    noise = np.random.default_rng(1).normal(size=(100, 8))
    scores = [logme(f, labels) for f in (near, far, noise)]
    assert scores[0] > scores[1] > scores[2]
    assert logme(1e6 * near, labels) == pytest.approx(scores[0], abs=1e-6)
    assert logme(near, labels * 7 - 3) == pytest.approx(scores[0], abs=1e-12)


@pytest.mark.parametrize("value", [0.0, 2.5])
def test_constant_features(value):
    labels = np.array([0, 0, 1, 1])
    found = logme(np.full((4, 3), value), labels)
    # Zero features leave noise of variance 1/2 alone; others give an intercept for nothing, and explain no label.
    null = -0.5 * (np.log(2 * np.pi / 2) + 1)
    assert found == pytest.approx(null, abs=1e-6) if value == 0 else null <= found < 0.2


def test_an_exact_fit_stays_finite():
    labels = np.arange(20) % 4
    exact = logme(np.eye(4)[labels], labels)
    assert np.isfinite(exact) and 3 < exact <= -0.5 * np.log(2 * np.pi * LEAST_NOISE)
    rng = np.random.default_rng(0)
    assert np.isfinite(logme(rng.normal(size=(5, 40)), [0, 1, 2, 0, 1]))
    assert np.isfinite(logme(rng.normal(size=(2, 1)), [0, 1]))


@pytest.mark.parametrize(
    ("features", "labels", "says"),
    [
        (np.ones((3, 2)), [1, 1, 1], "at least two classes"),
        (np.ones(3), [0, 1, 1], r"expected \(n, d\)"),
        (np.ones((0, 2)), [], r"expected \(n, d\)"),
        (np.ones((3, 2)), [0, 1], "got 2, expected 3"),
        (np.ones((3, 2)), [0.0, 1.0, 1.0], "integer dtype"),
        (np.full((2, 1), np.nan), [0, 1], "2 of 2 values are NaN"),
        (np.array([["a"], ["b"]]), [0, 1], "float dtype"),
    ],
)
def test_bad_input(features, labels, says):
    with pytest.raises(DataError, match=says):
        logme(features, labels)


def test_all_mistakes_are_listed():
    with pytest.raises(DataError) as caught:
        logme(np.full((2, 1), np.inf), [0.5])
    assert len(caught.value.problems) == 3
