"""What ships in data/: whole, small enough, and what data/README.md says it is."""

import hashlib
from pathlib import Path

import pytest

import zoo
from zoo.datafiles import data_root

DATA = data_root()


def files() -> list[Path]:
    return sorted(p for p in DATA.rglob("*") if p.is_file() and "__pycache__" not in p.parts)


def test_sums_list_every_file():
    listed = {}
    for line in (DATA / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split(maxsplit=1)
        listed[name.removeprefix("./")] = digest
    names = {p.relative_to(DATA).as_posix() for p in files()} - {"SHA256SUMS", "README.md"}
    assert listed.keys() == names
    wrong = [n for n in sorted(names) if hashlib.sha256((DATA / n).read_bytes()).hexdigest() != listed[n]]
    assert not wrong


def test_it_names_no_path_of_the_machine_that_made_it():
    assert not [p for p in files() if p.suffix == ".json" and b"file://" in p.read_bytes()]


def test_it_is_small():
    assert sum(p.stat().st_size for p in files()) <= 25e6


@pytest.fixture(scope="module")
def z():
    return zoo.sample()


def test_it_is_sound(z):
    report = z.verify()
    assert report.ok, report.problems


def test_it_holds_what_its_readme_says(z):
    rows = z.sql("select distinct producer, mode, keep, generation, len(labels), dataset from subnetworks").fetchall()
    assert rows == [("ifp", "coupled", 0.3, 0, 5, "cifar100")]
    assert len(z) == len(z.tasks()) >= 60
    assert z.base().name == "resnet20"


def test_every_pair_has_its_leep_and_every_task_its_embedding(z):
    pairs = z.sql("select source, target, value from scores where measure = 'leep'").fetchall()
    assert {(s, t) for s, t, _ in pairs} == {(s, t.id) for s in z.ids() for t in z.tasks()}
    assert all(-1.6095 <= value <= 0 for _, _, value in pairs)
    assert z.sql("select count(*) from subnetworks where embeddings['prototype'] is not null").fetchall() == [(len(z),)]


def test_labels_all_have_synsets(z):
    assert all(all(task.synsets) for task in z.tasks())


def test_similar_tasks_share_more_channels(z):
    """MVP's finding, which the README claims for this zoo: group 1 above group 5, both far above chance."""
    for by in ("wup", "leep"):
        gap = z.iou_by_depth(by=by, bootstrap=0).gap
        first, last, floor = (gap[name][0] for name in ("group 1", "group 5", "floor"))
        assert first > last > 2 * floor
