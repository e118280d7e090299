"""Check a plan by running it: slim network against masked full network, on a randomised double-precision copy."""

import copy
import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from mvp.plan import Plan, count, prunable
from mvp.rules import tensors_in
from mvp.surgery import build, masked
from mvp.trace import quiet

logger = logging.getLogger(__name__)
# What a forward pass on wrong widths raises; anything else is a mistake of ours and goes up.
BROKEN = (RuntimeError, ValueError, TypeError, IndexError, AssertionError, ArithmeticError, KeyError, AttributeError)


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """A double-precision CPU copy in which no parameter or running statistic is zero or constant.

    Fresh networks hide mistakes: zero-initialised heads, LayerScale and last BatchNorm gammas make any two outputs
    equal.
    """
    generator = torch.Generator().manual_seed(seed)
    # Drawing a hundred million normal numbers takes seconds, so large tensors repeat a pool of prime length.
    pool = torch.randn(100_003, generator=generator, dtype=torch.float64)
    memo: dict[int, Any] = {}
    for name, p in model.named_parameters():
        new = torch.empty(p.shape, dtype=torch.float64)
        if p.ndim < 2 and name.endswith("bias"):
            new.uniform_(-1, 1, generator=generator)
        elif p.ndim < 2:
            new.uniform_(0.5, 1.5, generator=generator)
        elif p.numel() <= len(pool):
            new.normal_(generator=generator)
        else:
            for start in range(0, p.numel(), len(pool)):
                part = new.view(-1)[start : start + len(pool)]
                part.copy_(pool[: len(part)])
        if p.ndim >= 2:
            new.mul_(max(p.numel() // p.shape[0], 1) ** -0.5)
        memo[id(p)] = nn.Parameter(new)
    for name, buffer in model.named_buffers():
        new = buffer.detach().to("cpu", torch.float64 if buffer.is_floating_point() else buffer.dtype, copy=True)
        if name.endswith("running_mean"):
            new.uniform_(-1, 1, generator=generator)
        elif name.endswith("running_var"):
            new.uniform_(0.5, 1.5, generator=generator)
        memo[id(buffer)] = new
    return copy.deepcopy(model, memo)


def random_channels(plan: Plan, axes: Sequence[str], keep: float, seed: int = 0) -> dict[str, np.ndarray]:
    """A random channel set: max(1, round(keep * n)) sorted units of each named axis."""
    out = {}
    for axis in axes:
        n = plan["axes"][axis]["n"]
        # Seeded by axis, so that an axis keeps the same units whichever others are tried with it.
        rng = np.random.default_rng([seed, int(axis[1:])])
        out[axis] = np.sort(rng.choice(n, max(1, round(keep * n)), replace=False))
    return out


class Checker:
    """Runs sub-networks of one model on random weights.

    Args:
        model: The model, copied.
        plan: Its plan; channel sets are drawn from it.
        seed: Of the random weights, inputs and channels.
    """

    def __init__(self, model: nn.Module, plan: Plan, seed: int = 0) -> None:
        self.model, self.plan, self.seed = randomised(model, seed), plan, seed
        batch = 2 if count(plan)[1] < 1e9 else 1
        generator = torch.Generator().manual_seed(seed)
        self.x = torch.randn((batch, *plan["input"]), generator=generator, dtype=torch.float64)
        # Whether a slim network runs at all is a matter of shapes, which the meta device answers without computing.
        self.ghost, self.ghost_x = _on_meta(self.model), self.x.to("meta")
        try:
            _run(self.ghost, self.ghost_x)
        except BROKEN:
            self.ghost, self.ghost_x = self.model, self.x

    def error(self, axes: Sequence[str], keep: float) -> float:
        """Largest difference between slim and masked output, relative to the masked output's largest value."""
        channels = random_channels(self.plan, axes, keep, self.seed)
        slim = _run(build(self.model, self.plan, channels), self.x)
        full = _run(masked(self.model, self.plan, channels), self.x)
        scale = max(float(t.abs().max()) for t in full) or 1.0
        return max(float((a - b).abs().max()) for a, b in zip(slim, full)) / scale

    def fails(self, axes: Sequence[str], keeps: Sequence[float]) -> str | None:
        """Why the slim network does not run; None when it does."""
        for keep in keeps:
            channels = random_channels(self.plan, axes, keep, self.seed)
            try:
                _run(build(self.ghost, self.plan, channels), self.ghost_x)
            except BROKEN as failure:
                first = (str(failure).splitlines() or [""])[0]
                return f"the slim network fails: {type(failure).__name__}: {first[:160]}"
        return None

    def differs(self, axes: Sequence[str], keeps: Sequence[float], tolerance: float) -> str | None:
        """How far the slim network is from the masked one; None when it is within the tolerance."""
        for keep in keeps:
            try:
                error = self.error(axes, keep)
            except BROKEN as failure:
                return f"the slim network fails: {type(failure).__name__}: {failure}"[:200]
            if not error <= tolerance:
                return f"the slim network differs from the masked one (by {error:.1e} of its scale)"
        return None


def _run(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    with quiet(model), torch.no_grad():
        return tensors_in(model(x))


def _on_meta(model: nn.Module) -> nn.Module:
    memo: dict[int, Any] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        empty = torch.empty_like(tensor, device="meta")
        memo[id(tensor)] = nn.Parameter(empty) if isinstance(tensor, nn.Parameter) else empty
    return copy.deepcopy(model, memo)


def verify(
    model: nn.Module, plan: Plan, *, keeps: Sequence[float] = (0.5, 0.1), tolerance: float = 1e-9, seed: int = 0
) -> Plan:
    """Mark every axis as unsupported whose slim network fails or differs from the masked full one.

    All supported axes are pruned at once; while that goes wrong, the first axis that makes it go wrong is found by
    bisection over prefixes and marked.

    Args:
        model: The model that the plan was traced from; it is copied, not changed.
        plan: Its plan.
        keeps: Keep ratios to try.
        tolerance: Largest accepted difference relative to the output's largest value, in double precision.
        seed: Of the random weights, inputs and channels.

    Returns:
        A copy of the plan with the reasons filled in.
    """
    checker = Checker(model, plan, seed)
    out = copy.deepcopy(plan)
    axes = prunable(out)
    tests: list[Callable[[Sequence[str]], str | None]] = [
        lambda some: checker.fails(some, keeps),
        lambda some: checker.differs(some, keeps, tolerance),
    ]
    marked: dict[str, str] = {}
    for test in tests:
        while axes and (reason := test(axes)) is not None:
            bad, reason = _first_bad(axes, test, reason)
            marked[axes.pop(bad)] = reason
    # A sound axis may have been blamed for what a bad one did before that was found.
    for axis in list(marked) if len(marked) > 1 else []:
        some = [name for name in out["axes"] if name in axes or name == axis]
        if all(test(some) is None for test in tests):
            axes = some
            del marked[axis]
    for axis, reason in marked.items():
        out["axes"][axis]["unsupported"] = reason
        logger.info("axis %s is not supported: %s", axis, reason)
    return out


def _first_bad(axes: Sequence[str], test: Callable[[Sequence[str]], str | None], reason: str) -> tuple[int, str]:
    """Position of the axis at which prefixes of `axes` begin to fail, and the reason; all of `axes` are known to."""
    good, bad = 0, len(axes)
    while bad - good > 1:
        middle = (good + bad) // 2
        problem = test(axes[:middle])
        if problem is None:
            good = middle
        else:
            bad, reason = middle, problem
    return bad - 1, reason
