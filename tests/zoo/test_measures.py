"""The list of measures: what holds for all of them, and all pairs of stored tasks."""

import math

import numpy as np
import pytest
from fakes import make_snapshot, score_row, similar_zoo, sub_row

import zoo.errors as errors
from zoo.measures import MEASURES, find_measure, similarity_rows
from zoo.query import nearest
from zoo.rows import Rows
from zoo.taskwup import task_wup

DOGS = ["dog.n.01", "wolf.n.01"]
CATS = ["cat.n.01", "lion.n.01"]


def whole_zoo(n):
    """`similar_zoo` with a score of every kind for every pair, and a Task2Vec embedding of every task."""
    zoo, rng = similar_zoo(n), np.random.default_rng(1)
    scores = zoo.scores.to_pylist()
    for row in zoo.scores.to_pylist():
        for by, value in zip(("nce", "logme", "hscore"), rng.uniform((-1.6, -1, 0), (0, 1, 4)).tolist()):
            scores.append(score_row(row["source"], row["target"], value, measure=by))
    scores += [score_row("base-toy", f"t{i:04d}", math.nan, measure="task2vec", vector=rng.exponential(size=6).tolist())
               for i in range(n)]  # fmt: skip
    return make_snapshot(zoo.subnetworks.to_pylist(), scores, zoo.bases.to_pylist())


def test_measures_are_found_by_name():
    assert [find_measure(m.name) for m in MEASURES] == list(MEASURES)
    with pytest.raises(errors.OptionError, match=r"'WUP'; expected wup \| leep \| leep_probe \| nce .*\| mask_iou"):
        find_measure("WUP")


@pytest.mark.parametrize("by", ["wup", "prototype", "stamp", "task2vec", "mask_iou"])
def test_measures_of_two_tasks_are_symmetric(by):
    matrix = similarity_rows(Rows.of(whole_zoo(12)), np.arange(12), by, np.ones((12, 12), bool))
    assert np.allclose(matrix, matrix.T, rtol=0, atol=1e-12) and np.allclose(np.diag(matrix), 1)
    assert matrix.min() < 0.9


def test_only_pairs_that_are_asked_for_are_scored_and_unmapped_targets_have_none():
    snapshot = make_snapshot([sub_row("a", "ta", CATS), sub_row("b", "tb", ["qqq", "zzz"]), sub_row("c", "tc", DOGS)])
    pairs = np.array([[0, 1, 1], [1, 0, 1], [0, 0, 0]], bool)
    matrix = similarity_rows(Rows.of(snapshot), np.arange(3), "wup", pairs)
    assert np.isfinite(matrix).tolist() == [[False, False, True], [False] * 3, [False] * 3]
    assert matrix[0, 2] == task_wup(CATS, DOGS)


def test_targets_without_scores_are_counted():
    snapshot = make_snapshot([sub_row(i, f"t{i}", CATS) for i in "abc"], [score_row("b", "ta", -1.0)])
    with pytest.raises(errors.MissingScoresError, match=r"2 of 3 target tasks .*by='leep'") as caught:
        similarity_rows(Rows.of(snapshot), np.arange(3), "leep", ~np.eye(3, dtype=bool) & [True, True, False])
    (problem,) = caught.value.problems
    assert "1 of 1 sub-networks have no LEEP score on task tb" in problem and "mvp.score" in caught.value.hint


@pytest.mark.parametrize("by", [m.name for m in MEASURES if m.name != "leep_probe"])
def test_similarity_rows_are_what_nearest_says(by):
    zoo = whole_zoo(16)
    rows = Rows.of(zoo)
    which = np.array([3, 1, 8, 12])
    matrix = similarity_rows(rows, which, by, ~np.eye(4, dtype=bool))
    assert np.isnan(np.diag(matrix)).all()
    for i, t in enumerate(which):
        score = dict(
            zip(*(lambda n: (n.id, n.score))(nearest(zoo, rows.ids[t], by=by, k=None, per_task=None, exclude=None)))
        )
        for j in range(4):
            assert i == j or matrix[i, j] == score[rows.ids[which[j]]]


@pytest.mark.parametrize("measure", MEASURES, ids=lambda m: m.name)
def test_every_measure_has_a_source_and_stays_in_its_range(measure):
    assert measure.source and measure.score.__doc__ and len({m.name for m in MEASURES}) == len(MEASURES)
    low, high = measure.range
    given = {f"s{i:04d}": -i / 20 for i in range(20)}  # what `leep_probe` is given
    scores = nearest(whole_zoo(20), "s0004", by=measure.name, k=None, given=given).score
    assert all(low <= s <= high for s in scores)


def test_leep_from_a_probe_is_what_is_given_and_only_nearest_can_give_it():
    zoo = whole_zoo(6)
    found = nearest(zoo, "s0000", by="leep_probe", k=2, given={f"s{i:04d}": -0.1 * i for i in range(6)})
    assert found.id == ("s0001", "s0002") and found.score == (-0.1, -0.2)
    with pytest.raises(errors.MissingScoresError, match=r"5 of 5 .*cache_responses"):
        nearest(zoo, "s0000", by="leep_probe", k=2)
    with pytest.raises(errors.MissingScoresError):
        similarity_rows(Rows.of(zoo), np.arange(6), "leep_probe", ~np.eye(6, dtype=bool))
