"""Masks held as zeros in a full-size model: a channel set for every layer (mode "independent"), or single weights."""

from collections.abc import Mapping
from typing import Any

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


def element_masks(model: nn.Module, masks: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Masks of single weights as bool tensors on the devices of their parameters, checked.

    Args:
        model: The module to be masked.
        masks: {parameter: bool array or tensor of its shape, True = kept}.

    Raises:
        PlanError: Lists every mask of a parameter that is not there, of another shape, or not boolean.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    tensors = {
        name: torch.as_tensor(np.array(mask) if isinstance(mask, np.ndarray) else mask) for name, mask in masks.items()
    }
    problems = []
    for name, mask in tensors.items():
        if name not in parameters:
            problems.append(f"{name}: the model has no such parameter")
        elif mask.dtype != torch.bool or mask.shape != parameters[name].shape:
            want = tuple(parameters[name].shape)
            problems.append(f"{name}: a mask of {mask.dtype} and shape {tuple(mask.shape)}, expected bool and {want}")
    if problems:
        raise PlanError("element masks do not fit the model", problems=problems)
    return {name: mask.to(parameters[name].device) for name, mask in tensors.items()}


@torch.no_grad()
def apply_elements(model: nn.Module, masks: Mapping[str, Any]) -> None:
    """Zeroes, in place, every weight whose mask is False; the others and every other parameter stay.

    Called after each optimiser step it keeps removed weights removed, whatever momentum or weight decay add to them.
    Give it what `element_masks` returns where it is called often.

    Args:
        model: The module, on any device.
        masks: {parameter: bool array or tensor of its shape, True = kept}.

    Raises:
        PlanError: A mask does not fit; see `element_masks`.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, mask in element_masks(model, masks).items():
        # Not a product: a weight that has become infinite would leave NaN behind.
        parameters[name].masked_fill_(~mask, 0)
