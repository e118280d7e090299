"""NCE against its definition, counted in Python."""

from collections import Counter
from math import log

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo.errors import DataError
from zoo.leep import label_entropy, leep
from zoo.nce import nce


def naive_nce(predicted, labels):
    n, pairs, sources = len(labels), Counter(zip(labels, predicted)), Counter(predicted)
    return sum(c / n * log((c / n) / (sources[z] / n)) for (_, z), c in pairs.items())


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(-2, 5), st.integers(0, 4)), min_size=1, max_size=60))
def test_it_is_the_definition(pairs):
    predicted, labels = zip(*pairs)
    found = nce(predicted, labels)
    assert found == pytest.approx(naive_nce(predicted, labels), abs=1e-12)
    assert -label_entropy(labels) <= found <= 0


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4)), min_size=1, max_size=60))
def test_it_is_leep_of_certain_responses(pairs):
    predicted, labels = np.array(pairs).T
    assert nce(predicted, labels) == pytest.approx(leep(np.eye(4)[predicted], labels), abs=1e-9)


def test_its_ends():
    labels = np.array([0, 0, 1, 2])
    assert nce([4, 4, 5, 6], labels) == 0
    assert nce([7, 7, 7, 7], labels) == pytest.approx(-label_entropy(labels))
    assert nce([1, 2, 3], [5, 5, 5]) == 0


@pytest.mark.parametrize(
    ("predicted", "labels", "says"),
    [
        ([], [], "n at least 1"), ([0, 1], [0], "predicted: got 2, expected 1"), ([0.5], [0], "integer dtype"),
        ([[0]], [0], r"predicted: got shape \(1, 1\)"), ([0], ["cat"], "labels: got dtype"),
    ],
)  # fmt: skip
def test_bad_input(predicted, labels, says):
    with pytest.raises(DataError, match=says):
        nce(predicted, labels)


def test_all_mistakes_are_listed():
    with pytest.raises(DataError) as caught:
        nce([[0.5]], [0.5])
    assert len(caught.value.problems) == 3
