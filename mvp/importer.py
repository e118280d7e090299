"""Models pruned elsewhere: kept indices and a state dict, or the full and the slim model, become a sub-network."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mvp.plan import Plan, check_channels, kept_indices, prunable, width
from mvp.subnetwork import cost
from zoo.errors import BaseMismatchError, PlanError, RecordError
from zoo.records import Base, SubNetwork, Task

Arrays = Mapping[str, Any]


def import_subnetwork(
    base: Base,
    *,
    kept: Mapping[str, Sequence[int] | np.ndarray] | None = None,
    state_dict: Arrays | None = None,
    full: nn.Module | None = None,
    slim: nn.Module | None = None,
    task: Task,
    producer: str = "import",
    keep: float | None = None,
    init: str = "pretrained",
    metrics: Mapping[str, float] | None = None,
    seed: int = 0,
) -> SubNetwork:
    """A sub-network from a model that other code pruned.

    Give either `kept` and `state_dict`, or `full` and `slim`. Keys of `kept` are axes of the base's plan ("a3") or
    names of layers ("layer1.0.conv1"): a layer of a residual group stands for the whole group, an attention block's
    qkv for its heads.

    Args:
        base: The base that was pruned.
        kept: {axis or layer: kept indices, ascending, as the tensors' rows lie}; axes that are absent are whole.
        state_dict: The slim tensors by the base's parameter names, the head with one row a label of `task`.
        full: The model before pruning; its weights must be the base's (the head may differ).
        slim: The model after; which filters it kept is found by comparing weights, see `match`.
        task: The task it was pruned for.
        producer: Name recorded as the method.
        keep: Keep ratio to record; the mean kept share of the prunable axes when None.
        init: "pretrained", or "reinit" when its weights did not start from the base's: such a one does not vote.
        metrics: Measured numbers, e.g. {"accuracy": 0.91}.
        seed: Seed to record.

    Raises:
        BaseMismatchError: `full` has other weights than the base.
        PlanError: Indices that do not fit the plan, or filters of `slim` that `full` does not have; lists all.
        RecordError: Missing, unexpected or misshapen tensors; lists all. Or another choice of arguments.
    """
    choice = {"kept": kept, "state_dict": state_dict, "full": full, "slim": slim}
    given = [name for name, value in choice.items() if value is not None]
    if given not in (["kept", "state_dict"], ["full", "slim"]):
        raise RecordError(
            "import_subnetwork: what to import", got=", ".join(given) or "nothing",
            expected="kept= and state_dict=, or full= and slim=",
        )  # fmt: skip
    if full is not None and slim is not None:
        _check_full(base, full.state_dict())
        state_dict = slim.state_dict()
        kept = match(base, full.state_dict(), state_dict)
    channels = _by_axis(base, kept or {})
    weights = _checked(base, channels, state_dict or {}, len(task.labels))
    shares = [width(base.plan, a, channels) / width(base.plan, a) for a in prunable(base.plan)]
    params, macs = cost(base, channels, len(task.labels))
    return SubNetwork(
        task=task, base=base, channels=channels, weights=weights, producer=producer,
        keep=float(np.mean(shares)) if keep is None else keep, init=init, seed=seed, metrics=metrics or {},
        params=params, macs=macs,
    )  # fmt: skip


def _by_axis(base: Base, kept: Mapping[str, Sequence[int] | np.ndarray]) -> dict[str, np.ndarray]:
    axes = base.plan["axes"]
    # A layer may write several axes, an attention block's qkv heads and their width; only what can be pruned is meant.
    layers: dict[str, list[str]] = {}
    for axis in prunable(base.plan):
        for writer in axes[axis]["writers"]:
            layers.setdefault(writer["layer"], []).append(axis)
    channels: dict[str, np.ndarray] = {}
    problems = []
    for key, indices in kept.items():
        named = [key] if key in axes else layers.get(key, [])
        array = np.asarray(indices)
        if len(named) != 1:
            several = f"a layer of several axes, name one: {', '.join(named)}"
            problems.append(f"{key}: {several if named else 'neither an axis nor a layer that writes one'}")
        elif named[0] in channels and not np.array_equal(channels[named[0]], array):
            problems.append(f"{key}: another layer of the same residual group ({named[0]}) keeps other channels")
        else:
            channels[named[0]] = array
    try:
        check_channels(base.plan, channels)
    except PlanError as error:
        problems += error.problems
    if problems:
        hint = f"Layers: {', '.join(list(layers)[:8])}, ..."
        raise PlanError(f"kept: does not fit {base.name}", problems=problems, hint=hint)
    return channels


def _checked(base: Base, channels: Mapping[str, np.ndarray], state: Arrays, n_classes: int) -> dict[str, np.ndarray]:
    problems, weights = [], {}
    for name, reference in base.weights.items():
        if name not in state:
            problems.append(f"{name}: missing")
            continue
        array = _array(state[name])
        shape = [width(base.plan, expr, channels) for expr in base.plan["params"].get(name, reference.shape)]
        if name in base.plan["head"]:
            shape[0] = n_classes
        if list(array.shape) != shape:
            problems.append(f"{name}: shape {list(array.shape)}, expected {shape}")
        weights[name] = array.astype(reference.dtype)
    extra = [k for k in state if k not in base.weights and not k.endswith("num_batches_tracked")]
    problems += [f"{name}: {base.name} has no such tensor" for name in extra]
    if problems:
        raise RecordError(f"state_dict does not fit {base.name} cut to these channels", problems=problems)
    return weights


def _array(value: Any) -> np.ndarray:
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        return (value.double() if value.is_floating_point() else value).numpy()  # NumPy has no bfloat16
    return np.asarray(value)


def _check_full(base: Base, full: Arrays) -> None:
    """The full model's parameters must be the base's, up to half precision; the head belongs to the task."""
    problems = []
    for name in base.plan["shapes"]:
        if name in base.plan["head"]:
            continue
        own, other = base.weights[name], _array(full[name]) if name in full else None
        if other is None or other.shape != own.shape:
            problems.append(f"{name}: missing" if other is None else f"{name}: shape {other.shape}, base {own.shape}")
        elif np.linalg.norm(other - own) > 0.01 * np.linalg.norm(own):
            problems.append(f"{name}: other values")
    if problems:
        raise BaseMismatchError(
            f"full= is not the base {base.name}", problems=problems[:20], hint="Load the base from full.state_dict()."
        )


def match(base: Base, full: Arrays, slim: Arrays, *, tolerance: float = 0.5) -> dict[str, np.ndarray]:
    """Which channels a slim model kept, found by comparing its weights with the full model's from the input on.

    For each axis the rows of its writers' weights (and of biases and norm scales) are compared, with their input
    dimensions cut as known so far; the cheapest assignment in ascending order wins. In the end every row is compared
    again with all axes known. Exact for models that were not trained after the cut; after light fine-tuning the nearest
    rows are still the right ones, and rows that are not near raise. Running statistics are left out: they follow the
    data.

    Args:
        base: The base, for its plan.
        full: The full model's tensors.
        slim: The slim model's tensors, in the full model's order of channels.
        tolerance: Largest relative distance |slim - full| / |full| of a matched row.

    Returns:
        {axis: ascending kept indices} of every axis that got smaller.

    Raises:
        PlanError: A row that matches nothing within the tolerance.
    """
    plan = base.plan
    found: dict[str, np.ndarray] = {}
    order = sorted(prunable(plan), key=lambda a: min(w["depth"] for w in plan["axes"][a]["writers"]))
    for axis in order:
        mine, theirs = _rows(plan, axis, found, full, slim)
        if 0 < len(mine) < len(theirs):
            found[axis] = _align(torch.cdist(mine, theirs).numpy())
    problems = []
    for axis in order:
        mine, theirs = _rows(plan, axis, found, full, slim)
        theirs = theirs[torch.from_numpy(kept_indices(plan, axis, found))]
        if len(mine) != len(theirs):
            continue  # wrong shapes are reported together later
        apart = (mine - theirs).norm(dim=1) / theirs.norm(dim=1).clamp(min=1e-12)
        if len(apart) and (worst := float(apart.max())) > tolerance:
            problems.append(f"{axis} ({plan['axes'][axis]['writers'][0]['layer']}): nearest rows differ by {worst:.0%}")
    if problems:
        raise PlanError(
            "the slim model's filters cannot be found in the full model", problems=problems,
            hint="Pass kept= and state_dict= instead.",
        )  # fmt: skip
    return found


def _align(cost: np.ndarray) -> np.ndarray:
    """One column for each row, ascending, of the least total cost (m, n), m <= n; by dynamic programming."""
    m, n = cost.shape
    least = np.full((m + 1, n + 1), np.inf)  # [i, j]: of the first i rows in the first j columns
    least[0] = 0
    for i in range(m):
        least[i + 1, 1:] = np.minimum.accumulate(least[i, :-1] + cost[i])
    columns, j = np.zeros(m, dtype=np.int32), n
    for i in range(m - 1, -1, -1):
        j = int(np.argmax(least[i + 1] == least[i + 1, j])) - 1
        columns[i] = j
    return columns


def _rows(plan: Plan, axis: str, found: Mapping[str, np.ndarray], full: Arrays, slim: Arrays) -> tuple[Tensor, Tensor]:
    """(slim rows, full rows), float64: one row a channel, of every parameter that the axis writes and whose other
    dimensions are known by now; empty when there is none."""
    pairs = []
    for name, exprs in plan["params"].items():
        if name in plan["head"] or name not in plan["shapes"] or name not in slim:
            continue
        # Fused heads: rows of qkv are 3 x heads x width of a head.
        parts = exprs[0]["prod"] if isinstance(exprs[0], dict) and "prod" in exprs[0] else exprs[:1]
        if axis not in parts:
            continue
        at, theirs, mine = parts.index(axis), torch.from_numpy(_array(full[name])), torch.from_numpy(_array(slim[name]))
        theirs = theirs.reshape([width(plan, part) for part in parts] + list(theirs.shape[1:]))
        for d, expr in enumerate([*parts, *exprs[1:]]):
            if d != at:
                theirs = theirs.index_select(d, torch.from_numpy(kept_indices(plan, expr, found)))
        theirs = theirs.movedim(at, 0)
        others = list(theirs.shape[1 : len(parts)])
        # A tensor whose other dimensions are cut by an axis not found yet says nothing so far.
        if list(mine.shape[1:]) == list(theirs.shape[len(parts) :]) and mine.shape[0] % math.prod(others) == 0:
            mine = mine.reshape([*others[:at], -1, *others[at:], *mine.shape[1:]]).movedim(at, 0)
            pairs.append((mine.reshape(len(mine), -1).double(), theirs.reshape(len(theirs), -1).double()))
    counts = {len(mine) for mine, _ in pairs}
    if len(counts) != 1:
        return torch.zeros(0, 1), torch.zeros(0, 1)
    return torch.cat([mine for mine, _ in pairs], 1), torch.cat([theirs for _, theirs in pairs], 1)
