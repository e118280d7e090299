import numpy as np
import pytest
import torch

from mvp.producers import prune, resolve
from mvp.producers.intersection import IntersectionPruning, combine
from mvp.producers.narrowing import Narrowing
from mvp.subnetwork import task_tensors
from tests import tiny
from tests.tiny import registered  # noqa: F401
from zoo.errors import DataError, OptionError

FAST = {"prune_share": 0.3, "every_epochs": 1, "tune_epochs": 1, "batch_size": 16}
SOURCES = [tiny.task(3, 4, 5, 6), tiny.task(7, 8)]


def run(*, keep=0.4, base="cnn", sources=SOURCES, seed=0, data=None, **options):
    data = data or tiny.task()
    options = {**FAST, **options}
    return prune(tiny.base(base), data, producer="intersection", keep=keep, sources=sources, seed=seed, **options)


@pytest.fixture
def log(monkeypatch):
    """What happened to every network: ("train", labels, images, epochs) and ("narrow", sets afterwards)."""
    events = []
    train, narrow = Narrowing.train, Narrowing.narrow

    def spy_train(own, data, epochs, **more):
        assert own.model.fc.out_features == len(data.labels)
        events.append(("train", data.labels, data.train_images, epochs))
        train(own, data, epochs, **more)

    def spy_narrow(own, counts):
        if not any(e[0] == "narrow" and e[1] is own for e in events):
            events.append(("first norms", own, {a: v.copy() for a, v in own.norms.items()}))
        narrow(own, counts)
        events.append(("narrow", own, {a: v.copy() for a, v in own.sets.items()}))

    monkeypatch.setattr(Narrowing, "train", spy_train)
    monkeypatch.setattr(Narrowing, "narrow", spy_narrow)
    return events


# ------------------------------------------------------------------------------------------ the units kept


@pytest.mark.parametrize("least", [1, 2, 3, 4])
def test_the_elected_by_norm_then_the_others_by_votes_and_norm(least):
    rng = np.random.default_rng(least)
    for _ in range(50):
        votes, norms, n = rng.integers(0, 5, 12), rng.integers(0, 6, 12).astype(float), int(rng.integers(1, 13))
        elected = sorted((i for i in range(12) if votes[i] >= least), key=lambda i: (-norms[i], i))
        others = sorted((i for i in range(12) if votes[i] < least), key=lambda i: (-votes[i], -norms[i], i))
        assert combine(votes, norms, least, n).tolist() == sorted((elected + others)[:n])


def test_with_all_votes_needed_the_intersection_is_in_and_with_one_vote_the_norms_decide():
    sets = [{0, 1, 2, 3}, {2, 3, 4, 5}, {2, 3, 6, 7}]
    votes = np.array([sum(i in s for s in sets) for i in range(9)])
    norms = np.array([9.0, 8, 0, 0, 7, 6, 5, 4, 99])
    assert combine(votes, norms, 3, 4).tolist() == [0, 1, 2, 3]
    assert combine(votes, norms, 1, 4).tolist() == [0, 1, 4, 5]


# ------------------------------------------------------------------------------------------ sequential


def test_the_input_goes_round_the_data_sets_and_ends_on_the_task(log):
    sub = run(tune_epochs=2)
    visits = [e[1] for e in log if e[0] == "train"]
    order = [SOURCES[0].labels, SOURCES[1].labels, tiny.task().labels]
    passes = len([e for e in log if e[0] == "narrow"])
    # 8 -> 6 -> 5 -> 4 -> 3 and 12 -> 9 -> 7 -> 5
    assert passes == 4 and visits == [*(order[i % 3] for i in range(passes)), order[2]]
    assert [e[0] for e in log if e[0] != "first norms"] == ["train", "narrow"] * 4 + ["train"]
    assert log[-1][3] == 2 and sub.channels.keys() == {"a0", "a1"}
    assert sub.weights["fc.weight"].shape == (3, 3) and sub.options["sources"] == [d.task.id for d in SOURCES]


def test_what_is_left_survived_every_pass(log):
    sub = run()
    for event in log:
        if event[0] == "narrow":
            assert all(set(sub.channels[a].tolist()) <= set(event[2][a].tolist()) for a in sub.channels)


def test_with_fewer_passes_than_data_sets_each_still_has_its_say(log):
    run(prune_share=0.6)  # 8 -> 4 -> 3: two passes, three data sets
    kinds = [(e[0], e[1]) if e[0] == "train" else (e[0],) for e in log if e[0] != "first norms"]
    a, b, c = (("train", d.labels) for d in (*SOURCES, tiny.task()))
    assert kinds == [a, b, ("narrow",), c, ("narrow",), c]
    sets = {}
    for sources in (SOURCES, [tiny.task(0, 9), SOURCES[1]]):
        sets[sources[0].labels] = run(prune_share=0.6, sources=sources, norm="activation")
    one, other = sets.values()
    assert one.id != other.id


def test_where_everything_stays_there_are_no_turns(log):
    sub = run(keep=1.0)
    assert [e[1] for e in log] == [tiny.task().labels] and sub.metrics["steps"] == 4


def test_every_turn_draws_its_own_share_of_the_images(log):
    run(sample_share=0.5)
    drawn = [e for e in log if e[0] == "train"]
    assert [len(e[2]) for e in drawn] == [40, 20, 30, 40, 60]
    assert not torch.equal(drawn[0][2], drawn[3][2])


# ------------------------------------------------------------------------------------------ the sets of each alone


@pytest.mark.parametrize(("rule", "k", "least"), [("intersection", None, 3), ("k_of_n", None, 2), ("k_of_n", 1, 1)])
def test_each_data_set_alone_then_what_they_agree_on(rule, k, least, log):
    sub = run(rule=rule, k=k)
    networks = list(dict.fromkeys(e[1] for e in log if e[0] == "narrow"))
    assert len(networks) == 3
    alone = [[e[2] for e in log if e[0] == "narrow" and e[1] is network][-1] for network in networks]
    first = [next(e[2] for e in log if e[0] == "first norms" and e[1] is network) for network in networks]
    trained = [e[1] for e in log if e[0] == "train"]
    assert trained == [d.labels for d in (*SOURCES, tiny.task()) for _ in range(4)] + [tiny.task().labels]
    everywhere = 0
    for axis, n in {"a0": 8, "a1": 12}.items():
        votes = np.array([sum(i in sets[axis] for sets in alone) for i in range(n)])
        norms = sum(f[axis] / f[axis].max() for f in first)
        count = max(1, round(0.4 * n))
        assert all(len(sets[axis]) == count for sets in alone)
        assert sub.channels[axis].tolist() == combine(votes, norms, least, count).tolist()
        if rule == "intersection":
            assert set(np.flatnonzero(votes == 3).tolist()) <= set(sub.channels[axis].tolist())
        everywhere += (votes[sub.channels[axis]] == 3).sum()
    assert sub.metrics["kept_by_all"] == pytest.approx(everywhere / (3 + 5))
    assert sub.metrics["steps"] == 4 * (5 + 3 + 4) + 4  # 80, 40 and 60 images in batches of 16


def test_the_units_start_from_the_bases_weights():
    sub = run(rule="intersection", tune_epochs=0)
    expected = task_tensors(tiny.base(), 3, sub.channels, sub.seed)
    assert all(np.array_equal(sub.weights[k], v.numpy()) for k, v in expected.items() if k in sub.weights)
    assert run(rule="intersection", keep=1.0).metrics["kept_by_all"] == 1


@pytest.mark.parametrize("rule", ["intersection", "k_of_n"])
def test_the_combining_rules_on_a_vit(rule):
    sub = run(base="vit", rule=rule)
    assert {len(sub.channels[a]) for a in ("a1", "a4")} == {1} and len(sub.channels["a3"]) == 10


def test_it_learns_the_task():
    assert run(tune_epochs=8).accuracy > 0.8
    assert run(tune_epochs=8, rule="intersection").accuracy > 0.8


# ------------------------------------------------------------------------------------------ bad input


def test_k_must_fit_the_data_sets_and_its_rule():
    with pytest.raises(OptionError, match=r"k; got 4; expected at most 3"):
        run(rule="k_of_n", k=4)
    assert run(rule="k_of_n", k=3).channels
    with pytest.raises(OptionError, match="has no k"):
        IntersectionPruning(rule="intersection", k=2)
    with pytest.raises(OptionError, match="sample_share"):
        IntersectionPruning(sample_share=0)
    with pytest.raises(OptionError) as error:
        IntersectionPruning(rule="union", k=0, sample_share=2, tune_epochs=-1, norm="l1")
    assert all(name in str(error.value) for name in ("rule", "k:", "sample_share", "tune_epochs", "norm:"))


def test_a_source_with_too_few_images():
    with pytest.raises(DataError, match="too few images"):
        run(sources=[SOURCES[0], SOURCES[1].sample(1, seed=0)])
    with pytest.raises(OptionError, match="source tasks"):
        resolve("intersection").prune(tiny.base(), tiny.task(), keep=0.5)
