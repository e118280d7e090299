import torch
import torch.nn.functional as F
from torch import nn

from mvp import layout
from mvp.trace import Trace, trace

torch.set_num_threads(1)


def calls(model: nn.Module, *size: int) -> dict[str, object]:
    return {call.layer: call for call in run(model, *size).calls}


def run(model: nn.Module, *size: int) -> Trace:
    return trace(model, torch.rand(2, *size))


class Ordered(nn.Module):
    """Runs `forward` given as a function over named layers."""

    def __init__(self, forward, **layers: nn.Module) -> None:
        super().__init__()
        self.function = forward
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(self, x)


def test_gate_is_the_norm_only_when_it_takes_the_layers_output() -> None:
    model = Ordered(
        lambda m, x: m.head(m.late(m.d(torch.cat([F.relu(m.norm(m.a(x))), m.b(x)], 1))).mean((2, 3))),
        a=nn.Conv2d(3, 4, 1), norm=nn.BatchNorm2d(4), b=nn.Conv2d(3, 4, 1), d=nn.Conv2d(8, 6, 1),
        late=nn.Sequential(nn.MaxPool2d(2), nn.BatchNorm2d(6), nn.ReLU()), head=nn.Linear(6, 2),
    )  # fmt: skip
    found = calls(model, 3, 4, 4)
    assert [(c.layer, c.gate, c.relu) for c in found.values()] == [
        ("a", "norm", True), ("b", "b", False), ("d", "d", False), ("head", "head", False)
    ]  # fmt: skip


def test_relu_is_seen_inside_modules_in_place_and_as_a_clamp() -> None:
    model = Ordered(
        lambda m, x: m.head(m.c(x).clamp(min=0).mean((2, 3)) + F.relu6(m.b(x)).mean((2, 3)) + m.a(x).mean((2, 3))),
        a=nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(inplace=True)),
        b=nn.Conv2d(3, 4, 1), c=nn.Conv2d(3, 4, 1), head=nn.Linear(4, 2),
    )  # fmt: skip
    found = calls(model, 3, 4, 4)
    assert {name: c.relu for name, c in found.items()} == {"a.0": True, "b": True, "c": True, "head": False}
    assert found["a.0"].gate == "a.1"


def test_a_linear_layer_on_tokens_has_its_channels_last_and_a_conv_second() -> None:
    model = Ordered(
        lambda m, x: m.head(F.relu(m.fc(m.conv(x).permute(0, 2, 3, 1))).mean((1, 2))),
        conv=nn.Conv2d(3, 4, 1), fc=nn.Linear(4, 5), head=nn.Linear(5, 2),
    )  # fmt: skip
    found = calls(model, 3, 4, 4)
    assert (found["conv"].gate_dim, found["fc"].gate_dim, found["fc"].relu) == (1, -1, True)


def test_a_shared_layer_is_one_call_and_a_sigmoid_marks_a_gate() -> None:
    model = Ordered(
        lambda m, x: m.head((m.a(m.a(x)) * m.se(m.a(x)).sigmoid()).mean((2, 3))),
        a=nn.Conv2d(3, 3, 1), se=nn.Conv2d(3, 3, 1), head=nn.Linear(3, 2),
    )  # fmt: skip
    found = calls(model, 3, 4, 4)
    assert list(found) == ["a", "se", "head"]
    assert found["se"].gating and not found["a"].gating


def test_macs_of_each_layer() -> None:
    model = Ordered(
        lambda m, x: m.head(m.up(m.conv(x)).mean((2, 3))),
        conv=nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), up=nn.ConvTranspose2d(6, 5, 2, 2), head=nn.Linear(5, 2),
    )  # fmt: skip
    totals = []
    for coefficient, exprs in run(model, 4, 8, 8).macs:
        for expr in exprs:
            coefficient *= layout.size(expr)
        totals.append(coefficient / 2)
    assert totals == [4 * 4 * 9 * 2 * 6, 4 * 4 * 4 * 6 * 5, 5 * 2]


def test_the_head_is_what_makes_the_output_and_feeds_nothing() -> None:
    layers = {"conv": nn.Conv2d(3, 4, 1), "one": nn.Linear(4, 2), "two": nn.Linear(4, 2, bias=False)}
    both = run(Ordered(lambda m, x: (m.one((y := m.conv(x)).mean((2, 3))), m.two(y.amax((2, 3)))), **layers), 3, 4, 4)
    assert both.head == ["one.weight", "one.bias", "two.weight"]
    conv = run(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()), 3, 4, 4)
    assert conv.head == ["0.weight", "0.bias"]
    residual = Ordered(lambda m, x: (y := m.a(x)) + m.b(y), a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(4, 4, 1))
    assert run(residual, 3, 4, 4).head == []
