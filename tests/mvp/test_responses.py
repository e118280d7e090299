"""Responses are run once; what they give is LEEP of the probe; search finds by few passes what is true LEEP."""

import numpy as np
import pytest

import mvp
import zoo
from mvp.populate import populate
from mvp.score import responses, score, score_pairs
from mvp.train import InputSpec
from tests import tiny
from tests.tiny import registered  # noqa: F401
from zoo.errors import DataError, MissingScoresError, OptionError, ReadOnlyError
from zoo.leep import leep

TASKS = [("dog", "cat", "horse"), ("lion", "tiger", "wolf"), ("fox", "bear", "dog"), ("goat", "sheep", "lion"),
         ("wolf", "bear", "cat")]  # fmt: skip


@pytest.fixture
def z(registered, tmp_path):  # noqa: F811
    z = zoo.open(tmp_path / "z")
    populate(z, tiny.base(), tiny.data(), TASKS, producer="random", keep=0.5, leep=False)
    return z


def test_each_sub_network_runs_once_and_answers_for_every_task_of_its_classes(z):
    source = tiny.data()
    report = mvp.cache_responses(z, source, images=30, progress=False)
    assert (report.run, report.stored, len(report.probe.image_labels)) == (5, 5, 30) and not len(report.errors)
    new = tiny.task("fox", "goat", "cat")
    with pytest.raises(MissingScoresError, match="LEEP score"):
        z.nearest(new.task, by="leep")
    found = z.nearest(new.task, k=5, by="leep_probe")
    drawn = source.sample(30, seed=0)
    names = [source.labels[c] for c in drawn.train_labels.tolist()]
    at = [i for i, name in enumerate(names) if name in new.labels]
    y = np.array([list(new.labels).index(names[i]) for i in at])
    for row in found:
        theta = responses(z.get(row.id), drawn.train_images[at], InputSpec.of(dict(tiny.base().input)), device=tiny.CPU)
        assert row.score == pytest.approx(leep(theta, y), abs=2e-3)
    # A sub-network that came later has no responses until it is run too.
    populate(z, tiny.base(), source, [("goat", "horse", "bear")], producer="random", keep=0.5, leep=False)
    with pytest.raises(MissingScoresError, match=r"1 of 6 .*cache_responses"):
        z.nearest(new.task, k=5, by="leep_probe")
    assert mvp.cache_responses(z, source, images=30, progress=False).run == 1
    assert len(zoo.open(z.path).nearest(new.task, k=6, by="leep_probe")) == 6


def test_it_says_how_far_off_it_is(z):
    score_pairs(z, tiny.data(), progress=False)
    coarse = mvp.cache_responses(z, tiny.data(), images=20, progress=False)
    whole = mvp.cache_responses(z, tiny.data(), images=200, progress=False)
    assert len(coarse.errors) == len(whole.errors) == 25 and len(whole.ranks) == 5
    assert np.abs(whole.errors).max() < 2e-3 < np.abs(coarse.errors).max(), "all images give LEEP itself"
    assert whole.ranks.min() > 0.99 and "25 pairs" in str(whole) and "5 tasks" in str(whole)


def test_bad_input(z):
    with pytest.raises(OptionError, match="10, one a class"):
        mvp.cache_responses(z, tiny.data(), images=9, progress=False)
    with pytest.raises(ReadOnlyError):
        mvp.cache_responses(zoo.open(z.path, version=z.version), tiny.data(), images=20, progress=False)
    with pytest.raises(MissingScoresError, match="cache_responses"):
        z.nearest(["dog", "cat"], k=1, by="leep_probe")


def test_search_by_few_passes_gives_true_leep_and_stores_it(z):
    score_pairs(z, tiny.data(), progress=False)
    new = tiny.task("fox", "goat", "cat")
    before = z.sql("select count(*) from scores").fetchall()[0][0]
    found = mvp.search(z, new, k=2, passes=3, progress=False)
    assert len(found) == 2 and z.sql("select count(*) from scores").fetchall()[0][0] == before + 3
    score(z, new, by="leep", progress=False)
    truth = {row.id: row.score for row in z.nearest(new.task, k=5, by="leep")}
    assert all(row.score == truth[row.id] for row in found)
    everyone = mvp.search(z, new, k=5, passes=9, progress=False)
    assert list(everyone.id) == list(z.nearest(new.task, k=5, by="leep").id)


def test_search_in_a_zoo_without_leep(z):
    with pytest.raises(DataError, match="score_pairs"):
        mvp.search(z, tiny.task("fox", "goat", "cat"), passes=3, progress=False)
