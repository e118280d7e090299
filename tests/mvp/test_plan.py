import copy
import json
import math
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mvp.plan import (
    axes_of,
    check_channels,
    count,
    full_channels,
    keep_counts,
    kept_indices,
    make_plan,
    narrow,
    prunable,
    units,
    width,
)
from zoo.errors import OptionError, PlanError

torch.set_num_threads(1)


class Block(nn.Module):
    """A CIFAR residual block with functional ReLU; shortcut "pad" (option A), "conv" (1x1), or None."""

    def __init__(self, width: int, out: int, shortcut: str | None) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, out, 3, 1 + (width < out), 1, bias=False), nn.BatchNorm2d(out)
        self.conv2, self.bn2 = nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out)
        self.short = nn.Conv2d(width, out, 1, 1 + (width < out), bias=False) if shortcut == "conv" else None
        self.pad = (out - width) // 2 if shortcut == "pad" else 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.short is not None:
            x = self.short(x)
        elif self.pad:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad))
        return F.relu(y + x)


class Net(nn.Module):
    def __init__(self, shortcut: str) -> None:
        super().__init__()
        every = shortcut if shortcut == "conv" else None
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8)
        self.blocks = nn.Sequential(Block(8, 8, every), Block(8, 16, shortcut), Block(16, 16, every))
        self.fc = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.blocks(F.relu(self.bn1(self.conv1(x))))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


def layers(plan: dict[str, Any]) -> dict[str, list[str]]:
    return {axis: [writer["layer"] for writer in entry["writers"]] for axis, entry in plan["axes"].items()}


def test_a_residual_net_with_a_conv_on_every_shortcut() -> None:
    plan = make_plan(Net("conv"))
    assert layers(plan) == {
        "a0": ["conv1"],
        "a1": ["blocks.0.conv1"],
        "a2": ["blocks.0.conv2", "blocks.0.short"],
        "a3": ["blocks.1.conv1"],
        "a4": ["blocks.1.conv2", "blocks.1.short"],
        "a5": ["blocks.2.conv1"],
        "a6": ["blocks.2.conv2", "blocks.2.short"],
    }
    assert prunable(plan) == list(plan["axes"])
    assert plan["head"] == ["fc.weight", "fc.bias"]
    assert plan["axes"]["a2"]["depth"] == 2.5 and plan["axes"]["a2"]["block"] == "blocks.0"
    assert plan["axes"]["a1"]["writers"] == [
        {"layer": "blocks.0.conv1", "depth": 1, "expr": "a1", "gate": "blocks.0.bn1", "side": "output", "dim": 1,
         "relu": True}
    ]  # fmt: skip
    last, shortcut = plan["axes"]["a2"]["writers"]
    assert (last["gate"], last["relu"]) == ("blocks.0.bn2", False)
    assert (shortcut["gate"], shortcut["relu"]) == ("blocks.0.short", False)


def test_a_padded_shortcut_keeps_its_zeros_as_constants() -> None:
    plan = make_plan(Net("pad"))
    assert plan["params"]["fc.weight"] == [5, {"cat": [4, "a0", 4]}]
    assert layers(plan)["a0"] == ["conv1", "blocks.0.conv2", "blocks.1.conv2", "blocks.2.conv2"]
    assert "a0" in prunable(plan)


def test_two_traces_are_equal_and_survive_json() -> None:
    torch.manual_seed(0)
    first = make_plan(timm.create_model("mobilenetv3_small_050"), (3, 32, 32))
    torch.manual_seed(1)
    second = make_plan(timm.create_model("mobilenetv3_small_050"), (3, 32, 32))
    assert first == second == json.loads(json.dumps(first))
    assert list(first["axes"]) == [f"a{i}" for i in range(len(first["axes"]))]


def test_the_plan_does_not_depend_on_precision_or_on_weights_being_there() -> None:
    plan = make_plan(Net("conv"), verify=False)
    assert make_plan(Net("conv").half(), verify=False) == plan == make_plan(Net("conv").double(), verify=False)
    assert make_plan(Net("conv").to("meta"), verify=False) == plan


def test_tracing_leaves_the_model_as_it_was() -> None:
    model = Net("conv").train()
    model.blocks[1].eval()
    calls: list[int] = []
    model.conv1.register_forward_hook(lambda *_: calls.append(1))
    modes = [module.training for module in model.modules()]
    state = copy.deepcopy(model.state_dict())
    fast = torch.backends.mha.get_fastpath_enabled()
    make_plan(model)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    assert [len(m._forward_hooks) for m in model.modules()] == [int(m is model.conv1) for m in model.modules()]
    assert not any(m._forward_pre_hooks for m in model.modules())
    assert torch.backends.mha.get_fastpath_enabled() == fast
    with pytest.raises(RuntimeError):
        make_plan(model, (5, 8, 8))
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_heads_of_models() -> None:
    small = {"img_size": 32, "embed_dim": 24, "depth": 1, "num_heads": 3}
    distilled = make_plan(timm.create_model("deit_tiny_distilled_patch16_224", num_classes=4, **small))
    assert distilled["head"] == ["head.weight", "head.bias", "head_dist.weight", "head_dist.bias"]
    features = make_plan(timm.create_model("resnet18", num_classes=0), verify=False)
    assert features["head"] == []
    # The last stream is the output, so its width may not change.
    assert features["params"]["layer4.1.conv2.weight"][0] == 512


def test_transformer_axes_are_heads_and_nodes_and_the_stream_stays() -> None:
    model = timm.create_model("deit_tiny_patch16_224", img_size=32, embed_dim=24, depth=2, num_heads=3, num_classes=4)
    plan = make_plan(model)
    kinds = {axis: entry["kind"] for axis, entry in plan["axes"].items() if axis in prunable(plan)}
    assert list(kinds.values()) == ["head", "node", "head", "node"]
    (heads, nodes, *_) = kinds
    assert plan["axes"][heads]["n"] == 3 and plan["axes"][nodes]["n"] == 96
    writer = plan["axes"][heads]["writers"][0]
    assert (writer["layer"], writer["gate"], writer["side"]) == ("blocks.0.attn.qkv", "blocks.0.attn.proj", "input")
    assert width(plan, writer["expr"]) == 24 and axes_of(writer["expr"])[0] == heads
    assert plan["axes"][heads]["block"] == plan["axes"][nodes]["block"] == "blocks.0"
    assert ["blocks.0.attn", "num_heads", heads] in plan["attrs"]
    reasons = {entry["unsupported"] for axis, entry in plan["axes"].items() if axis not in kinds}
    assert reasons == {"norm over the axis", "contraction of two activations (q.k)"}


def test_a_squeeze_excitation_gate_is_no_writer_of_the_channels_it_scales() -> None:
    plan = make_plan(timm.create_model("mobilenetv3_small_050"), verify=False)
    written = {layer for group in layers(plan).values() for layer in group}
    assert any(layer.endswith("se.conv_reduce") for layer in written)
    assert not any(layer.endswith("se.conv_expand") for layer in written)
    assert all(entry["writers"] for entry in plan["axes"].values())
    ranks = sorted({w["depth"] for entry in plan["axes"].values() for w in entry["writers"]})
    assert ranks == list(range(len(ranks)))


def test_check_channels_lists_every_problem() -> None:
    plan = make_plan(Net("conv"), verify=False)
    plan["axes"]["a6"]["unsupported"] = "norm over the axis"
    bad = {
        "a0": [0, 8, 9],
        "a1": [1, 1, 2],
        "a2": [3, 1],
        "a3": [],
        "a4": [0.5, 1.0],
        "a5": np.array([True, False]),
        "a6": [0, 1],
        "a77": [0],
    }
    with pytest.raises(PlanError) as caught:
        check_channels(plan, bad)
    text = str(caught.value)
    assert len(caught.value.problems) == 8
    for words in ("a0: index 8 out of range", "a1: 1 indices repeated", "a2: indices must be in ascending order",
                  "a3: keeps nothing", "a4: expected a 1-D list of integer", "a5: expected a 1-D list of integer",
                  "a6 (written by blocks.2.conv2, blocks.2.short) cannot be pruned: norm over the axis",
                  "a77: no such axis"):  # fmt: skip
        assert words in text
    check_channels(plan, {"a0": np.array([0, 7], dtype=np.int32), "a6": np.arange(16)})
    check_channels(plan, full_channels(plan))
    with pytest.raises(PlanError, match="out of range"):
        narrow(plan, {"a0": [-1]})


def test_keep_counts() -> None:
    plan = make_plan(Net("conv"), verify=False)
    assert keep_counts(plan, 0.1) == {"a0": 1, "a1": 1, "a2": 1, "a3": 2, "a4": 2, "a5": 2, "a6": 2}
    assert keep_counts(plan, 1) == {axis: len(kept) for axis, kept in full_channels(plan).items()}
    for keep in (0, -0.1, 1.1, math.nan):
        with pytest.raises(OptionError, match="keep ratio"):
            keep_counts(plan, keep)


def test_count_and_narrow_by_hand() -> None:
    plan = make_plan(Net("conv"), verify=False)
    conv = 3 * 9 * 8 + 2 * 8 * 8 * 9 + 8 * 8 + 8 * 16 * 9 + 16 * 16 * 9 + 8 * 16 + 2 * 16 * 16 * 9 + 16 * 16
    norm = 2 * (3 * 8 + 4 * 16)
    assert count(plan)[0] == conv + norm + 16 * 5 + 5
    large, small = 32 * 32, 16 * 16
    macs = large * (3 * 9 * 8 + 2 * 8 * 8 * 9 + 8 * 8)
    macs += small * (8 * 16 * 9 + 16 * 16 * 9 + 8 * 16 + 2 * 16 * 16 * 9 + 16 * 16) + 16 * 5
    assert count(plan)[1] == macs
    slim = narrow(plan, {"a0": [1, 2, 5]})
    assert slim["axes"]["a0"]["n"] == 3 and slim["shapes"]["blocks.0.conv1.weight"] == [8, 3, 3, 3]
    assert count(slim) == count(plan, {"a0": [1, 2, 5]}) == (count(plan)[0] - 5 * (27 + 2 + 72 + 8), count(slim)[1])
    assert plan["axes"]["a0"]["n"] == 8  # the plan itself is unchanged


expressions = st.recursive(
    st.one_of(st.integers(1, 3), st.sampled_from(["x", "y", "z"])),
    lambda inner: st.builds(
        lambda kind, parts: {kind: parts}, st.sampled_from(["prod", "cat"]), st.lists(inner, min_size=1, max_size=3)
    ),
    max_leaves=5,
)
SIZES = {"x": 2, "y": 3, "z": 1}


@given(expressions, st.sets(st.integers(0, 1), min_size=1), st.sets(st.integers(0, 2), min_size=1))
def test_kept_indices_and_units_against_masks(expr: Any, x: set[int], y: set[int]) -> None:
    plan = {"axes": {axis: {"n": n} for axis, n in SIZES.items()}}
    channels = {"x": sorted(x), "y": sorted(y)}

    def entries(e: Any) -> list[dict[str, set[int]]]:
        """For each entry of the dimension, which units of which axes it belongs to, by brute force."""
        if isinstance(e, int):
            return [{} for _ in range(e)]
        if isinstance(e, str):
            return [{e: {i}} for i in range(SIZES[e])]
        ((kind, parts),) = e.items()
        if kind == "cat":
            return [entry for part in parts for entry in entries(part)]
        out: list[dict[str, set[int]]] = [{}]
        for part in parts:
            right = entries(part)
            out = [{k: a.get(k, set()) | b.get(k, set()) for k in {*a, *b}} for a in out for b in right]
        return out

    brute = entries(expr)
    alive = [i for i, entry in enumerate(brute) if all(u <= set(channels.get(a, [0])) for a, u in entry.items())]
    assert kept_indices(plan, expr, channels).tolist() == alive
    assert width(plan, expr, channels) == len(alive) and width(plan, expr) == len(brute)
    for axis in SIZES:
        owners = units(plan, expr, axis)
        assert all(owner == -1 if axis not in e else owner in e[axis] for owner, e in zip(owners, brute))
    assert set(axes_of(expr)) == {axis for entry in brute for axis in entry}
