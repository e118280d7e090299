"""Check a plan by running it: slim network against masked full network, on a randomised double-precision copy."""

import copy
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from mvp.plan import Plan, prunable
from mvp.surgery import build, masked
from mvp.trace import quiet

logger = logging.getLogger(__name__)
# What a forward pass on wrong widths raises; anything else is a mistake of ours and goes up.
_BROKEN = (RuntimeError, ValueError, TypeError, IndexError, AssertionError, ArithmeticError, KeyError, AttributeError)


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """A double-precision CPU copy in which no parameter or running statistic is zero or constant.

    Fresh networks hide mistakes: zero-initialised heads, LayerScale and last BatchNorm gammas make any two outputs
    equal.
    """
    generator = torch.Generator().manual_seed(seed)
    memo: dict[int, Any] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        data = tensor.detach().to("cpu", torch.float64) if tensor.is_floating_point() else tensor.detach().cpu().clone()
        memo[id(tensor)] = nn.Parameter(data.clone()) if isinstance(tensor, nn.Parameter) else data.clone()
    full = copy.deepcopy(model, memo)
    with torch.no_grad():
        for name, p in full.named_parameters():
            if p.ndim >= 2:
                fan = max(p.numel() // p.shape[0], 1)
                p.normal_(generator=generator).mul_(fan**-0.5)
            elif name.endswith("bias"):
                p.uniform_(-1, 1, generator=generator)
            else:
                p.uniform_(0.5, 1.5, generator=generator)
        for name, buffer in full.named_buffers():
            if name.endswith("running_mean"):
                buffer.uniform_(-1, 1, generator=generator)
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 1.5, generator=generator)
    return full


def random_channels(plan: Plan, axes: Sequence[str], keep: float, seed: int = 0) -> dict[str, np.ndarray]:
    """A random channel set: max(1, round(keep * n)) sorted units of each named axis."""
    out = {}
    for axis in axes:
        n = plan["axes"][axis]["n"]
        # Seeded by axis, so that an axis keeps the same units whichever others are tried with it.
        rng = np.random.default_rng([seed, int(axis[1:])])
        out[axis] = np.sort(rng.choice(n, max(1, round(keep * n)), replace=False))
    return out


class _Checker:
    def __init__(self, model: nn.Module, plan: Plan, tolerance: float, seed: int) -> None:
        self.model, self.plan, self.tolerance, self.seed = randomised(model, seed), plan, tolerance, seed
        generator = torch.Generator().manual_seed(seed)
        self.x = torch.randn((2, *plan["input"]), generator=generator, dtype=torch.float64)

    def _run(self, model: nn.Module) -> list[torch.Tensor]:
        with quiet(model), torch.no_grad():
            out = model(self.x)
        return [out] if isinstance(out, torch.Tensor) else [t for t in out if isinstance(t, torch.Tensor)]

    def error(self, axes: Sequence[str], keep: float) -> float:
        """Largest difference between slim and masked output, relative to the output's scale."""
        channels = random_channels(self.plan, axes, keep, self.seed)
        slim = self._run(build(self.model, self.plan, channels))
        full = self._run(masked(self.model, self.plan, channels))
        scale = max(float(t.abs().max()) for t in full) or 1.0
        return max(float((a - b).abs().max()) for a, b in zip(slim, full)) / scale

    def complaint(self, axes: Sequence[str], keeps: Sequence[float]) -> str | None:
        """What is wrong when these axes are pruned together; None when nothing is."""
        for keep in keeps:
            try:
                error = self.error(axes, keep)
            except _BROKEN as failure:
                return f"the slim network fails: {type(failure).__name__}: {str(failure).splitlines()[0][:120]}"
            if not error <= self.tolerance:
                return f"the slim network differs from the masked one (by {error:.1e} of its scale)"
        return None


def verify(
    model: nn.Module, plan: Plan, *, keeps: Sequence[float] = (0.5, 0.1), tolerance: float = 1e-9, seed: int = 0
) -> Plan:
    """Mark every axis as unsupported whose slim network fails or differs from the masked full one.

    All supported axes are pruned at once; while that fails, the first axis that makes it fail is found by bisection
    over prefixes and marked.

    Args:
        model: The model that the plan was traced from; it is copied, not changed.
        plan: Its plan.
        keeps: Keep ratios to try.
        tolerance: Largest accepted difference relative to the output's largest value, in double precision.
        seed: Of the random weights, inputs and channels.

    Returns:
        A plan with the reasons filled in; the same dict when nothing was wrong.
    """
    checker = _Checker(model, plan, tolerance, seed)
    out = copy.deepcopy(plan)
    axes = prunable(out)
    while axes and (reason := checker.complaint(axes, keeps)) is not None:
        good, bad = 0, len(axes)  # the first `good` axes pass, the first `bad` ones do not
        while bad - good > 1:
            middle = (good + bad) // 2
            problem = checker.complaint(axes[:middle], keeps)
            good, bad, reason = (middle, bad, reason) if problem is None else (good, middle, problem)
        axis = axes.pop(bad - 1)
        logger.info("axis %s (%s) is not supported: %s", axis, out["axes"][axis]["writers"][0]["layer"], reason)
        out["axes"][axis]["unsupported"] = reason
    return out
