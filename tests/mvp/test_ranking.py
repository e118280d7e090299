"""Correlations, intervals, table and plot of `mvp measures` against naive ones."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mvp.ranking import Ranking, Run, over_tasks, rank_correlations


def naive_kendall(x, y):
    """Tau-b: concordant minus discordant pairs over the root of the pairs untied in each."""
    pairs = list(itertools.combinations(range(len(x)), 2))
    sign = [(np.sign(x[i] - x[j]), np.sign(y[i] - y[j])) for i, j in pairs]
    return sum(a * b for a, b in sign) / math.sqrt(sum(a != 0 for a, _ in sign) * sum(b != 0 for _, b in sign))


def naive_spearman(x, y):
    """Pearson's correlation of the ranks, ties sharing their mean rank."""

    def ranks(v):
        return np.array([sum(w < a for w in v) + (sum(w == a for w in v) + 1) / 2 for a in v])

    a, b = ranks(x) - ranks(x).mean(), ranks(y) - ranks(y).mean()
    return (a @ b) / math.sqrt((a @ a) * (b @ b))


@settings(deadline=None)  # the first call imports scipy
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=2, max_size=9))
def test_correlations_against_their_definitions(pairs):
    x, y = np.array(pairs, float).T
    found = rank_correlations(x, y)
    if len(set(x)) == 1 or len(set(y)) == 1:
        assert all(math.isnan(v) for v in found)
    else:
        assert found == pytest.approx((naive_spearman(x, y), naive_kendall(x, y)), abs=1e-12)


def test_intervals_draw_tasks_again():
    values = np.array([[0.5, np.nan], [0.5, 0.2], [0.5, -1.0], [0.5, 0.9]])
    found = over_tasks(values, list("abcd"))
    assert found.targets.tolist() == [[4, 3]]
    assert (found.mean[0, 0], found.low[0, 0], found.high[0, 0]) == (0.5, 0.5, 0.5)
    assert found.mean[0, 1] == pytest.approx(0.1 / 3)
    rng = np.random.default_rng(1)
    draws = [values[rng.integers(4, size=4), 1] for _ in range(4000)]
    means = [np.nanmean(draw) for draw in draws if not np.isnan(draw).all()]
    assert found.low[0, 1] == pytest.approx(np.quantile(means, 0.025), abs=0.1)
    assert found.high[0, 1] == pytest.approx(np.quantile(means, 0.975), abs=0.1)


def made_up(accuracies):
    """Measure "a" foretells the accuracies of four blocks on three tasks, "b" has no order; two seeds."""
    return Ranking(tuple(
        Run(m, f"t{t}", "x,y", block, -float(block) if m == "a" else 1.0, f"v{block},w", 0.5, seed, 10,
            accuracy + seed * 0.01, 1.0)
        for m in ("b", "a") for t in range(3) for seed in (0, 1) for block, accuracy in enumerate(accuracies)
    ), {"c": "it has no scores"})  # fmt: skip


def test_the_table_and_the_plot(tmp_path):
    result = made_up([0.9, 0.7, 0.8, 0.1])
    frame = result.summary()
    assert list(frame.measure) == ["a", "b"] and list(frame.tasks) == [3, 0]
    assert frame.spearman[0] == pytest.approx(0.8) and frame.kendall[0] == pytest.approx(4 / 6)
    assert (frame.spearman_low[0], frame.spearman_high[0]) == pytest.approx((0.8, 0.8)) and math.isnan(
        frame.spearman[1]
    )
    text = str(result)
    assert "4 blocks of 2 voters" in text and "left out: c: it has no scores" in text
    assert "a        +0.80 [+0.80, +0.80]  +0.67 [+0.67, +0.67]" in text and "90.5" in text and "10.5" in text
    figure = result.plot(tmp_path / "m.png")
    assert (tmp_path / "m.png").stat().st_size > 5000
    assert [t.get_text() for t in figure.axes[1].get_yticklabels()] == ["a", "b"]
