import copy
import functools

import numpy as np
import pytest
import timm
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mvp.plan import Plan, check_channels, count, keep_counts, make_plan, narrow, prunable
from mvp.surgery import build, indices, masked, scatter, shrink, slice_tensors
from mvp.verify import random_channels, randomised
from zoo.errors import PlanError

torch.set_num_threads(1)


def cifar_resnet18() -> nn.Module:
    model = torchvision.models.resnet18(num_classes=7)
    model.conv1, model.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()
    return model


def vgg16_bn() -> nn.Module:
    """The torchvision network with a narrow classifier: 100 of its 138 million weights are the first linear layer."""
    model = torchvision.models.vgg16_bn(num_classes=7, init_weights=False)
    model.classifier[0], model.classifier[3] = nn.Linear(512 * 49, 64), nn.Linear(64, 64)
    model.classifier[6] = nn.Linear(64, 7)
    return model


def timm_model(name: str, **options: object) -> nn.Module:
    return timm.create_model(name, num_classes=7, **options)


# name -> (make, image side, axes, unsupported axes)
MODELS = {
    "resnet18_timm": (lambda: timm_model("resnet18"), 32, 12, 0),
    "resnet18_torchvision": (lambda: torchvision.models.resnet18(num_classes=7), 32, 12, 0),
    "resnet18_cifar": (cifar_resnet18, 16, 12, 0),
    "resnet50": (lambda: torchvision.models.resnet50(num_classes=7), 32, 37, 0),
    "vgg16_bn": (vgg16_bn, 32, 15, 0),
    "mobilenet_v2": (lambda: torchvision.models.mobilenet_v2(num_classes=7), 32, 25, 0),
    "efficientnet_b0": (lambda: timm_model("efficientnet_b0"), 32, 40, 0),
    "densenet121": (lambda: torchvision.models.densenet121(num_classes=7), 32, 120, 0),
    "regnety_002": (lambda: timm_model("regnety_002"), 32, 57, 0),
    "shufflenet_v2": (lambda: torchvision.models.shufflenet_v2_x1_0(num_classes=7), 32, 19, 0),
    "convnext_atto": (lambda: timm_model("convnext_atto"), 32, 16, 4),
    "deit_tiny": (lambda: timm_model("deit_tiny_patch16_224", img_size=32), 32, 37, 13),
}


@functools.cache
def randomised_model(name: str) -> tuple[nn.Module, Plan]:
    make, side, _, _ = MODELS[name]
    torch.manual_seed(0)
    model = randomised(make(), seed=1).eval()
    return model, make_plan(model, (3, side, side), verify=False)


@torch.no_grad()
def run(model: nn.Module, plan: Plan, batch: int = 2) -> torch.Tensor:
    x = torch.randn((batch, *plan["input"]), generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    return model.eval()(x)


@pytest.mark.parametrize("name", MODELS)
def test_slim_equals_masked_full(name: str) -> None:
    model, plan = randomised_model(name)
    full = run(model, plan)
    assert (len(plan["axes"]), len(plan["axes"]) - len(prunable(plan))) == MODELS[name][2:]
    for keep in (0.5, 0.1):
        channels = random_channels(plan, prunable(plan), keep, seed=3)
        reference = run(masked(model, plan, channels), plan)
        slim = run(build(model, plan, channels), plan)
        scale = max(1.0, float(reference.abs().max()))
        assert float((slim - reference).abs().max()) / scale <= 1e-12
        assert float((reference - full).abs().max()) / scale > 1e-3  # else the comparison would prove nothing


@pytest.mark.parametrize("name", MODELS)
def test_params_and_macs_are_those_of_the_built_model(name: str) -> None:
    model, plan = randomised_model(name)
    for channels in ({}, random_channels(plan, prunable(plan), 0.3, seed=4)):
        slim = build(model, plan, channels)
        with FlopCounterMode(display=False) as counter:
            run(slim, plan, batch=1)
        assert count(plan, channels) == (sum(p.numel() for p in slim.parameters()), counter.get_total_flops() // 2)
        assert count(narrow(plan, channels)) == count(plan, channels)


@pytest.mark.parametrize("name", ["resnet18_timm", "efficientnet_b0", "shufflenet_v2", "deit_tiny"])
def test_the_narrowed_plan_is_the_plan_of_the_slim_model(name: str) -> None:
    model, plan = randomised_model(name)
    slim, narrowed = shrink(model, plan, random_channels(plan, prunable(plan), 0.67, seed=6))
    assert make_plan(slim, tuple(plan["input"]), verify=False) == narrowed
    again = random_channels(narrowed, prunable(narrowed), 0.5, seed=7)
    assert torch.allclose(run(build(slim, narrowed, again), plan), run(masked(slim, narrowed, again), plan), rtol=1e-10)


def test_build_leaves_the_skeleton_alone_and_sets_the_widths_of_modules() -> None:
    model, plan = randomised_model("efficientnet_b0")
    before = copy.deepcopy(model.state_dict())
    channels = random_channels(plan, prunable(plan), 0.4, seed=1)
    slim = build(model, plan, channels)
    with torch.no_grad():
        for p in slim.parameters():
            p.zero_()
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    for module in slim.modules():
        if isinstance(module, nn.Conv2d):
            assert tuple(module.weight.shape[:2]) == (module.out_channels, module.in_channels // module.groups)
        if isinstance(module, nn.BatchNorm2d):
            assert module.num_features == len(module.running_mean) == len(module.weight)


def test_build_from_stored_tensors_with_another_head() -> None:
    model, plan = randomised_model("resnet18_timm")
    channels = random_channels(plan, prunable(plan), 0.3, seed=1)
    slim = build(model, plan, channels)
    stored = {name: tensor.numpy() for name, tensor in slim.state_dict().items()}
    stored["fc.weight"], stored["fc.bias"] = np.ones((3, stored["fc.weight"].shape[1])), np.zeros(3)
    ghost = copy.deepcopy(model).to("meta")
    again = build(ghost, plan, channels, stored)
    assert again.fc.out_features == 3 and run(again, plan).shape == (2, 3)
    assert all(torch.equal(t, torch.as_tensor(stored[n])) for n, t in again.state_dict().items())
    again.conv1.weight.data.zero_()
    assert stored["conv1.weight"].any()  # copied, not shared


def test_build_names_every_tensor_that_does_not_fit() -> None:
    model, plan = randomised_model("resnet18_timm")
    channels = random_channels(plan, prunable(plan), 0.3, seed=1)
    with pytest.raises(PlanError) as caught:
        build(model, plan, channels, {"bn1.weight": torch.ones(64), "nothing": torch.ones(1)})
    assert len(caught.value.problems) == 2
    assert "bn1.weight: shape [64], the channel set implies [19]" in str(caught.value)
    with pytest.raises(PlanError, match="no values"):
        build(copy.deepcopy(model).to("meta"), plan, channels, {"bn1.weight": torch.ones(19)})


def test_tied_parameters_stay_tied() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(12, 8), nn.Linear(8, 3)
            self.norm, self.other = nn.BatchNorm1d(8), nn.BatchNorm1d(8)
            self.other.weight = self.norm.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(self.other(torch.relu(self.norm(self.first(x.flatten(1))))))

    plan = make_plan(Tied(), (3, 2, 2))
    slim = build(Tied(), plan, {"a0": [1, 4, 5]})
    assert slim.other.weight is slim.norm.weight and len(slim.other.weight) == 3


@functools.cache
def small_model() -> tuple[nn.Module, Plan]:
    """Concatenation, split, shuffle and depthwise layers in a few thousand weights."""
    model = torchvision.models.ShuffleNetV2([2, 1, 1], [8, 16, 24, 32, 40], num_classes=3)
    return model, make_plan(model, verify=False)


@settings(max_examples=12, deadline=None)
@given(st.data())
def test_scatter_puts_the_kept_entries_back_and_nothing_else(data: st.DataObject) -> None:
    model, plan = small_model()
    axes = data.draw(st.sets(st.sampled_from(prunable(plan))))
    channels = random_channels(plan, sorted(axes), data.draw(st.floats(0.01, 1)), data.draw(st.integers(0, 99)))
    full = dict(model.state_dict())
    zeros = {name: torch.zeros_like(tensor) for name, tensor in full.items()}
    slim = slice_tensors(full, plan, channels)
    back = scatter(slim, plan, channels, zeros)
    chosen = indices(plan, channels)
    for name, tensor in full.items():
        mask = torch.ones(tensor.shape, dtype=torch.bool)
        for d, kept in chosen.get(name, {}).items():
            alive = torch.zeros(tensor.shape[d], dtype=torch.bool)
            alive[kept] = True
            mask &= alive.view([-1 if i == d else 1 for i in range(tensor.ndim)])
        assert torch.equal(back[name], torch.where(mask, tensor, torch.zeros_like(tensor)))
        assert not zeros[name].any()
    assert all(torch.equal(a, b) for a, b in zip(slice_tensors(back, plan, channels).values(), slim.values()))
    assert all(torch.equal(scatter(slim, plan, channels, full)[name], full[name]) for name in full)


def test_slice_and_scatter_refuse_wrong_shapes() -> None:
    model, plan = randomised_model("resnet18_timm")
    with pytest.raises(PlanError, match=r"conv1.weight: shape \[3, 3\], the plan has \[64, 3, 7, 7\]"):
        slice_tensors({"conv1.weight": torch.ones(3, 3)}, plan, {"a0": [0]})
    with pytest.raises(PlanError) as caught:
        scatter({"bn1.weight": torch.ones(3), "x": torch.ones(1)}, plan, {"a0": [0]}, model.state_dict())
    assert len(caught.value.problems) == 2


@pytest.mark.parametrize("name", ["resnet18_torchvision", "vgg16_bn"])
def test_torch_pruning_shrinks_the_same_parameters(name: str) -> None:
    torch_pruning = pytest.importorskip("torch_pruning")
    model, plan = randomised_model(name)
    model = copy.deepcopy(model).float()
    x = torch.randn(1, *plan["input"])
    graph = torch_pruning.DependencyGraph().build_dependency(model, example_inputs=x)
    so_far: dict[str, np.ndarray] = {}
    for axis in prunable(plan)[::3]:
        writer = plan["axes"][axis]["writers"][0]["layer"]
        layer = model.get_submodule(writer)
        prune = torch_pruning.prune_conv_out_channels if isinstance(layer, nn.Conv2d) else None
        prune = prune or torch_pruning.prune_linear_out_channels
        n = layer.weight.shape[0]
        dropped = [0, n // 2]
        graph.get_pruning_group(layer, prune, idxs=dropped).prune()
        so_far[axis] = np.setdiff1d(np.arange(n), dropped)
        ours = build(randomised_model(name)[0], plan, so_far)
        theirs = model.state_dict()
        assert all(
            torch.equal(tensor.to(theirs[name].dtype), theirs[name]) for name, tensor in ours.state_dict().items()
        )


def test_everything_works_with_what_keep_counts_gives() -> None:
    _, plan = randomised_model("resnet18_timm")
    counts = keep_counts(plan, 0.1)
    check_channels(plan, {axis: np.arange(k) for axis, k in counts.items()})
    assert counts["a0"] == 6 and set(counts) == set(prunable(plan))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_surgery_on_cuda() -> None:
    model, plan = randomised_model("resnet18_timm")
    channels = random_channels(plan, prunable(plan), 0.3, seed=1)
    slim = build(copy.deepcopy(model).cuda(), plan, channels)
    assert all(t.is_cuda for t in slim.state_dict().values())
    assert torch.allclose(run(slim.cpu(), plan), run(masked(model, plan, channels), plan))
