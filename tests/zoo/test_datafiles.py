"""Where the shipped files are looked for, and that a damaged one is noticed."""

import hashlib
from pathlib import Path

import pytest

from zoo.datafiles import check_sum, data_path, data_root, sha256
from zoo.errors import CorruptionError, NotFoundError, OptionError


def installation(folder: Path, monkeypatch, *data_folders: str) -> Path:
    """A package folder with label tables in the named places, taken for the installed one."""
    for name in data_folders:
        (folder / name / "labels").mkdir(parents=True)
    monkeypatch.setattr("zoo.datafiles._PACKAGE", folder / "zoo")
    return folder


def test_a_wheels_own_data_come_before_a_folder_beside_the_package(tmp_path, monkeypatch):
    installation(tmp_path, monkeypatch, "data")
    assert data_root() == tmp_path / "data"
    (tmp_path / "zoo" / "_data" / "labels").mkdir(parents=True)
    assert data_root() == tmp_path / "zoo" / "_data"


def test_somebody_elses_data_folder_is_not_taken(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    installation(tmp_path, monkeypatch)
    with pytest.raises(NotFoundError, match="data folder is missing") as caught:
        data_root()
    assert str(tmp_path / "zoo" / "_data") in str(caught.value)


def test_what_is_missing_is_told_beside_what_is_there(tmp_path, monkeypatch):
    (installation(tmp_path, monkeypatch, "data") / "data" / "other.npz").write_bytes(b"")
    with pytest.raises(NotFoundError, match=r"'wordnet_nouns\.npz' is missing; got labels, other\.npz in "):
        data_path("wordnet_nouns.npz")


@pytest.mark.parametrize("size", [0, 1, 2**20 - 1, 2**20, 2**20 + 1, 3 * 2**20])
def test_the_hash_is_of_all_bytes(tmp_path, size):
    content = (b"0123456789abcdef" * (size // 16 + 1))[:size]
    (tmp_path / "f").write_bytes(content)
    assert sha256(tmp_path / "f") == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("between", ["  ", " *", "  ./", " *./"])
def test_sums_are_read_as_sha256sum_writes_them(tmp_path, monkeypatch, between):
    data = installation(tmp_path, monkeypatch, "data") / "data"
    (data / "labels" / "a.json").write_text("{}")
    (data / "a.json").write_text("[]")
    lines = [f"{sha256(data / name)}{between}{name}" for name in ("a.json", "labels/a.json")]
    (data / "SHA256SUMS").write_text("\n".join(lines))
    check_sum("labels/a.json")
    (data / "labels" / "a.json").write_text("[]")
    with pytest.raises(CorruptionError):
        check_sum("labels/a.json")
    check_sum("a.json")


def test_the_shipped_noun_table_is_whole():
    check_sum("wordnet_nouns.npz")


def test_data_path_finds_files_and_says_what_is_missing(tmp_path, monkeypatch):
    assert data_path("wordnet_nouns.npz").stat().st_size < 5_000_000
    with pytest.raises(NotFoundError, match=r"nothing\.npz"):
        data_path("nothing.npz")
    for outside in ("../pyproject.toml", str(tmp_path)):
        with pytest.raises(OptionError):
            data_path(outside)
    monkeypatch.setattr("zoo.datafiles._PACKAGE", tmp_path / "zoo")
    with pytest.raises(NotFoundError, match="data folder is missing"):
        data_path("wordnet_nouns.npz")


def test_check_sum(tmp_path, monkeypatch):
    (tmp_path / "data" / "labels").mkdir(parents=True)
    file = tmp_path / "data" / "labels" / "a.json"
    file.write_text("{}")
    sums = tmp_path / "data" / "SHA256SUMS"
    sums.write_text(f"{sha256(file)}  labels/a.json\n")
    monkeypatch.setattr("zoo.datafiles._PACKAGE", tmp_path / "zoo")
    check_sum("labels/a.json")
    file.write_text("{ }")
    with pytest.raises(CorruptionError, match=r"labels/a\.json is damaged"):
        check_sum("labels/a.json")
    with pytest.raises(NotFoundError, match="no line"):
        check_sum("SHA256SUMS")
