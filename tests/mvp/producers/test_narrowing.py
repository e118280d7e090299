from itertools import islice

import numpy as np
import pytest
import torch

from mvp.bases import full_model, load_base, register
from mvp.nets import REGISTERED
from mvp.producers.narrowing import (
    Narrowing,
    NormOptions,
    epoch_steps,
    one_pass,
    part_of,
    pass_due,
    passes_needed,
    smallest_share,
    targets,
    top,
    weight_norms,
)
from mvp.reinit import reinitialised
from mvp.subnetwork import task_model
from mvp.surgery import build
from mvp.train import batches
from tests import tiny
from tests.tiny import registered  # noqa: F401
from zoo.errors import OptionError


def narrowing(base="cnn", n_classes=3, **options):
    return Narrowing(tiny.base(base), NormOptions(batch_size=16, **options), n_classes, where=tiny.CPU, seed=0)


# ------------------------------------------------------------------------------------------ how much goes when


@pytest.mark.parametrize(
    ("n", "target", "share", "left"),
    [
        (100, 10, 0.05, 95),
        (64, 10, 0.05, 61),  # 3.2 -> 3
        (100, 10, 0.29, 71),  # 0.29 * 100 < 29 in floating point
        (19, 5, 0.05, 18),  # the floor alone would stick
        (12, 10, 0.5, 10),  # not below the target
        (10, 10, 0.5, 10),
    ],
)
def test_one_pass_takes_the_floor_of_the_share_at_least_one_and_stops_at_the_target(n, target, share, left):
    assert one_pass({"a": n, "b": 7}, {"a": target, "b": 7}, share) == {"a": left, "b": 7}


@pytest.mark.parametrize("share", [0.05, 0.2, 0.7])
def test_passes_needed_are_those_of_the_slowest_axis(share):
    passes, left = 0, {"a": 64, "b": 9, "c": 4}
    target = {"a": 19, "b": 2, "c": 4}
    while left != target:
        left, passes = one_pass(left, target, share), passes + 1
    assert passes_needed({"a": 64, "b": 9, "c": 4}, target, share) == passes > 0
    best = smallest_share({"a": 64, "b": 9, "c": 4}, target, passes)
    assert best <= share and passes_needed({"a": 64, "b": 9, "c": 4}, target, best) <= passes
    assert best == 0.01 or passes_needed({"a": 64, "b": 9, "c": 4}, target, best - 0.01) > passes


def test_no_share_does_it_in_no_pass():
    assert smallest_share({"a": 8}, {"a": 2}, 0) is None


@pytest.mark.parametrize(("turns", "passes"), [(8, 3), (5, 5), (4, 1), (3, 0), (7, 2)])
def test_passes_are_spread_over_the_turns_and_the_last_comes_last(turns, passes):
    due = [pass_due(turn, turns, passes) for turn in range(turns)]
    assert sum(due) == passes and due[-1] == (passes > 0)
    gaps = np.diff([-1, *np.flatnonzero(due)])
    assert gaps.size == 0 or gaps.max() - gaps.min() <= 1


@pytest.mark.parametrize(("n", "batch_size"), [(48, 16), (50, 16), (49, 16), (5, 16), (2, 2), (3, 2)])
def test_an_epoch_is_as_long_as_that_of_the_batches(n, batch_size):
    data = tiny.data().sample(n, seed=0)

    def stream(start):
        return batches(
            data.train_images, data.train_labels, tiny.SPEC, batch_size=batch_size, seed=5, device=tiny.CPU, start=start
        )

    steps = epoch_steps(data, batch_size)
    after = next(islice(stream(0), steps, None))[0]
    assert torch.equal(after, next(stream(1))[0])
    assert n == 2 or not torch.equal(after, next(stream(0))[0])


def test_a_part_of_the_images():
    data = tiny.task()
    assert part_of(data, 1.0, 0) is data
    part = part_of(data, 0.3, 0)
    assert len(part.train_images) == 18 and np.bincount(part.train_labels.numpy()).tolist() == [6, 6, 6]
    assert len(part_of(data, 1e-6, 0).train_images) == 2


def test_a_base_without_units():
    name = "tests-no-units"
    register(name, lambda k: torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, k)))
    try:
        base = load_base(name, num_classes=3, input=tiny.INPUT)
        with pytest.raises(OptionError, match="norm: tests-no-units has no filters"):
            targets(base, 0.5, "norm")
    finally:
        del REGISTERED[name]
    sizes, target = targets(tiny.base(), 0.5, "norm")
    assert (sizes, target) == ({"a0": 8, "a1": 12}, {"a0": 4, "a1": 6})


def test_the_top_are_the_largest_and_of_equals_the_first():
    assert top(np.array([1.0, 3, 2, 3, 2]), 3).tolist() == [1, 2, 3]


# ------------------------------------------------------------------------------------------ norms


def test_weight_norms_of_filters_are_over_dims_1_2_3():
    base = tiny.base()
    model = full_model(base)
    norms = weight_norms(model, base.plan, ["a0", "a1"])
    for axis, layers in {"a0": ("conv1", "conv3"), "a1": ("conv2",)}.items():
        assert set(norms[axis]) == set(layers)
        for layer in layers:
            weight = model.get_parameter(f"{layer}.weight").double()
            expected = torch.stack([sum(w * w for w in one.flatten()) ** 0.5 for one in weight])
            torch.testing.assert_close(norms[axis][layer], expected.detach())


def test_weight_norms_of_heads_and_nodes_are_over_what_writes_them():
    base = tiny.base("vit")
    model = full_model(base)
    norms = weight_norms(model, base.plan, ["a1", "a3"])
    qkv = model.get_parameter("blocks.0.attn.qkv.weight").double().view(3, 3, 4, 12)  # q k v, heads, head dim, inputs
    torch.testing.assert_close(norms["a1"]["blocks.0.attn.qkv"], qkv.square().sum((0, 2, 3)).sqrt().detach())
    fc1 = model.get_parameter("blocks.0.mlp.fc1.weight").double()
    torch.testing.assert_close(norms["a3"]["blocks.0.mlp.fc1"], fc1.square().sum(1).sqrt().detach())


def naive(run, data, epochs, norm, normalise):
    """Algorithm 1 along a training run of its own: {axis: sum over steps and layers}."""
    import copy

    from mvp.train import step

    model = copy.deepcopy(run.model).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    seen = {}
    for name in ("bn1", "bn2", "bn3"):
        model.get_submodule(name).register_forward_hook(lambda m, i, out, name=name: seen.update({name: out.detach()}))
    stream = batches(data.train_images, data.train_labels, tiny.SPEC, batch_size=16, seed=3, device=tiny.CPU)
    total = {"a0": np.zeros(8), "a1": np.zeros(12)}
    for _ in range(epochs * 4):
        step(model, optimizer, *next(stream))
        for axis, layers in {"a0": "13", "a1": "2"}.items():
            for i in layers:
                if norm == "weight":
                    vector = model.get_parameter(f"conv{i}.weight").detach().square().sum((1, 2, 3)).sqrt()
                else:  # a ReLU follows bn1 and bn2; behind bn3 comes the addition
                    out = seen[f"bn{i}"]
                    vector = (out if i == "3" else out.relu()).square().sum((0, 2, 3)).sqrt()
                vector = vector.double().numpy()
                total[axis] += vector / vector.max() if normalise else vector
    return total


@pytest.mark.parametrize("norm", ["weight", "activation"])
@pytest.mark.parametrize("normalise", [False, True])
def test_norms_of_every_step_are_added_up_over_steps_and_layers(norm, normalise):
    run, data = narrowing(norm=norm, normalise=normalise), tiny.task()
    expected = naive(run, data, 2, norm, normalise)
    run.train(data, 1, seed=3)
    run.train(data, 1, seed=3, start=1)
    assert run.steps == 8
    for axis, values in expected.items():
        np.testing.assert_allclose(run.norms[axis], values, rtol=1e-4)


@pytest.mark.parametrize("norm", ["weight", "activation"])
def test_a_layer_that_is_dead_has_norm_zero_and_is_not_divided_by(norm):
    run = narrowing(norm=norm, normalise=True, lr=0.0)
    with torch.no_grad():
        for name in ("conv2.weight", "bn2.weight", "bn2.bias"):
            run.model.get_parameter(name).zero_()
    run.train(tiny.task(), 1, seed=0)
    assert (run.norms["a1"] == 0).all() and (run.norms["a0"] > 0).all()


def test_without_measuring_nothing_is_added_and_the_training_is_the_same():
    one, other = narrowing(norm="activation"), narrowing(norm="activation")
    one.train(tiny.task(), 1, seed=0)
    other.train(tiny.task(), 1, seed=0, measure=False)
    assert not any(v.any() for v in other.norms.values()) and all(v.any() for v in one.norms.values())
    for a, b in zip(one.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(a, b)


# ------------------------------------------------------------------------------------------ narrowing


def test_a_pass_keeps_the_largest_and_starts_norms_and_optimiser_anew():
    run = narrowing()
    run.train(tiny.task(), 1, seed=0)
    before, state = run.optimizer, {k: v.clone() for k, v in run.model.state_dict().items()}
    run.norms = {"a0": np.arange(8.0)[::-1].copy(), "a1": np.r_[np.zeros(6), np.arange(6.0)]}
    run.narrow({"a0": 3, "a1": 5})
    assert run.sets["a0"].tolist() == [0, 1, 2] and run.sets["a1"].tolist() == [7, 8, 9, 10, 11]
    assert torch.equal(run.model.get_parameter("conv2.weight"), state["conv2.weight"][7:, :3])
    assert {k: v.tolist() for k, v in run.norms.items()} == {"a0": [0] * 3, "a1": [0] * 5}
    assert run.optimizer is not before and not run.optimizer.state
    assert {id(p) for p in run.optimizer.param_groups[0]["params"]} == {id(p) for p in run.model.parameters()}
    run.norms = {"a0": np.array([5.0, 1, 7]), "a1": np.ones(5)}
    run.narrow({"a0": 2, "a1": 5})
    assert run.sets["a0"].tolist() == [0, 2]  # in the base's coordinates


def test_a_head_waits_for_its_task_and_is_narrowed_meanwhile():
    run = narrowing(n_classes=4)
    run.turn_to("four", 4, seed=7)
    four = {k: run.model.get_parameter(k).detach().clone() for k in ("fc.weight", "fc.bias")}
    body, norms = run.model.get_parameter("conv2.weight").detach().clone(), run.norms
    run.turn_to("three", 3, seed=8)
    assert run.model.fc.weight.shape == (3, 8) and run.model.fc.out_features == 3 and run.norms is norms
    assert torch.equal(run.model.get_parameter("conv2.weight"), body)
    run.keep({"a0": np.array([1, 3, 6, 7]), "a1": np.arange(12)})
    run.keep({"a0": np.array([0, 2, 3]), "a1": np.arange(12)})
    three = run.model.fc.weight.detach().clone()
    run.turn_to("four", 4, seed=9)
    assert torch.equal(run.model.fc.weight, four["fc.weight"][:, [1, 6, 7]])
    assert torch.equal(run.model.fc.bias, four["fc.bias"])
    module = run.model
    run.turn_to("four", 4, seed=9)
    assert run.model is module
    run.turn_to("three", 3, seed=9)
    assert torch.equal(run.model.fc.weight, three)


def test_a_new_head_is_the_one_that_a_seed_gives_at_these_widths():
    run = narrowing(n_classes=5)
    kept = {"a0": np.array([0, 4]), "a1": np.array([1, 2, 3])}
    run.keep(kept)
    run.turn_to("other", 3, seed=11)
    expected = task_model(tiny.base(), 3, channels=kept, seed=11)
    assert torch.equal(run.model.fc.weight, expected.fc.weight)
    assert torch.equal(run.model.conv2.weight, expected.conv2.weight)


def test_random_weights_in_what_is_left():
    run = narrowing()
    kept = {"a0": np.array([0, 4]), "a1": np.array([1, 2, 3])}
    run.keep(kept)
    run.norms = {"a0": np.array([1.0, 2]), "a1": np.ones(3)}
    run.reinitialise(4, seed=5)
    expected = task_model(reinitialised(tiny.base(), seed=5), 4, channels=kept, seed=5)
    assert all(torch.equal(v, expected.state_dict()[k]) for k, v in run.model.state_dict().items())
    assert run.norms["a0"].tolist() == [1, 2] and run.sets["a1"].tolist() == [1, 2, 3]
    run.narrow({"a0": 1, "a1": 3})
    assert run.sets["a0"].tolist() == [4]


def test_the_slim_network_is_the_bases_cut():
    run = narrowing("vit")
    kept = {axis: np.arange(0, len(all_), 2) for axis, all_ in run.sets.items()}
    run.keep(kept)
    full = task_model(tiny.base("vit"), 3)
    x = torch.ones(2, 3, 8, 8)
    assert torch.equal(run.model.eval()(x), build(full, tiny.base("vit").plan, kept).eval()(x))
