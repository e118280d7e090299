import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mvp.budget import Budget, ladder, nearest_width
from mvp.plan import keep_counts, prunable
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


# Widths --------------------------------------------------------------------------------------------------------------


def plain_widths(base, gains, allowed, limit, constraint):
    """One step after the other, the best ratio first; an axis whose step did not fit takes no more."""
    whole = {a: len(g) for a, g in gains.items()}
    full = cost_of(base, {a: range(n) for a, n in whole.items()}, constraint)
    steps = []
    for place, (axis, widths) in enumerate(allowed.items()):
        less = cost_of(base, {a: range(n - (a == axis)) for a, n in whole.items()}, constraint)
        for narrow, wide in itertools.pairwise(widths.tolist()):
            value = gains[axis][narrow:wide].mean() / whole[axis]
            steps.append((-round(value / (full - less), 15), wide / whole[axis], place, axis, wide))
    counts, ended = {a: int(w[0]) for a, w in allowed.items()}, set()
    for *_, axis, wide in sorted(steps):
        wider = {a: range(wide if a == axis else n) for a, n in counts.items()}
        if axis not in ended and cost_of(base, wider, constraint) <= limit:
            counts[axis] = wide
        else:
            ended.add(axis)
    return counts


@pytest.mark.parametrize("constraint", ["macs", "params"])
@pytest.mark.parametrize("multiple", [1, 4])
@pytest.mark.parametrize("seed", range(4))
def test_widths_against_one_step_after_the_other(constraint, multiple, seed):
    base, rng = tiny.base(), np.random.default_rng(seed)
    gains = {axis: -np.sort(-rng.integers(0, 4, len(s)) / 3) for axis, s in scores_of(base, 0).items()}
    allowed = {axis: ladder(len(g), multiple) for axis, g in gains.items()}
    budget = Budget.of(base, 3, keep=0.6, constraint=constraint)
    got = budget.widths(gains, allowed)
    assert got == plain_widths(base, gains, allowed, budget.limit, constraint)
    assert budget.cost(got) <= budget.limit
    for axis, width in got.items():
        wider = allowed[axis][allowed[axis] > width]
        assert not len(wider) or budget.cost(got | {axis: int(wider[0])}) > budget.limit


def test_widths_without_votes_grow_alike():
    base = tiny.base()
    gains = {axis: np.zeros(len(s)) for axis, s in scores_of(base, 0).items()}
    got = Budget.of(base, 3, keep=0.5).widths(gains, {axis: ladder(len(g)) for axis, g in gains.items()})
    assert abs(got["a0"] / 8 - got["a1"] / 12) <= 1 / 8


@settings(deadline=None)
@given(st.integers(1, 100), st.integers(1, 20), st.integers(1, 100))
def test_a_ladder_holds_the_multiples_or_everything(n, multiple, wanted):
    rungs = ladder(n, multiple).tolist()
    assert rungs == ([w for w in range(1, n + 1) if w % multiple == 0] or list(range(1, n + 1)))
    nearest = nearest_width(wanted, np.array(rungs))
    assert nearest == max(rungs, key=lambda w: (-abs(w - wanted), w))


def test_the_equal_widths_within_a_budget():
    base = tiny.base()
    for keep in (0.25, 0.5, 1.0):
        budget = Budget.of(base, 3, keep=keep)
        found = budget.equal()
        assert budget.cost(keep_counts(base.plan, found)) <= budget.limit
        assert found == 1 or budget.cost(keep_counts(base.plan, found + 1 / 1024)) > budget.limit
    assert Budget(base, 3, "macs", 1).equal() == 1 / 1024


@pytest.mark.parametrize(
    "limits", [{}, {"macs": 5, "params": 5}, {"latency": 3}, {"macs": 0}, {"macs": 2.5}, {"params": True}]
)
def test_limits_said_wrongly(limits):
    with pytest.raises(OptionError, match="'macs': n"):
        Budget.given(tiny.base(), 3, limits)
    assert Budget.given(tiny.base(), 3, {"params": np.int64(7)}) == Budget(tiny.base(), 3, "params", 7)
