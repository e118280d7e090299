import itertools

import numpy as np
import pytest

from mvp.budget import Budget
from mvp.plan import prunable
from mvp.subnetwork import cost
from tests import tiny
from tests.tiny import registered  # noqa: F401
from zoo.errors import OptionError


def scores_of(base, seed):
    rng = np.random.default_rng(seed)
    return {axis: rng.random(base.plan["axes"][axis]["n"]) for axis in prunable(base.plan)}


def cost_of(base, sets, constraint):
    return cost(base, sets, 3)[constraint == "macs"]


@pytest.mark.parametrize("base", ["cnn", "vit"])
@pytest.mark.parametrize("constraint", ["macs", "params"])
@pytest.mark.parametrize("seed", range(5))
def test_it_is_met_and_no_pruned_unit_would_fit(base, constraint, seed):
    base = tiny.base(base)
    budget = Budget.of(base, 3, keep=0.4, constraint=constraint)
    scores = scores_of(base, seed)
    sets = budget.fill(scores)
    assert cost_of(base, sets, constraint) <= budget.limit
    for axis, kept in sets.items():
        for unit in set(range(len(scores[axis]))) - set(kept.tolist()):
            wider = sets | {axis: np.append(kept, unit)}
            assert cost_of(base, wider, constraint) > budget.limit


@pytest.mark.parametrize("seed", range(5))
def test_within_an_axis_the_best_stay(seed):
    base = tiny.base()
    scores = scores_of(base, seed)
    for axis, kept in Budget.of(base, 3, keep=0.4).fill(scores).items():
        best = sorted(range(len(scores[axis])), key=lambda i: -scores[axis][i])[: len(kept)]
        assert sorted(best) == kept.tolist()


def test_one_queue_over_all_axes():
    # What the plain loop gives: prune the lowest of all until it fits, then restore the best that still fit.
    base = tiny.base()
    budget, scores = Budget.of(base, 3, keep=0.5), scores_of(base, 9)
    alive = {axis: set(range(len(v))) for axis, v in scores.items()}
    order = sorted((scores[a][i], a, i) for a in alive for i in alive[a])
    gone = []
    for _, axis, i in order:
        if cost_of(base, alive, "macs") <= budget.limit:
            break
        if len(alive[axis]) > 1:
            alive[axis].remove(i)
            gone.append((axis, i))
    for axis, i in reversed(gone):
        wider = alive | {axis: alive[axis] | {i}}
        if cost_of(base, wider, "macs") <= budget.limit:
            alive = wider
    assert {a: sorted(v) for a, v in alive.items()} == {a: k.tolist() for a, k in budget.fill(scores).items()}


def test_the_limit_is_the_cost_of_equal_widths_or_a_share_of_the_whole():
    base = tiny.base()
    a, b = prunable(base.plan)
    for x, y in itertools.product((2, 8), (3, 12)):
        equal = {a: np.arange(x), b: np.arange(y)}
        assert Budget(base, 3, "params", 0).cost({a: x, b: y}) == cost(base, equal, 3)[0]
    whole = cost(base, {}, 3)
    assert Budget.of(base, 3, keep=1).limit == whole[1]
    assert Budget.of(base, 3, keep=0.1, constraint="params", share=0.5).limit == int(whole[0] * 0.5)
    assert Budget.of(base, 3, keep=0.25).limit == cost(base, {a: np.arange(2), b: np.arange(3)}, 3)[1]


def test_equal_scores_keep_the_earlier_units():
    base = tiny.base()
    sets = Budget.of(base, 3, keep=0.4).fill({axis: np.ones(len(v)) for axis, v in scores_of(base, 0).items()})
    assert all(kept.tolist() == list(range(len(kept))) for kept in sets.values())


def test_the_floor_of_every_axis():
    base = tiny.base()
    scores = {"a0": np.zeros(8), "a1": np.ones(12)}
    assert len(Budget.of(base, 3, keep=0.6).fill(scores, floor=0.5)["a0"]) == 4
    assert len(Budget.of(base, 3, keep=0.6).fill(scores, least=3)["a0"]) == 3


@pytest.mark.parametrize("allowed", [{"floor": 0.5}, {"least": 8}])
def test_a_budget_that_cannot_be_met(allowed):
    base = tiny.base()
    with pytest.raises(OptionError, match="cannot be met"):
        Budget.of(base, 3, keep=0.1).fill(scores_of(base, 0), **allowed)


def test_options_out_of_range():
    for options in ({"keep": 0}, {"keep": 0.5, "share": 0}, {"keep": 0.5, "share": 1.1}):
        with pytest.raises(OptionError):
            Budget.of(tiny.base(), 3, **options)
    with pytest.raises(OptionError, match="macs"):
        Budget.of(tiny.base(), 3, keep=0.5, constraint="latency")


@pytest.mark.parametrize("floor", [0.0, 0.3])
def test_the_order_of_removal_is_what_filling_follows(floor):
    base = tiny.base()
    scores = scores_of(base, 4)
    order = Budget.order(scores, floor=floor, least=2)
    assert [float(scores[a][i]) for a, i in order] == sorted(float(scores[a][i]) for a, i in order)
    # Removed one after the other, the last is the first to fit; what stays of each axis is what must stay.
    assert {a: sum(a == b for b, _ in order) for a in scores} == {"a0": 5 if floor else 6, "a1": 8 if floor else 10}
    sets = {axis: np.arange(len(v)) for axis, v in scores.items()}
    for axis, i in order[:4]:
        sets[axis] = np.setdiff1d(sets[axis], [i])
    exact = Budget(base, 3, "macs", cost_of(base, sets, "macs"))
    filled = exact.fill(scores, floor=floor, least=2)
    assert {a: k.tolist() for a, k in filled.items()} == {a: k.tolist() for a, k in sets.items()}
    equal = Budget.order({"a0": np.ones(3), "a1": np.ones(2)})
    assert equal == [("a1", 1), ("a0", 2), ("a0", 1)]
