from itertools import product

import numpy as np
import pytest

from mvp.budget import Budget
from mvp.finetune import finetune
from mvp.producers import prune
from mvp.producers.random_structure import RandomStructure, random_widths
from mvp.reinit import reinitialised
from mvp.train import derive_seed
from tests import tiny
from tests.tiny import registered  # noqa: F401
from zoo.errors import OptionError


def drawn(seed, low=0.5, keep=0.4, name="cnn"):
    return random_widths(Budget.of(tiny.base(name), 3, keep=keep), low, seed)


def widths(channels):
    return {axis: len(kept) for axis, kept in channels.items()}


@pytest.mark.parametrize("seed", range(5))
def test_widths_are_shares_times_the_largest_factor_then_filled_up(seed):
    base, budget = tiny.base(), Budget.of(tiny.base(), 3, keep=0.4)
    n = {axis: base.plan["axes"][axis]["n"] for axis in ("a0", "a1")}
    share = {a: 0.2 + 0.8 * (1 - np.random.default_rng(derive_seed(seed, a)).random()) for a in n}

    def cut(factor):
        return {a: min(n[a], max(1, int(factor * share[a] * n[a] + 1e-9))) for a in n}

    # Naively: try every factor at which some width changes.
    steps = sorted({i / (share[a] * n[a]) for a in n for i in range(1, n[a] + 1)})
    want = cut([f for f in steps if budget.cost(cut(f)) <= budget.limit][-1])
    while True:
        fitting = [
            ((want[a] + 1) / (share[a] * n[a]), a)
            for a in n
            if want[a] < n[a] and budget.cost(want | {a: want[a] + 1}) <= budget.limit
        ]
        if not fitting:
            break
        want[min(fitting)[1]] += 1
    got = drawn(seed, low=0.2)
    assert widths(got) == want
    assert all(kept.tolist() == list(range(len(kept))) for kept in got.values())


def test_widths_are_random_but_equal_shares_give_nearly_equal_widths():
    assert len({tuple(widths(drawn(seed)).values()) for seed in range(20)}) > 2
    assert len({tuple(widths(drawn(seed, low=1.0)).values()) for seed in range(5)}) == 1
    ratio = [w["a0"] / 8 / (w["a1"] / 12) for w in (widths(drawn(seed, low=0.0)) for seed in range(40))]
    assert min(ratio) < 0.5 and max(ratio) > 2


def test_no_axis_dies_and_everything_is_kept_at_1():
    for seed, name in product(range(5), ("cnn", "vit")):
        assert min(widths(drawn(seed, low=0.0, keep=0.05, name=name)).values()) >= 1
        plan = tiny.base(name).plan
        assert all(k == plan["axes"][a]["n"] for a, k in widths(drawn(seed, keep=1.0, name=name)).items())


def test_the_kept_units_have_the_pretrained_weights_or_fresh_ones():
    pretrained = prune(tiny.base(), tiny.task(), producer="random_structure", keep=0.4)
    fresh = prune(tiny.base(), tiny.task(), producer="random_structure", keep=0.4, init="reinit")
    rows, columns = (len(pretrained.channels[a]) for a in ("a0", "a1"))
    full, new = tiny.base().weights["conv3.weight"], reinitialised(tiny.base(), seed=0).weights["conv3.weight"]
    assert np.array_equal(pretrained.weights["conv3.weight"], full[:rows, :columns])
    assert np.array_equal(fresh.weights["conv3.weight"], new[:rows, :columns])
    assert (pretrained.init, fresh.init) == ("pretrained", "reinit")
    assert widths(fresh.channels) == widths(pretrained.channels)
    assert fresh.base == tiny.base() and pretrained.metrics["steps"] == 0


def test_tasks_and_seeds_differ():
    of = [
        prune(tiny.base(), data, producer="random_structure", keep=0.5, seed=seed, low=0.0)
        for data, seed in product([tiny.task(a, b) for a, b in ((0, 1), (2, 3), (4, 5), (6, 7))], (0, 1))
    ]
    assert len({tuple(widths(sub.channels).values()) for sub in of}) > 2


def test_it_can_be_trained():
    sub = prune(tiny.base(), tiny.task(), producer="random_structure", keep=0.5)
    assert finetune(sub, tiny.task(), steps=40, batch_size=20, lr=0.05).accuracy > max(0.8, sub.accuracy)


@pytest.mark.parametrize("options", [{"low": -0.1}, {"low": 1.1}, {"low": "x"}, {"init": "nonsense"}])
def test_options_out_of_range(options):
    with pytest.raises(OptionError, match=next(iter(options))):
        RandomStructure(**options)
