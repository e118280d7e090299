import copy

import numpy as np
import pytest
import torch
from torch import nn

from mvp.bases import full_model
from mvp.gates import Gates
from mvp.masks import apply_elements, apply_masks, element_masks, layer_sets
from mvp.plan import make_plan
from zoo.errors import PlanError

X = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def random_sets(plan, keep=0.5, seed=0):
    rng, sets = np.random.default_rng(seed), {}
    for key in layer_sets(plan):
        n = plan["axes"][key.partition("@")[0]]["n"]
        sets[key] = np.sort(rng.choice(n, max(1, round(keep * n)), replace=False))
    return sets


def tapped(model, module, x, side="output"):
    """What a module puts out (or takes in) in one pass, before anything changes it in place."""
    seen = []
    hook = model.get_submodule(module).register_forward_hook(
        lambda m, i, o: seen.append((o if side == "output" else i[0]).detach().clone())
    )
    with torch.no_grad():
        model(x)
    hook.remove()
    return seen[0]


def test_every_layer_of_a_residual_group_has_a_set_of_its_own(tiny_cnn, tiny_vit):
    assert layer_sets(tiny_cnn.plan) == ["a0@stem", "a0@conv2", "a1@conv1", "a2@shortcut.0", "a2@conv4", "a3@conv3"]
    heads_and_nodes = ("blocks.0.attn.qkv", "blocks.0.mlp.fc1", "blocks.1.attn.qkv", "blocks.1.mlp.fc1")
    assert tuple(key.partition("@")[2] for key in layer_sets(tiny_vit.plan)) == heads_and_nodes


@pytest.mark.parametrize("training", [False, True])
def test_removed_filters_are_exactly_zero_and_kept_ones_untouched(tiny_cnn, training):
    sets = random_sets(tiny_cnn.plan)
    model = full_model(tiny_cnn).train(training)
    plain = copy.deepcopy(model)
    apply_masks(model, tiny_cnn.plan, sets)
    norm_of = {
        "stem": "bn0",
        "conv1": "bn1",
        "conv2": "bn2",
        "conv3": "bn3",
        "conv4": "bn4",
        "shortcut.0": "shortcut.1",
    }
    for key, kept in sets.items():
        out = tapped(model, norm_of[key.partition("@")[2]], X)
        removed = np.setdiff1d(np.arange(out.shape[1]), kept)
        assert len(removed) and not out[:, removed].any(), key
        assert (out[:, kept].abs().amax((0, 2, 3)) > 0).all(), key
    assert torch.equal(tapped(model, "bn0", X)[:, sets["a0@stem"]], tapped(plain, "bn0", X)[:, sets["a0@stem"]])


@pytest.mark.parametrize("name", ["tiny_cnn", "tiny_vit"])
def test_masked_weights_do_what_gates_of_zeros_and_ones_do(name, request):
    base = request.getfixturevalue(name)
    sets = random_sets(base.plan, seed=1)
    model = full_model(base).double()
    x = X.double()
    with torch.no_grad(), Gates(model, base.plan, activations=False) as gates:
        before = model(x)
        for key, kept in sets.items():
            axis, _, layer = key.partition("@")
            gates.scales[axis, layer].zero_()
            gates.scales[axis, layer][torch.from_numpy(kept)] = 1
        gated = model(x)
    apply_masks(model, base.plan, sets)
    with torch.no_grad():
        torch.testing.assert_close(model(x), gated, rtol=1e-12, atol=1e-12)
    assert (before - gated).abs().max() > 1e-3
    again = copy.deepcopy(model)
    apply_masks(again, base.plan, sets)
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), model.state_dict().values()))


def test_a_removed_head_adds_nothing_to_the_projection(tiny_vit):
    key = layer_sets(tiny_vit.plan)[0]
    model = full_model(tiny_vit)
    taken = tapped(model, "blocks.0.attn.proj", X, "input")
    apply_masks(model, tiny_vit.plan, {key: np.array([1, 3])})
    proj = model.blocks[0].attn.proj
    assert proj.weight.view(32, 4, 8).abs().amax((0, 2)).gt(0).tolist() == [False, True, False, True]
    heads = torch.einsum("bthd,ohd->btho", taken.view(4, 17, 4, 8), proj.weight.view(32, 4, 8))
    expected = heads[:, :, [1, 3]].sum(2) + proj.bias  # the bias belongs to no head
    torch.testing.assert_close(tapped(model, "blocks.0.attn.proj", X), expected, rtol=1e-4, atol=1e-5)


class Plain(nn.Module):
    """No norms: the layers' own weights are masked."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 5, 3), nn.Linear(5, 4)
        self.fc = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.second(self.first(x).mean((2, 3))))


def test_layers_without_a_norm_lose_their_own_rows_and_biases():
    model = Plain()
    plan = make_plan(model, (3, 16, 16))
    apply_masks(model, plan, {"a0@first": np.array([4]), "a1@second": np.array([0, 2])})
    assert tapped(model, "first", X).abs().amax((0, 2, 3)).gt(0).tolist() == [False] * 4 + [True]
    assert tapped(model, "second", X).abs().amax(0).gt(0).tolist() == [True, False, True, False]


class NoScale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5, affine=False), nn.Linear(5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.norm(self.conv(x)).relu().mean((2, 3)))


def test_what_cannot_be_masked_is_said(tiny_cnn):
    model = NoScale()
    with pytest.raises(PlanError, match=r"norm .*no weights that could be zeroed"):
        apply_masks(model, make_plan(model, (3, 16, 16)), {"a0@conv": np.array([1])})
    for key in ("a0@conv1", "a9@stem", "a0"):
        with pytest.raises(PlanError, match="no such layer"):
            apply_masks(full_model(tiny_cnn), tiny_cnn.plan, {key: np.array([1])})


def test_weights_without_a_mark_are_zero_and_nothing_else_changes(tiny_cnn):
    model, rng = full_model(tiny_cnn), np.random.default_rng(0)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    masks = {"conv1.weight": rng.random((10, 8, 3, 3)) < 0.3, "conv3.bias": np.arange(9) % 2 == 0}
    apply_elements(model, masks)
    for name, value in model.state_dict().items():
        want = before[name] * torch.from_numpy(masks[name]) if name in masks else before[name]
        assert torch.equal(value, want), name
    as_tensors = element_masks(model, {k: torch.from_numpy(v) for k, v in masks.items()})
    assert all(v.dtype == torch.bool and torch.equal(v, torch.from_numpy(masks[k])) for k, v in as_tensors.items())


def test_infinite_weights_go_too(tiny_cnn):
    model = full_model(tiny_cnn)
    with torch.no_grad():
        model.conv1.weight.fill_(torch.inf)
    apply_elements(model, {"conv1.weight": np.zeros((10, 8, 3, 3), bool)})
    assert not model.conv1.weight.any()


def test_element_masks_that_do_not_fit_are_all_listed(tiny_cnn):
    model = full_model(tiny_cnn)
    before = model.conv1.weight.clone()
    wrong = {
        "conv1.weight": np.ones((10, 8, 3, 3)), "conv2.weight": np.ones(3, bool), "nope": np.ones(3, bool),
        "bn1.running_mean": np.zeros(10, bool), "conv3.weight": np.zeros((9, 8, 3, 3), bool),
    }  # fmt: skip
    with pytest.raises(PlanError, match="element masks do not fit") as error:
        apply_elements(model, wrong)
    assert len(error.value.problems) == 4 and "nope: the model has no such parameter" in str(error.value)
    assert torch.equal(model.conv1.weight, before) and model.conv3.weight.all()
