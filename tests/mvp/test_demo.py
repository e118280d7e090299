"""The demo, cut short: every step runs on the sample zoo, and what it says is what it computed."""

import re

import pytest

import zoo
from mvp import demo as module
from zoo.errors import NotAZooError


@pytest.fixture
def short(monkeypatch):
    for name, value in {"N_TASKS": 1, "SEEDS": (0,), "STEPS": (1, 2), "IMAGES_FOR_LEEP": 20}.items():
        monkeypatch.setattr(module, name, value)


def test_every_step(short, tmp_path, capsys):
    comparison = module.demo(out=tmp_path, device="cpu")
    text = capsys.readouterr().out
    for step in range(1, 7):
        assert f"{step}. " in text
    for plot in ("iou_by_depth.png", "starts.png", "channels.png"):
        assert (tmp_path / plot).stat().st_size > 10_000
    assert {run.start for run in comparison.runs} == {"nearest 3", "nearest 1", "farthest 3", "random"}
    z = zoo.open(tmp_path / "demo.zoo", create=False)
    added = z.sql("select id, accuracy, generation from subnetworks where producer = 'vote'").fetchall()
    assert len(added) == 1 and added[0][2] == 1
    assert added[0][0][:12] in text and f"{added[0][1]:.3f}" in text
    assert re.search(r"it is\s+the\s+nearest", text)
    assert len(zoo.sample()) == len(z) - 1


def test_a_second_demo_in_the_same_folder_is_refused(short, tmp_path):
    (tmp_path / "demo.zoo").mkdir()
    (tmp_path / "demo.zoo" / "file").touch()
    with pytest.raises(NotAZooError, match="not empty"):
        module.demo(out=tmp_path)


@pytest.mark.slow
def test_the_whole_demo_shows_what_it_claims(tmp_path):
    comparison = module.demo(out=tmp_path)
    mean, _, _ = comparison.difference("nearest 3", "random", module.STEPS[-1])
    assert mean > 0
