"""The channel plan: one plain JSON description of what can be pruned in a model, and arithmetic on it.

`make_plan` traces a model once; everything else here works on the plan alone, without the model. A *channel set* is
{axis: sorted unique int indices kept}; axes absent from it are kept whole.
"""

import copy
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from mvp.canon import ATTRIBUTES, compile_plan
from mvp.trace import trace
from zoo.errors import OptionError, PlanError

Plan = dict[str, Any]
Channels = Mapping[str, Any]
__all__ = [
    "ATTRIBUTES",
    "Channels",
    "Plan",
    "axes_of",
    "check_channels",
    "count",
    "full_channels",
    "keep_counts",
    "kept_indices",
    "make_plan",
    "narrow",
    "prunable",
    "verify",
    "width",
]


def make_plan(model: nn.Module, input_size: tuple[int, ...] = (3, 32, 32), verify: bool = True) -> Plan:
    """Trace a model and describe what can be pruned in it.

    Args:
        model: Any module that maps float images (batch, *input_size) to logits; on any device. It runs once in
            evaluation mode and is left as it was (weights, modes, hooks).
        input_size: Shape of one image, channels first.
        verify: Compare slim and masked forward passes on a randomised double-precision copy, and mark the axes whose
            slim network fails or differs as unsupported.

    Returns:
        The plan: a dict of JSON types with keys format, input, axes, params, consumers, attrs, macs, head, shapes.
    """
    batch = 2
    reference = next(model.parameters(), torch.zeros(()))
    # Other devices run other kernels; traced on the CPU in full precision, one architecture has one plan.
    if reference.device.type not in ("cpu", "meta") or reference.dtype not in (torch.float32, torch.float64):
        model = copy.deepcopy(model).to("cpu", torch.float32)
        reference = torch.zeros(())
    x = torch.rand((batch, *input_size), generator=torch.Generator().manual_seed(0))
    traced = trace(model, x.to(reference.device, reference.dtype))
    plan = compile_plan(traced, tuple(input_size), batch)
    plan["shapes"] = {name: list(p.shape) for name, p in model.named_parameters()}
    plan = json.loads(json.dumps(plan))
    if verify:
        from mvp import verify as verification

        plan = verification.verify(model, plan)
    return plan


def verify(model: nn.Module, plan: Plan, **options: Any) -> Plan:
    """See `mvp.verify.verify`."""
    from mvp import verify as verification

    return verification.verify(model, plan, **options)


def axes_of(expr: Any) -> list[str]:
    """Axis names in an expression, left to right, each once."""
    if isinstance(expr, str):
        return [expr]
    if isinstance(expr, dict):
        return list(dict.fromkeys(axis for parts in expr.values() for part in parts for axis in axes_of(part)))
    return []


def width(plan: Plan, expr: Any, channels: Channels | None = None) -> int:
    """Number of kept entries of a dimension; of all entries without a channel set."""
    if isinstance(expr, int):
        return expr
    if isinstance(expr, str):
        return len(channels[expr]) if channels and expr in channels else int(plan["axes"][expr]["n"])
    ((kind, parts),) = expr.items()
    widths = [width(plan, part, channels) for part in parts]
    return math.prod(widths) if kind == "prod" else sum(widths)


def kept_indices(plan: Plan, expr: Any, channels: Channels) -> np.ndarray:
    """Flat indices of the kept entries of a dimension, ascending, int64."""
    if isinstance(expr, int):
        return np.arange(expr)
    if isinstance(expr, str):
        return np.asarray(channels[expr], dtype=np.int64) if expr in channels else np.arange(plan["axes"][expr]["n"])
    ((kind, parts),) = expr.items()
    kept = np.zeros(1 if kind == "prod" else 0, dtype=np.int64)
    total = 0
    for part in parts:
        mine, n = kept_indices(plan, part, channels), width(plan, part)
        kept = (kept[:, None] * n + mine).reshape(-1) if kind == "prod" else np.concatenate([kept, mine + total])
        total += n
    return kept


def units(plan: Plan, expr: Any, axis: str) -> np.ndarray:
    """Which unit of `axis` each entry of a dimension belongs to; int64, -1 where none (another branch of a cat)."""
    if isinstance(expr, int):
        return np.full(expr, -1)
    if isinstance(expr, str):
        n = plan["axes"][expr]["n"]
        return np.arange(n) if expr == axis else np.full(n, -1)
    ((kind, parts),) = expr.items()
    maps = [units(plan, part, axis) for part in parts]
    if kind == "cat":
        return np.concatenate(maps)
    out = np.full(1, -1)
    for mine in maps:
        out = np.maximum(out[:, None], mine[None, :]).reshape(-1)
    return out


def prunable(plan: Plan) -> list[str]:
    """Names of the axes that can be pruned: supported, with more than one unit."""
    return [name for name, axis in plan["axes"].items() if axis["unsupported"] is None and axis["n"] > 1]


def keep_counts(plan: Plan, keep: float) -> dict[str, int]:
    """Units to keep of every prunable axis: max(1, round(keep * n)).

    Raises:
        OptionError: keep is outside (0, 1].
    """
    if not 0 < keep <= 1:
        raise OptionError("keep ratio out of range", got=keep, expected="a number in (0, 1]")
    return {name: max(1, round(keep * plan["axes"][name]["n"])) for name in prunable(plan)}


def full_channels(plan: Plan) -> dict[str, np.ndarray]:
    """The channel set that keeps everything: all indices of every prunable axis."""
    return {name: np.arange(plan["axes"][name]["n"]) for name in prunable(plan)}


def check_channels(plan: Plan, channels: Channels) -> None:
    """Check that a channel set fits the plan.

    Raises:
        PlanError: Lists every problem: unknown or unsupported axes, indices of the wrong type, out of range, repeated,
            unsorted, or none at all.
    """
    problems = [problem for axis, kept in channels.items() for problem in _problems(plan, axis, kept)]
    if problems:
        raise PlanError(
            "the channel set does not fit the plan",
            problems=problems,
            hint="Was it made for another base? Axes and their sizes are in plan['axes'].",
        )


def _problems(plan: Plan, axis: str, kept: Any) -> list[str]:
    if axis not in plan["axes"]:
        known = plan["axes"]
        return [f"{axis}: no such axis; the plan has {len(known)} ({', '.join(list(known)[:3])}, ...)"]
    n, why = plan["axes"][axis]["n"], plan["axes"][axis]["unsupported"]
    indices = np.asarray(kept)
    if indices.ndim != 1 or (indices.size and indices.dtype.kind not in "iu"):
        return [f"{axis}: expected a 1-D list of integer indices, got dtype {indices.dtype}, shape {indices.shape}"]
    if not indices.size:
        return [f"{axis}: keeps nothing; at least 1 of {n} units must stay"]
    problems = []
    outside = indices[(indices < 0) | (indices >= n)]
    if outside.size:
        problems.append(f"{axis}: index {outside[0]} out of range, the axis has {n} units")
    if np.unique(indices).size != indices.size:
        problems.append(f"{axis}: {indices.size - np.unique(indices).size} indices repeated")
    elif (np.diff(indices) < 0).any():
        problems.append(f"{axis}: indices must be in ascending order")
    if why is not None and indices.size != n:
        layers = ", ".join(writer["layer"] for writer in plan["axes"][axis]["writers"][:3])
        problems.append(f"{axis} (written by {layers}) cannot be pruned: {why}")
    return problems


def count(plan: Plan, channels: Channels | None = None) -> tuple[int, int]:
    """Parameters and multiply-accumulates of one image, for the network that keeps these channels; head included."""
    params = 0
    for name, shape in plan["shapes"].items():
        exprs = plan["params"].get(name, shape)
        params += math.prod(width(plan, expr, channels) for expr in exprs)
    macs = sum(term * math.prod(width(plan, expr, channels) for expr in exprs) for term, exprs in plan["macs"])
    return params, round(macs)


def narrow(plan: Plan, channels: Channels) -> Plan:
    """The plan of the sub-network itself, so that pruning can go on with indices relative to what is left.

    Raises:
        PlanError: The channel set does not fit the plan.
    """
    check_channels(plan, channels)
    slim = copy.deepcopy(plan)
    for axis, kept in channels.items():
        slim["axes"][axis]["n"] = len(kept)
    for name, shape in slim["shapes"].items():
        slim["shapes"][name] = [width(slim, expr) for expr in slim["params"].get(name, shape)]
    return slim
