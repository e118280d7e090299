import pytest
import timm
import torch
import torchvision
from torch import nn

from mvp.gates import Gates
from mvp.plan import make_plan, prunable
from mvp.surgery import masked, shrink
from mvp.verify import random_channels, randomised
from zoo.errors import OptionError, PlanError

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def resnet() -> tuple[nn.Module, dict, torch.Tensor]:
    model = randomised(torchvision.models.resnet18(num_classes=4)).eval()
    x = torch.randn((3, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return model, make_plan(model, verify=False), x


def outputs(model: nn.Module, x: torch.Tensor, *names: str, side: str = "output") -> list[torch.Tensor]:
    """What modules put out (or take in), cloned before anything in place happens to it."""
    seen: dict[str, torch.Tensor] = {}
    hooks = [
        model.get_submodule(n).register_forward_hook(
            lambda m, i, o, n=n: seen.update({n: (o if side == "output" else i[0]).detach().clone()})
        )
        for n in names
    ]
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    return [seen[n] for n in names]


@torch.no_grad()
def test_activations_against_the_plain_means(resnet: tuple) -> None:
    model, plan, x = resnet
    with Gates(model, plan) as gates:
        model(x)
        model(2 * x)
    bn1, bn2 = [torch.cat(pair) for pair in zip(*(outputs(model, y, "bn1", "layer1.0.bn2") for y in (x, 2 * x)))]
    got = gates.activations()
    assert set(got) == set(prunable(plan)) and set(got["a0"]) == {w["layer"] for w in plan["axes"]["a0"]["writers"]}
    # bn1 is followed by a ReLU, the second norm of a block by the addition.
    torch.testing.assert_close(got["a0"]["conv1"], bn1.clamp(min=0).mean((0, 2, 3)))
    torch.testing.assert_close(got["a0"]["layer1.0.conv2"], bn2.abs().mean((0, 2, 3)))
    with Gates(model, plan, ["a0"], scales=False, order=2) as gates:
        model(x)
    expected = outputs(model, x, "bn1")[0].clamp(min=0).square().mean((0, 2, 3)).sqrt()
    torch.testing.assert_close(gates.activations()["a0"]["conv1"], expected)
    norm = outputs(model, x, "bn1")[0].clamp(min=0).square().sum((0, 2, 3)).sqrt()
    torch.testing.assert_close(gates.activations(mean=False)["a0"]["conv1"], norm)
    assert not gates.scales and set(gates.activations()) == {"a0"}
    gates.reset()
    assert gates.activations() == {}


def test_gate_gradients_are_the_finite_differences(resnet: tuple) -> None:
    model, plan, x = resnet
    target = torch.tensor([0, 1, 3])
    with Gates(model, plan, ["a0", "a5"], activations=False) as gates:

        def loss() -> torch.Tensor:
            return nn.functional.cross_entropy(model(x), target)

        before = loss()
        before.backward()
        assert before.item() == nn.functional.cross_entropy(model(x), target).item()
        for key in [("a0", "conv1"), ("a0", "layer1.1.conv2"), ("a5", "layer2.1.conv1")]:
            scale = gates.scales[key]
            assert scale.grad is not None and scale.grad.abs().max() > 0
            for unit in (0, 7):
                sides = []
                for step in (1e-6, -1e-6):
                    with torch.no_grad():
                        scale[unit] = 1 + step
                        sides.append(loss().item())
                        scale[unit] = 1
                assert (sides[0] - sides[1]) / 2e-6 == pytest.approx(scale.grad[unit].item(), rel=1e-4, abs=1e-8)


@torch.no_grad()
def test_scales_as_masks_are_the_masked_network(resnet: tuple) -> None:
    model, plan, x = resnet
    channels = random_channels(plan, prunable(plan), 0.4, seed=2)
    with Gates(model, plan, activations=False) as gates:
        for (axis, _), scale in gates.scales.items():
            scale.zero_()
            scale[torch.from_numpy(channels[axis])] = 1
        got = model(x)
    torch.testing.assert_close(got, masked(model, plan, channels)(x), rtol=1e-11, atol=1e-11)
    assert (got - model(x)).abs().max() > 1e-3  # the hooks are gone, and did something


@torch.no_grad()
def test_attention_heads_are_read_where_the_projection_takes_them_in() -> None:
    model = timm.create_model("deit_tiny_patch16_224", img_size=32, embed_dim=24, depth=1, num_heads=3, num_classes=4)
    model = randomised(model).eval()
    plan = make_plan(model, verify=False)
    heads = next(axis for axis in prunable(plan) if plan["axes"][axis]["kind"] == "head")
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    with Gates(model, plan) as gates:
        model(x)
        (taken,) = outputs(model, x, "blocks.0.attn.proj", side="input")
        expected = taken.reshape(-1, 3, 8).abs().mean((0, 2))
        torch.testing.assert_close(gates.activations()[heads]["blocks.0.attn.qkv"], expected)
        gates.scales[heads, "blocks.0.attn.qkv"][1] = 0
        got = model(x)
    torch.testing.assert_close(got, masked(model, plan, {heads: [0, 2]})(x))


@torch.no_grad()
def test_gates_of_single_images_reach_all_of_an_images_windows() -> None:
    model = timm.create_model(
        "swin_tiny_patch4_window7_224", img_size=32, patch_size=2, window_size=4, embed_dim=12, depths=(2, 1),
        num_heads=(3, 3), num_classes=4,
    )  # fmt: skip
    model = randomised(model).eval()
    plan = make_plan(model, verify=False)
    heads = [axis for axis in prunable(plan) if plan["axes"][axis]["kind"] == "head"]
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    each = torch.tensor([[1, 0.5, 0], [0.2, 1, 1]], dtype=torch.float64)

    def gated(images: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        with Gates(model, plan, heads, activations=False) as gates:
            assert gates.scales
            gates.scales.update(dict.fromkeys(gates.scales, scales))
            return model(images)

    apart = torch.cat([gated(x[i : i + 1], each[i]) for i in range(2)])
    torch.testing.assert_close(gated(x, each), apart)


@torch.no_grad()
def test_groups_and_channels_within_groups_have_gates_of_their_own() -> None:
    model = randomised(timm.create_model("resnext50_32x4d", layers=[1, 1, 1, 1], num_classes=4)).eval()
    plan = make_plan(model, verify=False)
    writer = next(w for a in plan["axes"].values() for w in a["writers"] if w["layer"] == "layer1.0.conv2")
    groups, within = writer["expr"]["prod"]
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    (out,) = outputs(model, x, writer["gate"])
    with Gates(model, plan, [groups, within]) as gates:
        model(x)
    values = out.clamp(min=0).mean((0, 2, 3)).view(32, 4)
    torch.testing.assert_close(gates.activations()[groups]["layer1.0.conv2"], values.mean(1))
    torch.testing.assert_close(gates.activations()[within]["layer1.0.conv2"], values.mean(0))


def test_gates_on_a_slim_model_with_its_narrowed_plan(resnet: tuple) -> None:
    model, plan, x = resnet
    channels = random_channels(plan, prunable(plan), 0.3, seed=2)
    slim, narrowed = shrink(model, plan, channels)
    reference = masked(model, plan, channels)
    with torch.no_grad(), Gates(slim, narrowed) as gates, Gates(reference, plan) as full:
        slim(x)
        reference(x)
    for axis, by_layer in gates.activations().items():
        for layer, values in by_layer.items():
            torch.testing.assert_close(values, full.activations()[axis][layer][torch.from_numpy(channels[axis])])


def test_wrong_use(resnet: tuple) -> None:
    model, plan, _ = resnet
    with pytest.raises(PlanError, match="lacks"):
        Gates(nn.Sequential(nn.Linear(2, 2)), plan)
    with pytest.raises(OptionError, match="order"):
        Gates(model, plan, order=3)
