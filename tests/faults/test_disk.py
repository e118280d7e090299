"""Disks that are full, fail, or may not be written: a typed error, an unchanged zoo, and the next try works."""

import errno
import os
from pathlib import Path

import pytest
from test_kill import start

import zoo
from zoo.errors import ReadOnlyError, ZooError
from zoo.files import Files


def ids_and_health(path):
    z = zoo.open(path)
    report = z.verify()
    assert report.ok, str(report)
    return z.ids()


@pytest.mark.parametrize(
    ("code", "error", "nth"),
    [*((errno.ENOSPC, ZooError, nth) for nth in range(5)), (errno.EIO, ZooError, 1), (errno.EROFS, ReadOnlyError, 0),
     (errno.EACCES, ReadOnlyError, 4)],
)  # fmt: skip
def test_the_nth_file_of_an_add_cannot_be_written(z, new_sub, monkeypatch, code, error, nth):
    """In turn: the base's weights, the sub-network's, and the rows of base, task and sub-network."""
    real, calls = os.fsync, []

    def broken(handle):
        if Path(f"/proc/self/fd/{handle}").readlink().name.startswith(".tmp-"):
            calls.append(1)
            if len(calls) == nth + 1:
                raise OSError(code, os.strerror(code))
        return real(handle)

    if not Path("/proc/self/fd").exists():
        pytest.skip("needs /proc")
    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(error) as caught:
        z.add(new_sub())
    assert os.strerror(code) in str(caught.value) and type(caught.value) is error
    assert len(calls) == nth + 1 and ids_and_health(z.path) == [] and z.ids() == []
    assert not list(Path(z.path).rglob(".tmp-*"))
    monkeypatch.undo()
    key = z.add(new_sub())
    assert ids_and_health(z.path) == [key]


@pytest.mark.parametrize("limit", [100, 1500, 4000])
def test_files_beyond_a_size_limit(z, limit):
    """A limit on file sizes stops weights, rows or the log part way, as a full disk does."""
    worker = start("small-files", z.path, limit, 2)
    out, _ = worker.communicate("\n")
    lines = out.split("\n")[:-1]
    assert lines and all(line.split()[0].endswith("Error") or len(line) == 64 for line in lines if line)
    assert set(ids_and_health(z.path)) == {line for line in lines if len(line) == 64}
    if limit == 100:
        assert set(lines) != set() and ids_and_health(z.path) == []


def test_a_folder_without_write_permission(z, new_sub):
    key = z.add(new_sub())
    folders = [Path(z.path), *(p for p in Path(z.path).rglob("*") if p.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    try:
        if os.access(z.path, os.W_OK):
            pytest.skip("this user may write anywhere; the errors are covered by test_the_nth_file_of_an_add")
        reader = zoo.open(z.path)
        assert reader.get(key).weights["fc.bias"].shape == (5,)
        for write in (lambda: reader.add(new_sub(1)), lambda: reader.remove(key)):
            with pytest.raises(ReadOnlyError):
                write()
        with pytest.raises(ReadOnlyError):
            zoo.open(Path(z.path) / "new")
    finally:
        for folder in folders:
            folder.chmod(0o755)


class ReadOnlyFiles(Files):
    """A file system that refuses every change, whoever asks."""

    def put(self, name, data):
        from zoo.files import writing

        with writing(self.root):
            raise PermissionError(errno.EROFS, "Read-only file system")


def test_a_read_only_file_system(z, new_sub):
    key = z.add(new_sub())
    store = z._store
    store.files = ReadOnlyFiles(z.path)
    for table in store.tables.values():
        table.files = store.files
    assert z.get(key).weights["fc.bias"].shape == (5,) and z.verify().ok and z.sql("select 1").fetchall()
    score = zoo.Score(key, "t", "leep", -1.0)
    for write in (lambda: z.add(new_sub(1)), lambda: z.add_scores([score]), lambda: z.add_many([new_sub(2)])):
        with pytest.raises(ReadOnlyError, match="Read-only"):
            write()
    assert ids_and_health(z.path) == [key]


def test_the_log_cannot_be_written(z, new_sub, monkeypatch):
    """The commit itself fails after its rows were written: the rows stay invisible."""
    z.add(new_sub())
    before = z.ids()

    from deltalake import DeltaTable
    from deltalake.exceptions import DeltaError

    def full(*args, **kwargs):
        raise DeltaError("Generic LocalFileSystem error: No space left on device (os error 28)")

    monkeypatch.setattr(DeltaTable, "create_write_transaction", full)
    with pytest.raises(ZooError, match="No space left"):
        z.add(new_sub(1))
    monkeypatch.undo()
    assert ids_and_health(z.path) == before and z.add(new_sub(1)) in z


def test_endless_conflicts_end(z, new_sub, monkeypatch):
    from deltalake import DeltaTable
    from deltalake.exceptions import CommitFailedError

    from zoo import tables
    from zoo.errors import ConflictError

    z.add(new_sub())
    real, calls = DeltaTable.create_write_transaction, []

    def lose(self, *args, **kwargs):
        calls.append(1)
        if len(calls) <= losses:
            raise CommitFailedError("a concurrent transaction won")
        return real(self, *args, **kwargs)

    monkeypatch.setattr(DeltaTable, "create_write_transaction", lose)
    monkeypatch.setattr(tables.time, "sleep", lambda seconds: None)
    losses = 5
    assert z.add(new_sub(1)) in z and len(z) == 2
    losses, before = 10_000, {p.name for p in Path(z.path, "tasks").iterdir()}
    calls.clear()
    with pytest.raises(ConflictError, match="12 times"):
        z.add(new_sub(2))
    assert len(calls) == tables.RETRIES and {p.name for p in Path(z.path, "tasks").iterdir()} == before
    assert ids_and_health(z.path) == z.ids() and len(z) == 2


def test_the_wait_between_tries_is_bounded():
    from zoo import tables

    worst = sum(min(tables._LONGEST_WAIT_S, tables._FIRST_WAIT_S * 2**n) for n in range(tables.RETRIES))
    assert worst < 15
