"""Rows of a snapshot and what users may name in them, against loops over plain rows."""

import random
from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest
from factory import make_sub, make_task
from fakes import NOW, base_row, make_plan, make_snapshot, score_row, sub_row

import zoo.errors as errors
from zoo.query import nearest
from zoo.records import Task
from zoo.rows import Rows, Target, find_base, find_row, find_rows, find_target

DOGS = ["dog.n.01", "wolf.n.01"]
CATS = ["cat.n.01", "lion.n.01"]
BUSES = ["bus.n.01", "truck.n.01"]


def mixed(seed: int):
    """Thirty tasks of a few classes of two data sets, or of one that is not said."""
    rng = random.Random(seed)
    return make_snapshot([
        sub_row(f"s{i}", f"t{i}", rng.sample("abcdef", rng.randint(2, 4)), dataset=rng.choice(["one", "two", None]))
        for i in range(30)
    ])  # fmt: skip


def naive_shared(a, b):
    """Classes that two tasks share: of one data set, or of any where one of them does not say."""
    alike = a["dataset"] == b["dataset"] or a["dataset"] is None or b["dataset"] is None
    return len(set(a["labels"]) & set(b["labels"])) if alike else 0


@pytest.mark.parametrize("seed", range(3))
def test_shared_classes_of_a_target(seed):
    snapshot = mixed(seed)
    rows, subs = Rows(snapshot), snapshot.subnetworks.to_pylist()
    for i in random.Random(seed).sample(range(30), 12):
        expected = [naive_shared(subs[i], other) for other in subs]
        assert rows.shared(rows.target(i)).tolist() == expected
        assert [rows.shared_with(rows.target(i), j) for j in range(30)] == expected
        assert rows.same_classes(rows.target(i)).tolist() == [
            naive_shared(subs[i], s) == len(subs[i]["labels"]) == len(s["labels"]) for s in subs
        ]


def test_rows_are_read_once_and_kept_with_the_snapshot():
    snapshot = mixed(0)
    assert Rows.of(snapshot) is Rows.of(snapshot) and Rows.of(snapshot) is not Rows.of(mixed(0))


def test_columns_and_labels_without_a_noun():
    snapshot = make_snapshot([
        sub_row("a", "ta", ["x", "y"]), sub_row("b", "tb", ["x", "cat.n.01"], accuracy=None), sub_row("c", "tc", CATS),
    ])  # fmt: skip
    rows = Rows(snapshot)
    assert len(rows) == 3 and rows.place == {"a": 0, "b": 1, "c": 2}
    assert rows.mapped_labels.tolist() == [0, 1, 2] and rows.unmapped.tolist() == [True, True, False]
    assert np.isnan(rows.accuracy).tolist() == [False, True, False]
    assert rows.target(1) == Target("tb", ("x", "cat.n.01"), "d", (None, "cat.n.01"), 1)


@pytest.mark.parametrize("seed", range(3))
def test_scores_by_target_are_the_last_of_each_pair(seed):
    rng = random.Random(seed)
    subs = [sub_row(f"s{i}", f"t{i}", CATS) for i in range(6)]
    scores = [
        {**score_row(f"s{rng.randrange(8)}", f"t{rng.randrange(4)}", i, measure=rng.choice(["leep", "other"])),
         "created_at": NOW + timedelta(seconds=i)} for i in range(60)
    ]  # fmt: skip
    rows = Rows(make_snapshot(subs, scores))
    for measure in ("leep", "other", "none"):
        last = {(s["target"], s["source"]): s["value"] for s in scores if s["measure"] == measure}
        found = {
            (target, rows.ids[i]): value
            for target, (places, values) in rows.scores(measure).items() for i, value in zip(places, values)
        }  # fmt: skip
        assert found == {key: value for key, value in last.items() if key[1] in rows.place}


def test_prototypes_are_a_rows_own_or_else_those_of_its_base_and_task():
    subs = [
        sub_row("own", "t", CATS, embeddings={"prototype": [1.0, 2.0]}), sub_row("stored", "t", CATS),
        sub_row("other", "t", CATS, base_id="base-2"), sub_row("none", "t9", CATS, embeddings={"else": [5.0]}),
    ]  # fmt: skip
    scores = [score_row("base-toy", "t", measure="prototype", vector=[3.0, 4.0]),
              score_row("base-toy", "t9", measure="else", vector=[9.0])]  # fmt: skip
    found = Rows(make_snapshot(subs, scores, [base_row(), base_row("2")])).prototypes
    assert [None if v is None else v.tolist() for v in found] == [[1, 2], [3, 4], None, None]


def test_channel_sets_are_those_of_one_base_and_mode():
    plan = make_plan([4, (6, 2)])
    subs = [
        sub_row("a", "ta", CATS, channels={"a0": [1]}), sub_row("b", "tb", CATS, base_id="base-2"),
        sub_row("c", "tc", CATS, kind="element"), sub_row("d", "td", CATS, kind="mixed", channels={"a1": [0, 5]}),
        sub_row("e", "te", CATS, mode="independent", channels={"a1@layer2": [3]}),
    ]  # fmt: skip
    rows = Rows(make_snapshot(subs, bases=[base_row(plan=plan), base_row("2", plan)]))
    members, packed = rows.packed("base-toy", "coupled")
    assert members.tolist() == [0, 3] and rows.packed("base-toy", "coupled")[1] is packed
    assert [packed.kept("a0", i).tolist() for i in range(2)] == [[1], [0, 1, 2, 3]]
    assert [packed.kept("a1", i).tolist() for i in range(2)] == [[0, 1, 2, 3, 4, 5], [0, 5]]
    members, packed = rows.packed("base-toy", "independent")
    assert members.tolist() == [4] and packed.kept("a1@layer2", 0).tolist() == [3]
    assert packed.kept("a1@layer1", 0).tolist() == list(range(6))


def test_bases_by_id_prefix_or_name():
    snapshot = make_snapshot(bases=[base_row("one", id="aa11"), base_row("two", id="aa22"), base_row("two", id="bb33")])
    for wanted, found in (("aa11", "aa11"), ("one", "aa11"), ("aa2", "aa22"), ("b", "bb33")):
        assert find_base(snapshot, wanted) == found
    for wanted, says in (("aa", "2 of the zoo's bases"), ("two", "2 of"), ("three", "0 of")):
        with pytest.raises(errors.NotFoundError, match=says) as caught:
            find_base(snapshot, wanted)
        assert caught.value.problems == ("aa11  one", "aa22  two", "bb33  two")


def test_sub_networks_by_id_or_prefix():
    rows = Rows(make_snapshot([sub_row(i, f"t{i}", CATS) for i in ("abcdef11", "abcdef22", "abc", "xyz12345")]))
    assert [find_row(rows, i) for i in ("abc", "abcdef2", "xyz123")] == [2, 1, 3]
    assert find_rows(rows, ["xyz12345", "abc", "abc"]).tolist() == [3, 2, 2] and find_rows(rows, []).dtype == np.int64
    for wanted, says in (("abcdef", "2 of 4"), ("xyz12", "at least 6"), ("", "0 of 4"), ("nobody", "0 of 4")):
        with pytest.raises(errors.NotFoundError, match=says):
            find_row(rows, wanted)
    with pytest.raises(errors.OptionError, match=r"Write \['abc'\]"):
        find_rows(rows, "abc")


def test_a_sub_network_is_its_row_when_stored_and_its_task_otherwise():
    sub = make_sub(3, task=make_task(5))
    task = sub.task
    stored = Rows(make_snapshot([sub_row(sub.id, task.id, task.labels, dataset=task.dataset, synsets=task.synsets)]))
    assert find_target(stored, sub) == Target(task.id, task.labels, task.dataset, task.synsets, 0)
    assert find_target(stored, replace(sub, seed=99)) == find_target(stored, task)
    assert find_target(stored, task) == Target(task.id, task.labels, task.dataset, task.synsets, None)
    assert find_target(stored, task.id) == find_target(stored, task.id[:6]) == find_target(stored, task)


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


def test_a_class_is_a_label_of_a_data_set():
    zoo = make_snapshot([sub_row("a", "ta", CATS, dataset="one"), sub_row("b", "tb", CATS, dataset="two")])
    assert nearest(zoo, Task(CATS, dataset="one"), k=None).id == ("b",)
    assert nearest(zoo, Task(CATS, dataset="one"), k=None).shared == (0,)
    with pytest.raises(errors.EmptyZooError):
        nearest(zoo, CATS, k=1)


def test_of_scores_of_several_devices_the_last_counts():
    zoo = make_snapshot([sub_row("a", "ta", CATS)], [score_row("a", "x", -1.0), score_row("a", "x", -0.5)],
                        tasks=[{"id": "x", "dataset": "d", "labels": DOGS, "synsets": DOGS}])  # fmt: skip
    assert nearest(zoo, "x", by="leep", k=1).score == (-0.5,)


def naive_class_sets(subs):
    return [(s["dataset"], frozenset(s["labels"])) for s in subs]


@pytest.mark.parametrize("seed", range(3))
def test_rows_of_equal_classes_have_equal_numbers(seed):
    snapshot = mixed(seed)
    rows, keys = Rows(snapshot), naive_class_sets(snapshot.subnetworks.to_pylist())
    numbers = rows.class_sets.tolist()
    assert all((a == b) == (keys[i] == keys[j]) for i, a in enumerate(numbers) for j, b in enumerate(numbers))
    assert max(numbers) < len(rows), "they are places"


def test_best_first_and_the_rank_of_ids():
    values = [0.5, None, 0.9, 0.5, None, 0.1]
    rows = Rows(make_snapshot([sub_row(f"s{(i * 5) % 6}", f"t{i}", accuracy=v) for i, v in enumerate(values)]))
    assert [sorted(rows.ids).index(id) for id in rows.ids] == rows.id_rank.tolist()
    expected = sorted(range(6), key=lambda i: (-(values[i] if values[i] is not None else -9), rows.ids[i]))
    assert rows.best_first.tolist() == expected
    assert rows.where("dataset", ("d",)).all() and not rows.where("producer", ("random",)).any()
