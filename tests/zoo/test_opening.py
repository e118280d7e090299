"""How a user comes to a zoo: of an absent, an empty or a foreign folder, and of the sample that ships."""

import json
import os
import shutil
from pathlib import Path

import pytest

import zoo
from zoo.errors import NotAZooError, NotFoundError, ReadOnlyError


def state(path) -> dict[str, int]:
    """Every file below a folder with its size."""
    return {str(p.relative_to(path)): p.stat().st_size for p in Path(path).rglob("*") if p.is_file()}


# An own zoo


def test_read_only_makes_nothing(tmp_path, z, new_sub):
    with pytest.raises(NotAZooError, match="absent or empty"):
        zoo.open(tmp_path / "absent", read_only=True)
    assert not (tmp_path / "absent").exists()
    reader = zoo.open(z.path, read_only=True)
    before = state(z.path)
    with pytest.raises(ReadOnlyError):
        reader.add(new_sub())
    assert state(z.path) == before and reader.read_only and not z.read_only


def test_text_paths_and_urls_name_the_same_zoo(z, new_sub):
    key = z.add(new_sub())
    for path in (str(z.path), Path(z.path), f"file://{z.path}", f"{z.path}/"):
        assert zoo.open(path, create=False).ids() == [key]


def test_a_second_creation_finds_the_first(tmp_path, new_sub):
    key = zoo.open(tmp_path / "z").add(new_sub())
    assert zoo.open(tmp_path / "z", create=True).ids() == [key]


def test_an_absent_and_an_empty_path_become_a_zoo(tmp_path):
    (tmp_path / "empty").mkdir()
    for name in ("absent", "empty", "deep/er"):
        z = zoo.open(tmp_path / name)
        assert len(z) == 0 and z.version == "b0-c0-s0-t0" and z.ids() == [] and z.bases() == []
    assert json.loads((tmp_path / "absent" / "zoo.json").read_text()) == {"format": 1, "project": "mvp-zoo"}
    assert {p.name for p in (tmp_path / "absent").iterdir()} == {"bases", "tasks", "subnetworks", "scores", "zoo.json"}


def test_a_folder_that_is_no_zoo_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(NotAZooError, match=r"notes\.txt"):
        zoo.open(tmp_path)
    assert list(state(tmp_path)) == ["notes.txt"]
    with pytest.raises(NotAZooError):
        zoo.open(tmp_path / "notes.txt")
    with pytest.raises(NotAZooError):
        zoo.open(tmp_path / "absent", create=False)
    assert not (tmp_path / "absent").exists()


@pytest.mark.parametrize("name", ["with space", "ü#?&%", "[brackets]", "quote'\""])
def test_paths_with_special_characters(tmp_path, new_sub, name):
    z = zoo.open(tmp_path / name)
    key = z.add(new_sub())
    assert zoo.open(str(tmp_path / name)).get(key).weights["fc.bias"].shape == (5,) and z.verify().ok


# The sample


@pytest.fixture
def shipped(z, new_sub, tmp_path, monkeypatch):
    """A sample zoo in a folder of shipped data."""
    z.add_many([new_sub(i, producer="ifp" if i % 2 else "random") for i in range(8)])
    folder = tmp_path / "site-packages" / "zoo" / "_data"
    folder.mkdir(parents=True)
    shutil.copytree(z.path, folder / "sample.zoo")
    monkeypatch.setattr("zoo.opening.data_path", lambda name: folder / name)
    return folder / "sample.zoo"


def test_reading_the_sample_writes_nothing(shipped):
    def state():
        return {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in shipped.parent.rglob("*")}

    before = state()
    s = zoo.sample()
    s.nearest(["dog", "cat"], k=2)
    s.iou_by_depth(groups=2, producer="ifp", bootstrap=10)
    assert s.read_only and len(s) == 8 and s.get(s.ids()[0]).weights and s.sql("select 1").fetchall() and s.verify().ok
    assert state() == before
    with pytest.raises(ReadOnlyError, match="copy_to"):
        s.remove(s.ids()[0])


def test_a_copy_of_the_sample_may_be_written(shipped, tmp_path, new_sub):
    for file in shipped.rglob("*"):
        if file.is_file():
            os.utime(file, (1e9, 1e9))
            file.chmod(0o444)
    copy = zoo.sample(copy_to=tmp_path / "mine")
    for file in (p.stat() for p in (tmp_path / "mine").rglob("*") if p.is_file()):
        assert file.st_mode & 0o200 and file.st_mtime > 1.5e9, "gc takes no fresh file for an old one"
    assert not copy.read_only and Path(copy.path) == tmp_path / "mine" and len(copy) == 8
    copy.add(new_sub(50))
    assert len(copy) == 9 and len(zoo.sample()) == 8 and copy.verify().ok
    with pytest.raises(NotAZooError, match="not empty"):
        zoo.sample(copy_to=tmp_path / "mine")


def test_the_shipped_sample_is_sound_if_it_is_there():
    try:
        s = zoo.sample()
    except NotFoundError:
        pytest.skip("data/sample.zoo is not there")
    assert len(s) > 0 and s.read_only and s.get(s.ids()[0]).accuracy is not None
