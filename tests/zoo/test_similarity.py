"""Measures of labels, stored scores and channel sets against naive ones; what they say when something is missing."""

import numpy as np
import pytest
from fakes import FAMILIES, base_row, make_plan, make_snapshot, naive_iou, score_row, similar_zoo, sub_row

import zoo.errors as errors
from zoo.measures import similarity_rows
from zoo.query import nearest
from zoo.rows import Rows
from zoo.taskwup import task_wup

DOGS = ["dog.n.01", "wolf.n.01"]
CATS = ["cat.n.01", "lion.n.01"]
BUSES = ["bus.n.01", "truck.n.01"]


@pytest.mark.parametrize("how", ["best_match", "mean", "hungarian"])
def test_wup_compares_classes_as_asked(how):
    snapshot = similar_zoo(10)
    found = nearest(snapshot, FAMILIES["sea"], k=None, how=how)
    assert found.score == tuple(task_wup(FAMILIES["sea"], labels, how) for labels in found.labels)


def test_leep_of_the_same_classes_in_another_order_is_pointed_to():
    tasks = [{"id": i, "dataset": "d", "labels": labels, "synsets": labels, "split": "train", "seed": None}
             for i, labels in (("scored", DOGS), ("turned", DOGS[::-1]))]  # fmt: skip
    snapshot = make_snapshot([sub_row("a", "ta", CATS)], [score_row("a", "scored", -1.0)], tasks=tasks)
    with pytest.raises(errors.MissingScoresError, match="scored as task scored: give this id"):
        nearest(snapshot, "turned", by="leep", k=1)


def test_mask_iou_stands_for_the_most_accurate_sub_network_of_a_task():
    plan = make_plan([6])
    subs = [
        sub_row("bad", "t", DOGS, accuracy=0.1, channels={"a0": [0, 1]}),
        sub_row("best", "t", DOGS, accuracy=0.9, channels={"a0": [2, 3]}),
        sub_row("unmeasured", "t", DOGS, accuracy=None, channels={"a0": [4, 5]}),
        sub_row("better", "t", DOGS, accuracy=0.99, kind="element"),
        sub_row("x", "tx", CATS, channels={"a0": [2, 3, 4]}),
    ]  # fmt: skip
    found = nearest(make_snapshot(subs, bases=[base_row(plan=plan)]), "t", by="mask_iou", k=1)
    assert found.score == pytest.approx([2 / 3])


def test_mask_iou_of_independent_sets_takes_the_layers_of_an_axis_together():
    plan = make_plan([(5, 3), 7, 4])
    rng = np.random.default_rng(0)
    keys = {"a0@layer0": 5, "a0@layer1": 5, "a0@layer2": 5, "a1@layer3": 7}
    sets = [{key: sorted(rng.permutation(n)[:3].tolist()) for key, n in keys.items()} for _ in range(6)]
    subs = [sub_row(f"s{i}", f"t{i}", CATS, mode="independent", channels=kept) for i, kept in enumerate(sets)]
    rows = Rows.of(make_snapshot(subs, bases=[base_row(plan=plan)]))
    matrix = similarity_rows(rows, np.arange(6), "mask_iou", np.ones((6, 6), bool))

    def axis(kept, name):
        return {(key, c) for key, channels in kept.items() if key.startswith(f"{name}@") for c in channels}

    for i, a in enumerate(sets):
        for j, b in enumerate(sets):
            assert matrix[i, j] == pytest.approx(np.mean([naive_iou(axis(a, n), axis(b, n)) for n in ("a0", "a1")]))


def test_mask_iou_is_one_where_nobody_pruned_anything():
    rows = Rows.of(make_snapshot([sub_row(i, f"t{i}", CATS) for i in "ab"]))
    assert similarity_rows(rows, np.arange(2), "mask_iou", np.ones((2, 2), bool)).tolist() == [[1, 1], [1, 1]]


def test_leep_reads_scores():
    subs = [sub_row(i, f"t{i}", labels) for i, labels in (("a", CATS), ("b", BUSES))]
    scores = [
        score_row("a", "target", -1.2), score_row("b", "target", -0.3), score_row("a", "other", -0.1),
        score_row("gone", "target", -0.1), score_row("b", "target", -9.0, measure="nce"),
    ]  # fmt: skip
    tasks = [
        {"id": i, "dataset": "d", "labels": DOGS, "synsets": DOGS, "split": "train", "seed": 1}
        for i in ("target", "new")
    ]
    zoo = make_snapshot(subs, scores, tasks=tasks)
    found = nearest(zoo, "target", by="leep", k=2)
    assert (found.id, found.score) == (("b", "a"), (-0.3, -1.2))
    with pytest.raises(errors.MissingScoresError, match=r"2 of 2 .*mvp\.score\(z, data, by=\"leep\"\).*task target"):
        nearest(zoo, "new", by="leep", k=1)
    half = make_snapshot(subs, scores[:1], tasks=tasks)
    with pytest.raises(errors.MissingScoresError, match="1 of 2"):
        nearest(half, "target", by="leep", k=1)
    assert nearest(half, "target", by="leep", k=1, allowed=["a"]).id == ("a",)


@pytest.mark.parametrize(("by", "called"), [("nce", "NCE"), ("logme", "LogME"), ("hscore", "H-score")])
def test_other_scores_are_read_like_leep(by, called):
    subs = [sub_row("a", "ta", CATS), sub_row("b", "tb", BUSES)]
    scores = [score_row("a", "target", 0.0, measure=by), score_row("b", "target", -0.3, measure=by),
              score_row("b", "target", 5.0, measure="other")]  # fmt: skip
    tasks = [{"id": i, "dataset": "d", "labels": DOGS, "synsets": DOGS} for i in ("target", "new")]
    zoo = make_snapshot(subs, scores, tasks=tasks)
    found = nearest(zoo, "target", by=by, k=2)
    assert (found.id, found.score) == (("a", "b"), (0.0, -0.3))
    with pytest.raises(errors.MissingScoresError, match=rf"2 of 2 .*no {called}.*mvp\.score\(z, data, by=\"{by}\"\)"):
        nearest(zoo, "new", by=by, k=1)


def test_mask_iou_is_the_mean_over_axes():
    plan = make_plan([4, 6, 3])
    subs = [
        sub_row("me", "ta", DOGS, channels={"a0": [0, 1], "a1": [0, 1, 2]}),
        sub_row("near", "tb", CATS, channels={"a0": [0, 1], "a1": [1, 2, 3]}),
        sub_row("far", "tc", BUSES, channels={"a0": [2, 3]}),
        sub_row("mode", "td", CATS, mode="independent"), sub_row("base", "te", CATS, base_id="base-other"),
        sub_row("kind", "tf", CATS, kind="element"),
    ]  # fmt: skip
    zoo = make_snapshot(subs, bases=[base_row(plan=plan), base_row("other", plan)])
    for asked in ("me", "ta"):
        found = nearest(zoo, asked, by="mask_iou", k=None, per_task=None)
        assert found.id == ("near", "far"), "a2 is kept whole by all and says nothing"
        assert found.score == pytest.approx(((1 + 2 / 4) / 2, (0 + 3 / 6) / 2))
        assert sum(found.removed.values()) == 4
    with pytest.raises(errors.NotFoundError, match="no sub-network of task"):
        nearest(zoo, ["car.n.01", "bicycle.n.01"], by="mask_iou", k=1)


def test_labels_that_wordnet_lacks():
    zoo = make_snapshot([
        sub_row("none", "t0", ["qqqqzz", "zzqqqq"]), sub_row("part", "t1", ["cat.n.01", "qqqqzz"]),
        sub_row("full", "t2", CATS),
    ])  # fmt: skip
    found = nearest(zoo, DOGS, k=None)
    assert set(found.id) == {"part", "full"} and found.unmapped == 1
    assert found.removed == {"by='wup' (no label with a WordNet noun)": 1}
    assert "1 candidate task(s)" in str(found)
    assert dict(zip(found.id, found.score))["part"] == task_wup(DOGS, ["cat.n.01"])
    with pytest.raises(errors.UnknownLabelsError, match="qqqqzz"):
        nearest(zoo, ["qqqqzz", "dog"])
