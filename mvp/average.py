"""Averaging the voters' weights in the coordinates of the base (MVP, Algorithm 1, the inner loop)."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from mvp.plan import Plan, kept_indices, prunable
from zoo.errors import OptionError
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
    """
    if how not in ("present_mean", "zero_fill", "pretrained_fill"):
        raise OptionError(f"no average {how!r}", expected="present_mean, zero_fill or pretrained_fill")
    base = voters[0].base
    weights: dict[str, np.ndarray] = {}
    missing: dict[str, tuple[int, int]] = {}
    places = _Places(base.plan, channels, [v.channels for v in voters])
    for name, full in base.weights.items():
        if name in base.plan["head"]:
            continue
        wanted, held = places.of(name, full.shape)
        pretrained = full[np.ix_(*wanted)] if wanted else np.array(full)
        if full.dtype.kind != "f":
            weights[name] = pretrained
            continue
        # Only the dimension that a layer sums over is filled: a unit that a voter lacks stays absent.
        filled = None if how == "present_mean" else base.plan["consumers"].get(name)
        total, count = np.zeros(pretrained.shape), np.zeros(pretrained.shape, dtype=np.int64)
        for voter, (to, source) in zip(voters, held, strict=True):
            values, present = np.asarray(voter.weights[name])[np.ix_(*source)], np.ix_(*to)
            if filled is not None:
                own = np.zeros(pretrained.shape) if how == "zero_fill" else pretrained.astype(np.float64)
                own[present] = values
                present = np.ix_(*(np.arange(own.shape[d]) if d == filled else at for d, at in enumerate(to)))
                values = own[present]
            total[present] += values
            count[present] += 1
        mean = np.divide(total, count, out=pretrained.astype(np.float64), where=count > 0)
        weights[name] = mean.astype(full.dtype)
        missing[name] = (int((count == 0).sum()), count.size)
    return weights, _fallback_shares(base, missing)


class _Places:
    """Where each dimension's wanted entries lie in every voter, computed once per expression."""

    def __init__(
        self, plan: Plan, channels: Mapping[str, np.ndarray], voters: Sequence[Mapping[str, np.ndarray]]
    ) -> None:
        self.plan, self.channels, self.voters = plan, channels, voters
        self.cache: dict[str, tuple[np.ndarray, list[tuple[np.ndarray, np.ndarray]]]] = {}

    def of(
        self, name: str, shape: tuple[int, ...]
    ) -> tuple[list[np.ndarray], list[tuple[list[np.ndarray], list[np.ndarray]]]]:
        """(wanted full indices of each dimension, for each voter (slim target positions, slim source positions))."""
        dims = [self._dim(e) for e in self.plan["params"].get(name, shape)]
        wanted = [w for w, _ in dims]
        return wanted, [
            ([held[v][0] for _, held in dims], [held[v][1] for _, held in dims]) for v in range(len(self.voters))
        ]

    def _dim(self, expr: Any) -> tuple[np.ndarray, list[tuple[np.ndarray, np.ndarray]]]:
        key = repr(expr)
        if key not in self.cache:
            wanted = np.asarray(kept_indices(self.plan, expr, self.channels))
            held = []
            for own in self.voters:
                kept = np.asarray(kept_indices(self.plan, expr, own))
                # Kept indices of a cat or prod of axes stay sorted, so a search finds each one's position.
                at = np.searchsorted(kept, wanted)
                found = (at < len(kept)) & (kept[np.minimum(at, len(kept) - 1)] == wanted)
                held.append((np.flatnonzero(found), at[found]))
            self.cache[key] = (wanted, held)
        return self.cache[key]


def _fallback_shares(base: Base, missing: Mapping[str, tuple[int, int]]) -> dict[str, float]:
    def share(names: Sequence[str]) -> float:
        entries = sum(missing[n][1] for n in names)
        return sum(missing[n][0] for n in names) / entries if entries else 0.0

    shares = {"vote/fallback_share": share(list(missing))}
    for axis in prunable(base.plan):
        layers = {w["layer"] for w in base.plan["axes"][axis]["writers"]}
        shares[f"vote/fallback_share/{axis}"] = share([n for n in missing if n.rpartition(".")[0] in layers])
    return shares


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
    places = _Places(base.plan, channels, [own for _, _, own in sources])
    result = {}
    for name, start in head.items():
        total, count = np.zeros(start.shape), np.zeros(start.shape, dtype=np.int64)
        inputs = list(base.plan["params"].get(name, base.weights[name].shape))[1:]
        for s, (weights, known, _) in enumerate(sources):
            rows = [(i, known.index(label)) for i, label in enumerate(labels) if label in known]
            held = [places._dim(e)[1][s] for e in inputs]
            for to, source in rows:
                where = np.ix_(np.array([to]), *[h[0] for h in held])
                total[where] += np.asarray(weights[name])[np.ix_(np.array([source]), *[h[1] for h in held])]
                count[where] += 1
        result[name] = np.divide(total, count, out=start.astype(np.float64), where=count > 0).astype(start.dtype)
    return result
