import re
from importlib import import_module

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mvp.bases import full_model
from mvp.data import Data
from mvp.masks import layer_sets
from mvp.plan import prunable
from mvp.producers import prune
from mvp.producers.ifp import IFP
from mvp.subnetwork import task_model
from mvp.surgery import masked, shrink
from mvp.train import batches, step
from tests import tiny
from tests.tiny import registered  # noqa: F401
from zoo.errors import DataError, OptionError

module = import_module("mvp.producers.ifp")  # `mvp.producers` as an attribute is the function

# One removal of half of everything, before the only step.
ONCE = {"steps": 1, "prune_every": 1, "prune_share": 0.5, "batch_size": 16}


def sizes(sub):
    return {key: len(kept) for key, kept in sub.channels.items()}


def smallest_out(importance, n_removed):
    """Positions left after the least important ones are gone."""
    return sorted(np.argsort(np.asarray(importance), kind="stable")[n_removed:].tolist())


# ------------------------------------------------------------------------------------------ the schedule


def algorithm_2(n, keep, steps, h, p):
    """The paper's loop for one layer with n filters: what happens, in order."""
    events, left, target = [], n, max(1, round(keep * n))
    for j in range(1, steps + 1):
        if j % h == 0 and left > target:
            left = max(target, left - max(1, round(p * left)))
            events.append(left)
        events.append("step")
    return events


@pytest.mark.parametrize("mode", ["coupled", "independent"])
@pytest.mark.parametrize(
    ("keep", "steps", "h", "p"),
    [
        (0.1, 40, 3, 0.2),
        (0.25, 9, 1, 0.3),
        (0.5, 7, 5, 0.9),
        (0.05, 25, 2, 0.2),
        (1.0, 3, 1, 0.5),
        (0.3, 30, None, 0.2),
    ],
)
def test_removals_and_steps_alternate_as_in_algorithm_2(mode, keep, steps, h, p, monkeypatch):
    removals = []  # (steps done before, sizes after)
    steps_done = [0]

    def spy_step(*_):
        steps_done[0] += 1
        return torch.zeros(())

    def spy_shrink(model, plan, kept):
        removals.append((steps_done[0], {axis: len(k) for axis, k in kept.items()}))
        return shrink(model, plan, kept)

    def spy_masks(model, plan, sets):
        removals.append((steps_done[0], {key: len(k) for key, k in sets.items()}))

    monkeypatch.setattr(module, "step", spy_step)
    monkeypatch.setattr(module, "shrink", spy_shrink)
    monkeypatch.setattr(module, "apply_masks", spy_masks)
    base = tiny.base()
    sub = prune(base, tiny.task(), keep=keep, steps=steps, prune_every=h, prune_share=p, mode=mode)
    h = h or max(1, steps // 100)
    keys = prunable(base.plan) if mode == "coupled" else layer_sets(base.plan)
    for key in keys:
        n = base.plan["axes"][key.partition("@")[0]]["n"]
        wanted = [(e, algorithm_2(n, keep, steps, h, p)[:i].count("step"))
                  for i, e in enumerate(algorithm_2(n, keep, steps, h, p)) if e != "step"]  # fmt: skip
        got, last = [], n
        for done, now in removals:
            if now[key] != last:
                got.append((now[key], done))
                last = now[key]
        assert got == wanted
        assert sizes(sub)[key] == (wanted[-1][0] if wanted else n) == max(1, round(keep * n))
    assert steps_done[0] == steps


@pytest.mark.parametrize(("steps", "every"), [(1, 1), (99, 1), (199, 1), (200, 2), (1000, 10)])
def test_prune_every_follows_the_number_of_steps(steps, every):
    assert IFP(steps=steps).prune_every == every
    assert IFP(steps=steps, prune_every=7).prune_every == 7


def test_too_few_steps_for_the_target_say_how_many_it_takes():
    options = {"prune_every": 3, "prune_share": 0.2, "batch_size": 16}
    with pytest.raises(OptionError, match="cannot reach its target in 5 steps") as error:
        prune(tiny.base(), tiny.task(), keep=0.25, steps=5, **options)
    enough = int(re.search(r"steps >= (\d+)", str(error.value))[1])
    assert sizes(prune(tiny.base(), tiny.task(), keep=0.25, steps=enough, **options)) == {"a0": 2, "a1": 3}
    with pytest.raises(OptionError, match="cannot reach"):
        prune(tiny.base(), tiny.task(), keep=0.25, steps=enough - 1, **options)


# ------------------------------------------------------------------------------------------ importance


@torch.no_grad()
def naive_activations(images):
    """Mean post-norm activation of every filter of the network by layer: post-ReLU, absolute before the addition."""
    m, x = full_model(tiny.base()).eval(), tiny.SPEC(images)
    out = {"conv1": torch.relu(m.bn1(m.conv1(x)))}
    out["conv2"] = torch.relu(m.bn2(m.conv2(out["conv1"])))
    out["conv3"] = m.bn3(m.conv3(out["conv2"])).abs()
    return {layer: y.double().mean((0, 2, 3)).numpy() for layer, y in out.items()}


@pytest.mark.parametrize("images", [60, 1100])  # the second takes several chunks
def test_activation_importance_is_the_mean_over_all_training_images(images):
    data = tiny.task()
    index = torch.arange(images) % len(data.train_images)
    brighter = torch.arange(images).view(-1, 1, 1, 1) // 60
    noisy = (data.train_images[index].int() + brighter).clamp(max=255).to(torch.uint8)
    data = Data("animals", data.labels, noisy, data.train_labels[index], data.test_images, data.test_labels)
    by_layer = naive_activations(data.train_images)
    sub = prune(tiny.base(), data, keep=0.5, **ONCE)
    assert sub.channels["a0"].tolist() == smallest_out(by_layer["conv1"] + by_layer["conv3"], 4)
    assert sub.channels["a1"].tolist() == smallest_out(by_layer["conv2"], 6)


def test_independent_layers_have_their_own_importance_and_set():
    by_layer = naive_activations(tiny.task().train_images)
    sub = prune(tiny.base(), tiny.task(), keep=0.5, mode="independent", **ONCE)
    assert sorted(sub.channels) == ["a0@conv1", "a0@conv3", "a1@conv2"] == sorted(layer_sets(tiny.base().plan))
    for key, kept in sub.channels.items():
        values = by_layer[key.partition("@")[2]]
        assert kept.tolist() == smallest_out(values, len(values) // 2)
    assert sub.channels["a0@conv1"].tolist() != sub.channels["a0@conv3"].tolist()


def test_activation_importance_of_heads_and_nodes():
    base, seen = tiny.base("vit"), {}
    model = full_model(base).eval()
    for i, block in enumerate(model.blocks):
        block.attn.proj.register_forward_pre_hook(lambda m, args, i=i: seen.update({(i, "head"): args[0]}))
        block.mlp.fc2.register_forward_pre_hook(lambda m, args, i=i: seen.update({(i, "node"): args[0]}))
    with torch.no_grad():
        model(tiny.SPEC(tiny.task().train_images))
    sub = prune(base, tiny.task(), keep=0.5, **ONCE)
    for axis in prunable(base.plan):
        info = base.plan["axes"][axis]
        block = int(info["block"].rpartition(".")[2])
        values = seen[block, info["kind"]].abs().double().mean((0, 1))
        values = values.view(3, 4).mean(1) if info["kind"] == "head" else values
        assert sub.channels[axis].tolist() == smallest_out(values, info["n"] - max(1, round(0.5 * info["n"])))


def test_taylor_importance_is_the_squared_finite_difference_of_a_gate():
    base, data = tiny.base(), tiny.data().subset(range(10))  # 200 images: two mini-batches of at most 128
    model = task_model(base, 10, seed=0).double().eval()
    gates = {"bn1": torch.ones(8), "bn2": torch.ones(12), "bn3": torch.ones(8)}
    for name in gates:
        model.get_submodule(name).register_forward_hook(
            lambda m, args, out, name=name: out * gates[name].double().view(-1, 1, 1)
        )

    @torch.no_grad()
    def loss(part):
        x = tiny.SPEC(data.train_images[part]).double()
        return F.cross_entropy(model(x), data.train_labels[part]).item()

    parts = [slice(0, 128), slice(128, 200)]
    importance = {}
    for name, gate in gates.items():
        importance[name] = np.zeros(len(gate))
        for unit in range(len(gate)):
            for part in parts:
                ends = []
                for value in (1 + 1e-4, 1 - 1e-4):
                    gates[name] = torch.ones(len(gate), dtype=torch.float64)
                    gates[name][unit] = value
                    ends.append(loss(part))
                gates[name] = torch.ones(len(gate))
                importance[name][unit] += ((ends[0] - ends[1]) / 2e-4) ** 2 / len(parts)
    sub = prune(base, data, keep=0.5, importance="taylor", **ONCE)
    assert sub.channels["a0"].tolist() == smallest_out(importance["bn1"] + importance["bn3"], 4)
    assert sub.channels["a1"].tolist() == smallest_out(importance["bn2"], 6)
    activation = prune(base, data, keep=0.5, **ONCE)
    assert any(not np.array_equal(sub.channels[a], activation.channels[a]) for a in ("a0", "a1"))


def test_taylor_importance_has_momentum_over_the_removals(monkeypatch):
    rng = np.random.default_rng(4)
    scripted = [rng.random((2, 12)) for _ in range(5)]  # of the filters in full coordinates, two layers at most
    left = {"a0": np.arange(8), "a1": np.arange(12)}
    memory, plain = {a: {} for a in left}, {a: np.arange(len(k)) for a, k in left.items()}
    calls = iter(scripted)
    alive = {a: k.copy() for a, k in left.items()}

    def fake(model, plan, axes, data, spec, where):
        values = next(calls)
        out = {
            "a0": {"conv1": torch.tensor(values[0, alive["a0"]]), "conv3": torch.tensor(values[1, alive["a0"]])},
            "a1": {"conv2": torch.tensor(values[0, alive["a1"]])},
        }
        assert all(plan["axes"][axis]["n"] == len(alive[axis]) for axis in axes)
        return out

    def spy(model, plan, kept):
        for axis, positions in kept.items():
            alive[axis] = alive[axis][positions]
        return shrink(model, plan, kept)

    monkeypatch.setattr(module, "taylor", fake)
    monkeypatch.setattr(module, "shrink", spy)
    options = {"importance": "taylor", "steps": 5, "prune_every": 1, "prune_share": 0.2, "batch_size": 16}
    sub = prune(tiny.base(), tiny.task(), keep=0.4, **options)
    for values in scripted:
        for axis in left:
            now = values.sum(0) if axis == "a0" else values[0]
            target = max(1, round(0.4 * (8 if axis == "a0" else 12)))
            for k in left[axis]:
                memory[axis][k] = 0.9 * memory[axis][k] + 0.1 * now[k] if k in memory[axis] else now[k]
            for sets, importance in ((left, memory[axis]), (plain, now)):
                gone = min(max(1, round(0.2 * len(sets[axis]))), len(sets[axis]) - target)
                order = sorted(sets[axis], key=lambda k: importance[k])
                sets[axis] = np.array(sorted(order[gone:]))
    assert all(sub.channels[axis].tolist() == left[axis].tolist() for axis in left)
    assert any(plain[axis].tolist() != left[axis].tolist() for axis in left)


def test_among_equals_the_later_positions_go(monkeypatch):
    def equal(model, plan, axes, *_):
        return {a: {w["layer"]: torch.ones(plan["axes"][a]["n"]) for w in plan["axes"][a]["writers"]} for a in axes}

    monkeypatch.setattr(module, "activation", equal)
    sub = prune(tiny.base(), tiny.task(), keep=0.25, steps=4, prune_every=1, prune_share=0.3, batch_size=16)
    assert {a: k.tolist() for a, k in sub.channels.items()} == {"a0": [0, 1], "a1": [0, 1, 2]}


# ------------------------------------------------------------------------------------------ what is trained


def test_the_shrunk_network_trains_as_the_masked_one_would():
    base, data = tiny.base(), tiny.task()
    channels = {"a0": np.array([0, 3, 4, 6]), "a1": np.array([1, 2, 5, 7, 9, 11])}
    full = task_model(base, 3, seed=0)
    slim, _ = shrink(full, base.plan, channels)
    reference = masked(full, base.plan, channels)
    stream = batches(data.train_images, data.train_labels, tiny.SPEC, batch_size=16, seed=0, device=tiny.CPU)
    first, second = next(stream), next(stream)
    losses = []
    for model in (slim, reference):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
        model.train()
        losses.append([step(model, optimizer, *first).item()])
        if model is reference:  # its columns of dropped channels had gradients of their own
            model = masked(model, base.plan, channels).train()
        losses[-1].append(F.cross_entropy(model(second[0]), second[1]).item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert abs(losses[0][0] - losses[0][1]) > 1e-3


@pytest.mark.parametrize("name", ["cnn", "vit"])
def test_independent_filters_that_are_gone_stay_zero_while_the_rest_trains(name):
    base = tiny.base(name)
    sub = prune(base, tiny.task(), keep=0.5, mode="independent", steps=4, prune_every=1, prune_share=0.5, batch_size=16)
    untrained = task_model(base, 3, seed=0).state_dict()
    for key, kept in sub.channels.items():
        axis, _, layer = key.partition("@")
        n = base.plan["axes"][axis]["n"]
        gone = np.setdiff1d(np.arange(n), kept)
        assert len(kept) == max(1, round(0.5 * n))
        if name == "vit":  # what reads the units: proj for heads, fc2 for nodes
            reader = layer.replace("qkv", "proj").replace("fc1", "fc2")
            columns = sub.weights[f"{reader}.weight"].reshape(12, n, -1)
            assert not columns[:, gone].any() and np.abs(columns[:, kept]).max() > 0
            continue
        norm = layer.replace("conv", "bn") if name == "cnn" else layer
        for part in ("weight", "bias"):
            value = sub.weights[f"{norm}.{part}"]
            assert not value[gone].any() and (np.abs(value[kept]).reshape(len(kept), -1).max(1) > 0).all()
            assert not np.array_equal(value[kept], untrained[f"{norm}.{part}"].numpy()[kept])
    assert all(np.shape(v) == np.shape(base.weights[k]) for k, v in sub.weights.items() if k not in base.plan["head"])


@pytest.mark.parametrize("importance", ["activation", "taylor"])
def test_it_learns_the_task(importance):
    options = {"steps": 40, "prune_every": 1, "batch_size": 32, "importance": importance, "lr": 0.05}
    sub = prune(tiny.base(), tiny.task(), keep=0.5, **options)
    assert sub.accuracy > 0.8
    assert prune(tiny.base(), tiny.task(), producer="random", keep=0.5).accuracy < 0.7
    assert sub.metrics["seconds"] > 0
    assert sub.weights["fc.weight"].shape == (3, 4)


@pytest.mark.parametrize(
    "options",
    [
        {"importance": "l3"}, {"mode": "both"}, {"steps": 0}, {"steps": "many"}, {"steps": 1.5}, {"batch_size": 1},
        {"prune_share": 0.0}, {"prune_share": 1}, {"prune_share": "half"}, {"prune_every": 0}, {"prune_every": "1"},
        {"lr": -0.1}, {"lr": "fast"}, {"weight_decay": -1},
    ],
)  # fmt: skip
def test_options_that_make_no_sense(options):
    with pytest.raises(OptionError, match=f"ifp: .*(.|\n)*{next(iter(options))}"):
        IFP(**options)


def test_one_image_is_too_few():
    d = tiny.task()
    one = Data("animals", d.labels, d.train_images[:1], d.train_labels[:1], d.test_images, d.test_labels)
    with pytest.raises(DataError, match="too few images"):
        prune(tiny.base(), one, keep=0.5, **ONCE)
