import sys

import numpy as np
import pytest
import torch

from mvp.budget import Budget
from mvp.finetune import is_transformer
from mvp.plan import full_channels
from mvp.producers.lcp import LcP
from mvp.producers.lcp_run import Run, Work
from mvp.producers.lcp_search import Images, Layers, layer_metrics
from mvp.subnetwork import cost, task_model
from tests import tiny
from tests.tiny import registered  # noqa: F401

SHORT = {"tune_steps": 6, "finetune_steps": 6, "batch_size": 16, "floor": 0.0}


def short(**options):
    return LcP(**{**SHORT, "pool": 6, "iterations": 10, "tournament": 4, **options})


def images(data=None):
    return Images(data or tiny.task(), tiny.SPEC, tiny.CPU)


def model_of(name="cnn"):
    return task_model(tiny.base(name), 3).eval()


def test_what_is_pruned_keeps_its_last_weights_and_ranks_below_what_is_left():
    base = tiny.base()
    work = Work(base, model_of(), tiny.CPU, {"floor": 0.0})
    before = {k: v.clone() for k, v in work.whole.state_dict().items()}
    scores = {"a0": np.arange(8.0), "a1": np.arange(12.0) + 0.5}
    work.cut({"a0": np.arange(2, 8), "a1": np.arange(1, 12)}, scores)
    with torch.no_grad():
        for parameter in work.slim.parameters():
            parameter.add_(1)
    work.settle()
    after = work.whole.state_dict()
    assert torch.equal(after["conv1.weight"][:2], before["conv1.weight"][:2])
    assert torch.equal(after["conv2.weight"][1:, 2:], before["conv2.weight"][1:, 2:] + 1)
    assert torch.equal(after["conv2.weight"][1:, :2], before["conv2.weight"][1:, :2])
    whole = work.whole_scores({"a0": np.full(6, -5.0), "a1": np.full(11, 9.0)})
    # They went in the order a0[0], a1[0], a0[1].
    assert whole["a0"].tolist() == [-8, -6, *[-5] * 6] and whole["a1"].tolist() == [-7, *[9] * 11]


@pytest.mark.parametrize("name", ["cnn", "vit"])
def test_the_optimizer(name):
    run = Run(short(), tiny.base(name), tiny.task(), 0, tiny.CPU, False)
    optimizer = run._optimizer(model_of(name))
    if is_transformer(tiny.base(name)):
        assert type(optimizer) is torch.optim.AdamW
    else:
        group = optimizer.param_groups[0]
        got = [group[k] for k in ("lr", "momentum", "weight_decay", "nesterov")]
        assert type(optimizer) is torch.optim.SGD and got == [0.01, 0.9, 5e-4, True]


def test_the_rate_drops_at_30_60_and_80_percent(monkeypatch):
    rates = []
    module = sys.modules["mvp.producers.lcp_run"]
    monkeypatch.setattr(module, "step", lambda m, optimizer, x, y: rates.append(optimizer.param_groups[0]["lr"]))
    Run(short(), tiny.base(), tiny.task(), 0, tiny.CPU, False)._train(model_of(), 10, "tune")
    assert rates == pytest.approx([1e-2] * 3 + [1e-3] * 3 + [1e-4] * 2 + [1e-5] * 2)


def test_greedy_removes_one_filter_at_a_time_and_measures_anew():
    # The plain loop: measure on what is left, remove the single lowest, until the budget is met.
    base, data, metric = tiny.base(), tiny.task(), "taylor"
    options = short(method="greedy", metric=metric, greedy_share=0.0, greedy_steps=0, tune_steps=0, finetune_steps=0)
    budget = Budget.of(base, 3, keep=0.5)
    sets, model, removed = full_channels(base.plan), model_of(), []
    while cost(base, sets, 3)[1] > budget.limit:
        slim = Work(base, model, tiny.CPU, {"floor": 0.0})
        slim.cut(sets, {a: np.zeros(base.plan["axes"][a]["n"]) for a in sets})
        scores = Layers.of(layer_metrics(slim.slim, slim.plan, list(sets), metric, images(data))).scores()
        _, axis, unit = min((v, a, int(sets[a][i])) for a, s in scores.items() for i, v in enumerate(s) if len(s) > 1)
        sets = sets | {axis: np.setdiff1d(sets[axis], [unit])}
        removed.append((axis, unit))
    for axis, unit in reversed(removed):
        wider = sets | {axis: np.union1d(sets[axis], [unit])}
        if cost(base, wider, 3)[1] <= budget.limit:
            sets = wider
    sub = options.prune(base, data, keep=0.5)
    assert len(removed) > 5
    assert {a: k.tolist() for a, k in sub.channels.items()} == {a: k.tolist() for a, k in sets.items()}


def test_greedy_tunes_between_its_removals():
    few = short(method="greedy", greedy_share=0.2, greedy_steps=2).prune(tiny.base(), tiny.task(), keep=0.3)
    many = short(method="greedy", greedy_share=0.0, greedy_steps=2).prune(tiny.base(), tiny.task(), keep=0.3)
    assert 12 < few.metrics["steps"] < many.metrics["steps"]
    assert (few.metrics["steps"] - 12) % 2 == 0
