"""The sub-networks of a version, column by column, against the whole table; and what adding to them costs."""

import pyarrow as pa
import pytest
from factory import make_sub

import zoo
from zoo import parts, tables
from zoo.columns import Columns
from zoo.rows import Rows
from zoo.snapshot import order


def columns(z):
    return z.snapshot().subnetworks


@pytest.fixture
def z(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "SMALL_BYTES", 0)  # nothing is kept: every column comes from the disk
    monkeypatch.setattr(parts, "ROWS_A_GROUP", 2)
    return zoo.open(tmp_path / "z")


def test_they_are_the_table_in_order(z):
    for i in (3, 1, 4, 0, 2):
        z.add(make_sub(i))
    whole = order("subnetworks", z._store.tables["subnetworks"].load())
    got = columns(z)
    assert isinstance(got, Columns) and len(got) == got.num_rows == 5 and got.column_names == whole.column_names
    assert got.table() == whole and got["labels"] == whole["labels"] and got["id"].to_pylist() == got.ids
    assert got.select(["keep", "id"]) == whole.select(["keep", "id"])
    assert got.select(["channels", "id"], 2) == whole.select(["channels", "id"]).slice(2)
    assert [got.row(i) for i in range(5)] == whole.to_pylist()
    z.compact()
    assert columns(z).table() == whole and [columns(z).row(i) for i in range(5)] == whole.to_pylist()


def test_an_added_row_is_read_alone(z, monkeypatch):
    z.add_many([make_sub(i) for i in range(3)])
    before = columns(z)
    rows = Rows.of(z.snapshot())
    read = []
    real = tables.read_part
    monkeypatch.setattr(tables, "read_part", lambda f, t, part, *c: read.append(part) or real(f, t, part, *c))
    z.add(make_sub(7))
    after = columns(z)
    assert after.shared == 3 and after.ids[:3] == before.ids
    grown = Rows.of(z.snapshot())
    assert set(read).isdisjoint(before._parts) and z.snapshot().before is None
    fresh = Rows.of(zoo.open(z.path).snapshot())
    assert len(rows) == 3 and len(grown) == 4
    for name in ("ids", "task_ids"):
        assert getattr(grown, name) == getattr(fresh, name)
    for name in ("labels", "synsets"):
        assert list(getattr(grown, name)) == list(getattr(fresh, name))
    for name in ("base_ids", "producer", "kind", "mode", "datasets", "generation", "keep", "accuracy", "class_sets"):
        assert getattr(grown, name).tolist() == getattr(fresh, name).tolist(), name


def test_what_is_not_only_added_is_worked_out_anew(z):
    keys = z.add_many([make_sub(i) for i in range(3)])
    assert len(columns(z)) == 3
    z.remove(keys[1])
    assert columns(z).shared == 0 and columns(z).ids == [keys[0], keys[2]]
    z.add(make_sub(1))
    # Its time of making is older than what is there, so it takes its old place.
    assert columns(z).ids == zoo.open(z.path).ids() and set(columns(z).ids) == set(keys)


def test_rows_of_one_id_are_one(z):
    sub = make_sub(0)
    z.add(sub)
    from zoo import arrow

    other = make_sub(1)
    z._store.tables["tasks"].append(arrow.to_table("tasks", [arrow.task_row(other.task, other.created_at)]))
    again = arrow.to_table("subnetworks", [arrow.subnetwork_row(sub), arrow.subnetwork_row(other)])
    z._store.tables["subnetworks"].append(again)
    assert len(columns(z)) == 2 and columns(z).table()["id"].to_pylist() == columns(z).ids == zoo.open(z.path).ids()
    assert columns(z).select(["id"], 1) == columns(z).select(["id"]).slice(1)


def test_an_empty_zoo(z):
    assert len(columns(z)) == 0 and columns(z).table() == z._store.tables["subnetworks"].load()
    assert columns(z)["id"].to_pylist() == [] and isinstance(columns(z)["labels"], pa.ChunkedArray)
