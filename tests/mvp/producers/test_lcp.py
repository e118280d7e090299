import dataclasses
import sys

import numpy as np
import pytest
import torch

import mvp
from mvp.budget import Budget
from mvp.plan import count, prunable
from mvp.producers.lcp import LcP
from mvp.producers.lcp_run import Run
from mvp.producers.lcp_search import Images, evolve, layer_metrics
from mvp.producers.random import RandomChannels
from mvp.subnetwork import cost, task_model
from tests import tiny
from tests.tiny import registered  # noqa: F401
from zoo.errors import DataError, OptionError

SHORT = {"tune_steps": 6, "finetune_steps": 6, "batch_size": 16, "floor": 0.0}


def short(**options):
    return LcP(**{**SHORT, "pool": 6, "iterations": 10, "tournament": 4, **options})


def images(data=None):
    return Images(data or tiny.task(), tiny.SPEC, tiny.CPU)


def model_of(name="cnn"):
    return task_model(tiny.base(name), 3).eval()


def same(a, b):
    return all(np.array_equal(a.channels[axis], b.channels[axis]) for axis in a.channels) and np.array_equal(
        a.weights["fc.weight"], b.weights["fc.weight"]
    )


@pytest.mark.parametrize("name", ["cnn", "vit"])
def test_with_beta_zero_it_is_naive_pruning(name):
    base = tiny.base(name)
    naive = LcP(**SHORT, method="naive").prune(base, tiny.task(), keep=0.5)
    zero = LcP(**SHORT, pool=1, iterations=0).prune(base, tiny.task(), keep=0.5)
    assert zero.weights_digest == naive.weights_digest
    assert all(np.array_equal(zero.channels[a], naive.channels[a]) for a in naive.channels)
    assert zero.metrics["fitness"] == zero.metrics["fitness_naive"]


def test_naive_prunes_the_lowest_of_all_layers_of_the_tuned_network():
    base, data = tiny.base(), tiny.task()
    options = LcP(**{**SHORT, "finetune_steps": 0}, method="naive", metric="l1")
    tuned = Run(options, base, data, 0, tiny.CPU, False).tuned()
    norms = {layer: getattr(tuned, layer).weight.detach().abs().sum((1, 2, 3)) for layer in ("conv1", "conv2", "conv3")}
    scores = {"a0": (norms["conv1"] + norms["conv3"]).numpy(), "a1": norms["conv2"].numpy()}
    expected = Budget.of(base, 3, keep=0.5).fill(scores)
    sub = options.prune(base, data, keep=0.5)
    assert {a: k.tolist() for a, k in sub.channels.items()} == {a: k.tolist() for a, k in expected.items()}
    assert np.array_equal(
        sub.weights["conv2.weight"], tuned.conv2.weight.detach().numpy()[expected["a1"]][:, expected["a0"]]
    )


def test_the_search_is_fitter_than_naive_pruning_and_its_fittest_is_pruned():
    base, data, size = tiny.base("vit"), tiny.task(), {"pool": 12, "iterations": 20}
    sub = short(**size, finetune_steps=0).prune(base, data, keep=0.4)
    naive = short(method="naive", finetune_steps=0).prune(base, data, keep=0.4)
    assert sub.metrics["fitness"] < sub.metrics["fitness_naive"]
    assert images().loss(mvp.build(sub)) == pytest.approx(sub.metrics["fitness"], rel=1e-5)
    assert images().loss(mvp.build(naive)) == pytest.approx(sub.metrics["fitness_naive"], rel=1e-5)
    assert sub.metrics["candidates"] == 32 and sub.metrics["candidates_per_second"] > 0
    assert "fitness" not in naive.metrics and "fitness_rank_correlation" not in sub.metrics
    assert sub.metrics["pruned_accuracy"] == sub.accuracy and sub.metrics["steps"] == 6


def test_fewer_fitness_images_report_how_they_rank_against_all():
    base, data = tiny.base("vit"), tiny.task()
    few = short(fitness_images=9, iterations=0).prune(base, data, keep=0.4)
    assert 0.3 < few.metrics["fitness_rank_correlation"] <= 1
    enough = short(fitness_images=60, iterations=0).prune(base, data, keep=0.4)
    assert "fitness_rank_correlation" not in enough.metrics
    assert enough.metrics["fitness_naive"] != few.metrics["fitness_naive"]


def test_uniform_takes_the_same_share_of_every_axis():
    sub = short(method="uniform").prune(tiny.base(), tiny.task(), keep=0.5)
    got = {axis: len(kept) for axis, kept in sub.channels.items()}
    # 4 of 8 and 6 of 12 cost the budget exactly.
    assert got == {"a0": 4, "a1": 6} and sub.macs == Budget.of(tiny.base(), 3, keep=0.5).limit


@pytest.mark.parametrize("name", ["cnn", "vit"])
@pytest.mark.parametrize("method", ["lcp", "naive", "uniform", "greedy"])
@pytest.mark.parametrize("more", [{"constraint": "params"}, {"passes": 3}, {"budget": 0.35, "metric": "taylor"}])
def test_the_budget_is_met_and_no_pruned_unit_would_fit(name, method, more):
    base, options = (
        tiny.base(name),
        short(method=method, iterations=3, pool=3, greedy_share=0.3, greedy_steps=1, **more),
    )
    sub = options.prune(base, tiny.task(), keep=0.4)
    which = options.constraint == "macs"
    equal = {a: range(max(1, round(0.4 * base.plan["axes"][a]["n"]))) for a in prunable(base.plan)}
    limit = cost(base, equal, 3)[which] if options.budget is None else int(0.35 * cost(base, {}, 3)[which])
    assert (sub.params, sub.macs)[which] <= limit
    for axis, kept in sub.channels.items():
        if len(kept) < base.plan["axes"][axis]["n"]:
            wider = sub.channels | {axis: range(len(kept) + 1)}
            assert cost(base, wider, 3)[which] > limit
    assert sub.metrics["steps"] >= 12 and mvp.build(sub)(torch.ones(1, 3, 8, 8)).shape == (1, 3)


def test_passes_tighten_in_equal_parts_to_the_budget():
    budget = Budget.of(tiny.base(), 3, keep=0.3)
    whole = cost(tiny.base(), {}, 3)[1]
    limits = [b.limit for b in LcP(passes=4).limits(budget)]
    assert limits == pytest.approx([whole - (whole - budget.limit) * i / 4 for i in (1, 2, 3, 4)], abs=1)
    assert limits[-1] == budget.limit and [b.limit for b in LcP().limits(budget)] == [budget.limit]


def test_a_sweep_gives_one_subnetwork_a_ratio_each_search_from_the_pool_before(monkeypatch):
    starts, ends = [], []

    def watched(fitness, sigma, pool, **options):
        starts.append([b.tolist() for b in pool])
        found = evolve(fitness, sigma, pool, **options)
        ends.append([b.tolist() for b in found.pool])
        return found

    monkeypatch.setattr(sys.modules["mvp.producers.lcp_run"], "evolve", watched)
    keeps, options = [0.8, 0.5, 0.3], short()
    subs = options.sweep(tiny.base(), tiny.task(), keeps=keeps)
    assert [s.keep for s in subs] == keeps and [s.options["sweep"] for s in subs] == [keeps[:1], keeps[:2], keeps]
    assert all(s.macs <= Budget.of(tiny.base(), 3, keep=k).limit for s, k in zip(subs, keeps, strict=True))
    for start, end in zip(starts[1:], ends, strict=False):
        assert start == [[0.0] * 3, *end[::-1][:5]]
    assert same(subs[0], options.prune(tiny.base(), tiny.task(), keep=0.8))
    assert [s.id for s in options.sweep(tiny.base(), tiny.task(), keeps=keeps)] == [s.id for s in subs]


def test_the_floor_of_every_axis():
    options = short(floor=0.5, metric="l1", method="naive")
    sub = options.prune(tiny.base(), tiny.task(), keep=0.6)
    assert len(sub.channels["a0"]) >= 4 and len(sub.channels["a1"]) >= 6
    assert options.floors(0.9) == {"floor": 0.5, "least": 2} and short().floors(0.9) == {"floor": 0.0, "least": 1}
    assert LcP().floors(0.5) == {"floor": 0.1, "least": 2} and LcP().floors(0.1)["floor"] == 0.05
    assert min(len(k) for k in short(floor=0.01).prune(tiny.base(), tiny.task(), keep=0.25).channels.values()) >= 2


def test_it_learns():
    options = short(tune_steps=60, finetune_steps=30, lr=0.05)
    sub = options.prune(tiny.base(), tiny.task(), keep=0.5)
    random = mvp.finetune(RandomChannels().prune(tiny.base(), tiny.task(), keep=0.5), tiny.task(), steps=30)
    assert sub.accuracy > 0.9 and sub.accuracy >= random.accuracy
    params, macs = count(tiny.base().plan, {})
    assert sub.params < params and sub.macs < macs


def test_budgets_that_cannot_be_met_are_refused_before_any_training(monkeypatch):
    monkeypatch.setattr(Run, "tuned", lambda self: pytest.fail("it trained"))
    for options, keep in (({"floor": 0.9}, 0.3), ({"budget": 0.001}, 0.3), ({"floor": 0.1}, 0.05)):
        with pytest.raises(OptionError, match="cannot be met"):
            short(**options).prune(tiny.base(), tiny.task(), keep=keep)
    with pytest.raises(OptionError, match="cannot be met"):
        short(floor=0.5).sweep(tiny.base(), tiny.task(), keeps=[0.9, 0.1])


def test_bad_input():
    for keeps, options in (([], {}), ([0.5], {"budget": 0.5}), ([0.5, 0], {})):
        with pytest.raises(OptionError):
            short(**options).sweep(tiny.base(), tiny.task(), keeps=keeps)
    one = dataclasses.replace(tiny.task(), train_images=tiny.task().train_images[:1], train_labels=torch.tensor([0]))
    with pytest.raises(DataError, match="too few"):
        short().prune(tiny.base(), one, keep=0.5)
    frozen = dataclasses.replace(tiny.base(), plan=tiny.base().plan | {"axes": {}})
    with pytest.raises(OptionError, match="lcp: tests-cnn has nothing to prune"):
        short().prune(frozen, tiny.task(), keep=0.5)
    with pytest.raises(OptionError, match="needs images"):
        layer_metrics(model_of(), tiny.base().plan, ["a0"], "taylor")


def test_every_option_out_of_range_is_said():
    wrong = {
        "metric": "fisher", "method": "magic", "constraint": "latency", "budget": 1.5, "passes": 0, "floor": -0.1,
        "pool": 0, "iterations": -1, "tournament": 0, "fitness_images": 0, "greedy_share": 2, "greedy_steps": -1,
        "tune_steps": -1, "finetune_steps": 1.5, "lr": -1, "batch_size": 1, "weight_decay": -1,
    }  # fmt: skip
    assert set(wrong) == {f.name for f in dataclasses.fields(LcP)}
    with pytest.raises(OptionError) as error:
        LcP(**wrong)
    assert [p.partition(":")[0] for p in error.value.problems] == list(wrong)
