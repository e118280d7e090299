"""Files below one root: whole or not at all, on the disk before `put` returns, and never outside the root."""

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import zoo
from zoo.errors import NotAZooError, OptionError, ReadOnlyError, ZooError
from zoo.files import TEMPORARY, Files, writing


@pytest.fixture
def files(tmp_path):
    return Files(tmp_path / "root")


@pytest.fixture
def calls(monkeypatch):
    """What the operating system was asked for, in order: ("fsync", path) and ("rename", target)."""
    if not Path("/proc/self/fd").exists():
        pytest.skip("needs /proc")
    seen, fsync, replace = [], os.fsync, Path.replace

    def logged_fsync(handle):
        seen.append(("fsync", Path(f"/proc/self/fd/{handle}").readlink()))
        fsync(handle)

    def logged_replace(source, target):
        seen.append(("rename", Path(target)))
        return replace(source, target)

    monkeypatch.setattr(os, "fsync", logged_fsync)
    monkeypatch.setattr(Path, "replace", logged_replace)
    return seen


def test_what_was_put_is_there(files):
    assert not files.exists("a/b/c.bin") and files.names() == []
    files.put("a/b/c.bin", b"\0\xff" * 1000)
    files.put("a/d.bin", b"")
    assert files.read("a/b/c.bin") == b"\0\xff" * 1000 and files.size("a/b/c.bin") == 2000
    assert files.read("a/d.bin") == b"" and files.size("a/d.bin") == 0
    assert files.exists("a/b/c.bin") and not files.exists("a/b") and not files.exists("a/b/c")
    assert files.names() == ["a"] and files.names("a") == ["a/b", "a/d.bin"] and files.names("nowhere") == []
    assert files.names(recursive=True) == ["a", "a/b", "a/b/c.bin", "a/d.bin"]
    ((name, size, modified),) = files.stats("a/b")
    assert (name, size) == ("a/b/c.bin", 2000)
    assert modified == pytest.approx(Path(files.path(name)).stat().st_mtime, abs=1e-3)
    files.put("a/d.bin", b"new")
    assert files.read("a/d.bin") == b"new"
    files.delete("a/d.bin")
    files.delete("a/d.bin")
    assert not files.exists("a/d.bin")
    with pytest.raises(FileNotFoundError):
        files.read("a/d.bin")
    with pytest.raises(NotAZooError, match="is a file"):
        files.names("a/b/c.bin")


def test_bytes_are_on_the_disk_before_the_name_and_the_name_before_put_returns(files, calls, tmp_path):
    files.make("")
    files.put("new/deep/file", b"x")
    root = tmp_path / "root"
    temporary = calls[0][1]
    assert temporary.parent == root / "new" / "deep" and temporary.name.startswith(TEMPORARY)
    assert calls[:2] == [("fsync", temporary), ("rename", root / "new" / "deep" / "file")]
    assert set(calls[2:]) == {("fsync", root / "new" / "deep"), ("fsync", root / "new"), ("fsync", root)}


def test_a_failed_put_leaves_the_old_file_and_no_other(files, monkeypatch):
    files.put("f", b"old")

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for name in ("fsync", "replace"):
        monkeypatch.setattr(*((os, name) if name == "fsync" else (Path, name)), full)
        with pytest.raises(ZooError, match="Free some space"):
            files.put("f", b"new")
        monkeypatch.undo()
    assert files.read("f") == b"old" and files.names() == ["f"]


def test_of_several_writers_of_a_new_file_one_wins_and_its_bytes_are_whole(files):
    contents = [bytes([i]) * 200_000 for i in range(8)]
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda content: files.put_new("log/0.json", content), contents))
    assert sum(won) == 1 and files.read("log/0.json") == contents[won.index(True)]
    assert not files.put_new("log/0.json", b"late") and files.names("log") == ["log/0.json"]
    assert files.read("log/0.json") == contents[won.index(True)]


def test_sync_reaches_files_and_folders_and_skips_what_is_gone(files, calls, tmp_path):
    files.put("log/1.json", b"{}")
    calls.clear()
    files.sync(["log/1.json", "log/2.json"], ["log", "nowhere"])
    assert calls == [("fsync", tmp_path / "root" / "log" / "1.json"), ("fsync", tmp_path / "root" / "log")]


@pytest.mark.parametrize("name", ["../x", "a/../../x", "a/..", "/etc/hostname", ".."])
def test_no_name_leaves_the_root(files, tmp_path, name):
    (tmp_path / "x").write_bytes(b"somebody else's")
    files.make("a")
    for use in (files.read, files.exists, files.size, files.delete, files.make, files.names, files.path):
        with pytest.raises(OptionError, match="relative"):
            use(name)
    for write in (lambda: files.put(name, b"mine"), lambda: files.sync([name], [])):
        with pytest.raises(OptionError, match="relative"):
            write()
    assert (tmp_path / "x").read_bytes() == b"somebody else's"
    files.put("a/..x", b"dots are no harm")
    assert files.read("a/..x") == b"dots are no harm"


def test_the_root_is_absolute_and_may_be_a_file_url_or_below_the_home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for given in ("my zoo", Path("my zoo"), f"file://{tmp_path}/my zoo", "~/my zoo", f"{tmp_path}/my zoo/"):
        found = Files(given)
        assert found.local and found.root == found.uri == str(tmp_path / "my zoo")
        assert found.path("a/b") == f"{tmp_path}/my zoo/a/b" and found.path("") == found.root


@pytest.mark.parametrize("given", ["", "a\0b", "a%20b", "file:///tmp/a%2Fb"])
def test_roots_that_cannot_be_used(given):
    with pytest.raises(OptionError):
        Files(given)


@pytest.mark.parametrize(
    ("code", "error"),
    [(errno.EACCES, ReadOnlyError), (errno.EPERM, ReadOnlyError), (errno.EROFS, ReadOnlyError),
     (errno.ENOSPC, ZooError), (errno.EIO, ZooError)],
)  # fmt: skip
def test_errors_of_the_disk_are_told_in_words(code, error):
    with pytest.raises(error) as caught, writing("/my/zoo"):
        raise OSError(code, os.strerror(code))
    assert type(caught.value) is error and os.strerror(code) in str(caught.value) and "/my/zoo" in str(caught.value)
    assert isinstance(caught.value.__cause__, OSError)


def test_other_errors_pass_through():
    for error in (KeyError("x"), ReadOnlyError("pinned")):
        with pytest.raises(type(error)) as caught, writing("/my/zoo"):
            raise error
        assert caught.value is error


def test_paths_that_delta_lake_would_decode_are_refused(tmp_path):
    with pytest.raises(OptionError, match="percent"):
        zoo.open(tmp_path / "a%20b")
    with pytest.raises(OptionError):
        zoo.open("")
