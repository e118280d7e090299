"""Whether a sub-network fits its base: every shape that the base's plan fixes, every name, every number."""

from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np

from zoo.errors import RecordError
from zoo.records import Base, SubNetwork

_SHOWN = 20


def width(expression: Any, widths: Mapping[str, int]) -> int:
    """The size that an expression of a plan comes to.

    Args:
        expression: An int, an axis name, {"prod": [...]} or {"cat": [...]}.
        widths: {axis: its width}.

    Raises:
        KeyError: It names an axis that `widths` lacks.
        TypeError: It is none of these forms.
    """
    if isinstance(expression, bool):
        raise TypeError(f"not an expression of a plan: {expression!r}")
    if isinstance(expression, int):
        return expression
    if isinstance(expression, str):
        return widths[expression]
    if isinstance(expression, Mapping) and len(expression) == 1:
        ((form, parts),) = expression.items()
        if form in ("prod", "cat"):
            sizes = [width(part, widths) for part in parts]
            return prod(sizes) if form == "prod" else sum(sizes)
    raise TypeError(f"not an expression of a plan: {expression!r}")


def check_subnetwork(sub: SubNetwork, base: Base) -> None:
    """Compare a sub-network with its base's plan and weights.

    Args:
        sub: The sub-network.
        base: Its base; the stored one where the zoo has it, whose plan is authoritative.

    Raises:
        RecordError: Lists every tensor that is missing, unknown, of another shape or not finite, and every channel set
            that the plan cannot follow.
    """
    problems = _channels(sub, base.plan["axes"])
    if not problems:
        problems = _tensors(sub, base) + _masks(sub, base)
    if problems:
        more = [f"... and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
        raise RecordError(
            f"sub-network for {', '.join(map(str, sub.task.labels))[:80]} does not fit its base {base.name}",
            problems=problems[:_SHOWN] + more,
            hint="Was it made for another base or another plan?",
        )


def _channels(sub: SubNetwork, axes: Mapping[str, Any]) -> list[str]:
    problems = []
    for key, kept in sub.channels.items():
        axis, _, layer = key.partition("@")
        if axis not in axes:
            problems.append(f"channels[{key!r}]: the stored base's plan has no axis {axis!r}")
            continue
        entry = axes[axis]
        if layer and layer not in {writer["layer"] for writer in entry["writers"]}:
            problems.append(f"channels[{key!r}]: in the stored base's plan no layer {layer!r} writes {axis}")
        if int(kept[-1]) >= entry["n"]:
            problems.append(f"channels[{key!r}]: index {int(kept[-1])} outside 0..{entry['n'] - 1}")
        if entry.get("unsupported") and len(kept) < entry["n"]:
            problems.append(f"channels[{key!r}]: this axis cannot be pruned: {entry['unsupported']}")
    return problems


def _tensors(sub: SubNetwork, base: Base) -> list[str]:
    axes, params, head = base.plan["axes"], base.plan["params"], set(base.plan.get("head", ()))
    slim = sub.mode == "coupled"
    widths = {axis: len(sub.channels.get(axis, ())) or entry["n"] for axis, entry in axes.items()}
    if not slim:
        widths = {axis: entry["n"] for axis, entry in axes.items()}
    gone = tuple(f"{block}." for block in sub.removed_blocks)
    problems = []
    for name in sorted(set(base.weights) - set(sub.weights)):
        if not name.startswith(gone):
            problems.append(f"weights[{name!r}]: missing")
    for name in sorted(sub.weights):
        if name not in base.weights:
            problems.append(f"weights[{name!r}]: the base has no such tensor")
            continue
        array = np.asarray(sub.weights[name])
        full = np.asarray(base.weights[name]).shape
        want = tuple(width(part, widths) for part in params[name]) if name in params else full
        if name in head and want:
            # The head belongs to the task: its rows are the task's labels in order.
            want = (len(sub.task.labels), *want[1:])
        if array.shape != want:
            problems.append(f"weights[{name!r}]: shape {array.shape}, expected {want}")
        if array.dtype.kind not in "biuf":
            problems.append(f"weights[{name!r}]: dtype {array.dtype}, expected booleans, integers or floats")
        elif array.dtype.kind == "f" and not np.isfinite(array).all():
            problems.append(f"weights[{name!r}]: holds NaN or infinite values")
    return problems


def _masks(sub: SubNetwork, base: Base) -> list[str]:
    problems = []
    for name in sorted(sub.element_masks):
        if name not in sub.weights:
            problems.append(f"element_masks[{name!r}]: there is no such tensor")
        elif (got := np.shape(sub.element_masks[name])) != (want := np.shape(sub.weights[name])):
            problems.append(f"element_masks[{name!r}]: shape {got}, expected {want}")
    return problems
