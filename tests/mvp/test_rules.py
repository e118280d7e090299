"""Each rule on a small network that uses the operation: the plan must be exact, and prune what it should."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mvp.reshaping  # noqa: F401
from mvp import layout, rules
from mvp.plan import make_plan, prunable
from mvp.verify import Checker

torch.set_num_threads(1)
Function = Callable[[nn.Module, torch.Tensor], torch.Tensor]


class Small(nn.Module):
    """Two convolutions (3 -> 8 -> 8), `middle` on (batch, 8, 4, 4), and a linear head on what that gives."""

    def __init__(self, middle: Function, features: int, **layers: nn.Module | int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.middle = middle
        for name, layer in layers.items():
            setattr(self, name, layer)  # a number becomes an attribute that the plan may have to set
        self.head = nn.Linear(features, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.middle(self, self.second(F.silu(self.first(x))))
        return self.head(x.flatten(1) if x.ndim != 2 else x)


def shuffle(x: torch.Tensor, groups: int) -> torch.Tensor:
    n, c, h, w = x.shape
    return x.view(n, groups, c // groups, h, w).transpose(1, 2).reshape(n, c, h, w)


def attention(net: nn.Module, x: torch.Tensor, fused: bool) -> torch.Tensor:
    n, _, h, w = x.shape
    tokens = x.flatten(2).transpose(1, 2)
    q, k, v = net.qkv(tokens).reshape(n, h * w, 3, net.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
    plain = (q @ k.transpose(-2, -1) * 0.3).softmax(-1) @ v
    out = F.scaled_dot_product_attention(q, k, v) if fused else plain
    return net.proj(out.transpose(1, 2).reshape(n, h * w, -1)).mean(1)


def qkv() -> dict[str, nn.Module | int]:
    return {"qkv": nn.Linear(8, 48), "proj": nn.Linear(16, 6), "num_heads": 4}


# name -> (middle, features, layers, axes that can be pruned as {layer: units})
CASES: dict[str, tuple[Function, int, dict[str, nn.Module | int], dict[str, int]]] = {
    "flatten": (lambda m, x: x.flatten(1), 128, {}, {"first": 8, "second": 8}),
    "mean": (lambda m, x: x.mean((2, 3)), 8, {}, {"first": 8, "second": 8}),
    "pool": (lambda m, x: F.max_pool2d(F.avg_pool2d(x, 2), 2), 8, {}, {"first": 8, "second": 8}),
    "adaptive pool": (lambda m, x: F.adaptive_avg_pool2d(x, 2), 32, {}, {"first": 8, "second": 8}),
    "interpolate": (lambda m, x: F.interpolate(x, size=2, mode="bilinear"), 32, {}, {"first": 8, "second": 8}),
    "pad channels": (lambda m, x: F.pad(x, (0, 0, 0, 0, 2, 3)), 208, {}, {"first": 8, "second": 8}),
    "pad space": (lambda m, x: F.pad(x, (1, 1)), 192, {}, {"first": 8, "second": 8}),
    "strided": (lambda m, x: x[:, :, ::2, 1::2], 32, {}, {"first": 8, "second": 8}),
    "cat": (lambda m, x: torch.cat([x, m.other(x)], 1), 192, {"other": nn.Conv2d(8, 4, 1)},
            {"first": 8, "second": 8, "other": 4}),
    "stack": (lambda m, x: torch.stack([x, m.other(x)], 2), 256, {"other": nn.Conv2d(8, 8, 1)},
              {"first": 8, "second": 8}),
    "chunk": (lambda m, x: torch.mul(*x.chunk(2, 1)), 64, {}, {"first": 8, "second": 4}),
    "slice": (lambda m, x: x[:, 3:], 80, {}, {"first": 8, "second": 5}),
    "shuffle": (lambda m, x: shuffle(x, 2), 128, {}, {"first": 8, "second": 4}),
    "depthwise": (lambda m, x: m.other(x), 128, {"other": nn.Conv2d(8, 8, 3, padding=1, groups=8)},
                  {"first": 8, "second": 8}),
    "grouped": (lambda m, x: m.other(x), 192, {"other": nn.Conv2d(8, 12, 1, groups=2)},
                {"first": 8, "second": 2, "second ": 4, "other": 6}),
    "transposed": (lambda m, x: m.other(x), 320, {"other": nn.ConvTranspose2d(8, 5, 2, 2)},
                   {"first": 8, "second": 8, "other": 5}),
    "group norm": (lambda m, x: m.norm(x), 128, {"norm": nn.GroupNorm(4, 8)}, {"first": 8, "second": 4}),
    "batch norm": (lambda m, x: F.relu6(m.norm(x)), 128, {"norm": nn.BatchNorm2d(8)}, {"first": 8, "second": 8}),
    "layer norm": (lambda m, x: m.norm(x.mean((2, 3))), 8, {"norm": nn.LayerNorm(8)}, {"first": 8}),
    "softmax": (lambda m, x: x.mean((2, 3)).softmax(1), 8, {}, {"first": 8}),
    "over channels": (lambda m, x: x / x.norm(dim=1, keepdim=True), 128, {}, {"first": 8}),
    "single entries": (lambda m, x: x[:, 0], 16, {}, {"first": 8}),
    "indexed": (lambda m, x: x[:, torch.tensor([1, 1, 4])], 48, {}, {"first": 8}),
    "rolled": (lambda m, x: x.roll(1, 1), 128, {}, {"first": 8}),
    "unknown": (lambda m, x: F.pixel_shuffle(x, 2).cumprod(1), 128, {}, {"first": 8}),
    "attention": (lambda m, x: attention(m, x, True), 6, qkv(),
                  {"first": 8, "second": 8, "qkv": 4, "proj": 6}),
    "plain attention": (lambda m, x: attention(m, x, False), 6, qkv(),
                        {"first": 8, "second": 8, "qkv": 4, "proj": 6}),
    "expand": (lambda m, x: x + m.token.weight.view(1, -1, 1, 1).expand(x.shape[0], -1, 4, 4), 128,
               {"token": nn.Linear(8, 1)}, {"first": 8, "second": 8}),
}  # fmt: skip


# A width written as a number in the code does not follow the plan: the trace cannot see it, the verification does.
NUMBERS = ("slice", "shuffle")


@pytest.mark.parametrize("name", CASES)
def test_rule(name: str) -> None:
    middle, features, layers, expected = CASES[name]
    model = Small(middle, features, **layers)
    traced = make_plan(model, (3, 4, 4), verify=False)
    plan = make_plan(model, (3, 4, 4))
    assert (prunable(plan) == prunable(traced)) == (name not in NUMBERS)
    found: dict[str, int] = {}
    for axis in prunable(plan):
        layer = plan["axes"][axis]["writers"][0]["layer"]
        found[layer + " " if layer in found else layer] = plan["axes"][axis]["n"]
    assert found == expected
    checker = Checker(model, plan)
    for keep in (0.5, 0.3):
        assert checker.fails(prunable(plan), [keep]) is None
        assert checker.error(prunable(plan), keep) < 1e-12
    assert plan["head"] == ["head.weight", "head.bias"]


def test_an_unknown_operation_freezes_what_it_touches_and_says_so() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 6, 1), nn.Linear(36, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.second(self.first(x)).mean((2, 3))
            return self.head(torch.tril(torch.linalg.pinv(x[:, :, None] * x[:, None])).flatten(1))

    plan = make_plan(Odd(), (3, 2, 2))
    by_layer = {entry["writers"][0]["layer"]: entry for entry in plan["axes"].values()}
    assert by_layer["first"]["unsupported"] is None
    assert by_layer["second"]["unsupported"] is not None


def test_broadcast_makes_equal_dimensions_one() -> None:
    layouts = rules.Layouts()
    a, b = torch.zeros(2, 3, 1), torch.zeros(3, 4)
    rules.apply(layouts, "add", (a, b), {}, out := a + b)
    assert layouts.get(a)[1] is layouts.get(b)[0] is layouts.get(out)[1]
    assert layouts.get(b)[1] is layouts.get(out)[2]
    with pytest.raises(layout.LayoutError, match="no rule for nonsense"):
        rules.apply(layouts, "nonsense", (a,), {}, torch.zeros(5))
