"""Rows of a snapshot and what users may name in them, against loops over plain rows."""

import random
from datetime import timedelta

import numpy as np
import pytest
from fakes import NOW, base_row, make_plan, make_snapshot, score_row, sub_row

import zoo.errors as errors
from zoo.query import nearest
from zoo.records import Task
from zoo.rows import Rows, Target

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
    found = Rows(make_snapshot(subs, scores, [base_row(), base_row("2")])).embeddings("prototype")
    assert [None if v is None else v.tolist() for v in found] == [[1, 2], [3, 4], None, None]


def test_embeddings_take_half_the_memory_where_that_changes_none():
    half, full = [1.0, 0.5], [1.0, 0.1]
    for vectors, dtype in (([half, half], np.float16), ([half, full], np.float32)):
        rows = Rows(make_snapshot([sub_row(f"s{i}", f"t{i}", embeddings={"x": v}) for i, v in enumerate(vectors)]))
        found = rows.embeddings("x")
        assert [v.dtype for v in found] == [dtype] * 2
        assert [v.tolist() for v in found] == [np.float32(v).tolist() for v in vectors]


def test_a_space_holds_the_rows_of_one_base_and_is_made_once():
    subs = [sub_row(f"s{i}", f"t{i}", base_id="base-2" if i == 2 else "base-toy",
                    embeddings={} if i == 1 else {"x": [1.0, float(i)]}) for i in range(5)]  # fmt: skip
    rows = Rows(make_snapshot(subs, bases=[base_row(), base_row("2")]))
    space, place = rows.space("x", "base-toy")
    assert space.ids == ("s0", "s3", "s4") and place.tolist() == [0, -1, -1, 1, 2]
    assert rows.space("x", "base-toy")[0] is space and rows.space("x", "base-2")[0].ids == ("s2",)


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
