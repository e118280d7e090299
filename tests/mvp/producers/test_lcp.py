import dataclasses
import itertools
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import mvp
from mvp.budget import Budget
from mvp.finetune import is_transformer
from mvp.plan import count, full_channels, prunable
from mvp.producers.lcp import LcP
from mvp.producers.lcp_run import Run, Work
from mvp.producers.lcp_search import Fitness, Images, Layers, evolve, layer_metrics, start_pool
from mvp.producers.random import RandomChannels
from mvp.subnetwork import cost, task_model
from mvp.surgery import masked
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


def layers_of(name="cnn", metric="l2"):
    plan = tiny.base(name).plan
    return Layers.of(layer_metrics(model_of(name), plan, prunable(plan), metric, images()))


def same(a, b):
    return all(np.array_equal(a.channels[axis], b.channels[axis]) for axis in a.channels) and np.array_equal(
        a.weights["fc.weight"], b.weights["fc.weight"]
    )


def test_norms_are_sums_over_all_weights_of_the_filter():
    model = model_of()
    for metric, power in (("l1", 1), ("l2", 2)):
        values = layers_of(metric=metric).values
        assert {axis: list(of) for axis, of in values.items()} == {"a0": ["conv1", "conv3"], "a1": ["conv2"]}
        for axis, layer in (("a0", "conv1"), ("a0", "conv3"), ("a1", "conv2")):
            weight = getattr(model, layer).weight.detach().double()
            assert values[axis][layer] == pytest.approx([float((f.abs() ** power).sum()) for f in weight], rel=1e-6)


def test_taylor_is_the_absolute_mean_of_weight_times_gradient_of_the_loss_over_all_images():
    model, data, values = model_of(), tiny.task(), layers_of(metric="taylor").values
    F.cross_entropy(model(tiny.SPEC(data.train_images)), data.train_labels).backward()
    for axis, layer in (("a0", "conv1"), ("a0", "conv3"), ("a1", "conv2")):
        weight = getattr(model, layer).weight
        naive = [abs(float((w * g).mean())) for w, g in zip(weight.detach(), weight.grad, strict=True)]
        assert values[axis][layer] == pytest.approx(naive, rel=1e-3, abs=1e-9)


def test_a_head_is_scored_by_its_queries_keys_and_values():
    model, values = model_of("vit"), layers_of("vit", "l1").values
    heads = [axis for axis, of in tiny.base("vit").plan["axes"].items() if of["kind"] == "head"]
    qkv = model.blocks[0].attn.qkv.weight.detach().double().reshape(3, 3, 4, 12)
    assert values[heads[0]]["blocks.0.attn.qkv"] == pytest.approx(qkv.abs().sum((0, 2, 3)).numpy())


def test_layers_of_one_axis_are_summed_each_after_its_own_beta():
    layers = layers_of()
    one, three, two = layers.values["a0"]["conv1"], layers.values["a0"]["conv3"], layers.values["a1"]["conv2"]
    scores = layers.scores(np.array([1.0, 20.0, 300.0]))
    assert scores["a0"] == pytest.approx(one + 1 + three + 20) and scores["a1"] == pytest.approx(two + 300)
    assert layers.sigma == pytest.approx([one.std(), three.std(), two.std()])
    for axis, total in layers.scores(np.zeros(3)).items():
        assert np.array_equal(total, layers.scores()[axis])


@pytest.mark.parametrize("name", ["cnn", "vit"])
def test_fitness_is_the_loss_of_the_network_that_ignores_what_is_pruned(name):
    base, model, data = tiny.base(name), model_of(name), tiny.task()
    layers, budget = layers_of(name), Budget.of(tiny.base(name), 3, keep=0.5)
    measured = []

    def sets_of(beta):
        measured.append(budget.fill(layers.scores(beta)))
        return measured[-1]

    fitness, rng = Fitness(model, base.plan, sets_of, images(data), tiny.CPU), np.random.default_rng(0)
    for _ in range(4):
        got = fitness(rng.normal(size=len(layers.sigma)) * layers.sigma * 3)
        with torch.no_grad():
            logits = masked(model, base.plan, measured[-1])(tiny.SPEC(data.train_images))
        assert got == pytest.approx(float(F.cross_entropy(logits, data.train_labels)), rel=1e-4)


def test_equal_channel_sets_are_measured_once(monkeypatch):
    layers, budget = layers_of(), Budget.of(tiny.base(), 3, keep=0.5)
    fitness = Fitness(
        model_of(), tiny.base().plan, lambda beta: budget.fill(layers.scores(beta)), images(), tiny.CPU
    )  # fmt: skip
    losses = iter(range(10))
    monkeypatch.setattr(fitness, "measure", lambda sets, images: next(losses))
    # A shift of all layers that is equal for every axis leaves the ranking as it is.
    assert [fitness(b) for b in (np.zeros(3), np.array([0.5, 0.5, 1.0]), np.array([-1e6, 0, 0]), np.zeros(3))] == [
        0, 0, 1, 0,
    ]  # fmt: skip


def test_rank_correlation_of_two_image_sets(monkeypatch):
    fitness = Fitness(model_of(), tiny.base().plan, lambda beta: {"a0": beta.astype(int)}, images(), tiny.CPU)
    few, many = fitness.images, images()
    table = {0: (0.1, 5.0), 1: (0.2, 7.0), 2: (0.3, 7.0), 3: (0.4, 6.0)}
    monkeypatch.setattr(fitness, "measure", lambda sets, images: table[int(sets["a0"][0])][images is many])
    pool = [np.array([float(i)]) for i in range(4)]
    # Ranks 1 2 3 4 against 1 3.5 3.5 2.
    assert fitness.images is few and fitness.rank_correlation(pool, many) == pytest.approx(1.5 / (5 * 4.5) ** 0.5)
    table |= {i: (0.5, 1.0 * i) for i in range(4)}
    fitness._known.clear()
    assert np.isnan(fitness.rank_correlation(pool, many))


def test_evolution_finds_a_known_optimum():
    rng, best = np.random.default_rng(0), np.array([1.0, -2.0, 0.5, 3.0, 0.0])
    sigma = np.array([1.0, 2.0, 1.0, 3.0, 0.5])

    def fitness(beta):
        return float((((beta - best) / sigma) ** 2).sum())

    pool = start_pool(sigma, 64, rng)
    found = evolve(fitness, sigma, pool, iterations=336, tournament=16, rng=rng)
    assert found.fitness == fitness(found.beta) < 0.05 < 0.5 * min(map(fitness, pool))
    assert len(found.pool) == 64 and fitness(np.mean(found.pool, axis=0)) < 0.3


def test_the_oldest_goes_even_if_it_is_the_fittest_and_the_best_ever_seen_is_returned():
    seen = []

    def fitness(beta):
        seen.append(beta)
        return float(len(seen))

    pool = [np.full(3, float(i)) for i in range(4)]
    found = evolve(fitness, np.ones(3), pool, iterations=6, tournament=2, rng=np.random.default_rng(0))
    assert len(seen) == 10 and found.fitness == 1 and found.beta is pool[0]
    assert [any(beta is s for s in seen[6:]) for beta in found.pool] == [True] * 4


def test_a_mutation_moves_a_tenth_of_the_layers_of_the_fittest_by_ever_smaller_steps():
    layers, total, sigma, moves = 40, 300, np.ones(40) * 2, []
    rng, born = np.random.default_rng(0), itertools.count()
    # A member that nothing beats and that is always drawn: every child is one mutation away from it.
    found = evolve(
        lambda beta: moves.append(beta) or float(next(born) > 0), sigma, [np.zeros(layers)], iterations=1,
        tournament=1, rng=rng,
    )  # fmt: skip
    assert found.fitness == 0
    children = []
    for seed in range(total):
        moves.clear()
        evolve(
            lambda beta: moves.append(beta) or 0.0, sigma, [np.zeros(layers)], iterations=10, tournament=1,
            rng=np.random.default_rng(seed),
        )  # fmt: skip
        children.append(np.diff(np.array(moves), axis=0))
    steps = np.array(children)
    assert ((steps != 0).sum(2) == 4).all()
    for cur in range(10):
        assert steps[:, cur][steps[:, cur] != 0].std() == pytest.approx(2 * (1 - cur / 10), rel=0.1)
    for n, d in ((3, 1), (19, 1), (20, 2)):
        moves.clear()
        evolve(lambda beta: moves.append(beta) or 0.0, np.ones(n), [np.zeros(n)], iterations=1, tournament=1, rng=rng)
        assert (moves[1] != 0).sum() == d


def test_the_first_pool_is_the_identity_and_draws_with_the_layers_own_deviation():
    sigma = np.array([0.1, 1.0, 10.0])
    pool = start_pool(sigma, 1001, np.random.default_rng(0))
    assert len(pool) == 1001 and not pool[0].any()
    assert np.std(pool[1:], axis=0) == pytest.approx(sigma, rel=0.1)
    previous = [np.full(3, float(i)) for i in range(4)]
    warm = start_pool(sigma, 4, np.random.default_rng(0), previous)
    assert [b.tolist() for b in warm] == [[0] * 3, [3] * 3, [2] * 3, [1] * 3]
    assert len(start_pool(sigma, 9, np.random.default_rng(0), previous)) == 9


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
