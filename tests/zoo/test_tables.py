import json
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pytest
from deltalake import DeltaTable
from factory import make_sub

import zoo
from zoo import arrow, tables
from zoo.deltalog import log_name
from zoo.errors import CorruptionError, NotFoundError, ReadOnlyError
from zoo.files import Files
from zoo.tables import Table

# Appends, rewrites and conflicts are tested through the store (test_store.py) and in tests/faults.


@pytest.fixture
def table(tmp_path):
    made = Table(Files(tmp_path / "z"), "tasks")
    made.create()
    return made


def test_a_new_table_is_empty_and_delta_reads_it(table):
    assert table.refresh() == 0 and table.parts() == [] and len(table.load()) == 0
    plain = DeltaTable(table.uri)
    assert plain.version() == 0 and plain.metadata().name == "tasks"
    assert plain.metadata().configuration["delta.checkpointInterval"] == "100"


def test_it_does_not_say_where_it_was_made(tmp_path):
    z = zoo.open(tmp_path / "my zoo")
    logs = sorted((tmp_path / "my zoo").glob("*/_delta_log/*.json"))
    assert len(logs) >= 4
    for log in logs:
        assert tmp_path.name not in log.read_text() and "file:" not in log.read_text()
    assert len(z) == 0


def test_creating_it_again_changes_nothing(table):
    first = table.files.read(log_name("tasks", 0))
    table.create()
    assert table.files.read(log_name("tasks", 0)) == first


def test_of_several_creators_one_wins(tmp_path):
    tables = [Table(Files(tmp_path / "z"), "tasks") for _ in range(6)]
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(Table.create, tables))
    assert [table.refresh() for table in tables] == [0] * 6
    ids = {json.loads(line)["metaData"]["id"] for table in tables for line in _metadata(table)}
    assert len(ids) == 1
    assert not [name for name in tables[0].files.names(recursive=True) if ".tmp-" in name]


def _metadata(table):
    return [line for line in table.files.read(log_name("tasks", 0)).decode().splitlines() if "metaData" in line]


def test_a_pinned_version_that_is_not_there(table):
    with pytest.raises(NotFoundError, match="no version 3"):
        Table(table.files, "tasks", version=3).refresh()


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    files = Files(tmp_path / "z")
    monkeypatch.setattr(Files, "put_new", _refused)
    with pytest.raises(ReadOnlyError):
        Table(files, "tasks").create()


def _refused(self, name, data):
    raise ReadOnlyError(f"{self.root} cannot be written")


def test_a_row_that_is_read_alone_is_checked_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "SMALL_BYTES", 0)
    table = Table(Files(tmp_path / "z"), "subnetworks")
    table.create()
    rows = arrow.to_table("subnetworks", [arrow.subnetwork_row(make_sub(i)) for i in range(3)])
    at = rows.schema.get_field_index("accuracy")
    table.append(rows.set_column(at, "accuracy", pa.array([0.99, *rows["accuracy"].to_pylist()[1:]], pa.float64())))
    (part,) = table.parts()
    assert table.row(part, 1) == rows.to_pylist()[1] and table.row(part, 2) == rows.to_pylist()[2]
    with pytest.raises(CorruptionError, match="measured"):
        table.row(part, 0)
