"""Scores of one sub-network on one task; `pytest tests/benchmarks --benchmark-enable` measures."""

from collections import Counter
from math import log

import numpy as np
import pytest

from tests.benchmarks.timing import against
from zoo.hscore import hscore
from zoo.logme import logme
from zoo.nce import nce


def drawn(n=500, d=51, classes=5):
    """As many features as a ResNet-18 with a tenth of its channels has."""
    rng = np.random.default_rng(0)
    labels = np.arange(n) % classes
    return rng.normal(size=(classes, d))[labels] + 2 * rng.normal(size=(n, d)), labels


def naive_logme(f, labels, steps=30):
    """The paper's fixed-point steps with matrices."""
    (n, d), total = f.shape, 0.0
    for k in np.unique(labels):
        y, alpha, beta = (labels == k).astype(float), 1.0, 1.0
        eigenvalues = np.linalg.eigvalsh(f.T @ f)
        for _ in range(steps):
            a = alpha * np.eye(d) + beta * f.T @ f
            m = beta * np.linalg.solve(a, f.T @ y)
            gamma = (beta * eigenvalues / (alpha + beta * eigenvalues)).sum()
            alpha, beta = gamma / (m @ m), (n - gamma) / ((f @ m - y) @ (f @ m - y))
        a = alpha * np.eye(d) + beta * f.T @ f
        m = beta * np.linalg.solve(a, f.T @ y)
        residual = ((f @ m - y) ** 2).sum()
        total += n / 2 * np.log(beta / 2 / np.pi) + d / 2 * np.log(alpha) - beta / 2 * residual
        total -= alpha / 2 * m @ m + np.linalg.slogdet(a)[1] / 2
    return total / n / len(np.unique(labels))


def naive_hscore(f, labels):
    means = np.stack([f[labels == y].mean(axis=0) for y in labels])
    return np.trace(np.linalg.pinv(np.cov(f, rowvar=False)) @ np.cov(means, rowvar=False))


def naive_nce(predicted, labels):
    n, sources = len(labels), Counter(predicted)
    return sum(c / n * log(c / sources[z]) for (_, z), c in Counter(zip(labels, predicted)).items())


@pytest.mark.parametrize(("fast", "naive"), [(logme, naive_logme), (hscore, naive_hscore)], ids=["logme", "hscore"])
def test_a_score_of_features(fast, naive, benchmark):
    f, labels = drawn()
    assert fast(f, labels) == pytest.approx(naive(f, labels), abs=1e-6)
    against(benchmark, lambda: fast(f, labels), lambda: naive(f, labels), "the definition with matrices")


def test_nce(benchmark):
    predicted, labels = np.random.default_rng(0).integers(5, size=(2, 500))
    lists = predicted.tolist(), labels.tolist()
    assert nce(predicted, labels) == pytest.approx(naive_nce(*lists))
    against(benchmark, lambda: nce(predicted, labels), lambda: naive_nce(*lists), "counted in Python")
