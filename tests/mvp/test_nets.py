import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mvp.nets import REGISTERED

# MACs and parameters with 10 outputs at 32 x 32. mobilenet_v2: LcP's 265.69M. resnet18: 0.556G, with 11.17M parameters.
# resnet20: 0.27M parameters, resnet56: 0.85M (He et al. 2016, table 6) and 125M MACs; option B adds a little to both.
SIZES = {
    "resnet18": (555_422_720, 11_173_962),
    "resnet18_conv_shortcuts": (576_394_240, 11_528_266),
    "resnet20": (40_813_184, 272_474),
    "resnet56": (125_747_840, 855_770),
    "vgg13": (228_267_008, 9_416_010),
    "vgg_narrow": (14_599_424, 591_450),
    "vgg16": (313_201_664, 14_728_266),
    "vgg19": (398_136_320, 20_040_522),
    "mobilenet_v2": (265_691_648, 2_236_682),
    "vit_small_32": (182_849_664, 2_693_578),
}
X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def build(name, num_classes=10):
    torch.manual_seed(0)
    return REGISTERED[name](num_classes).eval()


def convolutions(model, side=None):
    return [m for m in model.modules() if isinstance(m, nn.Conv2d) and side in (None, m.kernel_size[0])]


def test_every_registered_network_is_checked_here():
    assert set(SIZES) == set(REGISTERED)


@pytest.mark.parametrize("name", sorted(REGISTERED))
def test_size_and_output(name):
    model = build(name)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        y = model(X[:1])
    assert y.shape == (1, 10) and y.isfinite().all()
    macs, params = SIZES[name]
    assert counter.get_total_flops() == 2 * macs
    assert sum(p.numel() for p in model.parameters()) == params


@pytest.mark.parametrize("name", sorted(REGISTERED))
def test_outputs_follow_the_classes_and_the_seed(name):
    model, again = build(name, 7), build(name, 7)
    with torch.no_grad():
        y = model(X)
        assert y.shape == (2, 7)
        assert torch.equal(again(X), y)
        # With the batch's own statistics: an untrained deep network in eval mode gives nearly 0 whatever it sees.
        y = model.train()(X)
    assert not torch.allclose(y[0], y[1], atol=1e-3)


@pytest.mark.parametrize("name", sorted(REGISTERED))
def test_every_parameter_takes_part(name):
    model = build(name)
    model(X).square().sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_mobilenet_ends_in_a_map_of_8_by_8():
    shapes = []
    model = build("mobilenet_v2")
    model.features.register_forward_hook(lambda module, x, y: shapes.append(tuple(y.shape)))
    model(X)
    assert shapes == [(2, 1280, 8, 8)]


def test_resnet18_keeps_32_px_in_its_first_stage():
    shapes = []
    model = build("resnet18")
    model.layer1.register_forward_hook(lambda module, x, y: shapes.append(tuple(y.shape)))
    model(X)
    assert shapes == [(2, 64, 32, 32)] and len(convolutions(model, 1)) == 3


def test_every_shortcut_of_the_stamp_variant_has_a_convolution():
    model = build("resnet18_conv_shortcuts")
    assert len(convolutions(model, 1)) == 8 and len(convolutions(model, 3)) == 17


@pytest.mark.parametrize(("name", "depth"), [("resnet20", 20), ("resnet56", 56)])
def test_cifar_resnets_have_their_depth(name, depth):
    model = build(name)
    assert len(convolutions(model, 3)) + 1 == depth and len(convolutions(model, 1)) == 2


@pytest.mark.parametrize(("name", "depth"), [("vgg13", 10), ("vgg_narrow", 10), ("vgg16", 13), ("vgg19", 16)])
def test_vggs_have_their_convolutions_and_one_linear_layer(name, depth):
    model = build(name)
    assert len(convolutions(model, 3)) == len(convolutions(model)) == depth
    assert sum(isinstance(m, nn.BatchNorm2d) for m in model.modules()) == depth
    assert sum(isinstance(m, nn.Linear) for m in model.modules()) == 1


def test_the_vit_has_64_patches_and_six_heads():
    model = build("vit_small_32")
    assert model.pos_embed.shape == (1, 65, 192)
    assert [block.attn.num_heads for block in model.blocks] == [6] * 6
