import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mvp.producers import prune
from mvp.producers.meta_norm import MetaNormPruning
from mvp.producers.narrowing import Narrowing, weight_norms
from mvp.reinit import reinitialised
from mvp.subnetwork import task_tensors
from mvp.train import batches, derive_seed
from tests import tiny
from tests.tiny import registered  # noqa: F401
from zoo.errors import OptionError

FAST = {"prune_share": 0.3, "every_epochs": 1, "tune_epochs": 1, "batch_size": 16, "n_tasks": 2, "inner_steps": 2}
SOURCES = [tiny.task(3, 4, 5, 6), tiny.task(7, 8)]


def run(*, keep=0.4, base="cnn", sources=SOURCES, seed=0, **options):
    options = {**FAST, **options}
    return prune(tiny.base(base), tiny.task(), producer="meta_norm", keep=keep, sources=sources, seed=seed, **options)


@pytest.fixture
def log(monkeypatch):
    """The calls on the one network, in order."""
    events = []
    for name in ("train", "narrow", "reinitialise", "turn_to"):
        whole = getattr(Narrowing, name)

        def spy(own, *args, name=name, whole=whole, **more):
            events.append((name, args, own))
            return whole(own, *args, **more)

        monkeypatch.setattr(Narrowing, name, spy)
    adapt = MetaNormPruning._adapt

    def spy_adapt(own, run, source, seed):
        events.append(("adapt", (source,), run))
        adapt(own, run, source, seed)

    monkeypatch.setattr(MetaNormPruning, "_adapt", spy_adapt)
    return events


# ------------------------------------------------------------------------------------------ a turn


@pytest.mark.parametrize("ways", [None, 3])
@pytest.mark.parametrize("norm", ["weight", "activation"])
def test_one_step_of_each_task_and_their_mean(ways, norm):
    producer = MetaNormPruning(n_tasks=3, ways=ways, beta=0.5, inner_steps=1, batch_size=16, norm=norm)
    run = Narrowing(tiny.base(), producer, 4, where=tiny.CPU, seed=0)
    theta = copy.deepcopy(run.model).train()
    producer._adapt(run, SOURCES[0], seed=9)
    total, norms = None, {"a0": 0.0, "a1": 0.0}
    for i in range(3):
        classes = sorted(np.random.default_rng(derive_seed(9, i)).choice(4, ways or 4, replace=False).tolist())
        task = SOURCES[0].subset(classes)
        stream = batches(
            task.train_images, task.train_labels, tiny.SPEC, batch_size=16, seed=derive_seed(9, i), device=tiny.CPU
        )
        x, y = next(stream)
        own = copy.deepcopy(theta)
        grads = torch.autograd.grad(F.cross_entropy(own(x)[:, classes], y), list(own.parameters()))
        with torch.no_grad():
            for p, g in zip(own.parameters(), grads, strict=True):
                p -= 0.5 * g
        state = {k: v.detach().clone() for k, v in own.state_dict().items() if v.is_floating_point()}
        total = state if total is None else {k: total[k] + v for k, v in state.items()}
        if norm == "weight":
            for axis, layers in weight_norms(own, tiny.base().plan, ["a0", "a1"]).items():
                norms[axis] = norms[axis] + sum(v.numpy() for v in layers.values())
        else:
            seen = {}
            for name in ("bn1", "bn2", "bn3"):
                own.get_submodule(name).register_forward_hook(lambda m, i, o, n=name, s=seen: s.update({n: o.detach()}))
            own(x)
            lengths = {
                n: (v if n == "bn3" else v.relu()).square().sum((0, 2, 3)).sqrt().numpy() for n, v in seen.items()
            }
            norms = {"a0": norms["a0"] + lengths["bn1"] + lengths["bn3"], "a1": norms["a1"] + lengths["bn2"]}
    got = run.model.state_dict()
    for name, values in total.items():
        torch.testing.assert_close(got[name], values / 3, rtol=1e-4, atol=1e-6)
    assert not torch.equal(got["conv2.weight"], theta.state_dict()["conv2.weight"])
    for axis, expected in norms.items():
        np.testing.assert_allclose(run.norms[axis], expected, rtol=1e-4)
    assert run.steps == 3


def test_architecture_leaves_theta_itself_alone():
    producer = MetaNormPruning(learn="architecture", n_tasks=2, inner_steps=2, batch_size=16)
    run = Narrowing(tiny.base(), producer, 4, where=tiny.CPU, seed=0)
    before = {k: v.clone() for k, v in run.model.state_dict().items()}
    producer._adapt(run, SOURCES[0], seed=9)
    assert all(torch.equal(v, before[k]) for k, v in run.model.state_dict().items())
    assert all((v > 0).all() for v in run.norms.values())


# ------------------------------------------------------------------------------------------ Algorithms 5 and 6


def test_algorithm_5_adapts_prunes_and_fine_tunes_on_each_source_and_ends_on_the_task(log):
    sub = run(tune_epochs=3)
    turn = ["turn_to", "adapt", "narrow", "train"]
    assert [e[0] for e in log] == turn * 4 + ["turn_to", "train"]
    adapted = [e[1][0].labels for e in log if e[0] == "adapt"]
    assert adapted == [SOURCES[i % 2].labels for i in range(4)]
    trained = [(e[1][0].labels, e[1][1]) for e in log if e[0] == "train"]
    assert trained == [*((labels, 1) for labels in adapted), (tiny.task().labels, 3)]
    assert sub.init == "pretrained" and len({id(e[2]) for e in log}) == 1
    # 2 tasks x 2 steps a turn; epochs of 80 and 40 images in batches of 16, the 60 of the task
    assert sub.metrics["steps"] == 4 * 4 + 2 * (5 + 3) + 3 * 4


def test_algorithm_6_starts_from_random_weights_at_each_source_and_at_the_end(log):
    sub = run(learn="architecture", tune_epochs=0)
    assert [e[0] for e in log] == ["reinitialise", "adapt", "narrow"] * 4 + ["reinitialise", "train"]
    assert sub.init == "reinit" and sub.metrics["steps"] == 4 * 4
    fresh = task_tensors(reinitialised(tiny.base(), seed=0), 3, sub.channels, 0)
    assert all(np.array_equal(v, fresh[k].numpy()) for k, v in sub.weights.items())


def test_with_fewer_passes_than_sources_every_source_is_met(log):
    run(prune_share=0.7, sources=[*SOURCES, tiny.task(4, 5), tiny.task(9, 3)])  # 8 -> 3 at once, 12 -> 5
    assert [e[0] for e in log if e[0] in ("adapt", "narrow")] == ["adapt"] * 4 + ["narrow"]


@pytest.mark.parametrize("learn", ["weights", "architecture"])
def test_the_task_has_no_part_in_the_choice_of_units(learn):
    one = run(learn=learn)
    other = prune(
        tiny.base(), tiny.task(2, 0, 9), producer="meta_norm", keep=0.4, sources=SOURCES, **{**FAST, "learn": learn}
    )
    assert all(np.array_equal(one.channels[a], other.channels[a]) for a in ("a0", "a1"))
    assert not np.array_equal(one.weights["fc.weight"], other.weights["fc.weight"])


def test_where_everything_stays_the_sources_still_train_the_weights():
    sub = run(keep=1.0, tune_epochs=0)
    assert not np.array_equal(sub.weights["conv1.weight"], tiny.base().weights["conv1.weight"])
    assert {a: len(v) for a, v in sub.channels.items()} == {"a0": 8, "a1": 12}


@pytest.mark.parametrize("learn", ["weights", "architecture"])
def test_it_learns_the_task(learn):
    assert run(learn=learn, tune_epochs=15).accuracy > 0.8


# ------------------------------------------------------------------------------------------ bad input


def test_more_ways_than_a_source_has_classes():
    with pytest.raises(OptionError, match=r"ways; got 3; expected at most 2 classes"):
        run(ways=3)
    assert run(ways=2).channels


def test_every_wrong_option_is_named():
    with pytest.raises(OptionError) as error:
        MetaNormPruning(learn="both", n_tasks=0, ways=1, beta=-1, inner_steps=0, tune_epochs=-1, prune_share=0)
    for name in ("learn", "n_tasks", "ways", "beta", "inner_steps", "tune_epochs", "prune_share"):
        assert name in str(error.value)
