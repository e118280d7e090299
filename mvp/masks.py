"""Mode "independent": a channel set for every layer, held as zeros in a full-size model (for IoU as in the papers)."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from mvp.plan import Plan, kept_indices, prunable, width
from zoo.errors import PlanError


def layer_sets(plan: Plan) -> list[str]:
    """The keys of mode "independent": "axis@layer" for every layer that writes a prunable axis."""
    return [f"{axis}@{writer['layer']}" for axis in prunable(plan) for writer in plan["axes"][axis]["writers"]]


@torch.no_grad()
def apply_masks(model: nn.Module, plan: Plan, sets: Mapping[str, np.ndarray]) -> None:
    """Zeroes, in place, what makes the removed units of each layer zero: the norm's scale and shift behind it (or the
    layer's own weights and bias where no norm follows), or the reader's columns for attention heads.

    Args:
        model: Full-size module of the plan's base.
        plan: The base's plan.
        sets: {"axis@layer": kept indices}.

    Raises:
        PlanError: No such layer writes the axis, or it has no weights that could be zeroed (a norm without scale).
    """
    modules = dict(model.named_modules())
    for key, kept in sets.items():
        axis, _, layer = key.partition("@")
        writer = next((w for w in plan["axes"].get(axis, {}).get("writers", ()) if w["layer"] == layer), None)
        if writer is None:
            raise PlanError(f"{key}: no such layer writes this axis", expected="axis@layer, see layer_sets(plan)")
        gate = modules[writer["gate"]]
        flat = kept_indices(plan, writer["expr"], {axis: np.asarray(kept)})
        weight = getattr(gate, "weight", None)
        dim = 0 if writer["side"] == "output" else 1
        if not isinstance(weight, torch.Tensor) or weight.shape[dim] != width(plan, writer["expr"]):
            raise PlanError(f"{key}: {writer['gate']} ({type(gate).__name__}) has no weights that could be zeroed")
        alive = torch.zeros(weight.shape[dim], dtype=torch.bool, device=weight.device)
        alive[torch.as_tensor(np.asarray(flat), device=weight.device)] = True
        weight.mul_(alive.view([-1 if d == dim else 1 for d in range(weight.ndim)]))
        if dim == 0 and isinstance(gate.bias, torch.Tensor):
            gate.bias.mul_(alive)
