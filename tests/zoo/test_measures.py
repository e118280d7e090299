"""Each measure of similarity against a naive one, and what each says when something is missing."""

import math

import numpy as np
import pytest
from fakes import FAMILIES, base_row, make_plan, make_snapshot, naive_iou, score_row, similar_zoo, sub_row

import zoo.errors as errors
from zoo.measures import MEASURES, Query, find_measure, similarity_rows
from zoo.query import nearest
from zoo.rows import Rows
from zoo.taskwup import task_wup

DOGS = ["dog.n.01", "wolf.n.01"]
CATS = ["cat.n.01", "lion.n.01"]
BUSES = ["bus.n.01", "truck.n.01"]


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
    with pytest.raises(errors.OptionError, match=r"'WUP'; expected wup \| leep \| nce .*\| mask_iou"):
        find_measure("WUP")


@pytest.mark.parametrize("by", ["wup", "prototype", "stamp", "task2vec", "mask_iou"])
def test_measures_of_two_tasks_are_symmetric(by):
    matrix = similarity_rows(Rows.of(whole_zoo(12)), np.arange(12), by, np.ones((12, 12), bool))
    assert np.allclose(matrix, matrix.T, rtol=0, atol=1e-12) and np.allclose(np.diag(matrix), 1)
    assert matrix.min() < 0.9


@pytest.mark.parametrize("how", ["best_match", "mean", "hungarian"])
def test_wup_compares_classes_as_asked(how):
    snapshot = similar_zoo(10)
    found = nearest(snapshot, FAMILIES["sea"], k=None, how=how)
    assert found.score == tuple(task_wup(FAMILIES["sea"], labels, how) for labels in found.labels)


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


def test_leep_of_the_same_classes_in_another_order_is_pointed_to():
    tasks = [{"id": i, "dataset": "d", "labels": labels, "synsets": labels, "split": "train", "seed": None}
             for i, labels in (("scored", DOGS), ("turned", DOGS[::-1]))]  # fmt: skip
    snapshot = make_snapshot([sub_row("a", "ta", CATS)], [score_row("a", "scored", -1.0)], tasks=tasks)
    with pytest.raises(errors.MissingScoresError, match="scored as task scored: give this id"):
        nearest(snapshot, "turned", by="leep", k=1)


@pytest.mark.parametrize("k", [1, 5, 30])
def test_what_prototype_proposes_holds_the_k_best(k):
    rows = Rows.of(similar_zoo(30))
    measure = find_measure("prototype")
    query = Query(rows, rows.target(4), np.arange(30)[::-1].copy())
    best = np.argsort(-measure.score(query))[:k]
    assert set(best.tolist()) <= set(measure.propose(query, k).tolist())


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


def naive_task2vec(a, b):
    """Cosine of F_a / (F_a + F_b) and F_b / (F_a + F_b), over the entries that are not 0 in both."""
    pairs = [(x / (x + y), y / (x + y)) for x, y in zip(a, b) if x + y > 0]
    lengths = math.sqrt(sum(x * x for x, _ in pairs)) * math.sqrt(sum(y * y for _, y in pairs))
    return sum(x * y for x, y in pairs) / lengths if lengths else 0.0


def test_task2vec_is_the_cosine_of_the_shares():
    rng = np.random.default_rng(0)
    vectors = (rng.exponential(size=(8, 5)) * rng.integers(0, 2, (8, 5)) * 1e-6).astype("f4")
    vectors[0], vectors[1] = 0, 3
    subs = [sub_row(f"s{i}", f"t{i}", [["cat.n.01"], ["bus.n.01"]][i % 2] + [f"label {i}"],
                    embeddings={"task2vec": v.tolist()}) for i, v in enumerate(vectors)]  # fmt: skip
    asked = [0.0, 1e-6, 0.0, 2e-6, 5e-7]
    found = nearest(make_snapshot(subs), DOGS, by="task2vec", k=None, embedding=asked)
    for id, score in zip(found.id, found.score):
        assert score == pytest.approx(naive_task2vec(np.float32(asked), vectors[int(id[1:])].astype(float)), abs=1e-6)
    assert dict(zip(found.id, found.score))["s0"] == 0
    same = nearest(make_snapshot(subs), DOGS, by="task2vec", k=1, embedding=(vectors[5] * 10).tolist())
    assert (same.id, same.score) == (("s5",), pytest.approx((1.0,)))
    with pytest.raises(errors.DataError, match="not negative"):
        nearest(make_snapshot(subs), DOGS, by="task2vec", k=1, embedding=[-1, 1, 1, 1, 1])
    with pytest.raises(errors.MissingScoresError, match=r'no embedding.*by="task2vec"'):
        nearest(make_snapshot(subs), DOGS, by="task2vec", k=1)


def naive_cosine(a, b):
    return sum(x * y for x, y in zip(a, b)) / math.sqrt(sum(x * x for x in a)) / math.sqrt(sum(y * y for y in b))


@pytest.mark.parametrize("k", [1, 4, None])
def test_prototype_is_the_cosine(k):
    zoo = similar_zoo(30)
    embedding = {r["id"]: dict(r["embeddings"])["prototype"] for r in zoo.subnetworks.to_pylist()}
    others = set(nearest(zoo, "s0002", k=None).id)
    expected = sorted(others, key=lambda i: (-naive_cosine(embedding["s0002"], embedding[i]), i))
    found = nearest(zoo, "s0002", by="prototype", k=k)
    assert list(found.id) == expected[:k]
    assert found.score == pytest.approx([naive_cosine(embedding["s0002"], embedding[i]) for i in found.id], abs=1e-9)


def test_encodings_of_stamp_are_compared_like_prototypes_and_apart_from_them():
    subs = [
        sub_row("a", "ta", CATS, embeddings={"stamp": [1.0, 0.0, 0.0], "prototype": [0.0, 1.0]}),
        sub_row("b", "tb", BUSES, embeddings={"prototype": [1.0, 0.0]}),
    ]
    scores = [score_row("base-toy", "tb", measure="stamp", vector=[0.0, 2.0, 0.0])]
    zoo = make_snapshot(subs, scores)
    assert nearest(zoo, DOGS, by="stamp", k=2, embedding=[0.1, 1.0, 0.0]).id == ("b", "a")
    assert nearest(zoo, DOGS, by="prototype", k=2, embedding=[0.1, 1.0]).id == ("a", "b")
    with pytest.raises(errors.MissingScoresError, match=r'no embedding.*by="stamp", generator=path'):
        nearest(zoo, DOGS, by="stamp", k=1)
    with pytest.raises(errors.MissingScoresError, match="1 of 2 sub-networks have no embedding"):
        nearest(make_snapshot(subs), DOGS, by="stamp", k=1, embedding=[1.0, 1.0, 0.0])


def test_where_prototypes_come_from():
    tasks = [{"id": "new", "dataset": "d", "labels": DOGS, "synsets": DOGS}]
    subs = [sub_row("a", "ta", CATS, embeddings={"prototype": [1.0, 0.0]}), sub_row("b", "tb", BUSES)]
    scores = [score_row("base-toy", "tb", measure="prototype", vector=[0.0, 2.0])]
    zoo = make_snapshot(subs, scores, tasks=tasks)
    assert nearest(zoo, DOGS, by="prototype", k=1, embedding=[0.1, 1.0]).id == ("b",)
    with pytest.raises(errors.MissingScoresError, match="embedding="):
        nearest(zoo, DOGS, by="prototype", k=1)
    with pytest.raises(errors.MissingScoresError, match="1 of 2"):
        nearest(make_snapshot(subs, tasks=tasks), DOGS, by="prototype", k=1, embedding=[1, 1])
    scored = make_snapshot(
        subs, [*scores, score_row("base-toy", "new", measure="prototype", vector=[3.0, 1.0])], tasks=tasks
    )
    assert nearest(scored, "new", by="prototype", k=2).score == pytest.approx((3 / 10**0.5, 1 / 10**0.5))
    for bad in ([1, 2, 3], [0, 0], [np.nan, 1]):
        with pytest.raises(errors.DataError):
            nearest(zoo, DOGS, by="prototype", k=1, embedding=bad)
    two = make_snapshot([*subs[:1], sub_row("c", "tc", BUSES, base_id="base-2", embeddings={"prototype": [1.0]})],
                        bases=[base_row(), base_row("2")])  # fmt: skip
    with pytest.raises(errors.BaseMismatchError, match="base="):
        nearest(two, DOGS, by="prototype", k=1, embedding=[1, 1])


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


@pytest.mark.parametrize("by", [m.name for m in MEASURES])
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
    scores = nearest(whole_zoo(20), "s0004", by=measure.name, k=None).score
    assert all(low <= s <= high for s in scores)


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
