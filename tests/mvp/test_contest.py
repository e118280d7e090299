import dataclasses
from typing import ClassVar

import pytest

from mvp.contest import Contest, Entry, contest, everyone
from mvp.finetune import finetune
from mvp.populate import draw_sources
from mvp.producers import prune
from mvp.producers.random import RandomChannels
from mvp.subnetwork import cost
from tests import tiny
from tests.tiny import registered  # noqa: F401
from zoo.errors import DataError, OptionError

TASKS = [("dog", "cat", "horse"), ("fox", "bear", "wolf")]
ENTRIES = ["random", "ifp steps=6 prune_every=1 prune_share=0.5 batch_size=16"]


def entered():
    return [Entry.parse(text) for text in ENTRIES]


def hold(out=None, entries=None, **options):
    options = {"keep": 0.5, "steps": 3, "seeds": (0, 1)} | options
    return contest(tiny.base(), tiny.data(), TASKS, entries or entered(), out=out, **options)


@pytest.fixture(scope="module")
def result(registered):  # noqa: F811
    return hold()


def test_every_entry_on_every_task_with_every_seed(result):
    assert {(r.entry, r.task, r.seed) for r in result.runs} == {
        (e, ",".join(t), s) for e in ENTRIES for t in TASKS for s in (0, 1)
    }


def test_a_run_is_pruning_and_fine_tuning(result):
    data = tiny.task(*TASKS[1])
    sub = prune(tiny.base(), data, producer=entered()[1].producer, keep=0.5, seed=1)
    run = next(r for r in result.runs if (r.entry, r.task, r.seed) == (ENTRIES[1], ",".join(TASKS[1]), 1))
    tuned = finetune(sub, data, steps=3, seed=1)
    assert (run.cut, run.accuracy, run.macs, run.params) == (sub.accuracy, tuned.accuracy, sub.macs, sub.params)
    assert run.producer_steps == 6 and run.seconds > 0 and run.finetune_seconds > 0
    assert result.full == cost(tiny.base(), {}, 3)[1]


def test_the_table(result):
    text = str(result)
    assert "2 tasks x 2 seeds, keep 0.5, 3 fine-tuning steps" in text
    runs = [r.accuracy * 100 for r in result.runs if r.entry == "random"]
    line = next(line for line in text.splitlines() if line.startswith("random"))
    assert f"{sum(runs) / 4:.1f} ±" in line


def test_the_plot(result, tmp_path):
    figure = result.plot(str(tmp_path / "p.png"))
    assert (tmp_path / "p.png").stat().st_size > 5000
    (ax,) = figure.axes
    means = result.to_pandas().groupby("entry").accuracy.mean() * 100
    lines = [t.get_text().replace("\n", " ") for t in ax.get_yticklabels()]
    assert sorted(lines) == sorted(ENTRIES)
    shown = [float(c.lines[0].get_xdata()[0]) for c in ax.containers]
    assert shown == pytest.approx([means[name] for name in lines]) and shown == sorted(shown), "the best on top"


def test_a_second_start_makes_only_what_is_missing(result, tmp_path, monkeypatch):
    out = tmp_path / "deep" / "runs.csv"
    hold(out, entries=entered()[:1])
    made = []
    monkeypatch.setattr("mvp.contest.prune", lambda *args, **kw: made.append(kw["producer"].name) or prune(*args, **kw))
    again = hold(out)
    assert made == ["ifp"] * 4
    assert [(r.key, r.cut, r.accuracy) for r in again.runs] == [(r.key, r.cut, r.accuracy) for r in result.runs]
    hold(out, keep=0.25)
    assert len(made) == 12  # another keep ratio is another run


def test_a_file_of_something_else(tmp_path):
    (tmp_path / "runs.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="does not hold such runs"):
        hold(tmp_path / "runs.csv")


@dataclasses.dataclass(frozen=True)
class Curious(RandomChannels):
    name: ClassVar[str] = "curious"
    needs: ClassVar[str] = "source tasks"
    claim: ClassVar[str] = "94% in its paper"

    def prune(self, base, data, *, sources, **more):
        expected = draw_sources(tiny.data(), data.labels, 2, seed=more["seed"])
        assert [s.task for s in sources] == [s.task for s in expected]
        return super().prune(base, data, **more)


def test_source_tasks_and_claims():
    result = hold(entries=[Entry("curious", Curious())], sources=2, seeds=(4,))
    assert '"sources": [' in result.runs[0].options
    assert "curious: 94% in its paper" in str(result)


def test_an_entry_with_a_base_of_its_own():
    other = tiny.base("dropout")
    result = hold(entries=[Entry("there", RandomChannels(), other)], seeds=(0,))
    assert {r.base for r in result.runs} == {other.id}


def test_entries_that_make_no_sense():
    assert Entry.parse("ifp importance=taylor steps=7").producer.importance == "taylor"
    for text, message in (("nobody", "no producer"), ("ifp step=3", "no option step"), ("ifp steps", "NAME=VALUE")):
        with pytest.raises(OptionError, match=message):
            Entry.parse(text)


@pytest.mark.parametrize("options", [{"seeds": ()}, {"steps": -1}, {"keep": 0}])
def test_nothing_to_contest(options):
    with pytest.raises(OptionError):
        hold(**options)


def test_it_is_a_frozen_record(result):
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.full = 0
    assert isinstance(result, Contest)


def test_everyone_who_can_run_on_a_base():
    on_cnn, on_vit = ({entry.name for entry in everyone(tiny.base(base))} for base in ("cnn", "vit"))
    assert on_cnn ^ on_vit == {"ahnp"} and {"ifp", "lcp", "snip", "intersection"} <= on_cnn
    assert "stamp" not in on_cnn  # it needs a file
