import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mvp.budget import Budget
from mvp.plan import prunable
from mvp.producers.lcp_search import Fitness, Images, Layers, evolve, layer_metrics, start_pool
from mvp.subnetwork import task_model
from mvp.surgery import masked
from tests import tiny
from tests.tiny import registered  # noqa: F401


def images(data=None):
    return Images(data or tiny.task(), tiny.SPEC, tiny.CPU)


def model_of(name="cnn"):
    return task_model(tiny.base(name), 3).eval()


def layers_of(name="cnn", metric="l2"):
    plan = tiny.base(name).plan
    return Layers.of(layer_metrics(model_of(name), plan, prunable(plan), metric, images()))


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
