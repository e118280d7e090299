import math

import numpy as np
import pytest
import torch
from scipy import integrate, special

from mvp.bases import full_model
from mvp.gates import Gates
from mvp.plan import prunable
from mvp.producers.gating import ALPHA, BetaGate, fold, kl, log_pi, mean, relaxed, uniform
from tests import tiny
from tests.tiny import registered  # noqa: F401
from zoo.errors import PlanError

PAIRS = [(0.5, 0.5), (0.5, 1.0), (1.0, 3.0), (2.0, 1.0), (2.5, 0.7), (6.0, 4.0)]


def both(a, b):
    return torch.tensor(a, dtype=torch.float64), torch.tensor(b, dtype=torch.float64)


def density(x, a, b):
    """Kumaraswamy (1980)."""
    return a * b * x ** (a - 1) * (1 - x**a) ** (b - 1)


def quantiles(function, a, b):
    """The integral of function(x) density(x) dx over (0, 1), substituting u = F(x) so that no end is singular."""
    return integrate.quad(lambda u: function((1 - (1 - u) ** (1 / b)) ** (1 / a)), 1e-13, 1 - 1e-13, limit=500)[0]


@pytest.mark.parametrize("alpha", [1e-4, 0.3, 1.0])
@pytest.mark.parametrize(("a", "b"), PAIRS)
def test_kl_is_the_integral_of_the_log_ratio(a, b, alpha):
    def log_ratio(x):  # log(q / p), p(x) = alpha x^(alpha - 1)
        return (
            math.log(a * b / alpha) + (a - alpha) * math.log(x) + (b - 1) * math.log1p(-min(x**a, 1 - 1e-16))
        )  # fmt: skip

    assert float(kl(*both(a, b), alpha)) == pytest.approx(quantiles(log_ratio, a, b), rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("alpha", [1e-4, 0.3, 2.0])
def test_kl_is_zero_at_the_prior_alone(alpha):
    assert float(kl(*both(alpha, 1.0), alpha)) == pytest.approx(0, abs=1e-12)
    a, b = torch.meshgrid(torch.logspace(-4, 2, 40).double(), torch.logspace(-4, 1.5, 40).double(), indexing="ij")
    assert (kl(a, b, alpha) > -1e-9).all() and (kl(a, b, alpha) > 1e-3).sum() > 1500


@pytest.mark.parametrize(("a", "b"), PAIRS)
def test_the_mean_is_the_integral_the_beta_function_and_the_mean_of_draws(a, b):
    got = float(mean(*both(a, b)))
    assert got == pytest.approx(integrate.quad(lambda x: x * density(x, a, b), 0, 1, limit=300)[0], rel=1e-5)
    assert got == pytest.approx(b * special.beta(1 + 1 / a, b), rel=1e-10)
    u = torch.rand(200_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    draws = log_pi(*both(a, b), u).exp()
    assert float(draws.mean()) == pytest.approx(got, abs=4 * float(draws.std()) / 200_000**0.5)


@pytest.mark.parametrize(("a", "b"), PAIRS)
def test_a_draw_is_the_inverse_of_the_distribution_function(a, b):
    u = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
    np.testing.assert_allclose(log_pi(*both(a, b), u).exp(), (1 - u.numpy() ** (1 / b)) ** (1 / a), rtol=1e-9)


def test_nothing_overflows_at_the_ends_of_the_range():
    for raw_a in (-10.0, 0.0, 60.0):
        for raw_b in (-10.0, 0.0, 50.0):
            gate = BetaGate(3)
            with torch.no_grad():
                gate.raw_a.fill_(raw_a)
                gate.raw_b.fill_(raw_b)
            for u in (1e-6, 0.5, 1 - 1e-6):
                drawn = log_pi(gate.a, gate.b, torch.full((3,), u))
                out = relaxed(drawn, torch.full((3,), u))
                assert torch.isfinite(drawn).all() and ((out >= 0) & (out <= 1)).all()
                (out.sum() + gate.kl() + gate.mean().sum()).backward()
            assert all(torch.isfinite(p.grad).all() for p in gate.parameters())
            assert ((gate.mean() >= 0) & (gate.mean() <= 1)).all()


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_a_relaxed_draw_is_a_bernoulli_one_but_for_a_few(p):
    torch.manual_seed(0)
    u = uniform(torch.ones(()), (100_000,))
    m = relaxed(torch.full((100_000,), math.log(p)), u)
    assert float((m > 0.5).float().mean()) == pytest.approx(p, abs=0.01)  # exact for the concrete distribution
    assert float(((m > 0.05) & (m < 0.95)).float().mean()) < 0.16
    naive = special.expit((math.log(p / (1 - p)) + np.log(u / (1 - u)).numpy()) / 0.1)
    np.testing.assert_allclose(m, naive, atol=1e-4)


def test_gradients_pass_the_relaxation_and_point_up():
    gate = BetaGate(4, start=0.5).double()
    u, v = (uniform(gate.raw_a, (4,)) for _ in range(2))

    def drawn():
        return relaxed(log_pi(gate.a, gate.b, u), v, temperature=0.5).sum()

    drawn().backward()
    for parameter in gate.parameters():
        for i in range(4):
            ends = []
            for h in (1e-5, -1e-5):
                with torch.no_grad():
                    parameter[i] += h
                    ends.append(float(drawn()))
                    parameter[i] -= h
            assert float(parameter.grad[i]) == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-4, abs=1e-9)
    assert (gate.raw_a.grad > 0).all() and (gate.raw_b.grad < 0).all()


def test_a_gate_starts_at_b_one_and_its_kl_is_that_of_all_units():
    gate = BetaGate(5, start=2.0)
    assert gate.b.tolist() == pytest.approx([1.0] * 5, abs=1e-4)
    assert gate.mean().tolist() == pytest.approx([2.1269 / 3.1269] * 5, abs=1e-4)
    assert float(gate.kl().detach()) == pytest.approx(5 * float(kl(gate.a[0], gate.b[0], ALPHA).detach()))
    torch.manual_seed(0)
    draws = torch.stack([gate.draw().detach().exp() for _ in range(4000)])
    assert float(draws.mean()) == pytest.approx(float(gate.mean()[0].detach()), abs=0.01)


@pytest.mark.parametrize("name", ["cnn", "vit"])
def test_folded_gates_compute_what_gates_do(name):
    base = tiny.base(name)
    torch.manual_seed(0)
    gates = {axis: torch.rand(base.plan["axes"][axis]["n"]) for axis in prunable(base.plan)}
    x, model = tiny.SPEC(tiny.task().test_images), full_model(base).eval()
    with torch.no_grad():
        with Gates(model, base.plan, activations=False) as hooks:
            hooks.scales.update({key: gates[key[0]] for key in hooks.scales})
            expected = model(x)
        assert (model(x) - expected).abs().max() > 1e-3
        fold(model, base.plan, gates)
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)


def test_a_norm_without_a_scale_cannot_take_a_gate():
    model = full_model(tiny.base())
    model.bn1 = torch.nn.BatchNorm2d(8, affine=False)
    with pytest.raises(PlanError, match="a0: bn1"):
        fold(model, tiny.base().plan, {"a0": torch.ones(8)})
