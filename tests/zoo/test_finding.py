"""What users may name: bases, sub-networks and tasks, by id, prefix, name, record or labels."""

from dataclasses import replace

import numpy as np
import pytest
from factory import make_sub, make_task
from fakes import base_row, make_snapshot, sub_row

import zoo.errors as errors
from zoo.finding import find_base, find_row, find_rows, find_target
from zoo.query import nearest
from zoo.records import Task
from zoo.rows import Rows, Target

DOGS = ["dog.n.01", "wolf.n.01"]
CATS = ["cat.n.01", "lion.n.01"]
BUSES = ["bus.n.01", "truck.n.01"]


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
