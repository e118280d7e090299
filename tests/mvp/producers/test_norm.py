import copy
import re

import numpy as np
import pytest
import torch

import mvp
from mvp.bases import load_base
from mvp.producers import prune
from mvp.producers.narrowing import one_pass, passes_needed
from mvp.producers.norm import NormPruning, pass_epochs
from mvp.subnetwork import task_model
from mvp.surgery import shrink
from mvp.train import batches, derive_seed, step
from tests import tiny
from tests.tiny import registered  # noqa: F401
from zoo.errors import DataError, OptionError

FAST = {"prune_share": 0.3, "every_epochs": 1, "batch_size": 16}


@pytest.fixture(scope="module")
def vgg16():
    return load_base("vgg16", num_classes=10)


def test_vgg16_of_the_paper_has_3136_of_its_4224_filters_after_50_epochs(vgg16):
    plan = vgg16.plan
    sizes = {axis: entry["n"] for axis, entry in plan["axes"].items()}
    convs = {w["layer"] for entry in plan["axes"].values() for w in entry["writers"]}
    assert len(sizes) == len(convs) == 13 and sum(sizes.values()) == 4224
    target, totals = dict.fromkeys(sizes, 1), []
    default = NormPruning()
    for epoch in range(50):
        if epoch in pass_epochs(50, default.every_epochs):
            sizes = one_pass(sizes, target, default.prune_share)
            totals.append(sum(sizes.values()))
    assert totals == [4020, 3822, 3637, 3458, 3294, 3136]
    assert list(pass_epochs(50, 7)) == list(pass_epochs(49, 7)) == [7, 14, 21, 28, 35, 42]


def test_the_producer_takes_vgg16_down_the_same_steps(vgg16, monkeypatch):
    """Two passes of the real network, trained on a handful of images."""
    from mvp.producers.narrowing import Narrowing

    totals = []
    narrow = Narrowing.narrow

    def spy(run, counts):
        narrow(run, counts)
        totals.append(sum(p.shape[0] for n, p in run.model.named_parameters() if p.ndim == 4))

    monkeypatch.setattr(Narrowing, "narrow", spy)
    data = tiny.task().sample(2, seed=0)
    sub = prune(vgg16, data, producer="norm", keep=0.91, every_epochs=1, batch_size=2)
    assert totals[:1] == [4020] and totals[-1] == sum(len(kept) for kept in sub.channels.values())


# ------------------------------------------------------------------------------------------ Algorithms 1 to 3


def algorithms_1_to_3(norm, normalise, keep, p, every, epochs, lr=0.01):
    """The paper's loop on the tiny network: kept filters of its two channel sets, and the weights at the end."""
    data, seed = tiny.task(), 4
    model, plan = task_model(tiny.base(), 3, seed=seed), tiny.base().plan
    sets = {"a0": np.arange(8), "a1": np.arange(12)}
    target = {a: max(1, round(keep * len(v))) for a, v in sets.items()}
    layers = {"a0": ("conv1", "conv3"), "a1": ("conv2",)}

    def start(model):
        seen = {}
        for name in ("bn1", "bn2", "bn3"):
            model.get_submodule(name).register_forward_hook(lambda m, i, o, n=name: seen.update({n: o.detach()}))
        total = {a: np.zeros(len(v)) for a, v in sets.items()}
        return torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4), seen, total

    optimizer, seen, total = start(model)
    for i in range(epochs):
        left = any(len(v) > target[axis] for axis, v in sets.items())
        if i % every == 0 and 0 < i < epochs - 1 and left:
            kept = {}
            for axis, n_i in total.items():
                n_p = 0
                if len(n_i) > target[axis]:
                    n_p = min(max(1, int(np.floor(p * len(n_i)))), len(n_i) - target[axis])
                bottom = sorted(range(len(n_i)), key=lambda j: (n_i[j], -j))[:n_p]
                kept[axis] = np.array([j for j in range(len(n_i)) if j not in bottom])
                sets[axis] = sets[axis][kept[axis]]
            model = copy.deepcopy(model)
            for module in model.modules():
                module._forward_hooks.clear()
            model, plan = shrink(model, plan, kept)
            optimizer, seen, total = start(model)
        stream = batches(
            data.train_images, data.train_labels, tiny.SPEC, batch_size=16, seed=derive_seed(seed, "batches"),
            device=tiny.CPU, start=i,
        )  # fmt: skip
        model.train()
        for _ in range(4):
            step(model, optimizer, *next(stream))
            for axis, names in layers.items():
                for name in names:
                    if norm == "weight":
                        v = model.get_parameter(f"{name}.weight").detach().double().square().sum((1, 2, 3)).sqrt()
                    else:
                        out = seen[name.replace("conv", "bn")].double()
                        v = (out if name == "conv3" else out.relu()).square().sum((0, 2, 3)).sqrt()
                    total[axis] += (v / v.max() if normalise else v).numpy()
    return sets, model.state_dict()


@pytest.mark.parametrize("norm", ["weight", "activation"])
@pytest.mark.parametrize(
    ("normalise", "keep", "p", "every", "epochs"), [(False, 0.3, 0.3, 1, 9), (True, 0.6, 0.2, 2, 9)]
)
def test_it_is_the_papers_loop(norm, normalise, keep, p, every, epochs):
    options = {"norm": norm, "normalise": normalise, "prune_share": p, "every_epochs": every, "epochs": epochs}
    sub = prune(tiny.base(), tiny.task(), producer="norm", keep=keep, seed=4, batch_size=16, **options)
    sets, state = algorithms_1_to_3(norm, normalise, keep, p, every, epochs)
    assert {a: v.tolist() for a, v in sub.channels.items()} == {a: v.tolist() for a, v in sets.items()}
    for name, values in sub.weights.items():
        np.testing.assert_allclose(values, state[name].numpy(), rtol=1e-4, atol=1e-6)
    assert sub.metrics["steps"] == 4 * epochs and sub.metrics["epochs"] == epochs


def test_the_norm_decides_which_stay():
    weight, activation = (
        prune(tiny.base(), tiny.task(), producer="norm", keep=0.5, norm=norm, **FAST)
        for norm in ("weight", "activation")
    )
    assert any(not np.array_equal(weight.channels[a], activation.channels[a]) for a in ("a0", "a1"))


# ------------------------------------------------------------------------------------------ its options


@pytest.mark.parametrize(("every", "keep"), [(1, 0.3), (2, 0.3), (3, 1.0)])
def test_without_epochs_it_trains_as_long_as_the_passes_take_and_one_period_more(every, keep):
    sub = prune(
        tiny.base(), tiny.task(), producer="norm", keep=keep, every_epochs=every, prune_share=0.4, batch_size=16
    )
    sizes = {"a0": 8, "a1": 12}
    need = passes_needed(sizes, {a: max(1, round(keep * n)) for a, n in sizes.items()}, 0.4)
    epochs = need * every + max(2, every)
    assert sub.metrics["epochs"] == epochs and sub.metrics["steps"] == 4 * epochs
    assert len(pass_epochs(epochs, every)) == need
    assert sub.options["epochs"] is None


def test_too_few_epochs_are_an_error_whose_hint_helps():
    options = {"keep": 0.3, "every_epochs": 2, "batch_size": 16}
    with pytest.raises(OptionError, match=r"norm cannot reach its target in 6 epochs; got 2 passes; expected 8") as e:
        prune(tiny.base(), tiny.task(), producer="norm", epochs=6, prune_share=0.05, **options)
    epochs, share = re.search(r"epochs >= (\d+) or prune_share >= ([\d.]+)", str(e.value)).groups()
    assert prune(tiny.base(), tiny.task(), producer="norm", epochs=int(epochs), prune_share=0.05, **options).channels
    sub = prune(tiny.base(), tiny.task(), producer="norm", epochs=6, prune_share=float(share), **options)
    assert {a: len(v) for a, v in sub.channels.items()} == {"a0": 2, "a1": 4}
    with pytest.raises(OptionError):
        prune(tiny.base(), tiny.task(), producer="norm", epochs=int(epochs) - 1, prune_share=0.05, **options)
    with pytest.raises(OptionError):
        smaller = float(share) - 0.01
        prune(tiny.base(), tiny.task(), producer="norm", epochs=6, prune_share=smaller, **options)


def test_epochs_beyond_the_target_only_train():
    sub = prune(tiny.base(), tiny.task(), producer="norm", keep=0.75, epochs=12, **FAST)
    assert sub.metrics["epochs"] == 12 and {a: len(v) for a, v in sub.channels.items()} == {"a0": 6, "a1": 9}


def test_every_wrong_option_is_named():
    with pytest.raises(OptionError) as error:
        NormPruning(
            norm="l1", normalise=1, prune_share=1.0, every_epochs=0, lr=-1, batch_size=1, weight_decay=-1, epochs=0
        )
    for name in ("norm:", "normalise", "prune_share", "every_epochs", "lr", "batch_size", "weight_decay", "epochs:"):
        assert name in str(error.value)


def test_too_few_images():
    one = tiny.task().sample(1, seed=0)
    with pytest.raises(DataError, match="too few images"):
        prune(tiny.base(), one, producer="norm", keep=0.5)


@pytest.mark.parametrize("base", ["cnn", "vit"])
def test_it_learns_the_task_better_than_random_channels(base):
    data = tiny.task()
    lr = {"lr": 0.005} if base == "vit" else {}
    sub = prune(tiny.base(base), data, producer="norm", keep=0.4, epochs=14, **FAST, **lr)
    random = mvp.finetune(prune(tiny.base(base), data, producer="random", keep=0.4), data, steps=1, batch_size=16)
    assert sub.accuracy > 0.8 and sub.accuracy > random.accuracy + 0.2
