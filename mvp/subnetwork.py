"""Between records and modules: a model from a sub-network, a sub-network from a model, a new head."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mvp.bases import skeleton
from mvp.masks import apply_elements
from mvp.plan import count, kept_indices, width
from mvp.surgery import build as build_module
from mvp.surgery import slice_tensors
from mvp.train import derive_seed
from zoo.errors import PlanError, RecordError
from zoo.records import Base, SubNetwork, Task

Channels = Mapping[str, np.ndarray]


def build(sub: SubNetwork) -> nn.Module:
    """A plain `nn.Module` in eval mode: slim in mode "coupled"; full-size with zeroed filters in mode "independent".

    Weights whose element mask is False are zero.

    Raises:
        RecordError: The sub-network lacks tensors of its architecture.
        PlanError: Its tensors do not fit its channels, or it is one with removed blocks or kept tokens, which are
            recorded but not built.
    """
    if sub.removed_blocks or sub.kept_tokens:
        raise PlanError(
            f"cannot build {sub.id[:12]}", got="removed blocks or kept tokens", expected="a sub-network of channel sets"
        )
    tensors = {k: torch.from_numpy(np.array(v)) for k, v in sub.weights.items()}
    channels = sub.channels if sub.mode == "coupled" else {}
    bare = skeleton(sub.base.name, sub.base.num_classes)
    # What is absent would be filled with the skeleton's arbitrary values.
    if absent := [k for k in bare.state_dict() if k not in tensors and not k.endswith("num_batches_tracked")]:
        raise RecordError(f"a sub-network of {sub.base.name} lacks tensors", problems=absent)
    model = build_module(bare, sub.base.plan, channels, tensors).eval()
    if sub.element_masks:
        apply_elements(model, sub.element_masks)
    return model


def task_model(base: Base, n_classes: int, *, channels: Channels | None = None, seed: int = 0) -> nn.Module:
    """The base cut to `channels` (whole when None) with a new head of `n_classes` outputs."""
    return build_module(
        skeleton(base.name, base.num_classes), base.plan, channels or {}, task_tensors(base, n_classes, channels, seed)
    )


def task_tensors(base: Base, n_classes: int, channels: Channels | None, seed: int) -> dict[str, Tensor]:
    """The base's tensors cut to `channels`, with the head of `new_head`."""
    full = {k: torch.from_numpy(np.array(v)) for k, v in base.weights.items()}
    tensors = slice_tensors(full, base.plan, channels or {})
    return tensors | new_head(base, n_classes, channels or {}, seed=seed)


def new_head(base: Base, n_classes: int, channels: Channels, *, seed: int) -> dict[str, Tensor]:
    """A random head for a new task: uniform in +-1/sqrt(kept inputs), as `nn.Linear` starts.

    It is drawn at full width and then cut, so that two sub-networks of one seed that keep the same channel start it
    with the same weights, up to the scale: comparisons at equal seeds are paired.
    """
    rng = torch.Generator().manual_seed(derive_seed(seed, "head"))
    head = {}
    fan_in = 1
    for name in base.plan["head"]:
        shape = base.weights[name].shape
        drawn = torch.rand((n_classes, *shape[1:]), generator=rng) * 2 - 1
        if len(shape) > 1:
            dims = base.plan["params"].get(name, list(shape))
            kept = kept_indices(base.plan, dims[1], channels)
            drawn = drawn.index_select(1, torch.as_tensor(np.asarray(kept), dtype=torch.int64))
            fan_in = int(np.prod(drawn.shape[1:]))
        head[name] = drawn / fan_in**0.5
    return head


def export(
    model: nn.Module,
    base: Base,
    task: Task,
    channels: Channels,
    *,
    producer: str,
    keep: float,
    mode: str = "coupled",
    **fields: Any,
) -> SubNetwork:
    """The record of a trained slim module (or of a full-size one in mode "independent").

    Args:
        model: Module whose state dict has the shapes that `base.plan` gives for `channels`.
        base: Its base.
        task: Its task.
        channels: Kept indices in the base's coordinates.
        producer: Who made it.
        keep: Keep ratio asked for.
        mode: See `SubNetwork`.
        **fields: Further fields of `SubNetwork`.
    """
    weights = {
        k: v.detach().float().cpu().numpy().copy() if v.is_floating_point() else v.detach().cpu().numpy().copy()
        for k, v in model.state_dict().items()
        if not k.endswith("num_batches_tracked")
    }
    params, macs = cost(base, channels if mode == "coupled" else {}, len(task.labels))
    return SubNetwork(
        task=task, base=base, channels=channels, weights=weights, producer=producer, keep=keep, mode=mode,
        params=params, macs=macs, **fields,
    )  # fmt: skip


def cost(base: Base, channels: Channels, n_classes: int) -> tuple[int, int]:
    """Parameters and MACs of one image of the slim model with a head of `n_classes`, from the plan alone."""
    params, macs = count(base.plan, channels)
    # The plan counts the base's own head, which may have another number of outputs; only those rows differ.
    for name in base.plan["head"]:
        exprs = base.plan["params"].get(name, base.plan["shapes"][name])
        rows, row = exprs[0], int(np.prod([width(base.plan, e, channels) for e in exprs[1:]]))
        params += (n_classes - rows) * row
        macs += (n_classes - rows) * row * (len(exprs) > 1)
    return params, macs
