"""Averaging the voters' weights in the coordinates of the base (MVP, Algorithm 1, the inner loop)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from weakref import WeakKeyDictionary

import numpy as np

from mvp.plan import Plan, kept_indices, prunable, width
from zoo.errors import OptionError, RecordError
from zoo.records import Base, SubNetwork

Average = Literal["present_mean", "zero_fill", "pretrained_fill"]


def average_weights(
    voters: Sequence[SubNetwork], channels: Mapping[str, np.ndarray], *, how: Average = "present_mean"
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """The slim weights for `channels`, each entry averaged over the voters; the head is left to the caller.

    Algorithm 1 initialises filter k with the average of its parameters over the voters that keep it. The paper does not
    say what happens where their input channels differ. "present_mean": each entry (k, c) is averaged over the
    voters that keep both. "zero_fill" and "pretrained_fill": over the voters that keep k, with zero or the pre-trained
    weight where one has no c. Entries held by nobody take the pre-trained weight. Norm parameters and running
    statistics are averaged the same way.

    Args:
        voters: Sub-networks of one base, mode "coupled".
        channels: The channels to keep, {axis: ascending indices}.
        how: See above.

    Returns:
        ({name: array of the slim shape and the base's dtype}, {"vote/fallback_share": share of entries that nobody
        held, and the same per prunable axis, over the parameters of the layers that write it}).

    Raises:
        OptionError: An unknown `how`.
        RecordError: A voter's tensors do not have the sizes that its channels say; all are listed.
    """
    if how not in ("present_mean", "zero_fill", "pretrained_fill"):
        raise OptionError(f"no average {how!r}", expected="present_mean, zero_fill or pretrained_fill")
    from mvp.scatter import PRETRAINED, SKIP, ZERO, scatter_mean

    base = voters[0].base
    layout = _layout(base)
    wanted = [np.asarray(kept_indices(base.plan, e, channels)) for e in layout.exprs]
    widths = np.array([len(w) for w in wanted])
    starts = np.concatenate([[0], np.cumsum(widths)])
    own_widths = np.array([[width(base.plan, e, v.channels) for e in layout.exprs] for v in voters])
    kept = [v.channels for v in voters]
    maps = np.hstack([_positions(base.plan, e, w, kept) for e, w in zip(layout.exprs, wanted, strict=True)])
    sizes = np.multiply.reduceat(widths[layout.places], layout.first) * layout.runs
    bounds = np.concatenate([[0], np.cumsum(sizes)])
    pretrained = np.zeros(0, np.float32)
    if how == "pretrained_fill":
        pretrained = np.concatenate([_cut(base.weights[n], layout.dims[n], wanted).ravel() for n in layout.floats])
    source, source_start = _gather(voters, layout, own_widths)
    mean, missing, to_cell, from_cell = scatter_mean(
        {"present_mean": SKIP, "zero_fill": ZERO, "pretrained_fill": PRETRAINED}[how],
        layout.places, layout.first, layout.last, layout.runs, layout.filled, starts[:-1], widths, own_widths,
        layout.widths, np.concatenate(wanted), maps, source, source_start, pretrained, bounds,
    )  # fmt: skip
    # Only the entries that nobody holds are read from the base, which is large and far from the processor.
    ends = np.cumsum(missing)
    for t in np.flatnonzero(missing):
        found, run = slice(ends[t] - missing[t], ends[t]), layout.runs[t]
        full = np.asarray(base.weights[layout.floats[t]]).reshape(-1, run)
        mean[bounds[t] : bounds[t + 1]].reshape(-1, run)[to_cell[found]] = full[from_cell[found]]
    means = {dtype: mean.astype(dtype) for dtype in set(layout.dtypes)}
    weights = {
        name: means[dtype][start:end].reshape([widths[e] for e in layout.dims[name]] + layout.tails[name])
        for name, dtype, start, end in zip(layout.floats, layout.dtypes, bounds.tolist(), bounds[1:].tolist())
    }
    for name in layout.others:
        weights[name] = _cut(base.weights[name], layout.dims[name], wanted)
    return weights, _fallback_shares(layout, missing * layout.runs, sizes)


@dataclass(frozen=True, eq=False)
class _Layout:
    """What a plan says about averaging, worked out once: which expression each dimension of each tensor has."""

    plan: Plan
    floats: list[str]  # tensors that are averaged, in the order of the arrays below
    others: list[str]  # counters and index tables: the base's
    dtypes: list[np.dtype]  # of `floats`
    exprs: list[Any]
    widths: np.ndarray  # the base's entries along each expression
    dims: dict[str, list[int]]  # indices into `exprs`, constant trailing dimensions left out
    tails: dict[str, list[int]]  # those dimensions
    places: np.ndarray
    first: np.ndarray
    last: np.ndarray
    runs: np.ndarray
    filled: np.ndarray
    writers: dict[str, np.ndarray]  # {prunable axis: which of `floats` belong to the layers that write it}


_LAYOUTS: WeakKeyDictionary[Base, _Layout] = WeakKeyDictionary()


def _layout(base: Base) -> _Layout:
    known = _LAYOUTS.get(base)
    # Two records of a base are equal whatever their plans are.
    if known is None or known.plan is not base.plan:
        known = _LAYOUTS[base] = _make_layout(base)
    return known


def _make_layout(base: Base) -> _Layout:
    body = {n: np.asarray(t) for n, t in base.weights.items() if n not in base.plan["head"]}
    floats = [n for n, t in body.items() if t.dtype.kind == "f"]
    exprs: dict[str, Any] = {"1": 1}  # the one place of tensors without any other
    dims, tails = {}, {}
    for name, tensor in body.items():
        own, tail = list(base.plan["params"].get(name, tensor.shape)), list[int]()
        while own and isinstance(own[-1], int):
            tail.insert(0, own.pop())
        exprs |= {repr(e): e for e in own}
        dims[name], tails[name] = [list(exprs).index(repr(e)) for e in own], tail
    # Only the dimension that a layer sums over is filled: a unit that a voter lacks stays absent.
    consumers = base.plan["consumers"]
    writers = {}
    for axis in prunable(base.plan):
        layers = {w["layer"] for w in base.plan["axes"][axis]["writers"]}
        writers[axis] = np.array([i for i, n in enumerate(floats) if n.rpartition(".")[0] in layers], np.int64)
    places = [dims[n] or [0] for n in floats]
    ends = np.cumsum([len(own) for own in places], dtype=np.int64)
    return _Layout(
        base.plan, floats, [n for n in body if n not in set(floats)], [body[n].dtype for n in floats],
        list(exprs.values()), np.array([width(base.plan, e) for e in exprs.values()]), dims, tails,
        places=np.array([e for own in places for e in own], np.int64),
        first=ends - np.array([len(own) for own in places], np.int64), last=ends,
        runs=np.array([math.prod(tails[n]) for n in floats], np.int64),
        filled=np.array([consumers.get(n, -1) for n in floats], np.int64), writers=writers,
    )  # fmt: skip


def _cut(full: np.ndarray, dims: Sequence[int], wanted: Sequence[np.ndarray]) -> np.ndarray:
    """The entries of a base's tensor that the wanted channels select; a copy."""
    return np.asarray(full)[np.ix_(*[wanted[e] for e in dims])] if dims else np.array(full)


def _gather(voters: Sequence[SubNetwork], layout: _Layout, own_widths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All voters' tensors end to end, and where each starts, int64 (voters, tensors).

    Raises:
        RecordError: Tensors that do not have the size that their channels say; all are listed.
    """
    entries = np.multiply.reduceat(own_widths[:, layout.places], layout.first, axis=1)
    given = [np.asarray(v.weights[n]) for v in voters for n in layout.floats]
    sizes = np.array([t.size for t in given]).reshape(len(voters), -1)
    if problems := [
        f"{voters[v].id[:12]}: {layout.floats[t]} has {sizes[v, t]} entries"
        for v, t in np.argwhere(sizes != entries * layout.runs)
    ]:
        raise RecordError("weights that do not fit the channels of their sub-network", problems=problems)
    return np.concatenate([t.ravel() for t in given]), (np.cumsum(sizes) - sizes.ravel()).reshape(sizes.shape)


def _positions(plan: Plan, expr: Any, wanted: np.ndarray, voters: Sequence[Mapping[str, np.ndarray]]) -> np.ndarray:
    """Where each wanted entry of a dimension lies in each voter; int64 (voters, wanted), -1 where it does not."""
    full = width(plan, expr)
    order = np.arange(full)
    inverse = np.full((len(voters), full), -1)
    for row, own in zip(inverse, voters, strict=True):
        kept = kept_indices(plan, expr, own)
        row[kept] = order[: len(kept)]
    return inverse[:, wanted]


def _fallback_shares(layout: _Layout, missing: np.ndarray, sizes: np.ndarray) -> dict[str, float]:
    def share(which: Any) -> float:
        entries = int(sizes[which].sum())
        return int(missing[which].sum()) / entries if entries else 0.0

    shares = {"vote/fallback_share": share(slice(None))}
    return shares | {f"vote/fallback_share/{axis}": share(which) for axis, which in layout.writers.items()}


def overlay_rows(
    base: Base,
    head: dict[str, np.ndarray],
    labels: Sequence[str],
    channels: Mapping[str, np.ndarray],
    sources: Sequence[tuple[Mapping[str, np.ndarray], Sequence[str], Mapping[str, np.ndarray]]],
) -> dict[str, np.ndarray]:
    """Head rows of labels that the sources know: the mean over those that do, entry by entry where inputs differ.

    Args:
        base: The base.
        head: The new head, {name: array}, rows in the order of `labels`.
        labels: The new task's labels.
        channels: The new sub-network's channels.
        sources: (weights, labels in row order, channels) of whoever may know a label.

    Returns:
        A head in which the known entries are replaced.
    """
    result = {}
    for name, start in head.items():
        total, count = np.zeros(start.shape), np.zeros(start.shape, dtype=np.int64)
        inputs = list(base.plan["params"].get(name, base.weights[name].shape))[1:]
        for weights, known, own in sources:
            rows = [(i, known.index(label)) for i, label in enumerate(labels) if label in known]
            at = [_positions(base.plan, e, kept_indices(base.plan, e, channels), [own])[0] for e in inputs]
            held = [(np.flatnonzero(p >= 0), p[p >= 0]) for p in at]
            for to, source in rows:
                where = np.ix_(np.array([to]), *[h[0] for h in held])
                total[where] += np.asarray(weights[name])[np.ix_(np.array([source]), *[h[1] for h in held])]
                count[where] += 1
        result[name] = np.divide(total, count, out=start.astype(np.float64), where=count > 0).astype(start.dtype)
    return result
