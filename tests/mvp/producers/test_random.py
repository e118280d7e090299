import numpy as np
import pytest

from mvp.plan import keep_counts, prunable
from mvp.producers import prune
from mvp.producers.random import RandomChannels, random_channels
from tests import tiny
from tests.tiny import registered  # noqa: F401
from zoo.channels import random_floor
from zoo.errors import OptionError


def drawn(task, seed=0, keep=0.5):
    return prune(tiny.base(), task, producer="random", keep=keep, seed=seed).channels


def test_the_weights_are_the_pretrained_ones():
    sub = prune(tiny.base(), tiny.task(), producer="random", keep=0.5)
    full, c = tiny.base().weights, sub.channels
    assert np.array_equal(sub.weights["conv3.weight"], full["conv3.weight"][np.ix_(c["a0"], c["a1"])])
    assert np.array_equal(sub.weights["bn1.running_var"], full["bn1.running_var"][c["a0"]])
    assert sub.weights["fc.weight"].shape == (3, len(c["a0"]))
    assert dict(sub.options) == {} and sub.metrics.keys() == {"accuracy", "steps"}


def test_every_channel_is_equally_likely():
    base, n_draws = tiny.base(), 800
    counts = {axis: np.zeros(base.plan["axes"][axis]["n"]) for axis in prunable(base.plan)}
    for seed in range(n_draws):
        for axis, kept in random_channels(base, 0.25, seed).items():
            counts[axis][kept] += 1
            assert kept.tolist() == sorted(set(kept.tolist()))
    for axis, n_kept in keep_counts(base.plan, 0.25).items():
        share = n_kept / len(counts[axis])
        # Five standard deviations of a binomial share.
        assert np.abs(counts[axis] / n_draws - share).max() < 5 * (share * (1 - share) / n_draws) ** 0.5


def test_axes_are_drawn_independently():
    base = tiny.base("vit")
    a, b = (axis for axis in prunable(base.plan) if base.plan["axes"][axis]["kind"] == "node")
    assert base.plan["axes"][a]["n"] == base.plan["axes"][b]["n"]
    draws = [random_channels(base, 0.5, seed) for seed in range(5)]
    assert any(not np.array_equal(d[a], d[b]) for d in draws)


def test_tasks_of_one_seed_overlap_by_chance_alone():
    # A zoo is filled with one seed: equal draws for all its tasks would give an IoU of 1 where the paper shows chance.
    pairs = [(a, b) for a in range(10) for b in range(10) if a != b]
    sets = [set(drawn(tiny.task(a, b))["a1"].tolist()) for a, b in pairs]
    overlap = [len(x & y) / len(x | y) for i, x in enumerate(sets) for y in sets[:i]]
    assert np.mean(overlap) == pytest.approx(random_floor(12, 6, 6), abs=0.02)


def test_seeds_and_tasks_give_other_channels():
    one = drawn(tiny.task(0, 1), seed=1)
    assert all(np.array_equal(one[a], drawn(tiny.task(0, 1), seed=1)[a]) for a in one)
    for other in (drawn(tiny.task(0, 1), seed=2), drawn(tiny.task(1, 0), seed=1)):
        assert any(not np.array_equal(one[a], other[a]) for a in one)


def test_keep_outside_its_range():
    with pytest.raises(OptionError, match="keep"):
        RandomChannels().prune(tiny.base(), tiny.task(), keep=0)
