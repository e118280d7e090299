"""Means with bootstrap intervals, against plain loops, and how often the intervals hold the truth."""

import numpy as np
import pytest
from fakes import naive_iou
from hypothesis import given, settings
from hypothesis import strategies as st

import zoo.bootstrap as bootstrap
from zoo.bootstrap import drawn_pairs, drawn_targets, estimate, task_weights
from zoo.channels import iou_rows, pack


def test_tasks_are_drawn_whole_with_replacement():
    tasks = ["b", "a", "b", "c", "a", "b"]
    weights = task_weights(tasks, 4000, seed=3)
    assert weights.shape == (4000, 6) and weights.dtype == np.float64
    for i, j in ((0, 2), (0, 5), (1, 4)):
        assert (weights[:, i] == weights[:, j]).all()
    a_task_each = weights[:, [0, 1, 3]]
    assert (a_task_each.sum(axis=1) == 3).all()
    # Three draws among three: a task is drawn 0, 1, 2 or 3 times in 8, 12, 6 and 1 of 27 cases.
    for column in a_task_each.T:
        assert np.bincount(column.astype(int), minlength=4) / 4000 == pytest.approx(
            [8 / 27, 12 / 27, 6 / 27, 1 / 27], abs=0.03
        )
    assert np.array_equal(weights, task_weights(tasks, 4000, seed=3))
    assert not np.array_equal(weights, task_weights(tasks, 4000, seed=4))


def test_no_tasks_and_no_resamples_are_empty():
    assert task_weights([], 5, 0).shape == (5, 0) and task_weights(["a", "b"], 0, 0).shape == (0, 2)
    none = estimate(np.ones((2, 0, 1)), drawn_targets(np.ones((2, 0, 1)), task_weights([], 5, 0)))
    assert np.isnan([none.mean, none.low, none.high]).all() and none.targets.tolist() == [[0], [0]]


numbers = st.lists(st.one_of(st.just(np.nan), st.floats(-9, 9)), min_size=5, max_size=5)


@given(st.lists(numbers, min_size=2, max_size=2), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_means_and_percentiles_are_those_of_loops(values, seed):
    weights = task_weights(["x", "x", "y", "z", "w"], 40, seed)
    table = np.array(values)[:, :, None]  # two places, five targets, one group
    found = estimate(table, drawn_targets(table, weights))
    for u, line in enumerate(values):
        known = [v for v in line if np.isfinite(v)]
        assert found.targets[u, 0] == len(known)
        assert found.mean[u, 0] == pytest.approx(np.mean(known) if known else np.nan, nan_ok=True)
        means = []
        for weight in weights.astype(int):
            again = [line[i] for i in range(5) for _ in range(weight[i]) if np.isfinite(line[i])]
            means += [np.mean(again)] if again else []
        ends = np.percentile(means, [2.5, 97.5]) if means else [np.nan, np.nan]
        assert [found.low[u, 0], found.high[u, 0]] == pytest.approx(ends, abs=1e-9, nan_ok=True)


def test_without_resamples_there_is_a_mean_and_no_interval():
    found = estimate(np.array([[[1.0], [2.0]]]), np.empty((1, 0, 1)))
    assert found.mean[0, 0] == 1.5 and np.isnan(found.low).all() and np.isnan(found.high).all()


def test_intervals_of_independent_targets_hold_the_truth():
    rng = np.random.default_rng(0)
    held = 0
    for trial in range(200):
        values = rng.normal(size=(1, 40, 1))
        found = estimate(values, drawn_targets(values, task_weights([str(i) for i in range(40)], 200, trial)))
        held += found.low[0, 0] < 0 < found.high[0, 0]
    assert 0.88 <= held / 200 <= 0.99


def test_intervals_of_pairs_hold_the_truth_where_those_of_targets_alone_are_too_narrow():
    """Which neighbours are in group 1 has nothing to do with their sets, so the gap is 0; chance alone gives one.

    Some tasks keep the channels that are common and some do not, which is then so for every target they are a neighbour
    of.
    """
    rng = np.random.default_rng(1)
    n, trials, held = 30, 60, {"targets": 0, "tasks": 0}
    for trial in range(trials):
        common = rng.uniform(0, 4, size=(n, 1)) * np.linspace(0, 1, 40)
        kept = np.argsort(common + rng.normal(size=(n, 40)), axis=1)[:, -12:]
        words = pack([{"a": row.tolist()} for row in kept], {"a": 40}).bits["a"]
        group = np.tile(rng.integers(1, 3, n), (n, 1))
        np.fill_diagonal(group, 0)
        weights = task_weights([str(i) for i in range(n)], 200, trial)
        _, gaps = drawn_pairs([[words]], group, 2, weights)
        ious = iou_rows(words, words)
        own = np.array([ious[t, group[t] == 1].mean() - ious[t, group[t] == 2].mean() for t in range(n)])[None, :, None]
        for name, drawn in (("tasks", gaps), ("targets", drawn_targets(own, weights))):
            found = estimate(own, drawn)
            held[name] += bool(found.low[0, 0] < 0 < found.high[0, 0])
    assert held["tasks"] / trials >= 0.9 and held["targets"] / trials <= 0.75, held


def test_drawn_pairs_equal_loops_over_drawn_tasks(monkeypatch):
    rng = np.random.default_rng(0)
    n, groups = 7, 3
    words = [pack([{"a": rng.permutation(9)[:4].tolist()} for _ in range(n)], {"a": 9}).bits["a"] for _ in range(2)]
    kept = [
        [set(np.flatnonzero(np.unpackbits(w[i].view(np.uint8), bitorder="little"))) for i in range(n)] for w in words
    ]
    group = rng.integers(0, groups + 1, (n, n))
    weights = task_weights(["t0", "t0", "t1", "t2", "t3", "t4", "t5"], 6, 0)
    assert (weights[:, 0] == weights[:, 1]).all() and (weights[:, 1:].sum(axis=1) == 6).all()
    for block, given_group in (
        (bootstrap.NUMBERS_AT_ONCE, group),
        (1, group.astype(np.uint8)),
        (1, lambda r: group[r]),
    ):
        monkeypatch.setattr(bootstrap, "NUMBERS_AT_ONCE", block)
        means, gaps = drawn_pairs([[words[0]], words, []], given_group, groups, weights)
        assert np.isnan(means[2]).all() and np.isnan(gaps[2]).all()
        for line, members in enumerate(([0], [0, 1])):
            for b, weight in enumerate(weights.astype(int)):
                drawn = [i for i in range(n) for _ in range(weight[i])]
                of_target = []
                for t in drawn:
                    ious = [[] for _ in range(groups)]
                    for j in drawn:
                        if group[t, j]:
                            ious[group[t, j] - 1].append(np.mean([naive_iou(kept[m][t], kept[m][j]) for m in members]))
                    of_target.append([np.mean(x) if x else np.nan for x in ious])
                of_target = np.array(of_target)
                gap = (of_target[:, 0] - of_target[:, -1])[np.isfinite(of_target[:, 0] - of_target[:, -1])]
                for g in range(groups):
                    column = of_target[np.isfinite(of_target[:, g]), g]
                    expected = column.mean() if len(column) else np.nan
                    assert means[line, b, g] == pytest.approx(expected, nan_ok=True)
                assert gaps[line, b, 0] == pytest.approx(gap.mean() if len(gap) else np.nan, nan_ok=True)
