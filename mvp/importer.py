"""Models pruned elsewhere: kept indices and a state dict, or the full and the slim model, become a sub-network."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from mvp.plan import axes_of, check_channels, kept_indices, prunable, width
from mvp.subnetwork import cost
from zoo.errors import PlanError, RecordError
from zoo.records import Base, SubNetwork, Task

Arrays = Mapping[str, Any]


def import_subnetwork(
    base: Base,
    *,
    kept: Mapping[str, Sequence[int]] | None = None,
    state_dict: Arrays | None = None,
    full: nn.Module | None = None,
    slim: nn.Module | None = None,
    task: Task,
    producer: str = "import",
    keep: float | None = None,
    metrics: Mapping[str, float] | None = None,
    seed: int = 0,
) -> SubNetwork:
    """A sub-network from a model that other code pruned.

    Give either `kept` and `state_dict`, or `full` and `slim`. Keys of `kept` are axes of the base's plan ("a3") or names of
    layers ("layer1.0.conv1"): a layer of a residual group stands for the whole group.

    Args:
        base: The base that was pruned.
        kept: {axis or layer: kept indices}; axes that are absent are whole.
        state_dict: The slim tensors by the base's parameter names, the head with one row a label of `task`.
        full: The model before pruning; its weights must be the base's.
        slim: The model after; which filters it kept is found by comparing weights, see `match`.
        task: The task it was pruned for.
        producer: Name recorded as the method.
        keep: Keep ratio to record; the mean kept share of the prunable axes when None.
        metrics: Measured numbers, e.g. {"accuracy": 0.91}.
        seed: Seed to record.

    Raises:
        PlanError: Indices that do not fit the plan; lists all.
        RecordError: Missing, unexpected or misshapen tensors; lists all.
    """
    if (kept is None) == (slim is None) or (slim is not None and full is None):
        raise RecordError("import_subnetwork wants kept= and state_dict=, or full= and slim=")
    if slim is not None and full is not None:
        state_dict = slim.state_dict()
        kept = match(base, full.state_dict(), state_dict)
    channels = _by_axis(base, kept or {})
    check_channels(base.plan, channels)
    weights = _checked(base, channels, state_dict or {}, len(task.labels))
    shares = [len(channels.get(a, range(base.plan["axes"][a]["n"]))) / base.plan["axes"][a]["n"] for a in prunable(base.plan)]
    params, macs = cost(base, channels, len(task.labels))
    return SubNetwork(
        task=task, base=base, channels=channels, weights=weights, producer=producer,
        keep=keep or float(np.mean(shares)), seed=seed, metrics=metrics or {}, params=params, macs=macs,
    )  # fmt: skip


def _by_axis(base: Base, kept: Mapping[str, Sequence[int]]) -> dict[str, np.ndarray]:
    axes = base.plan["axes"]
    layers = {w["layer"]: a for a, info in axes.items() for w in info["writers"]}
    channels: dict[str, np.ndarray] = {}
    problems = []
    for key, indices in kept.items():
        axis = key if key in axes else layers.get(key)
        array = np.sort(np.asarray(indices))
        if axis is None:
            problems.append(f"{key}: neither an axis nor a layer that writes one")
        elif axis in channels and not np.array_equal(channels[axis], array):
            problems.append(f"{key}: another layer of the same residual group ({axis}) keeps other channels")
        else:
            channels[axis] = array
    if problems:
        raise PlanError(f"kept: does not fit {base.name}", problems=problems, hint=f"Layers: {', '.join(list(layers)[:8])}, ...")
    return channels


def _checked(base: Base, channels: Mapping[str, np.ndarray], state: Arrays, n_classes: int) -> dict[str, np.ndarray]:
    problems, weights = [], {}
    for name, reference in base.weights.items():
        if name not in state:
            problems.append(f"{name}: missing")
            continue
        value = state[name]
        array = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
        shape = [len(kept_indices(base.plan, e, channels)) for e in base.plan["params"].get(name, reference.shape)]
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


def match(base: Base, full: Mapping[str, Tensor], slim: Mapping[str, Tensor], *, tolerance: float = 0.5) -> dict[str, np.ndarray]:
    """Which channels a slim model kept, found by comparing its weights with the full model's, axis by axis from the input.

    For each axis the rows of its writers' weights (and of one-dimensional tensors such as norm scales) are compared after the
    input dimensions known so far are cut; the cheapest one-to-one assignment wins. Exact for models that were not trained
    after the cut; after light fine-tuning the nearest rows are still the right ones, and rows that are not near raise.

    Args:
        base: The base, for its plan.
        full: The full model's tensors.
        slim: The slim model's tensors.
        tolerance: Largest relative distance |slim - full| / |full| of a matched row.

    Returns:
        {axis: sorted kept indices} of every axis that got smaller.

    Raises:
        PlanError: A row that matches nothing within the tolerance, or tensors that do not fit the plan.
    """
    plan, found = base.plan, {}
    order = sorted(prunable(plan), key=lambda a: min(w["depth"] for w in plan["axes"][a]["writers"]))
    problems = []
    for axis in order:
        features = _features(plan, axis, found, full, slim)
        if not features:
            continue
        a = torch.cat([s for s, _ in features], 1)
        b = torch.cat([f for _, f in features], 1)
        if len(a) == len(b):
            continue
        distance = torch.cdist(a.double(), b.double()).numpy()
        rows, columns = linear_sum_assignment(distance)
        worst = (distance[rows, columns] / np.maximum(b.double().norm(dim=1).numpy()[columns], 1e-12)).max()
        if worst > tolerance or not np.array_equal(columns, np.sort(columns)):
            problems.append(f"{axis} ({plan['axes'][axis]['writers'][0]['layer']}): nearest rows differ by {worst:.0%}")
            continue
        found[axis] = columns.astype(np.int32)
    if problems:
        raise PlanError("the slim model's filters cannot be found in the full model", problems=problems,
                        hint="Pass kept= and state_dict= instead.")  # fmt: skip
    return found


def _features(
    plan: Mapping[str, Any], axis: str, found: Mapping[str, np.ndarray], full: Mapping[str, Tensor], slim: Mapping[str, Tensor]
) -> list[tuple[Tensor, Tensor]]:
    """(slim rows, full rows) of every tensor whose first dimension is this axis and whose others are known by now."""
    features = []
    for name, exprs in plan["params"].items():
        if not exprs or exprs[0] != axis or name not in slim or name in plan["head"]:
            continue
        other = full[name].detach().cpu().float()
        for d, expr in enumerate(exprs[1:], start=1):
            known = {a: found[a] for a in axes_of(expr) if a in found}
            other = other.index_select(d, torch.as_tensor(np.asarray(kept_indices(plan, expr, known)), dtype=torch.int64))
        mine = slim[name].detach().cpu().float()
        # A tensor whose other dimensions are cut by an axis not found yet says nothing so far.
        if other.shape[1:] == mine.shape[1:] and other.shape[0] == width(plan, axis):
            features.append((mine.flatten(1) if mine.ndim > 1 else mine[:, None], other.flatten(1) if other.ndim > 1 else other[:, None]))
    return features
