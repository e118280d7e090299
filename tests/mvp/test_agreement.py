import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mvp.agreement import agreement_floor, diagnostics, stability, weak
from zoo.channels import random_floor
from zoo.errors import OptionError


def test_diagnostics_by_hand(tiny_cnn, tiny_sub):
    a = tiny_sub(tiny_cnn, channels={"a0": [0, 1, 2], "a1": range(10)})
    b = tiny_sub(tiny_cnn, channels={"a0": [1, 2, 3]}, seed=1)
    votes = {"a0": np.array([1, 2, 2, 1, 0, 0, 0, 0]), "a1": np.full(10, 2)}
    got = diagnostics(votes, {"a0": np.array([1, 2, 4, 5]), "a1": np.arange(3)}, [a, b])
    entropy = -(2 * (2 / 6) * np.log(2 / 6) + 2 * (1 / 6) * np.log(1 / 6)) / np.log(8)
    assert got["vote/entropy/a0"] == pytest.approx(entropy) and got["vote/entropy/a1"] == pytest.approx(1)
    assert got["vote/zero_share/a0"] == 0.5 and got["vote/zero_share/a1"] == 0
    assert got["vote/agreement/a0"] == pytest.approx(2 / 4) and got["vote/agreement/a1"] == 1
    for name in ("entropy", "zero_share", "agreement"):
        assert got[f"vote/{name}"] == pytest.approx((got[f"vote/{name}/a0"] + got[f"vote/{name}/a1"]) / 2)
    three = [tiny_sub(tiny_cnn, channels={"a0": k}, seed=i) for i, k in enumerate(([0, 1], [0, 1], [2]))]
    got = diagnostics({"a0": np.array([2, 2, 1, 0, 0, 0, 0, 0])}, {"a0": np.array([0])}, three)
    assert got["vote/agreement"] == pytest.approx(1 / 3)


def test_the_best_similarity_and_its_margin_over_the_last(tiny_cnn, tiny_sub):
    from mvp.agreement import vote_metrics

    votes = {"a0": np.arange(8)}
    got = vote_metrics(votes, [tiny_sub(tiny_cnn)], [-0.5, -0.75, -1.5])
    assert got["vote/score_best"] == -0.5 and got["vote/score_margin"] == 1.0
    assert "vote/score_best" not in vote_metrics(votes, [tiny_sub(tiny_cnn)], None)


# The random floor ----------------------------------------------------------------------------------------------------


def moments(n, a, b):
    """Mean and variance of the IoU over all pairs of sets, by enumeration."""
    ious = [
        len(set(x) & set(y)) / len(set(x) | set(y))
        for x in itertools.combinations(range(n), a)
        for y in itertools.combinations(range(n), b)
    ]
    return np.mean(ious), np.var(ious)


def test_the_floor_by_enumeration():
    m1, v1 = moments(6, 2, 3)
    m2, v2 = moments(5, 1, 1)
    got = agreement_floor({"x": 6, "y": 5}, [{"x": 2, "y": 1}, {"x": 3, "y": 1}])
    assert got == pytest.approx((m1 + m2) / 2 + 1.645 * np.sqrt(v1 + v2) / 2)
    assert m1 == pytest.approx(random_floor(6, 2, 3))


def test_random_voters_stay_below_the_floor_in_95_of_100_cases():
    rng, sizes, widths = (
        np.random.default_rng(0),
        {"x": 64, "y": 32},
        [{"x": 20, "y": 10}, {"x": 12, "y": 16}, {"x": 20}],
    )
    floor = agreement_floor(sizes, widths)

    def agreement():
        per_axis = []
        for axis, n in sizes.items():
            sets = [set(rng.choice(n, w.get(axis, n), replace=False).tolist()) for w in widths]
            per_axis.append(np.mean([len(a & b) / len(a | b) for a, b in itertools.combinations(sets, 2)]))
        return np.mean(per_axis)

    below = np.mean([agreement() <= floor for _ in range(2000)])
    assert 0.93 < below < 0.97


@pytest.mark.parametrize(("widths", "floor"), [([], 0), ([{"x": 2}], 0), ([{}, {}], 1)])
def test_floors_that_say_nothing(widths, floor):
    got = agreement_floor({"x": 4}, widths)
    assert got == floor and not weak(1.0, got)


def test_what_is_at_the_floor_is_weak():
    assert weak(0.3, 0.3) and weak(0.2, 0.3) and not weak(0.31, 0.3)


# Stability -----------------------------------------------------------------------------------------------------------


def plain_stability(masks, seats):
    """Every resample of the voters, each as likely; every way to fill the tied seats, each as likely."""
    n = masks.shape[1]
    share = np.zeros(n)
    draws = list(itertools.product(range(len(masks)), repeat=len(masks)))
    for draw in draws:
        votes = masks[list(draw)].sum(axis=0)
        best = max(votes[list(c)].sum() for c in itertools.combinations(range(n), seats))
        ways = [c for c in itertools.combinations(range(n), seats) if votes[list(c)].sum() == best]
        for way in ways:
            share[list(way)] += 1 / len(ways) / len(draws)
    return share


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_stability_is_the_share_of_all_resamples(tiny_cnn, tiny_sub, data):
    sets = [data.draw(st.sets(st.integers(0, 7), min_size=1, max_size=5)) for _ in range(3)]
    voters = [tiny_sub(tiny_cnn, channels={"a0": sorted(k)}, seed=i) for i, k in enumerate(sets)]
    seats = data.draw(st.integers(1, 8))
    masks = np.array([[c in k for c in range(8)] for k in sets])
    got = stability(voters, {"a0": np.arange(seats)}, resamples=4000)["a0"]
    assert got == pytest.approx(plain_stability(masks, seats), abs=0.05)
    assert got.sum() == pytest.approx(seats)


def test_stability_without_doubt(tiny_cnn, tiny_sub):
    voters = [tiny_sub(tiny_cnn, channels={"a0": [1, 4]}, seed=i) for i in range(3)]
    got = stability(voters, {"a0": np.array([1, 4]), "a1": np.arange(10)}, resamples=5)
    assert got["a0"].tolist() == [0, 1, 0, 0, 1, 0, 0, 0] and got["a1"].tolist() == [1] * 10
    one = stability(voters[:1], {"a0": np.array([1])}, resamples=3)["a0"]
    assert one.tolist() == [0, 0.5, 0, 0, 0.5, 0, 0, 0]
    again = stability(voters, {"a0": np.array([2])}, seed=1)["a0"]
    assert again.tolist() == stability(voters, {"a0": np.array([2])}, seed=1)["a0"].tolist()
    for bad in ((voters, 0), ([], 10)):
        with pytest.raises(OptionError):
            stability(bad[0], {}, resamples=bad[1])
