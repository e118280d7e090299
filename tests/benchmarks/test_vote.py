"""Votes and averages of ResNet-18 sub-networks; `pytest tests/benchmarks/test_vote.py --benchmark-enable` measures.

The kernels (votes, draw, average) are measured apart from what making a record adds (its head, its hash, diagnostics).
"""

from collections import Counter

import numpy as np
import pytest
import torch

from mvp.average import average_weights
from mvp.ballot import elect, tally
from mvp.bases import load_base
from mvp.plan import full_channels, keep_counts, kept_indices
from mvp.seats import widths_of
from mvp.subnetwork import cost, new_head
from mvp.vote import vote_from, vote_nested
from tests.benchmarks.test_steps import naive_average
from tests.benchmarks.timing import against
from zoo.records import SubNetwork, Task

torch.set_num_threads(1)

TASK = Task(labels=("apple", "pear", "truck"))
pytestmark = pytest.mark.filterwarnings("ignore::mvp.trust.WeakVoteWarning")


@pytest.fixture(scope="module")
def base():
    return load_base("torchvision:resnet18")


@pytest.fixture(scope="module")
def voters(base):
    """Five sub-networks with a tenth of the channels; each keeps half of them from one common set, as neighbours do."""
    rng = np.random.default_rng(0)
    counts = keep_counts(base.plan, 0.1)
    common = {
        axis: rng.choice(len(kept), counts[axis], replace=False) for axis, kept in full_channels(base.plan).items()
    }
    return [make_voter(base, counts, common, np.random.default_rng(seed)) for seed in range(1, 6)]


def make_voter(base, counts, common, rng):
    channels = {}
    for axis, n in counts.items():
        own = rng.choice(common[axis], n // 2, replace=False)
        others = np.setdiff1d(np.arange(base.plan["axes"][axis]["n"]), own)
        channels[axis] = np.sort(np.concatenate([own, rng.choice(others, n - len(own), replace=False)]))
    weights = {
        name: np.ascontiguousarray(full[np.ix_(*[kept_indices(base.plan, e, channels) for e in dims])])
        for name, full in base.weights.items()
        if name not in base.plan["head"] and (dims := base.plan["params"].get(name, list(full.shape)))
    }
    weights |= {name: t.numpy() for name, t in new_head(base, 3, channels, seed=0).items()}
    return SubNetwork(TASK, base, channels, weights, "ifp", 0.1, seed=int(rng.integers(2**31)))


def sizes_of(base):
    return {axis: len(kept) for axis, kept in full_channels(base.plan).items()}


def naive_votes(voters, sizes):
    return {axis: Counter(int(c) for v in voters for c in v.channels[axis]) for axis in sizes}


def generator(axis):
    return np.random.default_rng(int(axis[1:]))


def test_votes(base, voters, benchmark):
    sizes, kept = sizes_of(base), [v.channels for v in voters]
    counted = naive_votes(voters, sizes)
    for axis, votes in tally(kept, sizes).items():
        assert votes.tolist() == [counted[axis][c] for c in range(sizes[axis])]
    against(benchmark, lambda: tally(kept, sizes), lambda: naive_votes(voters, sizes), "Counter")


def test_average(base, voters, benchmark):
    channels = vote_from(voters, TASK).channels
    naive = naive_average(voters, channels)
    for name, value in average_weights(voters, channels)[0].items():
        np.testing.assert_allclose(value, naive[name], rtol=1e-5, atol=1e-6)
    against(
        benchmark, lambda: average_weights(voters, channels), lambda: naive_average(voters, channels),
        "full-size arrays",
    )  # fmt: skip


@pytest.mark.parametrize("ballot", ["deterministic", "softmax"])
def test_votes_and_average(base, voters, ballot, benchmark):
    sizes, counts, kept = sizes_of(base), keep_counts(base.plan, 0.1), [v.channels for v in voters]

    def fast():
        return average_weights(voters, elect(kept, sizes, ballot=ballot, rng=generator).channels(counts))

    def naive():
        counted = naive_votes(voters, sizes)
        channels = {a: np.sort([c for c, _ in counted[a].most_common(n)]) for a, n in counts.items()}
        return naive_average(voters, channels)

    assert fast()[0].keys() == naive().keys()
    against(benchmark, fast, naive, "Counter and full-size arrays")


def test_a_whole_vote_with_its_record(base, voters, benchmark):
    assert benchmark(lambda: vote_from(voters, TASK).id)


def test_widths_within_a_budget(base, voters, benchmark):
    from mvp.budget import Budget

    budget = Budget.given(base, 3, {"macs": cost(base, {}, 3)[1] // 10})
    election = elect([v.channels for v in voters], sizes_of(base), ballot="deterministic", rng=generator)
    widths = benchmark(lambda: widths_of(base, election, None, budget, 5, None, 1, sizes_of(base)))
    assert budget.cost(widths) <= budget.limit


def test_five_nested_sizes(base, voters, benchmark):
    budgets = [{"macs": cost(base, {}, 3)[1] // n} for n in (5, 10, 20, 40, 80)]
    assert len(benchmark(lambda: vote_nested(voters, TASK, budgets))) == 5
