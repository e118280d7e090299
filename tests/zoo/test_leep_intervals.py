"""Intervals of LEEP against copies of the images that were drawn, and how often they hold the truth."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import zoo.leep_intervals as module
from zoo.errors import DataError, OptionError
from zoo.leep import label_entropy, leep, leep_many
from zoo.leep_intervals import drawn_leep, image_weights, leep_intervals


@given(st.integers(1, 40), st.integers(1, 5), st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_images_are_drawn_inside_their_class(n, classes, seed):
    labels = np.random.default_rng(seed).integers(0, classes, n) * 3 - 2
    weights = image_weights(labels, 6, seed)
    assert weights.shape == (6, n) and (weights >= 0).all() and (weights == weights.astype(int)).all()
    for c in np.unique(labels):
        assert (weights[:, labels == c].sum(axis=1) == (labels == c).sum()).all()
    assert np.array_equal(weights, image_weights(labels, 6, seed))


@given(st.integers(1, 30), st.integers(1, 6), st.integers(1, 4), st.booleans(), st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=60)
def test_weights_stand_for_copies(n, z, classes, silent, seed):
    rng = np.random.default_rng(seed)
    theta, labels = rng.dirichlet(np.full(z, 0.3), n), rng.integers(0, classes, n)
    if silent and z > 1:  # a source class that never responds
        theta[:, 0] = 0
        theta[theta.sum(axis=1) == 0, 1] = 1
        theta /= theta.sum(axis=1, keepdims=True)
    weights = image_weights(labels, 5, seed)
    copies = [np.repeat(np.arange(n), w.astype(int)) for w in weights]
    expected = [leep(theta[c], labels[c]) for c in copies]
    assert drawn_leep(theta, labels, weights) == pytest.approx(expected, rel=1e-10, abs=1e-12)
    assert drawn_leep(theta, labels, np.ones((1, n))) == pytest.approx([leep(theta, labels)], rel=1e-10, abs=1e-12)


def test_blocks_of_resamples_are_the_same(monkeypatch):
    rng = np.random.default_rng(0)
    theta, labels = rng.dirichlet(np.ones(4), 20), rng.integers(0, 3, 20)
    weights = image_weights(labels, 11, 0)
    at_once = drawn_leep(theta, labels, weights)
    monkeypatch.setattr(module, "NUMBERS_AT_ONCE", 45)
    assert drawn_leep(theta, labels, weights) == pytest.approx(at_once, rel=1e-12)


def test_ranks_equal_loops():
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 3, 60)
    own = np.eye(3)[labels]
    models = [own * a + (1 - a) / 3 for a in (0.5, 0.48, 0.1)]
    models = [m / 2 + rng.dirichlet(np.ones(3), 60) / 2 for m in models] + [np.full((60, 3), 1 / 3)]
    models.append(models[0])  # a tie in every resample
    found = leep_intervals(models, labels, 200, 5)
    weights = image_weights(labels, 200, 5)
    drawn = np.array([drawn_leep(m, labels, weights) for m in models])
    first, ranks = np.zeros(5), np.zeros((5, 200), int)
    for b, column in enumerate(drawn.T):
        best = np.flatnonzero(column == column.max())
        first[best] += 1 / len(best) / 200
        ranks[:, b] = [1 + (column > value).sum() for value in column]
    assert found.first == pytest.approx(first) and found.first.sum() == pytest.approx(1)
    assert found.first[0] == found.first[4] > 0
    for m in range(5):
        ordered = np.sort(ranks[m])
        assert (found.rank_low[m], found.rank_high[m]) == (ordered[4], ordered[194])
    assert found.value.tolist() == leep_many(models, labels).tolist()
    low, high = 2 * found.value - np.quantile(drawn, [0.975, 0.025], axis=1)
    lowest = -label_entropy(labels)
    assert found.low == pytest.approx(np.clip(low, lowest, 0)) and found.high == pytest.approx(np.clip(high, lowest, 0))
    table = found.table(list("abcde"))
    assert table["leep"] == sorted(found.value, reverse=True)
    assert table["model"] == [n for _, n in sorted(zip(-found.value, "abcde"))], "ties in the order given"


def test_intervals_hold_the_truth_more_often_than_plain_percentiles():
    """LEEP of many images is the truth; 100 images are seen."""
    rng = np.random.default_rng(0)
    held, plain, trials = 0, 0, 60
    for trial in range(trials):
        weights = rng.normal(size=(5, 20)) * 1.5

        def responses(labels, weights=weights):
            logits = np.exp(weights[labels] + 2 * rng.normal(size=(len(labels), 20)))
            return logits / logits.sum(axis=1, keepdims=True)

        many, few = np.repeat(np.arange(5), 1000), np.repeat(np.arange(5), 20)
        truth, seen = leep(responses(many), many), responses(few)
        found = leep_intervals([seen], few, 200, trial)
        held += bool(found.low[0] <= truth <= found.high[0])
        lower, upper = np.quantile(drawn_leep(seen, few, image_weights(few, 200, trial)), [0.025, 0.975])
        plain += bool(lower <= truth <= upper)
    assert held / trials > 0.8 and plain / trials < 0.5, (held, plain)


def test_degenerate_tasks():
    one = leep_intervals([np.full((4, 2), 0.5), np.eye(2)[[0, 1, 0, 1]]], [7] * 4, 10)
    assert one.value.tolist() == one.low.tolist() == one.high.tolist() == [0, 0]
    assert one.first.tolist() == [0.5, 0.5] and one.rank_high.tolist() == [1, 1]
    each = leep_intervals([np.full((3, 2), 0.5)], [0, 1, 2], 10)  # one image a class: every resample is the same
    assert each.low == pytest.approx(each.value) and each.high == pytest.approx(each.value)
    none = leep_intervals([], [0, 1], 10)
    assert len(none.value) == len(none.rank_low) == len(none.table()) == 0


def test_bad_input_is_refused():
    with pytest.raises(OptionError):
        leep_intervals([np.full((2, 2), 0.5)], [0, 1], 0)
    with pytest.raises(DataError, match="model 1"):
        leep_intervals([np.full((2, 2), 0.5), np.ones((2, 2))], [0, 1], 5)
