import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import integrate, stats

from mvp.bases import full_model
from mvp.producers.gating import kl, mean, relaxed, uniform
from mvp.producers.stamp_meta import AttentionBlock, Masked, MaskGenerator, SetEncoder, SetGate, clamped, filters
from tests import tiny
from tests.tiny import registered  # noqa: F401

SHAPE = (3, 8, 8)


def images(n=20, seed=0):
    return torch.randn(n, *SHAPE, generator=torch.Generator().manual_seed(seed))


def encoder(width=16, heads=4, seed=0):
    torch.manual_seed(seed)
    return SetEncoder(SHAPE, width, heads)


def masked(seed=0, **options):
    torch.manual_seed(seed)
    base = tiny.base()
    generator = MaskGenerator(base.plan, SHAPE, width=16, **options)
    with torch.no_grad():  # every parameter of the gates differs from its neighbours
        for gate in generator.gates.values():
            for parameter in gate.parameters():
                parameter.add_(torch.randn(parameter.shape) * 0.3)
    return Masked(full_model(base), base.plan, generator)


# ------------------------------------------------------------------------------------------ the set encoder


def naive_norm(x, norm):
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + norm.eps)
    return scaled * norm.weight.detach().numpy() + norm.bias.detach().numpy()


def naive_linear(x, weight, bias):
    return x @ weight.detach().numpy().T + bias.detach().numpy()


def naive_block(block, x, keys):
    """Eq. 7 and 8 with multi-head attention written out (Vaswani et al. 2017)."""
    attention, width = block.attention, x.shape[-1]
    parts = zip(attention.in_proj_weight.split(width), attention.in_proj_bias.split(width), (x, keys, keys))
    q, k, v = (naive_linear(of, w, b) for w, b, of in parts)
    size, heads = width // attention.num_heads, []
    for h in range(attention.num_heads):
        own = slice(h * size, (h + 1) * size)
        scores = np.exp(q[:, own] @ k[:, own].T / np.sqrt(size))
        heads.append(scores / scores.sum(1, keepdims=True) @ v[:, own])
    out = attention.out_proj
    h = naive_norm(x + naive_linear(np.concatenate(heads, 1), out.weight, out.bias), block.norm1)
    return naive_norm(h + np.maximum(naive_linear(h, block.linear.weight, block.linear.bias), 0), block.norm2)


def test_the_encoder_is_equations_5_to_10():
    model, x = encoder(), images(7)
    pixels = naive_linear(x.flatten(1).numpy(), model.project.weight, model.project.bias)
    a = naive_block(model.encode[0], pixels, pixels)
    a = naive_block(model.encode[1], a, a)
    before = np.maximum(naive_linear(a, model.before_pool.weight, model.before_pool.bias), 0)
    pooled = naive_block(model.pool, model.seed[0].detach().numpy(), before)
    vector = naive_block(model.decode, pooled, pooled)
    np.testing.assert_allclose(model.vector(x).detach(), vector[0], atol=2e-5)
    pseudo = naive_linear(vector, model.back.weight, model.back.bias).reshape(1, *SHAPE)
    np.testing.assert_allclose(model(x).detach(), pseudo, atol=2e-5)


@pytest.mark.parametrize("training", [True, False])
def test_the_order_of_the_images_is_nothing_but_the_images_are(training):
    model, x = encoder().train(training), images()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(model(x[order]), model(x), rtol=0, atol=1e-5)
        assert (model(images(seed=5)) - model(x)).abs().max() > 1e-2
        assert model(x[:3]).shape == model(x).shape == (1, *SHAPE)


def test_a_block_is_equivariant():
    torch.manual_seed(0)
    block, x = AttentionBlock(16, 4), torch.randn(1, 9, 16)
    order = torch.randperm(9)
    torch.testing.assert_close(block(x[:, order]), block(x)[:, order], rtol=0, atol=1e-5)


def test_the_papers_width_is_that_of_an_image():
    full = SetEncoder((3, 4, 4), None, 4)
    assert full.vector(torch.randn(5, 3, 4, 4)).shape == (48,) and isinstance(full.project, torch.nn.Identity)
    assert sum(p.numel() for p in encoder(16).parameters()) < sum(
        p.numel() for p in SetEncoder(SHAPE, None).parameters()
    )


# ------------------------------------------------------------------------------------------ the gates


def test_psi_clamps():
    x = torch.tensor([-3.0, 0.0, 0.25, 1.0, 7.0], dtype=torch.float64)
    assert clamped(x).tolist() == [1e-10, 1e-10, 0.25, 1 - 1e-10, 1 - 1e-10]


def test_the_expected_mask_is_equation_14():
    gate, o = SetGate(50), torch.linspace(-3, 3, 50)
    with torch.no_grad():
        gate.gamma.copy_(torch.linspace(0.5, 2, 50))
        gate.shift.copy_(torch.linspace(1, -0.5, 50))
        gate.raw_a.copy_(torch.linspace(-2, 3, 50))
    psi = np.minimum(
        1 - 1e-10, np.maximum(1e-10, gate.gamma.detach().numpy() * o.numpy() + gate.shift.detach().numpy())
    )
    expected = mean(gate.a, gate.b).detach().numpy() * psi
    np.testing.assert_allclose(gate.expected(o).detach(), expected, rtol=1e-5, atol=1e-8)
    assert 5 < (psi == 1e-10).sum() < 45


def test_draws_of_a_mask_are_bernoulli_of_pi_psi():
    gate = SetGate(4, start=1.0)
    with torch.no_grad():
        gate.raw_spread.fill_(-20.0)  # no noise of the shift
        gate.shift.copy_(torch.tensor([0.0, 0.3, 0.6, 0.9]))
    torch.manual_seed(0)
    o = torch.full((4,), 0.1)
    draws = torch.stack([relaxed(gate.log_probability(o), uniform(o, o.shape)) for _ in range(1500)]).detach()
    assert ((draws > 0.5).float().mean(0) - gate.expected(o).detach()).abs().max() < 0.05


@pytest.mark.parametrize(("center", "spread"), [(1.0, 0.1), (0.0, 5**0.5), (-2.0, 0.7)])
def test_the_kl_of_the_shift_is_the_integral(center, spread):
    gate = SetGate(3)
    with torch.no_grad():
        gate.shift.fill_(center)
        gate.raw_spread.fill_(float(np.log(np.expm1(spread))))
    q, p = stats.norm(center, spread), stats.norm(0, 5**0.5)
    wanted = integrate.quad(lambda x: q.pdf(x) * (q.logpdf(x) - p.logpdf(x)), center - 9 * spread, center + 9 * spread)
    of_pi = 3 * float(kl(gate.a[0], gate.b[0]).detach())
    assert float(gate.kl().detach()) == pytest.approx(3 * wanted[0] + of_pi, abs=1e-3)


# ------------------------------------------------------------------------------------------ masks of a network


@torch.no_grad()
def naive_masks(model, x):
    """The pseudo-image layer by layer: a0 from the stem, a1 behind a masked stem; the second writer reuses a0's."""
    net, gates = model.network.eval(), model.generator.gates
    o = net.bn1(net.conv1(model.generator.encoder(x)))
    a0 = gates["a0"].expected(o.mean((0, 2, 3)))
    h = torch.relu(o * a0.view(-1, 1, 1))
    o = net.bn2(net.conv2(h))
    return {"a0": a0, "a1": gates["a1"].expected(o.mean((0, 2, 3)))}


def test_each_layer_is_masked_before_the_next_is_observed():
    model, x = masked(), images()
    got, wanted = model.expected(x), naive_masks(model, x)
    assert got.keys() == wanted.keys() == set(filters(tiny.base().plan))
    for axis in wanted:
        torch.testing.assert_close(got[axis].detach(), wanted[axis], rtol=1e-5, atol=1e-6)
        assert wanted[axis].std() > 1e-2
    assert not torch.allclose(got["a0"], model.expected(images(seed=3))["a0"], atol=1e-4)


def test_each_image_passes_under_its_own_draw_of_the_sets_mask():
    model, x = masked(), images()
    model.network.eval()
    torch.manual_seed(3)
    with torch.no_grad():
        logits = model(x, x)
        drawn = dict(model._hooks.scales)
        assert drawn["a0", "conv1"] is drawn["a0", "conv3"]
        a0, a1 = (drawn[key][:, :, None, None] for key in (("a0", "conv1"), ("a1", "conv2")))
        net = model.network
        h = torch.relu(net.bn1(net.conv1(x)) * a0)
        h = torch.relu(h + net.bn3(net.conv3(torch.relu(net.bn2(net.conv2(h)) * a1))) * a0)
        torch.testing.assert_close(logits, net.fc(h.mean((2, 3))), rtol=1e-4, atol=1e-5)
        assert {key: tuple(m.shape) for key, m in drawn.items()} == {
            ("a0", "conv1"): (20, 8), ("a0", "conv3"): (20, 8), ("a1", "conv2"): (20, 12)
        }  # fmt: skip
        assert (a0.std(0) > 0).any()
        # Of one set, over many images and draws, a mask is its expectation.
        for part in model.generator.gates.values():
            part.raw_spread.fill_(-20.0)
        many = [model(x[:1].expand(200, -1, -1, -1), x) is not None and model._hooks.scales["a0", "conv1"].mean(0)
                for _ in range(60)]  # fmt: skip
        assert (torch.stack(many).mean(0) - model.expected(x)["a0"]).abs().max() < 0.15


def test_the_loss_is_equation_2_and_reaches_every_parameter():
    model, x = masked(), images()
    y = torch.arange(20) % 10
    model.train()
    torch.manual_seed(0)
    loss, error = model.loss(x, y, x, 0.5)
    assert float((loss - error).detach()) == pytest.approx(0.5 * float(model.generator.kl().detach()), rel=1e-4)
    loss.backward()
    torch.manual_seed(0)
    model.network.load_state_dict(full_model(tiny.base()).state_dict())
    assert float(F.cross_entropy(model(x, x), y).detach()) == pytest.approx(float(error), rel=1e-4)
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []


def test_the_masks_gradients_are_finite_differences():
    """d mask / d parameter through the relaxation, the pseudo-image's pass and the set encoder, at fixed draws."""
    model, x = masked().double().eval(), images(6).double()
    weights = torch.linspace(-1, 1, 20, dtype=torch.float64)

    def value():
        torch.manual_seed(0)
        model(x, x)
        drawn = [model._hooks.scales[key].mean(0) for key in (("a0", "conv1"), ("a1", "conv2"))]
        return (torch.cat(drawn) * weights).sum()

    value().backward()
    checked = 0
    generator, net = model.generator, model.network
    gate = generator.gates["a0"]
    chosen = [gate.raw_a, gate.raw_b, gate.gamma, gate.shift, gate.raw_spread, generator.encoder.back.weight,
              generator.encoder.seed, net.conv1.weight]  # fmt: skip
    for parameter in chosen:
        flat, gradient = parameter.data.view(-1), parameter.grad.view(-1)
        i, ends = int(gradient.abs().argmax()), []
        for h in (1e-6, -1e-6):
            flat[i] += h
            ends.append(float(value().detach()))
            flat[i] -= h
        assert float(gradient[i]) == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-3, abs=1e-8)
        checked += float(gradient[i]) != 0
    assert checked >= 7


def test_a_pass_of_the_pseudo_image_leaves_the_network_as_it_was():
    model, x = masked(), images()
    before = {k: v.clone() for k, v in model.network.state_dict().items()}
    for training in (True, False):
        model.network.train(training)
        model.expected(x)
        assert model.network.training is training
    assert all(torch.equal(v, before[k]) for k, v in model.network.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.network.modules())


def test_only_filters_have_gates():
    assert filters(tiny.base("vit").plan) == []
    assert filters(tiny.base().plan) == ["a0", "a1"]
