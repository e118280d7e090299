"""The store: layout, add, get, versions, remove, scores, compaction, gc, verify; what bad input leaves behind."""

import json
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from factory import PLAN, make_base, make_sub, make_task, make_tensors

import zoo
from zoo.errors import (
    CorruptionError,
    NotAZooError,
    NotFoundError,
    OptionError,
    ReadOnlyError,
    RecordError,
)


def state(path) -> dict[str, int]:
    """Every file below a folder with its size."""
    return {str(p.relative_to(path)): p.stat().st_size for p in Path(path).rglob("*") if p.is_file()}


def blobs(path) -> list[Path]:
    return sorted(Path(path).glob("weights/*/*.parquet"))


# Opening


def test_a_zoo_without_one_of_its_tables_is_corrupt_not_empty(z, new_sub):
    z.add(new_sub())
    (Path(z.path) / "subnetworks").rename(Path(z.path).parent / "taken")
    with pytest.raises(CorruptionError, match="subnetworks"):
        len(zoo.open(z.path))


# Adding and getting


def test_an_added_sub_network_comes_back_whole(z, new_sub):
    sub = new_sub(3)
    key = z.add(sub)
    again = zoo.open(z.path)
    back = again.get(key)
    assert key == sub.id == back.id and len(again) == 1 and key in again and again.ids() == [key]
    assert set(back.weights) == set(sub.weights) and not back.element_masks
    assert all(np.array_equal(back.weights[name], sub.weights[name]) for name in sub.weights)
    assert all(np.array_equal(back.base.weights[name], sub.base.weights[name]) for name in sub.base.weights)
    assert back.base.plan == PLAN and back.base.id == sub.base.id and again.bases() == [sub.base]
    assert back.accuracy == sub.accuracy and back.created_at == sub.created_at


def test_the_layout_on_disk(z, new_sub):
    sub = new_sub()
    z.add(sub)
    names = [p.stem for p in blobs(z.path)]
    assert sorted(names) == sorted([sub.weights_digest, sub.base.weights_digest])
    assert all(p.parent.name == p.stem[:2] for p in blobs(z.path))
    import pyarrow.parquet as pq

    table = pq.read_table(blobs(z.path)[0], partitioning=None)
    assert table.column_names == ["name", "dtype", "shape", "bytes"]


def test_tensors_and_bases_are_loaded_when_first_asked_for(z, new_sub):
    keys = z.add_many([new_sub(0), new_sub(1)])
    for blob in blobs(z.path):
        blob.unlink()
    a, b = z.get(keys[0]), z.get(keys[1])
    assert a.base is b.base and a.channels["a0"].tolist() == new_sub(0).channels["a0"].tolist()
    for tensors in (a.weights, a.base.weights):
        with pytest.raises(CorruptionError, match="missing"):
            tensors["fc.bias"]


def test_element_masks_lie_beside_the_weights(z, new_sub):
    mask = np.random.default_rng(0).random((4, 3, 3, 3)) > 0.5
    sub = new_sub(kind="element", element_masks={"conv1.weight": mask})
    back = zoo.open(z.path).get(z.add(sub))
    assert np.array_equal(back.element_masks["conv1.weight"], mask) and back.element_masks["conv1.weight"].dtype == bool
    assert set(back.weights) == set(sub.weights) and len(blobs(z.path)) == 2
    with pytest.raises(RecordError, match="element_masks"):
        z.add(new_sub(1, kind="element", element_masks={"conv1.weight": mask[:1], "nope": mask}))


def test_adding_again_writes_nothing(z, new_sub):
    key = z.add(new_sub())
    before = state(z.path)
    assert z.add(new_sub()) == key and z.add_many([new_sub(), new_sub()]) == [key, key] and z.add_many([]) == []
    assert zoo.open(z.path).add(z.get(key)) == key
    assert state(z.path) == before


def test_measurements_are_not_part_of_the_identity(z, new_sub):
    key = z.add(new_sub(metrics={"accuracy": 0.1}))
    assert z.add(new_sub(metrics={"accuracy": 0.9})) == key and z.get(key).accuracy == 0.1


def test_many_are_one_commit(z, new_sub):
    keys = z.add_many([new_sub(i) for i in range(6)] + [new_sub(2)])
    assert z.version == "b1-c1-s0-t1" and len(z) == 6 and keys[2] == keys[6] and len(set(keys)) == 6
    assert [sub.id for sub in z] == z.ids() and set(z.ids()) == set(keys)


def test_tasks_and_bases_are_stored_once(z, new_sub):
    task = make_task(7)
    z.add(new_sub(0, task=task))
    z.add(new_sub(1, task=task))
    z.add(new_sub(2, task=task, base=make_base(5)))
    assert z.version.startswith("b2-c3") and z.version.endswith("t1")
    assert len(z.bases()) == 2 and len(z.snapshot().tasks) == 1 and len(blobs(z.path)) == 5


def test_a_sub_network_moves_to_another_zoo(z, new_sub, tmp_path):
    other = zoo.open(tmp_path / "other.zoo")
    key = z.add(new_sub())
    assert other.add(z.get(key)) == key and other.verify().ok
    assert np.array_equal(other.get(key).weights["fc.bias"], new_sub().weights["fc.bias"])


def test_the_stored_plan_is_authoritative(z):
    z.add(make_sub(0))
    other = json.loads(json.dumps(PLAN))
    other["axes"]["a9"] = {**other["axes"]["a0"], "n": 3}
    sub = make_sub(1, base=make_base(plan=other))
    assert z.get(z.add(sub)).base.plan == PLAN
    renamed = make_sub(2, base=make_base(plan=other), channels={"a9": [0, 1]}, weights=make_tensors(5, classes=5))
    with pytest.raises(RecordError, match="stored base's plan has no axis"):
        z.add(renamed)
    assert len(z) == 2


def test_several_bases_are_fine_and_named(z, new_sub):
    z.add(new_sub(0))
    assert z.base().name == "fake" and z.base("fake").id == z.base().id
    z.add(new_sub(1, base=make_base(1)))
    for key in (None, "fake"):
        with pytest.raises(OptionError, match="2 bases"):
            z.base(key)
    assert z.base(make_base(1).id[:10]) == make_base(1)


# Versions


def test_a_version_is_pinned_and_read_only(z, new_sub):
    first = z.add(new_sub(0))
    token = z.version
    second = z.add(new_sub(1))
    z.remove(first)
    old = zoo.open(z.path, version=token)
    assert old.ids() == [first] and old.version == token and old.read_only and zoo.open(z.path, token).ids() == [first]
    assert z.ids() == [second] and old.get(first).weights["fc.bias"].shape == (5,)
    adds = (lambda: old.add(new_sub(2)), lambda: old.add_scores([]))
    for write in (*adds, lambda: old.remove(first), old.compact, old.gc):
        with pytest.raises(ReadOnlyError, match="pinned"):
            write()


def test_a_version_that_is_not_there_yet(z):
    with pytest.raises(NotFoundError, match="has no version 7"):
        zoo.open(z.path, version="b0-c7-s0-t0")
    with pytest.raises(NotAZooError):
        zoo.open(Path(z.path).parent / "absent", version="b0-c0-s0-t0")


def test_an_open_handle_sees_what_others_add_and_keeps_its_snapshot(z, new_sub):
    reader = zoo.open(z.path)
    held = reader.snapshot()
    z.add(new_sub())
    assert len(held.subnetworks) == 0 and len(reader) == 1
    assert reader.snapshot() is reader.snapshot()


def test_remove(z, new_sub):
    keys = z.add_many([new_sub(i) for i in range(3)])
    last = z.add(new_sub(9))
    assert z.remove(keys[1][:8]) == keys[1]
    assert set(z.ids()) == {keys[0], keys[2], last} and z.verify().ok
    for gone in (keys[1], "f" * 64):
        with pytest.raises(NotFoundError):
            z.get(gone)
        with pytest.raises(NotFoundError):
            z.remove(gone)
    for key in z.ids():
        z.remove(key)
    assert len(z) == 0 and z.verify().ok
    assert z.add(new_sub(1)) == keys[1] and z.get(keys[1]).weights["fc.bias"].shape == (5,)


# Scores


def rows(z):
    names = ["source", "target", "measure", "device", "value"]
    return [tuple(row.values()) for row in z.snapshot().scores.select(names).to_pylist()]


def test_a_later_score_replaces_an_earlier_one(z, new_sub):
    key, task = z.add(new_sub()), "t" * 64
    leep, latency = zoo.Score(key, task, "leep", -0.5), zoo.Score(key, task, "latency_ms", 2.0, device="cpu")
    assert z.add_scores([leep, latency]) == 2
    before = state(z.path)
    assert z.add_scores([zoo.Score(key, task, "leep", -0.5)]) == 0 and z.add_scores([]) == 0
    assert state(z.path) == before
    leep, latency = zoo.Score(key, task, "leep", -0.25), zoo.Score(key, task, "latency_ms", 1.0, device="gpu")
    assert z.add_scores([leep, latency]) == 2
    assert sorted(rows(z)) == sorted(
        [(key, task, "leep", "", -0.25), (key, task, "latency_ms", "cpu", 2.0), (key, task, "latency_ms", "gpu", 1.0)]
    )
    assert z.add_scores([zoo.Score(key, task, "leep", -0.1), zoo.Score(key, task, "leep", -0.2)]) == 1
    assert (key, task, "leep", "", -0.2) in rows(z) and len(rows(z)) == 3 and z.verify().ok


def test_a_clock_that_was_set_back_does_not_bring_old_scores_back(z, new_sub, monkeypatch):
    key = z.add(new_sub())
    z.add_scores([zoo.Score(key, "t", "leep", -0.5)])

    class Past(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime(2001, 1, 1, tzinfo=UTC)

    monkeypatch.setattr("zoo.store.datetime", Past)
    z.add_scores([zoo.Score(key, "t", "leep", -0.1)])
    assert [row[-1] for row in rows(zoo.open(z.path))] == [-0.1]


def test_scores_hold_vectors(z, new_sub):
    z.add(new_sub())
    vector = np.arange(4, dtype=np.float32)
    assert z.add_scores([zoo.Score(z.base().id, "t", "prototype", vector=vector)]) == 1
    assert z.add_scores([zoo.Score(z.base().id, "t", "prototype", vector=vector.copy())]) == 0
    assert z.snapshot().scores["vector"][0].as_py() == [0, 1, 2, 3]


def test_scores_of_something_unknown_are_refused(z, new_sub):
    key = z.add(new_sub())
    before = state(z.path)
    with pytest.raises(RecordError, match="nobody"):
        z.add_scores([zoo.Score(key, "t", "leep", -1.0), zoo.Score("nobody", "t", "leep", -1.0)])
    assert state(z.path) == before


def test_created_at_travels_in_microseconds(z, new_sub):
    at = datetime.fromtimestamp(time.time(), UTC)
    assert z.get(z.add(new_sub(created_at=at))).created_at == at
