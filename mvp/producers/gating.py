"""Beta-Bernoulli gates (Lee et al. 2019, BBDropout): draws, expectation, KL divergence, and folding into weights.

A unit's gate is m ~ Bernoulli(pi) with the prior pi ~ Beta(alpha, 1), which wants pi near 0 for a small alpha. The
posterior of pi is a Kumaraswamy distribution with parameters a, b > 0 (Nalisnick & Smyth 2017): F(pi) = 1 - (1 -
pi^a)^b. Everything is computed from log pi, which neither over- nor underflows in float32 for any a and b here.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mvp.plan import Plan, units, width
from zoo.errors import PlanError

ALPHA = 1e-4
TEMPERATURE = 0.1
THRESHOLD = 1e-3  # an expected gate below it is 0
_LARGEST = -1e-6  # of log pi, so that log(1 - pi) stays finite


class BetaGate(nn.Module):
    """The posterior of one axis: a parameter pair for each of its n units.

    a = softplus(max(-10, raw_a)) and b = softplus(min(max(-10, raw_b), 50)), so that both stay in a range that float32
    can hold; b starts at 1.

    Args:
        n: Units of the axis.
        start: Value of raw_a at the start; 2 makes E[pi] 0.68, -1 makes it 0.24.
    """

    def __init__(self, n: int, start: float = 2.0) -> None:
        super().__init__()
        self.raw_a = nn.Parameter(torch.full((n,), float(start)))
        self.raw_b = nn.Parameter(torch.full((n,), 0.5413))

    @property
    def a(self) -> Tensor:
        """First parameter, shape (n,)."""
        return F.softplus(self.raw_a.clamp(min=-10))

    @property
    def b(self) -> Tensor:
        """Second parameter, shape (n,)."""
        return F.softplus(self.raw_b.clamp(-10, 50))

    def draw(self) -> Tensor:
        """log pi of one draw, shape (n,)."""
        return log_pi(self.a, self.b, uniform(self.raw_a, self.raw_a.shape))

    def mean(self) -> Tensor:
        """E[pi], shape (n,)."""
        return mean(self.a, self.b)

    def kl(self, alpha: float = ALPHA) -> Tensor:
        """KL from the prior Beta(alpha, 1), summed over the units, shape ()."""
        return kl(self.a, self.b, alpha).sum()


def uniform(like: Tensor, shape: torch.Size | tuple[int, ...]) -> Tensor:
    """Uniform in [1e-6, 1 - 1e-6], from torch's generator of the device of `like`."""
    return torch.rand(shape, device=like.device, dtype=like.dtype).clamp(1e-6, 1 - 1e-6)


def log_pi(a: Tensor, b: Tensor, u: Tensor) -> Tensor:
    """log of pi = (1 - u^(1/b))^(1/a), the Kumaraswamy variable at the uniform number u, below 0.

    Differentiable in a and b; any shapes that broadcast.
    """
    log_one_minus = torch.log(-torch.expm1(torch.log(u) / b))
    return (log_one_minus / a).clamp(max=_LARGEST)


def relaxed(log_p: Tensor, u: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """A draw from the relaxed Bernoulli (binary concrete) of probability p at the uniform number u, in (0, 1).

    sigmoid((logit p + logit u) / temperature) (Maddison et al. 2017); near 0 or 1 at a low temperature, and
    differentiable in log p.
    """
    log_p = log_p.clamp(max=_LARGEST)
    logit = log_p - torch.log(-torch.expm1(log_p))
    return torch.sigmoid((logit + torch.logit(u)) / temperature)


def mean(a: Tensor, b: Tensor) -> Tensor:
    """E[pi] = b B(1 + 1/a, b) = b G(1 + 1/a) G(b) / G(1 + 1/a + b), computed in float64, dtype of a."""
    x, y = a.double(), b.double()
    log_mean = torch.log(y) + torch.lgamma(1 + 1 / x) + torch.lgamma(y) - torch.lgamma(1 + 1 / x + y)
    return log_mean.exp().to(a.dtype)


def kl(a: Tensor, b: Tensor, alpha: float = ALPHA) -> Tensor:
    """KL[Kumaraswamy(a, b) || Beta(alpha, 1)] of each unit, at least 0 (Nalisnick & Smyth 2017).

    (1 - alpha/a) (-gamma - digamma(b) - 1/b) + log(a b / alpha) - (b - 1)/b, gamma being Euler's constant.
    """
    shape = (1 - alpha / a) * (-0.5772156649015329 - torch.digamma(b) - 1 / b)
    return shape + torch.log(a) + torch.log(b / alpha) - (b - 1) / b


@torch.no_grad()
def fold(model: nn.Module, plan: Plan, gates: Mapping[str, Tensor]) -> None:
    """Multiplies the gate of every unit into the weights, in place: the model then computes what it did with gates.

    That is the scale and shift of the norm behind the layer (the layer's own weights where no norm follows), or the
    reader's columns for attention heads and MLP nodes.

    Args:
        model: A model with this plan.
        plan: Its plan.
        gates: {axis: gate of every unit, float (n,), 0 or more}.

    Raises:
        PlanError: A norm has no scale that could be multiplied.
    """
    modules = dict(model.named_modules())
    for axis, gate in gates.items():
        places = {repr([w["gate"], w["side"], w["expr"]]): w for w in plan["axes"][axis]["writers"]}
        for writer in places.values():
            module, own = modules[writer["gate"]], units(plan, writer["expr"], axis)
            factor = torch.cat([gate.float(), gate.new_ones(1).float()])[torch.from_numpy(own).to(gate.device)]
            weight, dim = getattr(module, "weight", None), 0 if writer["side"] == "output" else 1
            if not isinstance(weight, Tensor) or weight.shape[dim] != width(plan, writer["expr"]):
                raise PlanError(f"{axis}: {writer['gate']} ({type(module).__name__}) has no weights for a gate")
            weight.mul_(factor.view([-1 if d == dim else 1 for d in range(weight.ndim)]))
            if dim == 0 and isinstance(module.bias, Tensor):
                module.bias.mul_(factor)
