import dataclasses
from importlib import import_module

import numpy as np
import pytest

import mvp
import zoo
from mvp.compare import Comparison, Run, compare
from mvp.finetune import finetune
from mvp.populate import populate
from mvp.producers import prune
from tests import tiny
from tests.tiny import registered  # noqa: F401
from zoo.errors import DataError, EmptyZooError, OptionError

TASKS = [("dog", "cat", "horse"), ("lion", "tiger", "wolf"), ("fox", "bear", "dog"), ("goat", "sheep", "lion")]
TASK = ("wolf,fox,goat", "dog,sheep,bear")
OPTIONS = {"nearest": (2, 1), "farthest": (1,), "steps": (2, 4), "seeds": (0, 1)}


@pytest.fixture(scope="module")
def z(registered, tmp_path_factory):  # noqa: F811
    z = zoo.open(tmp_path_factory.mktemp("compare") / "z")
    populate(z, tiny.base(), tiny.data(), TASKS, producer="random", keep=0.5, leep=False)
    return z


@pytest.fixture(scope="module")
def held_out(registered):  # noqa: F811
    return [tiny.task("wolf", "fox", "goat"), tiny.task("dog", "sheep", "bear")]


@pytest.fixture(scope="module")
def result(z, held_out):
    return compare(z, held_out, long_steps=100, **OPTIONS)


def test_every_start_is_run_on_every_task_with_every_seed(result):
    starts = ["nearest 2", "nearest 1", "farthest 1", "random"]
    wanted = {(t, seed, start, n) for t in TASK for seed in (0, 1) for start in starts for n in (2, 4)}
    wanted |= {(t, seed, "IFP 100", 100) for t in TASK for seed in (0, 1)}
    assert {(r.task, r.seed, r.start, r.steps) for r in result.runs} == wanted and len(result.runs) == len(wanted)
    assert all(0 <= r.accuracy <= 1 and r.seconds > 0 for r in result.runs)


def test_runs_are_the_votes_and_random_starts_fine_tuned_to_the_last_step(z, held_out, result):
    data = held_out[0]
    ranked = z.nearest(data.task, k=None, by="wup").id
    for start, ids in (("nearest 2", ranked[:2]), ("nearest 1", ranked[:1]), ("farthest 1", ranked[-1:])):
        voted = mvp.vote_from([z.get(i) for i in ids], data.task, seed=1)
        wanted = finetune(voted, data, steps=4, seed=1).accuracy
        assert [r.accuracy for r in result.runs if (r.task, r.seed, r.start, r.steps) == (TASK[0], 1, start, 4)] == [
            wanted
        ]
    chance = finetune(prune(tiny.base(), data, producer="random", keep=0.5, seed=1), data, steps=4).accuracy
    assert [r.accuracy for r in result.runs if (r.task, r.seed, r.start, r.steps) == (TASK[0], 1, "random", 4)] == [
        chance
    ]
    assert [s.parents for s in result.best] == [
        tuple(z.nearest(d.task, k=2, by="wup").id) for d in held_out
    ]  # fmt: skip


def test_who_votes(z, held_out, monkeypatch):
    module = import_module("mvp.compare")
    asked, voted = [], module._voted
    monkeypatch.setattr(module, "_voted", lambda z, ids, *rest: asked.append(list(ids)) or voted(z, ids, *rest))
    compare(z, held_out[:1], nearest=(2, 1), farthest=(1, 3), steps=(1,), seeds=(0,))
    ranked = list(z.nearest(held_out[0].task, k=None, by="wup").id)
    assert asked == [ranked[:2], ranked[:1], ranked[-1:], ranked[-3:]]


def test_it_is_deterministic(z, held_out, result):
    again = compare(z, held_out[:1], **{**OPTIONS, "seeds": (1,)})
    mine = {(r.start, r.steps): r.accuracy for r in again.runs}
    assert mine == {
        (r.start, r.steps): r.accuracy for r in result.runs if (r.task, r.seed) == (TASK[0], 1) and r.steps < 100
    }


def test_starts_keep_equal_numbers_of_channels(z, held_out):
    data = held_out[0]
    chance = prune(tiny.base(), data, producer="random", keep=0.5)
    voted = mvp.vote(z, data, k=2)
    assert {a: len(k) for a, k in voted.channels.items()} == {a: len(k) for a, k in chance.channels.items()}


def made(accuracies):
    """A comparison from {(task, seed, start): accuracy after 5 steps}."""
    return Comparison(
        tuple(Run(str(t), seed, start, 5, "", 5, a, 0.1) for (t, seed, start), a in accuracies.items()), "wup"
    )


def test_the_difference_is_paired_by_task():
    rng = np.random.default_rng(0)
    table = {}
    for t in range(8):
        level = rng.random() * 0.8  # tasks differ far more than starts
        for seed in range(3):
            table[t, seed, "nearest 1"] = level + 0.1 + 0.01 * rng.normal()
            table[t, seed, "random"] = level + 0.01 * rng.normal()
    mean, low, high = made(table).difference("nearest 1", "random", 5)
    gaps = [
        np.mean([table[t, s, "nearest 1"] for s in range(3)]) - np.mean([table[t, s, "random"] for s in range(3)])
        for t in range(8)
    ]
    assert mean == pytest.approx(np.mean(gaps))
    draws = np.random.default_rng(1).choice(gaps, (20_000, 8)).mean(1)
    assert (low, high) == pytest.approx(np.quantile(draws, [0.025, 0.975]), abs=1e-3)
    assert 0.08 < low < mean < high < 0.12
    assert made(table).difference("random", "nearest 1", 5)[0] == pytest.approx(-mean)


def test_the_table_shows_means_and_deviations_and_the_paired_difference():
    accuracies = {(0, 0, "nearest 1"): 0.5, (1, 0, "nearest 1"): 0.7, (0, 0, "random"): 0.4, (1, 0, "random"): 0.5}
    result = made(accuracies)
    assert result.summary().loc["nearest 1", 5] == "60.0 ± 14.1" and result.summary().loc["random", 5] == "45.0 ± 7.1"
    text = str(result)
    assert "60.0 ± 14.1" in text and "2 tasks x 1 seeds" in text and "by wup" in text
    assert "nearest 1 - random after 5 steps: +15.0 points, 95% interval [+10.0, +20.0]" in text


def test_the_table_of_a_real_run(result):
    text = str(result)
    assert all(start in text for start in ("nearest 2", "nearest 1", "farthest 1", "random", "IFP 100"))
    assert "after 2 steps" in text and "after 4 steps" in text and "2 tasks x 2 seeds" in text
    frame = result.to_pandas()
    assert list(frame) == [f.name for f in dataclasses.fields(Run)] and len(frame) == len(result.runs)


def test_the_plot_has_a_line_a_start_and_is_written(result, tmp_path):
    figure = result.plot(str(tmp_path / "starts.png"))
    assert (tmp_path / "starts.png").stat().st_size > 5000
    (ax,) = figure.axes
    assert [t.get_text() for t in ax.get_legend().get_texts()] == [
        "nearest 2", "nearest 1", "farthest 1", "random", "IFP 100",
    ]  # fmt: skip
    line = ax.containers[0].lines[0]
    runs = [r for r in result.runs if r.start == "nearest 2"]
    wanted = [100 * np.mean([r.accuracy for r in runs if r.steps == n]) for n in (2, 4)]
    assert line.get_xdata().tolist() == [2, 4] and line.get_ydata().tolist() == pytest.approx(wanted)


def test_many_starts_all_get_a_line():
    starts = [f"nearest {k}" for k in range(1, 10)] + ["random"]
    figure = made({(0, 0, s): 0.5 for s in starts}).plot()
    assert len(figure.axes[0].get_legend().get_texts()) == 10


def test_one_task_and_seed_still_print():
    text = str(made({(0, 0, "nearest 1"): 0.5, (0, 0, "random"): 0.5}))
    assert "50.0" in text and "+0.0 points" in text


def test_a_difference_that_was_not_measured():
    result = made({(0, 0, "nearest 1"): 0.5})
    for ask in (("nearest 1", "random", 5), ("nearest 1", "nearest 1", 6)):
        with pytest.raises(OptionError, match="not measured"):
            result.difference(*ask)


def test_only_what_may_vote_is_ranked(z, held_out, tmp_path):
    mixed = zoo.open(tmp_path / "mixed")
    mixed.add_many(list(z))
    one = {"steps": 1, "prune_every": 1, "prune_share": 0.5, "batch_size": 16, "mode": "independent"}
    mixed.add(prune(tiny.base(), tiny.task("wolf", "fox", "goat", "cat"), keep=0.5, **one))
    got = compare(mixed, held_out[:1], **OPTIONS)
    assert [r.accuracy for r in got.runs] == [r.accuracy for r in compare(z, held_out[:1], **OPTIONS).runs]


@pytest.mark.parametrize(
    "options",
    [{"steps": ()}, {"steps": (0, 2)}, {"seeds": ()}, {"nearest": (), "farthest": ()}, {"nearest": (0,)}],
    ids=str,
)
def test_nothing_to_compare(options, z, held_out):
    with pytest.raises(OptionError, match="nothing to compare"):
        compare(z, held_out, **{**OPTIONS, **options})
    with pytest.raises(OptionError, match="nothing to compare"):
        compare(z, [], **OPTIONS)


def test_fewer_candidates_than_voters(z, held_out):
    with pytest.raises(EmptyZooError, match="4 tasks of the zoo may vote for wolf, fox, goat; expected 5 or more"):
        compare(z, held_out, **{**OPTIONS, "nearest": (5,)})


def test_a_second_start_goes_on_where_the_first_was_stopped(z, held_out, result, tmp_path, monkeypatch):
    module, out = import_module("mvp.compare"), tmp_path / "runs" / "runs.csv"
    made = []
    curve = module._curve
    monkeypatch.setattr(module, "_curve", lambda plan, *rest: made.append(plan) or curve(plan, *rest))
    first = compare(z, held_out[:1], out=out, long_steps=100, **OPTIONS)
    assert len(made) == 8
    lines = out.read_text().splitlines()
    out.write_text("\n".join(lines[:4]) + "\n")
    again = compare(z, held_out[:1], out=out, long_steps=100, **OPTIONS)
    # Three rows: one run of two measurements, and half of another, which is made again.
    assert len(made) == 8 + 7
    third = compare(z, held_out[:1], out=out, long_steps=100, **OPTIONS)
    assert len(made) == 15

    def values(comparison):
        return [(r.plan, r.steps, r.accuracy) for r in comparison.runs]

    assert values(first) == values(again) == values(third)
    assert [r.accuracy for r in first.runs] == [r.accuracy for r in result.runs if r.task == TASK[0]]
    # Other steps are another schedule.
    compare(z, held_out[:1], out=out, **{**OPTIONS, "steps": (2, 3)})
    assert len(made) == 23
    out.write_text("task,seed\na,b\n")
    with pytest.raises(DataError, match="such runs"):
        compare(z, held_out[:1], out=out, **OPTIONS)
