"""nearest(): order, filters, messages, and each measure against a naive one."""

import math

import numpy as np
import pytest
from fakes import FAMILIES, base_row, make_plan, make_snapshot, score_row, similar_zoo, sub_row
from hypothesis import given
from hypothesis import strategies as st

import zoo.errors as errors
from zoo.measures import MEASURES, similarity_rows
from zoo.query import candidates, groups_of, nearest
from zoo.records import Task
from zoo.rows import Rows
from zoo.taskwup import task_wup

DOGS = ["dog.n.01", "wolf.n.01"]
CATS = ["cat.n.01", "lion.n.01"]
BUSES = ["bus.n.01", "truck.n.01"]


def small(**fields):
    """Three tasks: one with two sub-networks."""
    return make_snapshot([
        sub_row("cats", "t-cats", CATS, accuracy=0.7, **fields),
        sub_row("cats2", "t-cats", CATS, accuracy=0.9, **fields),
        sub_row("buses", "t-buses", BUSES, **fields), sub_row("dogs", "t-dogs", DOGS, **fields),
    ])  # fmt: skip


def test_best_first_and_the_rows_say_what_they_are():
    zoo = similar_zoo(30)
    found = nearest(zoo, FAMILIES["sea"], k=7)
    assert list(found.score) == sorted(found.score, reverse=True)
    rows = zoo.subnetworks.to_pylist()
    by_id = {row["id"]: row for row in rows}
    for n in found:
        row = by_id[n.id]
        assert n.score == task_wup(FAMILIES["sea"], row["synsets"])
        assert n.labels == tuple(row["labels"]) and n.accuracy == row["accuracy"] and n.producer == "ifp"
        assert n.shared == len(set(FAMILIES["sea"]) & set(row["labels"]))
    best = sorted(rows, key=lambda r: (-task_wup(FAMILIES["sea"], r["synsets"]), r["id"]))[:7]
    assert found.id == tuple(row["id"] for row in best)
    assert found.measure == "wup"


def test_ties_go_by_id():
    zoo = make_snapshot([sub_row(i, f"t{i}", CATS, dataset=i) for i in "dbca"])
    assert nearest(zoo, Task(DOGS, dataset="q"), k=3).id == ("a", "b", "c")


def test_one_sub_network_a_task_is_the_most_accurate():
    assert nearest(small(), DOGS, k=2).id == ("cats2", "buses")
    assert nearest(small(), DOGS, k=3, per_task=2).id == ("cats", "cats2", "buses")
    assert nearest(small(), DOGS, k=3, per_task=None).id == ("cats", "cats2", "buses")
    unmeasured = make_snapshot([sub_row("a", "t", CATS, accuracy=None), sub_row("b", "t", CATS, accuracy=0.1)])
    assert nearest(unmeasured, DOGS, k=1).id == ("b",)
    assert nearest(unmeasured, DOGS, k=2, per_task=2).accuracy == (None, 0.1)


def test_exclude():
    zoo = small()
    assert "dogs" not in nearest(zoo, DOGS[::-1], k=None).id, "same classes in another order"
    assert nearest(zoo, DOGS, k=1, exclude=None).id == ("dogs",)
    assert nearest(zoo, DOGS, k=1, exclude="same_task").id == ("dogs",), "labels alone are another task"
    assert nearest(zoo, "t-dogs", k=None, exclude="same_task").id == ("cats2", "buses")
    assert nearest(zoo, ["dog.n.01", "bus.n.01"], k=None, exclude="overlap").id == ("cats2",)
    assert nearest(zoo, DOGS, k=None, exclude=["cats2", "dogs"]).id == ("cats", "buses")
    with pytest.raises(errors.NotFoundError):
        nearest(zoo, DOGS, exclude=["nobody"])
    with pytest.raises(errors.OptionError, match=r"same_classes \| same_task"):
        nearest(zoo, DOGS, exclude="nothing")


def test_a_class_is_a_label_of_a_data_set():
    zoo = make_snapshot([sub_row("a", "ta", CATS, dataset="one"), sub_row("b", "tb", CATS, dataset="two")])
    assert nearest(zoo, Task(CATS, dataset="one"), k=None).id == ("b",)
    assert nearest(zoo, Task(CATS, dataset="one"), k=None).shared == (0,)
    with pytest.raises(errors.EmptyZooError):
        nearest(zoo, CATS, k=1)


def test_filters_and_what_is_said_when_too_little_is_left():
    bases = [base_row("one"), base_row("two")]
    zoo = make_snapshot([
        sub_row("a", "ta", CATS, base_id="base-one"), sub_row("b", "tb", BUSES, base_id="base-two", producer="random"),
        sub_row("c", "tc", FAMILIES["sea"], base_id="base-two"),
    ], bases=bases)  # fmt: skip
    assert nearest(zoo, DOGS, k=None, base="two").id == ("c", "b")
    assert nearest(zoo, DOGS, k=None, base="base-one").id == ("a",)
    assert nearest(zoo, DOGS, k=None, producer="random").id == ("b",)
    assert nearest(zoo, DOGS, k=None, producer=["random", "ifp"], allowed={"a", "c"}).id == ("a", "c")
    with pytest.raises(errors.EmptyZooError) as caught:
        nearest(zoo, DOGS, k=2, base="two", producer="ifp")
    assert "1 of 3" in str(caught.value)
    assert caught.value.problems == ("base='two' removed 1", "producer=ifp removed 1")
    with pytest.raises(errors.NotFoundError, match="base-one  one"):
        nearest(zoo, DOGS, base="three")
    with pytest.raises(errors.EmptyZooError, match="no sub-networks"):
        nearest(make_snapshot(), DOGS)
    with pytest.raises(errors.EmptyZooError, match="0 of 3"):
        nearest(zoo, DOGS, k=None, producer="nobody")


def test_ways_to_name_a_task():
    zoo = make_snapshot([sub_row("sub-cats", "task-cats", CATS), sub_row("sub-dogs", "task-dogs", DOGS)])
    for given_task in (
        DOGS,
        tuple(DOGS),
        Task(DOGS),
        Task(DOGS, dataset="d"),
        "task-dogs",
        "sub-dogs",
        "task-d",
        "sub-do",
    ):
        assert nearest(zoo, given_task, k=None).id == ("sub-cats",)
    with pytest.raises(errors.NotFoundError, match="2 ids"):
        nearest(make_snapshot([sub_row("sub-cats", "task-cats", CATS), sub_row("sub-cars", "t2", BUSES)]), "sub-ca")
    with pytest.raises(errors.NotFoundError, match="list"):
        nearest(zoo, "wolf")
    with pytest.raises(errors.RecordError):
        nearest(zoo, ["wolf"])


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


@pytest.mark.parametrize(
    "options",
    [{"k": 0}, {"k": 1.5}, {"k": True}, {"per_task": 0}, {"group": 6}, {"group": 0}, {"groups": 0},
     {"group": 1, "binning": "thirds"}, {"by": "nonsense"}, {"by": "wup", "how": "max"}],
)  # fmt: skip
def test_options_outside_their_range(options):
    with pytest.raises(errors.OptionError):
        nearest(small(), DOGS, **options)


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


def test_of_scores_of_several_devices_the_last_counts():
    zoo = make_snapshot([sub_row("a", "ta", CATS)], [score_row("a", "x", -1.0), score_row("a", "x", -0.5)],
                        tasks=[{"id": "x", "dataset": "d", "labels": DOGS, "synsets": DOGS}])  # fmt: skip
    assert nearest(zoo, "x", by="leep", k=1).score == (-0.5,)


def test_candidates_are_those_that_need_scores():
    zoo = similar_zoo(20)
    ids = candidates(zoo, "s0000", by="leep", producer="ifp")
    assert sorted(nearest(zoo, "s0000", by="leep", k=None).id) == sorted(ids) and "s0000" not in ids
    assert candidates(zoo, "s0000", producer="nobody") == []


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


@given(st.lists(st.integers(-6, 6), min_size=1, max_size=30), st.integers(1, 7))
def test_groups_are_equal_intervals(values, groups):
    scores = [v / 8 for v in values]
    low, high = min(scores), max(scores)
    for score, group in zip(scores, groups_of(scores, groups)):
        if low == high:
            assert group == 1
        else:
            edges = np.linspace(low, high, groups + 1)
            expected = next((g for g in range(1, groups) if score >= edges[groups - g]), groups)
            assert group == expected
    if low != high:
        assert groups_of([high, low], groups).tolist() == [1, groups]


@given(st.lists(st.integers(0, 6), min_size=1, max_size=40), st.integers(1, 5))
def test_quantile_groups_keep_order_and_ties(values, groups):
    found = groups_of(values, groups, "quantile")
    assert all((a > b) <= (g <= h) and (a != b or g == h) for a, g in zip(values, found) for b, h in zip(values, found))
    assert set(found.tolist()) <= set(range(1, groups + 1))


def test_quantile_groups_are_even_without_ties():
    assert np.bincount(groups_of(np.arange(20.0), 5, "quantile")).tolist() == [0, 4, 4, 4, 4, 4]
    assert groups_of([], 5).tolist() == []


def test_group_restricts_and_sample_draws():
    zoo = similar_zoo(40)
    every = nearest(zoo, "s0000", k=None)
    group = groups_of(every.score, 5)
    for g in (1, 3, 5):
        inside = [n.id for n, h in zip(every, group) if h == g]
        assert list(nearest(zoo, "s0000", k=None, group=g).id) == inside
        drawn = nearest(zoo, "s0000", k=1, group=g, sample=0)
        assert drawn.id == nearest(zoo, "s0000", k=1, group=g, sample=0).id and drawn.id[0] in inside
    some = {nearest(zoo, "s0000", k=2, group=5, sample=s).id for s in range(20)}
    assert len(some) > 1
    with pytest.raises(errors.EmptyZooError, match="group=5 of 5 removed"):
        nearest(zoo, "s0000", k=39, group=5, exclude=None, per_task=None)


@pytest.mark.parametrize("by", [m.name for m in MEASURES])
def test_similarity_rows_are_what_nearest_says(by):
    zoo = similar_zoo(16)
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
    scores = nearest(similar_zoo(20), "s0004", by=measure.name, k=None).score
    assert all(low <= s <= high for s in scores)


def test_neighbours_print_and_convert():
    found = nearest(small(), DOGS, k=2)
    assert (
        len(found) == 2
        and found[0].id == "cats2"
        and found[:1].id == ("cats2",)
        and [n.id for n in found] == list(found.id)
    )
    text = str(found)
    assert text == repr(found) and "cats2" in text and "cat.n.01, lion.n.01" in text and "0.900" in text
    frame = found.to_pandas()
    assert frame["id"].tolist() == list(found.id) and {"score", "labels", "producer", "accuracy", "shared"} <= set(
        frame
    )
    assert found.to_arrow()["score"].to_pylist() == list(found.score)
    pytest.importorskip("polars")
    assert found.to_polars()["labels"].to_list() == [list(x) for x in found.labels]


def test_html_escapes_labels():
    zoo = make_snapshot([sub_row("a", "t", ["<script>alert(1)</script>", "cat.n.01"])])
    html = nearest(zoo, DOGS, k=1)._repr_html_()
    assert "<script>" not in html and "&lt;script&gt;" in html
