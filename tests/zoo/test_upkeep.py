"""Order and duplicates, compaction, gc, repair, long logs."""

import contextlib
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

import zoo
from zoo import arrow, upkeep
from zoo.errors import (
    ConflictError,
    CorruptionError,
    OptionError,
)
from zoo.store import SMALL_FILES


def blobs(path) -> list[Path]:
    return sorted(Path(path).glob("weights/*/*.parquet"))


def test_two_processes_that_add_the_same_record(z, new_sub):
    """Both looked before either had written: the rows are there twice, readers see one."""
    sub = new_sub()
    key = z.add(sub)
    table = z._store.tables["subnetworks"]
    table.append(arrow.to_table("subnetworks", [arrow.subnetwork_row(replace(sub, metrics={"accuracy": 0.01}))]))
    table.append(arrow.to_table("subnetworks", [arrow.subnetwork_row(sub)]))
    again = zoo.open(z.path)
    assert again.ids() == [key] and again.verify().ok
    again.compact()
    assert again.ids() == [key] and len(again._store.tables["subnetworks"].load()) == 1


def test_compaction_keeps_rows_and_versions(z, new_sub):
    for i in range(5):
        z.add(new_sub(i))
    token, ids = z.version, z.ids()
    z.compact()
    assert z.ids() == ids and z.version != token and zoo.open(z.path, version=token).ids() == ids
    assert all(len(table.parts()) == 1 for name, table in z._store.tables.items() if name != "scores")
    before = z.version
    z.compact()
    assert z.version == before and z.verify().ok


def test_many_small_files_are_compacted_by_themselves(z, new_sub):
    z.add(new_sub())
    for i in range(SMALL_FILES + 3):
        z.add_scores([zoo.Score(z.ids()[0], f"t{i}", "leep", -0.5)])
    assert len(z._store.tables["scores"].parts()) < 10
    assert len(z.snapshot().scores) == SMALL_FILES + 3


def test_a_table_of_more_than_a_hundred_versions(z, new_sub):
    """Beyond Delta's checkpoint: the oldest versions stay readable, and a damaged checkpoint gives no wrong rows."""
    key = z.add(new_sub())
    z.add_scores([zoo.Score(key, "first", "leep", -1.0)])
    token = z.version
    for i in range(102):
        z._store.tables["scores"].append(arrow.to_table("scores", [score_row(key, i)]))
    right = z.snapshot().scores
    (checkpoint,) = Path(z.path).glob("scores/_delta_log/*.checkpoint.parquet")
    assert len(right) == 103 and len(zoo.open(z.path).snapshot().scores) == 103 and z.verify().ok
    assert len(zoo.open(z.path, version=token).snapshot().scores) == 1
    good = checkpoint.read_bytes()
    for n in range(0, len(good), len(good) // 12):
        checkpoint.write_bytes(good[:n] + bytes([good[n] ^ 4]) + good[n + 1 :])
        with contextlib.suppress(CorruptionError, ConflictError):
            assert zoo.open(z.path).snapshot().scores == right


def score_row(key, i):
    return arrow.score_row(
        zoo.Score(key, f"t{i}", "leep", -1.0), datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=i)
    )


def test_gc_deletes_what_nothing_needs(z, new_sub):
    keys = [z.add(new_sub(i)) for i in range(3)]
    token = z.version
    z.compact()
    z.remove(keys[0])
    stray = Path(z.path) / "weights" / "aa" / f"{'a' * 64}.parquet"
    stray.parent.mkdir(exist_ok=True)
    stray.write_bytes(b"left by a writer that was killed")
    (Path(z.path) / "weights" / "aa" / ".tmp-0123").write_bytes(b"x")
    report = z.verify()
    assert report.ok and any("belong to nothing" in note for note in report.notes) and len(report.notes) == 2
    assert z.gc().files == 0, "everything is young"
    upkeep.gc(z._store, grace_s=0)
    assert not stray.exists() and not z.verify().notes
    assert zoo.open(z.path, version=token).get(keys[0]).weights["fc.bias"].shape == (5,)
    freed = upkeep.gc(z._store, retention_days=0, grace_s=0)
    assert freed.files >= 5 and freed.size_bytes > 0 and z.verify().ok and len(z) == 2
    assert all(sub.weights["fc.bias"].shape == (5,) for sub in z) and len(blobs(z.path)) == 3
    with pytest.raises(CorruptionError, match="retention"):
        zoo.open(z.path, version=token).ids()


def test_gc_keeps_named_versions(z, new_sub):
    keys = [z.add(new_sub(i)) for i in range(2)]
    token = z.version
    z.remove(keys[0])
    upkeep.gc(z._store, retention_days=0, grace_s=0, keep=[token])
    old = zoo.open(z.path, version=token)
    assert set(old.ids()) == set(keys) and old.get(keys[0]).weights["fc.bias"].shape == (5,)
    for bad in ({"keep": ["x"]}, {"retention_days": -1}):
        with pytest.raises(OptionError):
            z.gc(**bad)


def test_repair_drops_what_is_lost(z, new_sub):
    keys = [z.add(new_sub(i)) for i in range(3)]
    lost = z._store.tables["subnetworks"].parts()[1]
    (Path(z.path) / "subnetworks" / lost).unlink()
    with pytest.raises(CorruptionError, match="verify"):
        zoo.open(z.path).ids()
    again = zoo.open(z.path)
    assert not again.verify().ok and again.repair() == [f"subnetworks/{lost}"]
    assert len(again.ids()) == 2 and set(again.ids()) < set(keys) and again.verify().ok and again.repair() == []


def test_an_old_handle_goes_on_while_another_compacts(z, new_sub):
    other = zoo.open(z.path)
    keys = [z.add(new_sub(i)) for i in range(2)]
    assert len(other) == 2
    z.compact()
    keys.append(other.add(new_sub(5)))
    assert set(z.ids()) == set(keys)
