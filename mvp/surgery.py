"""Slice tensors by a plan, write them back, build slim modules.

Everything here is index arithmetic on the plan: no architecture is known by name, no module is pickled. A *skeleton* is
a full-size model that lends its code and structure; it is never changed.
"""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from mvp.canon import ATTRIBUTES
from mvp.plan import Channels, Plan, axes_of, check_channels, kept_indices, narrow, width
from zoo.errors import PlanError

Tensors = Mapping[str, torch.Tensor]


def indices(plan: Plan, channels: Channels) -> dict[str, dict[int, torch.Tensor]]:
    """Kept entries of every dimension in which something is dropped.

    Returns:
        {parameter or buffer: {dimension: int64 indices, ascending, on the CPU}}.

    Raises:
        PlanError: The channel set does not fit the plan.
    """
    check_channels(plan, channels)
    channels = {axis: np.asarray(kept) for axis, kept in channels.items()}
    known: dict[str, torch.Tensor | None] = {}
    out: dict[str, dict[int, torch.Tensor]] = {}
    for name, exprs in plan["params"].items():
        dims: dict[int, torch.Tensor] = {}
        for d, expr in enumerate(exprs):
            key = repr(expr)
            if key not in known:
                dropped = width(plan, expr, channels) < width(plan, expr)
                known[key] = torch.from_numpy(kept_indices(plan, expr, channels).copy()) if dropped else None
            if (kept := known[key]) is not None:
                dims[d] = kept
        if dims:
            out[name] = dims
    return out


def _slice(tensor: torch.Tensor, dims: Mapping[int, torch.Tensor]) -> torch.Tensor:
    # The dimension that shrinks most goes first, so that the others have less to copy.
    for d, kept in sorted(dims.items(), key=lambda item: len(item[1]) / tensor.shape[item[0]]):
        tensor = tensor.index_select(d, kept.to(tensor.device))
    return tensor


def slice_tensors(tensors: Tensors, plan: Plan, channels: Channels) -> dict[str, torch.Tensor]:
    """The kept entries of every full-size tensor; tensors without dropped entries are passed on as they are.

    Args:
        tensors: Full-size tensors by state-dict name (any subset), CPU or CUDA.
        plan: The plan of the model they belong to.
        channels: {axis: kept indices}.

    Raises:
        PlanError: The channel set does not fit the plan, or a tensor has not the plan's full shape.
    """
    chosen = indices(plan, channels)
    problems = []
    for name, tensor in tensors.items():
        full = [width(plan, expr) for expr in plan["params"].get(name, [])]
        if name in plan["params"] and list(tensor.shape) != full:
            problems.append(f"{name}: shape {list(tensor.shape)}, the plan has {full}")
    if problems:
        raise PlanError("tensors do not have the full shapes of the plan", problems=problems)
    return {name: _slice(tensor.detach(), chosen.get(name, {})) for name, tensor in tensors.items()}


def scatter(slim: Tensors, plan: Plan, channels: Channels, full: Tensors) -> dict[str, torch.Tensor]:
    """Write slim tensors into copies of full ones, at the entries that the channel set keeps.

    Args:
        slim: Sliced tensors; names that `full` lacks are an error, names missing here keep the full values.
        plan: The plan of the full model.
        channels: {axis: kept indices} that `slim` was cut with.
        full: Full-size tensors, unchanged by this call.

    Raises:
        PlanError: A tensor has not the shape that plan and channels imply.
    """
    chosen = indices(plan, channels)
    out = {name: tensor.detach().clone() for name, tensor in full.items()}
    problems = []
    for name, tensor in slim.items():
        if name not in out:
            problems.append(f"{name}: no such tensor in the full model")
            continue
        target, dims = out[name], chosen.get(name, {})
        expected = [len(dims[d]) if d in dims else n for d, n in enumerate(target.shape)]
        if list(tensor.shape) != expected:
            problems.append(f"{name}: shape {list(tensor.shape)}, the channel set implies {expected}")
            continue
        out[name] = _write(target, list(dims.items()), tensor.detach().to(target))
    if problems:
        raise PlanError("slim tensors do not fit the channel set", problems=problems)
    return out


def _write(target: torch.Tensor, dims: list[tuple[int, torch.Tensor]], source: torch.Tensor) -> torch.Tensor:
    """Write source into target where every listed dimension keeps an entry, in place."""
    if not dims:
        return target.copy_(source)
    (d, kept), rest = dims[0], dims[1:]
    kept = kept.to(target.device)
    if rest:
        source = _write(target.index_select(d, kept), rest, source)
    return target.index_copy_(d, kept, source)


def build(skeleton: nn.Module, plan: Plan, channels: Channels, tensors: Mapping[str, Any] | None = None) -> nn.Module:
    """A plain slim module of the skeleton's class.

    Args:
        skeleton: The full-size model (weights may be on the meta device when `tensors` holds everything).
        plan: Its plan.
        channels: {axis: kept indices}.
        tensors: Slim tensors by state-dict name (torch or numpy), copied; what is absent is cut from the skeleton.
            Parameters of `plan["head"]` may have any number of rows (another task's classes).

    Raises:
        PlanError: The channel set does not fit the plan, or tensors do not fit the channel set.
    """
    given = {name: torch.as_tensor(tensor) for name, tensor in (tensors or {}).items()}
    chosen = indices(plan, channels)
    own = dict(skeleton.named_parameters()) | dict(skeleton.named_buffers())
    _check_given(given, own, chosen, plan)
    memo: dict[int, Any] = {}
    keep_alive = []
    for name, tensor in own.items():
        data = given[name].detach().clone() if name in given else _slice(tensor.detach(), chosen.get(name, {}))
        if name not in given and name not in chosen:
            data = data.clone()
        new = nn.Parameter(data, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else data
        memo[id(tensor)] = new
        keep_alive.append(new)
    for module in skeleton.modules():
        for attr, value in vars(module).items():
            if _is_tensor_cache(attr, value):
                memo[id(value)] = {}
    # With the big tensors in the memo, deepcopy copies only the structure, and tied tensors stay tied.
    slim = copy.deepcopy(skeleton, memo)
    _set_attributes(slim, plan, channels)
    return slim


def _is_tensor_cache(attr: str, value: Any) -> bool:
    """A Python-side cache such as LeViT's attention_bias_cache, which would outlive the widths it was made for."""
    full = isinstance(value, dict) and bool(value) and attr not in ("_parameters", "_buffers", "_modules")
    return full and all(isinstance(item, torch.Tensor) for item in value.values())


def _check_given(given: Tensors, own: Tensors, chosen: dict[str, dict[int, torch.Tensor]], plan: Plan) -> None:
    problems = []
    for name, tensor in given.items():
        if name not in own:
            problems.append(f"{name}: no such tensor in the model")
            continue
        dims = chosen.get(name, {})
        expected = [len(dims[d]) if d in dims else n for d, n in enumerate(own[name].shape)]
        start = 1 if name in plan["head"] else 0
        if list(tensor.shape[start:]) != expected[start:] or tensor.ndim != len(expected):
            problems.append(f"{name}: shape {list(tensor.shape)}, the channel set implies {expected}")
    if given:
        missing = [name for name in own if name not in given and own[name].is_meta]
        problems += [f"{name}: absent, and the skeleton has no values for it" for name in missing]
    if problems:
        raise PlanError("tensors do not fit the channel set", problems=problems)


def _set_attributes(model: nn.Module, plan: Plan, channels: Channels) -> None:
    """Make the modules' own record of their widths agree with their tensors."""
    modules = dict(model.named_modules())
    for name, attr, expr in plan["attrs"]:
        if attr not in ATTRIBUTES or name not in modules:
            raise PlanError("the plan sets an attribute that it may not", got=f"{name}.{attr}")
        setattr(modules[name], attr, width(plan, expr, channels))
    for module in modules.values():
        for kinds, refresh in _REFRESH:
            if isinstance(module, kinds) and getattr(module, "weight", None) is not None:
                refresh(module)
        if isinstance(module, nn.modules.batchnorm._NormBase):
            statistics = module.running_mean if module.running_mean is not None else module.weight
            module.num_features = module.num_features if statistics is None else len(statistics)


def _conv(module: Any) -> None:
    first, second = module.weight.shape[:2]
    if module.transposed:
        module.in_channels, module.out_channels = first, second * module.groups
    else:
        module.out_channels, module.in_channels = first, second * module.groups


def _linear(module: Any) -> None:
    module.out_features, module.in_features = module.weight.shape


def _normalized(module: Any) -> None:
    module.normalized_shape = tuple(module.weight.shape)


def _group_norm(module: Any) -> None:
    module.num_channels = len(module.weight)


def _embedding(module: Any) -> None:
    module.num_embeddings, module.embedding_dim = module.weight.shape


_REFRESH: tuple[tuple[Any, Callable[[Any], None]], ...] = (
    (nn.modules.conv._ConvNd, _conv),
    (nn.Linear, _linear),
    ((nn.LayerNorm, nn.RMSNorm), _normalized),
    (nn.GroupNorm, _group_norm),
    (nn.Embedding, _embedding),
)


def masked(model: nn.Module, plan: Plan, channels: Channels) -> nn.Module:
    """The full-size reference of a sub-network: a copy whose layers ignore the dropped channels.

    The columns that read dropped channels are zeroed in every consumer, which is exact whatever activation lies
    between, where zeroed outputs would be revived by a bias or a sigmoid.
    """
    chosen = indices(plan, channels)
    parameters = dict(model.named_parameters())
    memo: dict[int, Any] = {}
    for name, d in plan["consumers"].items():
        if (kept := chosen.get(name, {}).get(d)) is None:
            continue
        weight = parameters[name]
        mask = torch.zeros(weight.shape[d], dtype=weight.dtype, device=weight.device)
        mask[kept.to(weight.device)] = 1
        new = weight.detach() * mask.view([-1 if i == d else 1 for i in range(weight.ndim)])
        memo[id(weight)] = nn.Parameter(new, weight.requires_grad)
    return copy.deepcopy(model, memo)


def shrink(model: nn.Module, plan: Plan, channels: Channels) -> tuple[nn.Module, Plan]:
    """The slim model with the model's own current tensors, and the plan of that slim model."""
    return build(model, plan, channels), narrow(plan, channels)


def touched(plan: Plan, axis: str) -> list[str]:
    """Parameters and buffers with a dimension on this axis."""
    return [name for name, exprs in plan["params"].items() if any(axis in axes_of(expr) for expr in exprs)]
