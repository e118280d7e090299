"""Landmarks: what is found is exact, more passes find more, and a matrix of low rank is completed from few entries."""

import numpy as np
import pytest
from fakes import make_snapshot, score_row, sub_row

import zoo
from zoo.errors import DataError, OptionError
from zoo.landmarks import complete, directions, known_rows, landmarks, recall, search


def low_rank(tasks=30, subs=80, rank=3, noise=0.0, seed=0):
    rng = np.random.default_rng(seed)
    full = rng.normal(size=(tasks + 1, rank)) @ rng.normal(size=(rank, subs)) + noise * rng.normal(
        size=(tasks + 1, subs)
    )
    return full[:-1], full[-1]


def test_landmarks_are_the_farthest_points():
    known, _ = low_rank()
    chosen = landmarks(known, 9)
    columns = known.T
    assert chosen[0] == np.argmin(np.linalg.norm(columns - columns.mean(0), axis=1))
    for i in range(1, 9):
        apart = [min(np.linalg.norm(c - columns[j]) for j in chosen[:i]) for c in columns]
        assert apart[chosen[i]] == pytest.approx(max(apart))
    assert sorted(landmarks(known, 500)) == list(range(80))
    assert landmarks(np.zeros((2, 4)), 4).tolist() == [0, 1, 2, 3], "equal columns are each chosen once"


def test_a_row_of_low_rank_is_completed_from_few_entries():
    known, row = low_rank()
    features, at = directions(known), landmarks(known, 8)
    got = complete(features, at, row[at])
    assert np.array_equal(got[at], row[at])
    assert np.corrcoef(got, row)[0, 1] > 0.999
    assert complete(features, at[:1], row[at[:1]]).tolist() == [row[at[0]]] * 80


def test_search_measures_as_often_as_it_may_and_ranks_what_it_measured():
    known, row = low_rank(noise=0.3)
    for passes in (2, 7, 20, 200):
        asked = []
        at, values = search(known, lambda i, asked=asked: asked.append(i) or row[i], passes)
        assert len(asked) == len(set(asked)) == len(at) == min(passes, 80)
        assert values.tolist() == sorted(row[asked], reverse=True) and np.array_equal(row[at], values)
    assert np.array_equal(at, np.argsort(-row))


def test_it_finds_more_than_chance():
    shares = []
    for seed in range(10):
        known, row = low_rank(noise=0.5, seed=seed)
        at, _ = search(known, row.__getitem__, 16)
        shares.append(len(set(at[:5]) & set(np.argsort(-row)[:5])) / 5)
    assert np.mean(shares) > 0.7  # by chance 0.2


def test_bad_input():
    known, row = low_rank()
    with pytest.raises(OptionError, match="2 or more"):
        search(known, row.__getitem__, 1)
    for wrong in (known[:0], np.full((2, 3), np.nan)):
        with pytest.raises(DataError, match="score_pairs"):
            search(wrong, row.__getitem__, 4)


def test_recall_on_the_sample_zoo():
    snapshot = zoo.sample().snapshot()
    names, known, usable = known_rows(snapshot, np.arange(60))
    assert known.shape == (60, 60) and names == sorted(names) and usable.tolist() == list(range(60))
    scores = snapshot.scores.to_pandas().pivot_table(index="target", columns="source", values="value")
    assert known[3, 5] == scores.loc[names[3], zoo.sample().ids()[5]]
    found = recall(snapshot, k=5, passes=(8, 24, 60))
    means = found.found.mean(axis=0)
    assert means[0] > 2 * 8 / 59 and means[1] > 0.85 and means[2] == 1.0
    assert "60 tasks" in str(found) and "24" in str(found)
    with pytest.raises(OptionError):
        recall(snapshot, k=0)


def test_recall_without_scores(tmp_path):
    with pytest.raises(DataError, match="score_pairs"):
        recall(zoo.open(tmp_path / "z").snapshot())


def test_sub_networks_without_scores_are_counted_out():
    subs = [sub_row(f"s{i}", f"t{i}") for i in range(5)]
    scores = [score_row(f"s{i}", f"t{j}", -float(i + j)) for i in (0, 2, 4) for j in (0, 1)] + [
        score_row("s1", "t1", 0.0)
    ]
    names, known, usable = known_rows(make_snapshot(subs, scores), np.array([4, 3, 2, 1]))
    assert (names, known.tolist(), usable.tolist()) == (["t1"], [[-5.0, -3.0, 0.0]], [0, 2, 3])
    names, known, usable = known_rows(make_snapshot(subs), np.arange(5))
    assert names == [] and known.shape == (0, 0) and len(usable) == 0
