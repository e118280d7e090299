from collections import Counter
from itertools import combinations, permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mvp.ballot import draw_order, elect, sample, tally, weigh
from zoo.errors import OptionError


def test_votes_are_the_number_of_voters_that_keep_a_channel():
    kept = [np.array([0, 2, 5]), None, np.array([2]), np.array([2, 3, 5])]
    expected = [sum(1 for k in kept if k is None or channel in k.tolist()) for channel in range(7)]
    voters = [{} if k is None else {"a": k} for k in kept]
    assert tally(voters, {"a": 7})["a"].tolist() == expected == [2, 1, 4, 2, 1, 3, 1]
    assert tally([{}, {}], {"a": 3})["a"].tolist() == [2, 2, 2]


def chance_of_each_set(votes: list[int], n_keep: int, tau: float) -> dict[tuple[int, ...], float]:
    """Successive draws without replacement, each with p(k) = exp(v_k / tau) over what is left, by enumeration."""
    weight = [np.exp(v / tau) for v in votes]
    chances: Counter[tuple[int, ...]] = Counter()
    for order in permutations(range(len(votes)), n_keep):
        chance, left = 1.0, sum(weight)
        for k in order:
            chance *= weight[k] / left
            left -= weight[k]
        chances[tuple(sorted(order))] += chance
    return dict(chances)


@pytest.mark.parametrize(("votes", "tau"), [([0, 1, 2, 2, 3], 1.0), ([0, 1, 1, 2, 0], 0.5), ([3, 3, 0, 0, 1], 2.0)])
def test_draws_follow_equation_1_exactly(votes, tau):
    expected = chance_of_each_set(votes, 2, tau)
    assert sum(expected.values()) == pytest.approx(1)
    rng, n = np.random.default_rng(0), 20_000
    drawn = Counter(tuple(sample(np.array(votes), 2, tau=tau, rng=rng).tolist()) for _ in range(n))
    assert set(drawn) <= set(expected)
    chi_square = sum((drawn[s] - n * p) ** 2 / (n * p) for s, p in expected.items())
    # 10 sets, 9 degrees of freedom: 27.9 is exceeded with chance 0.001.
    assert chi_square < 27.9
    # The bound is tight enough to tell a temperature a quarter higher.
    other = chance_of_each_set(votes, 2, tau * 1.25)
    assert sum((drawn[s] - n * p) ** 2 / (n * p) for s, p in other.items()) > 27.9


def test_tau_0_keeps_the_most_votes_and_draws_ties_by_the_seed():
    votes = np.array([3, 1, 1, 1, 2, 0, 1, 0])
    tied = Counter()
    for seed in range(600):
        kept = sample(votes, 4, tau=0, rng=np.random.default_rng(seed))
        assert kept.dtype == np.int32 and (np.diff(kept) > 0).all() and {0, 4} < set(kept.tolist())
        assert (kept == sample(votes, 4, tau=0, rng=np.random.default_rng(seed))).all()
        tied[tuple(sorted(set(kept.tolist()) - {0, 4}))] += 1
    assert set(tied) == set(combinations([1, 2, 3, 6], 2))
    assert all(60 < count < 140 for count in tied.values())  # 100 expected, standard deviation 9


@pytest.mark.parametrize("tau", [1e-300, 1e-17, 1e-6, 0.02])
def test_a_tiny_tau_breaks_ties_as_tau_0_does(tau):
    votes = np.array([1, 0, 1, 2, 1, 0, 1, 1])
    for seed in range(20):
        kept, limit = (sample(votes, 3, tau=t, rng=np.random.default_rng(seed)) for t in (tau, 0))
        assert kept.tolist() == limit.tolist()


def test_at_tau_a_tenth_and_three_voters_no_channel_without_a_vote_is_drawn():
    rng = np.random.default_rng(0)
    masks = [np.sort(rng.choice(512, 51, replace=False)) for _ in range(3)]
    votes = tally([{"a": m} for m in masks], {"a": 512})["a"]
    assert (votes > 0).sum() > 51

    def zero_share(tau: float) -> float:
        return float(np.mean([(votes[sample(votes, 51, tau=tau, rng=rng)] == 0).mean() for _ in range(100)]))

    assert zero_share(0.1) < 0.002  # about 374 exp(-10) / 138 are expected
    assert 0.35 < zero_share(1.0) < 0.65


def test_every_channel_is_kept_when_all_are_asked_for():
    assert sample(np.array([0, 3, 1]), 3, tau=0.1, rng=np.random.default_rng(0)).tolist() == [0, 1, 2]


# Rules ---------------------------------------------------------------------------------------------------------------


@st.composite
def polls(draw):
    """Voters over a few axes; None = the axis is kept whole."""
    sizes = {f"a{i}": draw(st.integers(1, 9)) for i in range(draw(st.integers(1, 3)))}
    own = {a: st.none() | st.sets(st.integers(0, n - 1), min_size=1) for a, n in sizes.items()}
    voters = draw(st.lists(st.fixed_dictionaries(own), min_size=1, max_size=5))
    return sizes, [{a: np.array(sorted(k)) for a, k in v.items() if k is not None} for v in voters]


def keeps(voter, axis, channel):
    return axis not in voter or channel in voter[axis].tolist()


def plain_order(voters, axis, n, passed, votes):
    """Sorted by the documented rule, one comparison key a channel."""

    def key(c):
        return (not passed[c], -votes[c], [not keeps(v, axis, c) for v in voters], c)

    return sorted(range(n), key=key)


def no_noise(axis):
    raise AssertionError("only softmax draws")


@settings(max_examples=150, deadline=None)
@given(polls(), st.data())
def test_rules_without_a_draw_against_their_definition(poll, data):
    sizes, voters = poll
    quorum = data.draw(st.integers(1, len(voters)))
    similarities = data.draw(st.none() | st.lists(st.floats(-5, 1), min_size=len(voters), max_size=len(voters)))
    weights = None if similarities is None else weigh(similarities)
    for ballot, needed in (("deterministic", 0), ("k_of_n", quorum), ("intersection", len(voters))):
        got = elect(
            voters, sizes, ballot=ballot, quorum=quorum if ballot == "k_of_n" else None, weights=weights, rng=no_noise
        )
        for axis, n in sizes.items():
            heads = [sum(keeps(v, axis, c) for v in voters) for c in range(n)]
            each = np.ones(len(voters)) if weights is None else weights
            votes = [sum(w for v, w in zip(voters, each) if keeps(v, axis, c)) for c in range(n)]
            assert got.votes[axis].tolist() == pytest.approx(votes, abs=1e-11)
            passed = [h >= needed for h in heads]
            assert got.order[axis].tolist() == plain_order(voters, axis, n, passed, got.votes[axis].tolist())
            assert got.elected[axis] == max(1, sum(passed))


def test_equal_votes_go_by_the_nearest_voter_then_by_index():
    voters = [{"a": np.array([3, 5])}, {"a": np.array([1, 2])}, {"a": np.array([2, 5])}]
    got = elect(voters, {"a": 7}, ballot="deterministic", rng=no_noise)
    assert got.order["a"].tolist() == [5, 2, 3, 1, 0, 4, 6]
    assert got.channels({"a": 3})["a"].tolist() == [2, 3, 5]
    assert got.channels({"a": 3})["a"].dtype == np.int32


def test_a_majority_is_the_quorum_by_default_and_no_axis_is_empty():
    voters = [{"a": np.array([0, 1])}, {"a": np.array([1, 2])}, {"a": np.array([2, 3])}]
    assert elect(voters, {"a": 5}, ballot="k_of_n", rng=no_noise).elected == {"a": 2}
    nothing = elect(voters, {"a": 5}, ballot="intersection", rng=no_noise)
    assert nothing.elected == {"a": 1} and nothing.channels(nothing.elected)["a"].tolist() == [1]


def test_a_quorum_counts_heads_though_votes_are_weighed():
    voters = [{"a": np.array([0])}, {"a": np.array([1])}, {"a": np.array([1])}]
    got = elect(voters, {"a": 3}, ballot="k_of_n", quorum=2, weights=weigh([5.0, 0.0, 0.0]), rng=no_noise)
    assert got.votes["a"][0] > got.votes["a"][1]
    assert got.elected == {"a": 1} and got.order["a"].tolist() == [1, 0, 2]


@settings(max_examples=60, deadline=None)
@given(polls(), st.sampled_from([0, 1e-9, 0.1, 1.0]), st.integers(0, 99))
def test_softmax_draws_of_all_sizes_are_prefixes_of_one_order(poll, tau, seed):
    sizes, voters = poll
    got = elect(voters, sizes, tau=tau, rng=lambda axis: np.random.default_rng([seed, int(axis[1:])]))
    for axis, n in sizes.items():
        assert sorted(got.order[axis].tolist()) == list(range(n)) and got.elected[axis] == n
        for m in range(1, n + 1):
            drawn = sample(got.votes[axis], m, tau=tau, rng=np.random.default_rng([seed, int(axis[1:])]))
            assert drawn.tolist() == got.channels({axis: m})[axis].tolist()


def test_small_differences_of_weighed_votes_are_drawn_by_equation_1():
    # A difference of 0.01 at tau 0.015 leaves the odds at exp(2/3): noise decides often, it must not only break ties.
    first = [draw_order(np.array([1.0, 1.01]), tau=0.015, rng=np.random.default_rng(s))[0] for s in range(4000)]
    assert np.mean(first) == pytest.approx(1 / (1 + np.exp(-2 / 3)), abs=0.025)


# Weights -------------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.lists(st.floats(-600, 1), min_size=1, max_size=6), st.floats(-3, 3))
def test_weights_are_a_softmax_that_sums_to_the_voters(values, shift):
    weights = weigh(values)
    assert weights.sum() == pytest.approx(len(values)) and (weights > 0).all()
    plain = np.array([1 / sum(np.exp(np.clip(b - a, -700, 700)) for b in values) for a in values])
    assert weights == pytest.approx(len(values) * plain, rel=1e-9)
    assert weigh([v + shift for v in values]) == pytest.approx(weights, rel=1e-6, abs=1e-200)


def test_equal_similarities_weigh_1_and_votes_are_then_heads():
    assert weigh([-0.3] * 7).tolist() == [1.0] * 7
    voters = [{"a": np.array([0, 2])}, {"a": np.array([2])}, {}]
    assert tally(voters, {"a": 4}, weigh([0.5] * 3))["a"].tolist() == tally(voters, {"a": 4})["a"].tolist()


@pytest.mark.parametrize("values", [[0.5, float("nan")], [float("-inf"), 0.1]])
def test_weights_of_numbers_that_are_not_finite(values):
    with pytest.raises(OptionError, match="finite"):
        weigh(values)


def test_wrong_options_are_listed_together():
    with pytest.raises(OptionError) as caught:
        elect([{}], {"a": 3}, ballot="lottery", tau=-1, quorum=2, rng=no_noise)
    assert len(caught.value.problems) == 3
    with pytest.raises(OptionError, match=r"1\.\.1"):
        elect([{}], {"a": 3}, ballot="k_of_n", quorum=2, rng=no_noise)
