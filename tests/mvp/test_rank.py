"""`mvp measures`: its blocks, its votes and its correlations, on a zoo of tiny sub-networks."""

import dataclasses
import itertools

import pytest

import zoo
from mvp.finetune import finetune
from mvp.populate import populate
from mvp.rank import rank
from mvp.score import score
from mvp.vote import vote_from
from tests import tiny
from tests.tiny import registered  # noqa: F401
from zoo.errors import DataError, EmptyZooError, MissingScoresError, OptionError

STORED = [tiny.LABELS[i : i + 3] for i in range(6)]
NEW = [("wolf", "dog", "goat"), ("bear", "cat", "tiger")]


@pytest.fixture(scope="module")
def z(registered, tmp_path_factory):  # noqa: F811
    z = zoo.open(tmp_path_factory.mktemp("rank") / "z")
    populate(z, tiny.base(), tiny.data(), STORED, producer="random", keep=0.5, leep=False)
    for labels in NEW:
        score(z, tiny.task(*labels), by=["leep", "logme"])
    return z


def asked(z, out=None, **options):
    options = {"by": ["wup", "leep"], "k": 2, "groups": 3, "steps": 2, "seeds": (0, 1)} | options
    return rank(z, [tiny.task(*labels) for labels in NEW], out=out, **options)


@pytest.fixture(scope="module")
def result(z):
    return asked(z)


def test_blocks_are_disjoint_and_follow_the_ranking(z, result):
    for measure, labels in itertools.product(("wup", "leep"), NEW):
        found = z.nearest(tiny.task(*labels).task, k=None, by=measure)
        runs = [r for r in result.runs if (r.measure, r.labels, r.seed) == (measure, ",".join(labels), 0)]
        assert [r.block for r in runs] == [0, 1, 2]
        for run, part in zip(runs, (found[:2], found[2:4], found[4:])):
            assert run.voters == ",".join(sorted(part.id))
            assert run.score == pytest.approx(sum(part.score) / 2, abs=1e-12)


def test_a_run_is_a_vote_fine_tuned(z, result):
    run = next(r for r in result.runs if (r.measure, r.labels, r.block, r.seed) == ("leep", ",".join(NEW[1]), 2, 1))
    data = tiny.task(*NEW[1])
    sub = vote_from([z.get(i) for i in run.voters.split(",")], data.task, seed=1)
    assert run.accuracy == finetune(sub, data, steps=2, seed=1).accuracy and run.keep == 0.5 and run.seconds > 0


def test_weak_votes_are_no_news_here(z, recwarn):
    asked(z, by=["leep"], steps=0, seeds=(0,))
    assert not [w for w in recwarn if issubclass(w.category, UserWarning)]


def test_a_set_of_voters_is_fine_tuned_once_and_a_second_start_only_makes_what_is_missing(
    z, result, tmp_path, monkeypatch
):
    calls = []
    monkeypatch.setattr("mvp.rank.vote_from", lambda v, task, **o: calls.append(task) or vote_from(v, task, **o))
    out = tmp_path / "runs.csv"
    asked(z, out, by=["leep"])
    assert len(calls) == 2 * 3 * 2
    again = asked(z, out)
    assert [dataclasses.replace(r, seconds=0) for r in again.runs] == [
        dataclasses.replace(r, seconds=0) for r in result.runs
    ]
    assert len(calls) == len({r.made for r in result.runs})
    lines = out.read_text()
    asked(z, out)
    assert out.read_text() == lines and len(lines.splitlines()) == 1 + len(result.runs)
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError):
        asked(z, tmp_path / "other.csv")


def test_measures_that_cannot_be_asked(z):
    with pytest.raises(MissingScoresError):
        asked(z, by=["leep", "hscore"])
    result = asked(z, by=["hscore", "logme"], optional=True, seeds=(0,))
    assert {r.measure for r in result.runs} == {"logme"} and "no H-score" in result.left_out["hscore"]
    with pytest.raises(OptionError, match="none of the measures") as caught:
        asked(z, by=["hscore"], optional=True)
    assert len(caught.value.problems) == 1
    with pytest.raises(EmptyZooError, match="12 or more: 3 disjoint blocks of 4"):
        asked(z, k=4)


def test_all_mistakes_are_listed(z):
    with pytest.raises(OptionError) as caught:
        rank(z, [], by=[], k=0, groups=1, steps=-1, seeds=())
    assert len(caught.value.problems) == 6
    with pytest.raises(OptionError, match="no such measure"):
        asked(z, by=["leep", "wop"], optional=True)
