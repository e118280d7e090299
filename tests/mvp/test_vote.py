import dataclasses
from collections import Counter
from itertools import combinations, permutations

import numpy as np
import pytest

import zoo
from mvp import import_subnetwork, vote, vote_from
from mvp.data import Data
from mvp.plan import keep_counts, prunable
from mvp.subnetwork import build, cost, new_head
from mvp.vote import count_votes, diagnostics, sample
from zoo.errors import BaseMismatchError, EmptyZooError, MissingScoresError, OptionError
from zoo.records import Task

TASK = Task(labels=("apple", "pear", "truck"), dataset="tiny")
TASKS = [("dog", "cat", "horse"), ("dog", "cat", "apple"), ("apple", "pear", "dog"), ("truck", "horse", "pear")]


@pytest.fixture
def z(tiny_cnn, tiny_sub, tmp_path):
    z = zoo.open(tmp_path / "z.zoo")
    z.add_many([tiny_sub(tiny_cnn, labels, seed=i) for i, labels in enumerate(TASKS)])
    return z


# Votes and Eq. 1 -----------------------------------------------------------------------------------------------------


def test_votes_are_the_number_of_voters_that_keep_a_channel():
    kept = [np.array([0, 2, 5]), None, np.array([2]), np.array([2, 3, 5])]
    expected = [sum(1 for k in kept if k is None or channel in k.tolist()) for channel in range(7)]
    assert count_votes(kept, 7).tolist() == expected == [2, 1, 4, 2, 1, 3, 1]
    assert count_votes([None, None], 3).tolist() == [2, 2, 2]


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
    votes = count_votes(masks, 512)
    assert (votes > 0).sum() > 51

    def zero_share(tau: float) -> float:
        return float(np.mean([(votes[sample(votes, 51, tau=tau, rng=rng)] == 0).mean() for _ in range(100)]))

    assert zero_share(0.1) < 0.002  # about 374 exp(-10) / 138 are expected
    assert 0.35 < zero_share(1.0) < 0.65


def test_every_channel_is_kept_when_all_are_asked_for():
    assert sample(np.array([0, 3, 1]), 3, tau=0.1, rng=np.random.default_rng(0)).tolist() == [0, 1, 2]


# vote_from -----------------------------------------------------------------------------------------------------------


def test_identical_voters_give_the_voter_back(tiny_cnn, tiny_vit, tiny_sub):
    for base in (tiny_cnn, tiny_vit):
        voter = tiny_sub(base, keep=0.3, seed=4)
        for average in ("present_mean", "zero_fill", "pretrained_fill"):
            sub = vote_from([dataclasses.replace(voter, seed=i) for i in range(3)], TASK, tau=0, average=average)
            assert set(sub.channels) == set(voter.channels)
            assert all((sub.channels[a] == voter.channels[a]).all() for a in voter.channels)
            for name in set(base.weights) - set(base.plan["head"]):
                assert sub.weights[name].dtype == voter.weights[name].dtype
                assert np.array_equal(sub.weights[name], voter.weights[name]), name
            assert sub.metrics["vote/zero_share"] == sub.metrics["vote/fallback_share"] == 0
            assert sub.metrics["vote/agreement"] == 1


def test_the_record_says_how_it_was_made(tiny_cnn, tiny_sub):
    voters = [tiny_sub(tiny_cnn, seed=i, generation=g, parents=("x",) * g) for i, g in enumerate((0, 2, 1))]
    sub = vote_from(voters, TASK, seed=7, tau=0.2)
    assert (sub.producer, sub.generation, sub.parents) == ("vote", 3, tuple(v.id for v in voters))
    assert (sub.kind, sub.mode, sub.init) == ("structured", "coupled", "pretrained")
    assert (sub.keep, sub.seed, sub.task) == (0.5, 7, TASK)
    assert sub.options == {"tau": 0.2, "average": "present_mean", "head": "random"}
    assert {a: len(k) for a, k in sub.channels.items()} == keep_counts(tiny_cnn.plan, 0.5)
    assert (sub.params, sub.macs) == cost(tiny_cnn, sub.channels, 3)
    assert build(sub).fc.out_features == 3
    smaller = vote_from(voters, TASK, keep=0.25)
    assert {a: len(k) for a, k in smaller.channels.items()} == keep_counts(tiny_cnn.plan, 0.25)


def test_a_seed_decides_draw_and_head_and_tasks_draw_differently(tiny_cnn, tiny_sub):
    voters = [tiny_sub(tiny_cnn, seed=i) for i in range(2)]

    def kept(seed: int = 0, task: Task = TASK) -> list[list[int]]:
        return [k.tolist() for k in vote_from(voters, task, seed=seed, tau=1.0).channels.values()]

    assert vote_from(voters, TASK, seed=3) == vote_from(voters, TASK, seed=3)
    heads = [vote_from(voters, TASK, seed=seed).weights["fc.bias"] for seed in (3, 4)]
    assert (heads[0] != heads[1]).all()
    assert kept(0) != kept(1)
    # Equal noise for all tasks of a seed would make their sub-networks more alike than their voters are.
    assert kept(0) != kept(0, Task(labels=("dog", "pear", "truck"), dataset="tiny"))


def test_channels_that_most_voters_keep_win(tiny_cnn, tiny_sub):
    sets = [{"a1": [0, 1, 2, 3, 4]}, {"a1": [0, 1, 2, 3, 5]}, {"a1": [0, 1, 2, 6, 7]}]
    voters = [tiny_sub(tiny_cnn, channels=s, seed=i) for i, s in enumerate(sets)]
    sub = vote_from(voters, TASK, keep=0.4)
    assert sub.channels["a1"].tolist() == [0, 1, 2, 3]
    assert sub.channels["a0"].shape == (3,)  # whole in every voter, so all channels tie


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


def test_a_vote_carries_the_diagnostics_of_every_prunable_axis(tiny_vit, tiny_sub):
    sub = vote_from([tiny_sub(tiny_vit, seed=i) for i in range(3)], TASK)
    names = {"entropy", "zero_share", "agreement", "fallback_share"}
    axes = prunable(tiny_vit.plan)
    assert len(axes) == 4  # heads and nodes of two blocks; the embedding stays whole
    assert set(sub.metrics) == {f"vote/{n}" for n in names} | {f"vote/{n}/{a}" for n in names for a in axes}
    assert set(sub.channels) == set(axes) and build(sub).blocks[0].attn.num_heads == 2


# Heads ---------------------------------------------------------------------------------------------------------------


def test_random_heads_are_those_of_new_head(tiny_cnn, tiny_sub):
    sub = vote_from([tiny_sub(tiny_cnn)], TASK, seed=5)
    expected = new_head(tiny_cnn, 3, sub.channels, seed=5)
    assert all(np.array_equal(sub.weights[name], expected[name]) for name in ("fc.weight", "fc.bias"))


def test_pretrained_heads_take_the_bases_rows_of_the_classes_it_knows(tiny_base, tiny_sub):
    base = tiny_base("tiny_cnn")
    with pytest.raises(OptionError, match="does not say its classes"):
        vote_from([tiny_sub(base)], TASK, head="pretrained")
    base = dataclasses.replace(base, info={"labels": ["pear", "a", "b", "truck", "c", "d"]})
    sub = vote_from([tiny_sub(base)], TASK, head="pretrained")
    plain = vote_from([tiny_sub(base)], TASK)
    full = base.weights["fc.weight"][:, sub.channels["a2"]]
    assert np.array_equal(sub.weights["fc.weight"], [plain.weights["fc.weight"][0], full[0], full[3]])
    assert np.array_equal(sub.weights["fc.bias"], [plain.weights["fc.bias"][0], *base.weights["fc.bias"][[0, 3]]])


def test_neighbours_heads_are_the_mean_over_those_that_know_class_and_channel(tiny_cnn, tiny_sub):
    voters = [
        tiny_sub(tiny_cnn, ("pear", "dog", "apple"), seed=1),
        tiny_sub(tiny_cnn, ("dog", "pear"), seed=2),
        tiny_sub(tiny_cnn, ("cat", "dog", "horse"), seed=3),
    ]
    sub, plain = vote_from(voters, TASK, head="neighbours"), vote_from(voters, TASK)
    several = 0
    for row, label in enumerate(TASK.labels):
        biases = [v.weights["fc.bias"][v.task.labels.index(label)] for v in voters if label in v.task.labels]
        assert sub.weights["fc.bias"][row] == pytest.approx(
            np.mean(biases) if biases else plain.weights["fc.bias"][row]
        )
        for column, channel in enumerate(sub.channels["a2"]):
            known = [
                v.weights["fc.weight"][v.task.labels.index(label), v.channels["a2"].tolist().index(channel)]
                for v in voters
                if label in v.task.labels and channel in v.channels["a2"]
            ]
            several += len(known) == 2
            expected = np.mean(known) if known else plain.weights["fc.weight"][row, column]
            assert sub.weights["fc.weight"][row, column] == pytest.approx(expected, rel=1e-6)
    assert several and np.array_equal(sub.weights["fc.weight"][2], plain.weights["fc.weight"][2])  # nobody knows trucks


# From a zoo ----------------------------------------------------------------------------------------------------------


def test_the_nearest_tasks_of_the_zoo_vote(z, tiny_data):
    sub = vote(z, TASK, k=2)
    assert sub.parents == z.nearest(TASK, k=2).id
    assert sub == vote_from([z.get(i) for i in sub.parents], TASK, options={"by": "wup", "k": 2, "group": None})
    data: Data = tiny_data(TASK.labels)
    assert vote(z, data, k=2).task == data.task
    sid = z.add(sub)
    back = z.get(sid)
    assert back == sub and back.generation == 1 and back.metrics == sub.metrics
    assert sid not in vote(z, TASK, k=4).parents  # a vote for the same classes is no neighbour of theirs


def test_a_voted_sub_network_votes_for_later_tasks(z):
    sid = z.add(vote(z, TASK, k=2))
    later = vote(z, Task(labels=("apple", "truck"), dataset="tiny"), k=5)
    assert sid in later.parents and later.generation == 2


def test_voters_of_a_similarity_group_are_drawn_from_it_by_the_seed(tiny_cnn, tiny_sub, tmp_path):
    z = zoo.open(tmp_path / "g.zoo")
    words = ("dog", "cat", "horse", "apple", "pear")
    z.add_many([tiny_sub(tiny_cnn, pair, seed=i) for i, pair in enumerate(combinations(words, 2))])
    task = Task(labels=("wolf", "lion"), dataset="tiny")
    group = next(g for g in range(1, 6) if len(members(z, task, g)) >= 3)
    inside = members(z, task, group)
    parents = [vote(z, task, k=2, group=group, seed=seed).parents for seed in range(12)]
    assert all(set(p) <= set(inside) for p in parents) and len(set(parents)) > 1
    assert parents[0] == vote(z, task, k=2, group=group, seed=0).parents
    assert vote(z, task, k=2, group=group).options["group"] == group


def members(z, task, group):
    try:
        return z.nearest(task, k=None, group=group).id
    except EmptyZooError:
        return []


def test_only_structured_coupled_pretrained_sub_networks_of_the_base_vote(z, tiny_cnn, tiny_base, tiny_sub):
    near = Task(labels=("apple", "pear", "dog", "truck"), dataset="tiny").labels
    whole = {"channels": {}, "keep": 1.0}
    others = [
        tiny_sub(tiny_cnn, near, seed=20, kind="element", element_masks={}, **whole),
        tiny_sub(tiny_cnn, near, seed=21, mode="independent", **whole),
        tiny_sub(tiny_cnn, near, seed=22, init="reinit"),
        tiny_sub(tiny_base("tiny_cnn", 5), near, seed=23),
    ]
    z.add_many(others)
    sub = vote(z, TASK, k=4, base=tiny_cnn.id)
    assert not set(sub.parents) & {o.id for o in others}
    with pytest.raises(EmptyZooError):
        vote(z, TASK, k=5, base=tiny_cnn.id)
    with pytest.raises(OptionError, match="2 bases"):
        vote(z, TASK)
    assert vote(z, TASK, k=1, base=others[3].base_id).parents == (others[3].id,)
    for wrong in others[:3]:
        with pytest.raises(BaseMismatchError, match="structured, coupled, pretrained"):
            vote_from([z.get(sub.parents[0]), wrong], TASK)
    with pytest.raises(BaseMismatchError, match="different bases"):
        vote_from([z.get(sub.parents[0]), others[3]], TASK, keep=0.5)


def test_producer_filters_the_voters(z, tiny_cnn, tiny_sub):
    other = z.add(tiny_sub(tiny_cnn, ("pear", "truck"), seed=9, producer="random"))
    assert vote(z, TASK, k=1, producer="random").parents == (other,)


def test_wrong_options(z, tiny_cnn, tiny_sub, tmp_path):
    for options in ({"keep": 0}, {"keep": 1.1}, {"keep": float("nan")}, {"k": 0}, {"tau": -0.1}, {"tau": float("nan")},
                    {"tau": float("inf")}, {"average": "median"}, {"head": "old"}, {"group": 6}):  # fmt: skip
        with pytest.raises(OptionError):
            vote(z, TASK, **options)
    with pytest.raises(EmptyZooError, match="4"):
        vote(z, TASK, k=9)
    with pytest.raises(EmptyZooError):
        vote(zoo.open(tmp_path / "empty.zoo"), TASK)
    with pytest.raises(EmptyZooError, match="nobody"):
        vote_from([], TASK)
    with pytest.raises(MissingScoresError):
        vote(z, TASK, by="leep")
    voters = [tiny_sub(tiny_cnn, keep=keep) for keep in (0.5, 0.25)]
    with pytest.raises(OptionError, match="different keep ratios"):
        vote_from(voters, TASK)
    assert vote_from(voters, TASK, keep=0.5).keep == 0.5


def test_an_import_votes_with_others(z, tiny_cnn, tiny_sub):
    other = tiny_sub(tiny_cnn, ("pear", "truck"), seed=9)
    z.add(import_subnetwork(tiny_cnn, kept=other.channels, state_dict=other.weights, task=other.task, keep=0.5))
    assert "import" in {z.get(p).producer for p in vote(z, TASK, k=5).parents}


def test_nobody_votes_twice(tiny_cnn, tiny_sub):
    voter, other = tiny_sub(tiny_cnn), tiny_sub(tiny_cnn, seed=1)
    with pytest.raises(OptionError, match=f"{voter.id[:12]} more than once"):
        vote_from([voter, other, voter], TASK)
