import dataclasses
from itertools import combinations

import numpy as np
import pytest

import zoo
from mvp import import_subnetwork, vote, vote_from
from mvp.data import Data
from mvp.plan import keep_counts, prunable
from mvp.subnetwork import build, cost, new_head
from mvp.vote import vote_nested
from zoo.errors import BaseMismatchError, EmptyZooError, MissingScoresError, OptionError
from zoo.records import Task

pytestmark = pytest.mark.filterwarnings("ignore::mvp.trust.WeakVoteWarning")  # random channels agree by chance

TASK = Task(labels=("apple", "pear", "truck"), dataset="tiny")
TASKS = [("dog", "cat", "horse"), ("dog", "cat", "apple"), ("apple", "pear", "dog"), ("truck", "horse", "pear")]


@pytest.fixture
def z(tiny_cnn, tiny_sub, tmp_path):
    z = zoo.open(tmp_path / "z.zoo")
    z.add_many([tiny_sub(tiny_cnn, labels, seed=i) for i, labels in enumerate(TASKS)])
    return z


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


def test_a_vote_carries_the_diagnostics_of_every_prunable_axis(tiny_vit, tiny_sub):
    sub = vote_from([tiny_sub(tiny_vit, seed=i) for i in range(3)], TASK)
    names = {"entropy", "zero_share", "agreement", "fallback_share"}
    axes = prunable(tiny_vit.plan)
    assert len(axes) == 4  # heads and nodes of two blocks; the embedding stays whole
    assert set(sub.metrics) == {f"vote/{n}" for n in names} | {f"vote/{n}/{a}" for n in names for a in axes} | {
        "vote/random_floor"
    }
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


# Other ballots and sizes ---------------------------------------------------------------------------------------------


def widths(sub):
    return {axis: len(kept) for axis, kept in sub.channels.items()}


def keepers(voters, axis):
    """{channel: how many voters keep it}"""
    n = voters[0].base.plan["axes"][axis]["n"]
    return {c: sum(c in v.channels.get(axis, range(n)) for v in voters) for c in range(n)}


@pytest.fixture
def voters(tiny_cnn, tiny_sub):
    return [tiny_sub(tiny_cnn, keep=0.5, seed=i, metrics={"accuracy": 0.4 + i / 5}) for i in range(3)]


def test_k_of_n_and_intersection_are_as_wide_as_they_come_out(voters):
    for ballot, quorum, needed in (("k_of_n", 1, 1), ("k_of_n", None, 2), ("k_of_n", 3, 3), ("intersection", None, 3)):
        sub = vote_from(voters, TASK, ballot=ballot, quorum=quorum)
        for axis, kept in sub.channels.items():
            votes = keepers(voters, axis)
            passed = [c for c in votes if votes[c] >= needed]
            assert kept.tolist() == passed if passed else len(kept) == 1
        assert sub.options["ballot"] == ballot and sub.options.get("quorum") == quorum
        units = sum(info["n"] for a, info in voters[0].base.plan["axes"].items() if a in sub.channels)
        assert sub.keep == pytest.approx(sum(widths(sub).values()) / units)
        build(sub)


def test_a_keep_ratio_is_the_most_that_a_quorum_gives(voters):
    free, capped = (vote_from(voters, TASK, ballot="k_of_n", quorum=2, keep=keep) for keep in (None, 0.25))
    most = keep_counts(voters[0].base.plan, 0.25)
    for axis, kept in capped.channels.items():
        assert len(kept) == min(most[axis], len(free.channels[axis])) and set(kept) <= set(free.channels[axis])
        votes = keepers(voters, axis)
        left = set(free.channels[axis].tolist()) - set(kept.tolist())
        assert min(votes[c] for c in kept.tolist()) >= max((votes[c] for c in left), default=0)
    assert capped.keep == 0.25


def test_deterministic_votes_do_not_depend_on_the_seed(voters):
    one, other = (vote_from(voters, TASK, ballot="deterministic", seed=seed) for seed in (0, 1))
    assert all((one.channels[a] == other.channels[a]).all() for a in one.channels)
    assert widths(one) == keep_counts(voters[0].base.plan, 0.5)


def test_the_votes_of_better_voters_count_more(voters):
    near = vote_from(voters, TASK, ballot="deterministic", weights="similarity", similarities=[-9.0, -0.1, -9.0])
    assert all((near.channels[a] == voters[1].channels[a]).all() for a in near.channels)
    assert near.options["weights"] == "similarity"
    assert (near.metrics["vote/score_best"], near.metrics["vote/score_margin"]) == (-0.1, 8.9)
    good = vote_from(voters, TASK, ballot="deterministic", weights="accuracy")
    for axis, kept in good.channels.items():  # two voters outweigh the best one; alone, the best one's channels lead
        votes = keepers(voters, axis)
        best = set(voters[2].channels[axis].tolist())
        ones = {c for c, n in votes.items() if n == 1}
        assert not (ones & set(kept.tolist())) - best or ones & best <= set(kept.tolist())


@pytest.mark.parametrize("constraint", ["macs", "params"])
@pytest.mark.parametrize("ballot", ["softmax", "deterministic", "k_of_n"])
def test_a_budget_is_met_and_wider_axes_would_not_fit(voters, tiny_cnn, tiny_sub, constraint, ballot):
    wide = tiny_sub(tiny_cnn, keep=0.9, seed=7)  # voters of other widths are welcome
    everyone = [*voters, wide]
    whole = dict(zip(("params", "macs"), cost(tiny_cnn, {}, 3)))
    limit = whole[constraint] // 4
    sub = vote_from(everyone, TASK, ballot=ballot, budget={constraint: limit})
    assert getattr(sub, constraint) <= limit and sub.options["budget"] == {constraint: limit}
    for axis, kept in sub.channels.items():
        votes = keepers(everyone, axis)
        most = sum(n >= 3 for n in votes.values()) if ballot == "k_of_n" else len(votes)
        if len(kept) < most:
            wider = {**sub.channels, axis: np.arange(len(kept) + 1)}
            assert dict(zip(("params", "macs"), cost(tiny_cnn, wider, 3)))[constraint] > limit
        assert len(kept) <= max(most, 1)
    assert 0 < sub.keep < 1 and build(sub)


def test_a_budgets_widths_follow_the_votes(tiny_cnn, tiny_sub):
    # All voters keep a1 whole and little of a3, so a1 stays wider than a3, which costs about as much.
    voters = [tiny_sub(tiny_cnn, channels={"a1": range(10), "a3": [0, 1]}, keep=0.5, seed=i) for i in range(2)]
    limit = cost(tiny_cnn, {}, 3)[1] // 2
    sub = vote_from(voters, TASK, budget={"macs": limit}, ballot="deterministic")
    assert len(sub.channels["a1"]) / 10 > len(sub.channels["a3"]) / 9


def test_compensation_widens_an_axis_by_its_name_or_its_layers(voters, tiny_cnn):
    budget = {"macs": cost(tiny_cnn, {}, 3)[1] // 4}

    def width(compensation, axis):
        return widths(vote_from(voters, TASK, budget=budget, compensation=compensation))[axis]

    for axis, layer in (("a1", "conv1"), ("a3", "conv3")):
        more, less = ([width({name: beta}, axis) for name in (axis, layer)] for beta in (5.0, -5.0))
        assert more[0] == more[1] >= width(None, axis) >= less[0] == less[1] and more[0] > less[0]
    # Layers that share an axis add up (LcP): stem and conv2 write a0.
    assert vote_from(voters, TASK, budget=budget, compensation={"stem": 2.0, "conv2": -2.0}).channels[
        "a0"
    ].tolist() == (vote_from(voters, TASK, budget=budget).channels["a0"].tolist())
    assert vote_from(voters, TASK, budget=budget, compensation={"a1": 5.0}).options["compensation"] == {"a1": 5.0}


@pytest.mark.parametrize("ballot", ["softmax", "deterministic", "k_of_n", "intersection"])
@pytest.mark.parametrize("multiple", [1, 4])
def test_nested_sizes_are_subsets_within_their_budgets(voters, tiny_cnn, ballot, multiple):
    whole = cost(tiny_cnn, {}, 3)[1]
    limits = [whole // 4, whole // 2, whole // 8 * 3, whole]
    subs = vote_nested(voters, TASK, [{"macs": n} for n in limits], ballot=ballot, tau=1.0, multiple=multiple)
    assert all(sub.macs <= n for sub, n in zip(subs, limits))
    for small, large in ((0, 2), (2, 1), (1, 3)):
        assert all(set(subs[small].channels[a]) <= set(subs[large].channels[a]) for a in subs[small].channels)
    largest = vote_from(voters, TASK, budget={"macs": whole}, ballot=ballot, tau=1.0, multiple=multiple)
    assert subs[3] == largest
    weights, kept = (subs[0].weights["bn1.weight"], subs[0].channels["a1"]), largest.channels["a1"]
    assert np.array_equal(weights[0], largest.weights["bn1.weight"][np.searchsorted(kept, weights[1])])


def test_widths_are_multiples_where_the_axis_is_wide_enough(voters, tiny_vit, tiny_sub):
    sub = vote_from(voters, TASK, multiple=4)
    # keep_counts: 4 of 8, 5 of 10, 6 of 12, 4 of 9; halfway goes up
    assert widths(sub) == {"a0": 4, "a1": 4, "a2": 8, "a3": 4} and sub.options["multiple"] == 4
    assert widths(vote_from(voters, TASK, keep=1.0, multiple=4)) == {"a0": 8, "a1": 8, "a2": 12, "a3": 8}
    # 10 is more than two axes have: these stay as they are.
    assert widths(vote_from(voters, TASK, multiple=10)) == {"a0": 4, "a1": 10, "a2": 10, "a3": 4}
    assert min(widths(vote_from(voters, TASK, ballot="intersection", multiple=4)).values()) == 4
    vits = [tiny_sub(tiny_vit, keep=0.3, seed=i) for i in range(3)]
    for axis, n in widths(vote_from(vits, TASK, multiple=4)).items():
        kind = tiny_vit.plan["axes"][axis]["kind"]
        assert n % 4 == 0 if kind != "head" else n == keep_counts(tiny_vit.plan, 0.3)[axis]


def test_wrong_sizes_and_weights_are_listed(voters):
    with pytest.raises(OptionError) as caught:
        vote_from(voters, TASK, keep=0.5, budget={"macs": 10**6}, multiple=0, compensation={"x": 1.0, "a0": np.nan})
    assert len(caught.value.problems) == 4
    with pytest.raises(OptionError, match="without a budget"):
        vote_from(voters, TASK, compensation={"a0": 1.0})
    with pytest.raises(OptionError, match="cannot be met"):
        vote_from(voters, TASK, budget={"macs": 10})
    for options in ({"weights": "size"}, {"weights": "similarity"}, {"similarities": [0.5]}):
        with pytest.raises(OptionError):
            vote_from(voters, TASK, **options)
    unmeasured = dataclasses.replace(voters[0], metrics={}, seed=9)
    with pytest.raises(OptionError, match=unmeasured.id[:12]):
        vote_from([*voters, unmeasured], TASK, weights="accuracy")
    for budgets in ([], [{"macs": 10**6}, {"params": 10**6}]):
        with pytest.raises(OptionError, match="all of macs or all of params"):
            vote_nested(voters, TASK, budgets)


def test_a_zoo_weighs_by_its_own_similarities(z):
    sub = vote(z, TASK, k=3, weights="similarity", budget={"params": 2000}, ballot="deterministic")
    found = z.nearest(TASK, k=3)
    assert sub.metrics["vote/score_best"] == found.score[0]
    assert sub.metrics["vote/score_margin"] == pytest.approx(found.score[0] - found.score[2])
    same = vote_from(
        [z.get(i) for i in found.id], TASK, weights="similarity", similarities=found.score, budget={"params": 2000},
        ballot="deterministic", options={"by": "wup", "k": 3, "group": None},
    )  # fmt: skip
    assert sub == same and sub.params <= 2000 and z.get(z.add(sub)) == sub


@pytest.mark.filterwarnings("default::mvp.trust.WeakVoteWarning")
def test_votes_at_chance_warn_or_abstain(tiny_cnn, tiny_sub):
    from mvp.trust import WeakVoteWarning

    apart = [tiny_sub(tiny_cnn, channels={"a0": [i], "a1": [2 * i]}, keep=0.1, seed=i) for i in range(3)]
    with pytest.warns(WeakVoteWarning, match="no more than random"):
        vote_from(apart, TASK)
    with pytest.raises(OptionError, match="no more than random"):
        vote_from(apart, TASK, abstain=True)
    alike = [tiny_sub(tiny_cnn, channels={"a0": [1], "a1": [4]}, keep=0.1, seed=i) for i in range(3)]
    assert vote_from(alike, TASK, abstain=True) == vote_from(alike, TASK)
    assert vote_from(apart[:1], TASK, abstain=True).channels  # one voter agrees with nobody and contradicts nobody


def test_the_command_line_has_ballots_weights_and_budgets(z, tiny_data, monkeypatch, capsys):
    from mvp import cli, commands

    monkeypatch.setattr(commands, "_task_data", lambda args: tiny_data(TASK.labels))
    ask = ["vote", z.path, "--dataset", "tiny", "--classes", "apple,pear,truck", "--steps", "1", "--seed", "2"]
    code = cli.main([*ask, "--ballot", "k_of_n", "--quorum", "1", "--weigh", "accuracy", "--params", "2500"])
    out, err = capsys.readouterr()
    assert (code, err) == (0, "") and "vote not trusted" in out and "not calibrated: 0 finished votes" in out
    sub = z.get(z.ids()[-1])
    assert sub.params <= 2500 and sub.options["budget"] == {"params": 2500}
    assert (sub.options["ballot"], sub.options["quorum"], sub.options["weights"]) == ("k_of_n", 1, "accuracy")
    assert cli.main([*ask, "--multiple", "4"]) == 0
    assert {len(kept) % 4 for kept in z.get(z.ids()[-1]).channels.values()} == {0}
    capsys.readouterr()
    assert cli.main([*ask, "--ballot", "softmax", "--quorum", "2"]) == 2 and "quorum" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main([*ask, "--macs", "1", "--params", "1"])


def test_multiples_may_take_what_a_floor_would_have_left(tiny_cnn, tiny_sub):
    voters = [tiny_sub(tiny_cnn, keep=0.9, seed=i) for i in range(2)]
    sizes = {a: tiny_cnn.plan["axes"][a]["n"] for a in voters[0].channels}
    least = {a: np.arange(4) for a in sizes}  # the fewest units that multiples of 4 allow
    limit = cost(tiny_cnn, least, 3)[1]
    sub = vote_from(voters, TASK, multiple=4, budget={"macs": limit})
    assert widths(sub) == dict.fromkeys(sizes, 4) and sub.macs == limit
    with pytest.raises(OptionError, match="cannot be met"):
        vote_from(voters, TASK, multiple=4, budget={"macs": limit - 1})


def test_no_axis_gets_less_than_half_of_equal_widths(tiny_cnn, tiny_sub):
    # Nobody keeps more than one channel of a0, which is the dearest axis.
    voters = [tiny_sub(tiny_cnn, channels={"a0": [i]}, keep=0.5, seed=i) for i in range(3)]
    limit = cost(tiny_cnn, {a: np.arange(n) for a, n in keep_counts(tiny_cnn.plan, 0.5).items()}, 3)[1]
    sub = vote_from(voters, TASK, budget={"macs": limit})
    assert all(len(sub.channels[a]) >= n for a, n in keep_counts(tiny_cnn.plan, 0.25).items())
