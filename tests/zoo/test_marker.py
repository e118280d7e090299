"""What makes a folder a zoo: the marker, written last, and read first."""

import json
from pathlib import Path

import pytest

import zoo
from zoo import marker
from zoo.errors import CorruptionError, FormatError, NotAZooError
from zoo.files import TEMPORARY, Files
from zoo.marker import MARKER, open_folder
from zoo.records import FORMAT
from zoo.snapshot import WRITE_ORDER


def test_the_marker_names_the_project_and_the_format_and_is_written_last(tmp_path, monkeypatch):
    made = []

    class Table:
        def __init__(self, files, name):
            self.name = name

        def create(self):
            assert not (tmp_path / "z" / MARKER).exists()
            made.append(self.name)

    monkeypatch.setattr(marker, "Table", Table)
    open_folder(Files(tmp_path / "z"), create=True)
    assert made == list(WRITE_ORDER)
    assert json.loads((tmp_path / "z" / MARKER).read_text()) == {"format": FORMAT, "project": "mvp-zoo"}
    open_folder(Files(tmp_path / "z"), create=False)
    assert made == list(WRITE_ORDER), "a zoo is not made again"


def test_a_newer_format_is_refused_and_says_to_upgrade(z):
    path = Path(z.path) / MARKER
    path.write_text(json.dumps({"format": FORMAT + 1, "project": "mvp-zoo"}))
    with pytest.raises(FormatError, match=rf"got {FORMAT + 1}; expected at most {FORMAT}\. Upgrade"):
        zoo.open(z.path)
    path.write_text(json.dumps({"format": FORMAT, "project": "mvp-zoo", "more": [1]}))
    assert len(zoo.open(z.path)) == 0, "fields of later versions of the same format are let be"


def test_a_zoo_that_another_process_finishes_at_this_moment_is_no_foreign_folder(z):
    class Late(Files):
        """The marker is not there when it is first looked for, but when the folder is listed."""

        looked = 0

        def read(self, name):
            self.looked += 1
            if self.looked == 1:
                raise FileNotFoundError(name)
            return super().read(name)

    files = Late(z.path)
    open_folder(files, create=False)
    assert files.looked == 2


@pytest.mark.parametrize("left", [[], ["bases"], ["bases", "tasks"], [f"{TEMPORARY}12ab"]])
def test_nothing_but_our_own_leftovers_becomes_a_zoo(tmp_path, left):
    for name in left:
        (tmp_path / name).mkdir()
    says = "unfinished" if "bases" in left else "absent or empty"
    with pytest.raises(NotAZooError, match=says):
        open_folder(Files(tmp_path), create=False)
    assert {p.name for p in tmp_path.iterdir()} == set(left)
    (tmp_path / "holiday.jpg").write_bytes(b"")
    with pytest.raises(NotAZooError, match=r"not empty.*holiday\.jpg"):
        open_folder(Files(tmp_path), create=True)
    (tmp_path / "holiday.jpg").unlink()
    open_folder(Files(tmp_path), create=True)
    assert (tmp_path / MARKER).exists() and all((tmp_path / name).is_dir() for name in WRITE_ORDER)


def test_a_creation_that_was_cut_short_goes_on(tmp_path):
    zoo.open(tmp_path / "z")
    (tmp_path / "z" / "zoo.json").unlink()
    with pytest.raises(NotAZooError, match="unfinished"):
        zoo.open(tmp_path / "z", create=False)
    assert len(zoo.open(tmp_path / "z")) == 0 and (tmp_path / "z" / "zoo.json").exists()


@pytest.mark.parametrize(
    ("marker", "error"),
    [('{"format": 2, "project": "mvp-zoo"}', FormatError), ('{"format": 1, "project": "x"}', NotAZooError),
     ('{"format": 1, "proj', CorruptionError), ("[]", CorruptionError), ('{"project": "mvp-zoo"}', CorruptionError),
     ('{"format": "one", "project": "mvp-zoo"}', CorruptionError)],
)  # fmt: skip
def test_the_marker_is_checked(z, marker, error):
    (Path(z.path) / "zoo.json").write_text(marker)
    with pytest.raises(error):
        zoo.open(z.path)
