"""Data files: what is read is what was written, or an error; columns and single rows are the whole file's."""

import hashlib

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from factory import make_sub

from zoo import arrow, parts
from zoo.errors import CorruptionError
from zoo.files import Files
from zoo.parts import read_group, read_part, write_part


@pytest.fixture
def files(tmp_path):
    return Files(tmp_path)


@pytest.fixture
def rows():
    return arrow.to_table("subnetworks", [arrow.subnetwork_row(make_sub(i)) for i in range(5)])


def test_a_file_is_named_by_its_bytes_and_by_chance(files, rows):
    names = {write_part(files, "subnetworks", rows) for _ in range(3)}
    assert len(names) == 3, "two writers of the same rows do not share a file"
    for name in names:
        chance, _, digest = name.removesuffix(".parquet").partition("-")
        assert digest == hashlib.sha256(files.read(f"subnetworks/{name}")).hexdigest() and len(chance) == 32


def test_columns_and_rows_are_those_of_the_whole(files, rows, monkeypatch):
    monkeypatch.setattr(parts, "ROWS_A_GROUP", 2)
    name = write_part(files, "subnetworks", rows)
    assert pq.ParquetFile(files.path(f"subnetworks/{name}")).num_row_groups == 3
    assert read_part(files, "subnetworks", name) == rows
    assert read_part(files, "subnetworks", name, ["labels", "id"]) == rows.select(["labels", "id"])
    for i in range(5):
        first, group = read_group(files, "subnetworks", name, i)
        assert (first, len(group)) == (i // 2 * 2, 1 if i == 4 else 2) and group == rows.slice(first, len(group))
    with pytest.raises(CorruptionError, match="cannot be read"):
        read_group(files, "subnetworks", name, 5)


@pytest.mark.parametrize("columns", [None, ["id"]])
def test_every_flipped_bit_is_noticed(files, rows, columns):
    name = write_part(files, "subnetworks", rows)
    path = f"subnetworks/{name}"
    good = files.read(path)
    for bit in range(0, 8 * len(good), 8 * len(good) // 300):
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        files.put(path, bytes(bad))
        with pytest.raises(CorruptionError, match="SHA-256"):
            read_part(files, "subnetworks", name, columns)


def changed(rows):
    at = rows.schema.get_field_index("accuracy")
    return rows.set_column(at, "accuracy", pa.array([0.99, *rows["accuracy"].to_pylist()[1:]], pa.float64()))


def test_rows_of_files_of_other_names_are_checked_one_by_one(files, rows):
    """Zoos of earlier versions have such files; a value that is not what was stored shows in its row."""
    for table, fine in ((rows, True), (changed(rows), False)):
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink)
        files.put("subnetworks/part-00001.parquet", sink.getvalue().to_pybytes())
        if fine:
            assert read_part(files, "subnetworks", "part-00001.parquet", ["keep"]) == rows.select(["keep"])
            continue
        with pytest.raises(CorruptionError) as caught:
            read_part(files, "subnetworks", "part-00001.parquet", ["keep"])
        assert rows["id"][0].as_py() in str(caught.value) and "measured" in str(caught.value)


def test_what_is_not_there_or_no_parquet(files):
    for read in (read_part, lambda *of: read_group(*of, 0)):
        with pytest.raises(CorruptionError, match="not there"):
            read(files, "subnetworks", "gone.parquet")
        files.put("subnetworks/text.parquet", b"no parquet")
        with pytest.raises(CorruptionError, match="cannot be read"):
            read(files, "subnetworks", "text.parquet")
