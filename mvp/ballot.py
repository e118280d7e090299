"""How votes become channels: the rules by which voters elect the channels of a sub-network."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

import numpy as np

from zoo.errors import OptionError

Rule = Literal["softmax", "deterministic", "k_of_n", "intersection"]
RULES = ("softmax", "deterministic", "k_of_n", "intersection")
Kept = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Election:
    """The outcome of a vote, before it is decided how many channels stay.

    Attributes:
        votes: {axis: votes of each channel, (n,)}, int64, or float64 when voters weigh differently.
        order: {axis: all channels, the first to be kept first, int64 (n,)}; the first m of an axis are a subset of the
            first m + 1.
        elected: {axis: how many of the first of `order` the rule lets in, 1..n}.
    """

    votes: dict[str, np.ndarray]
    order: dict[str, np.ndarray]
    elected: dict[str, int]

    def channels(self, widths: Mapping[str, int]) -> dict[str, np.ndarray]:
        """The channel set with these widths: {axis: sorted int32 indices}."""
        return {axis: np.sort(self.order[axis][:n]).astype(np.int32) for axis, n in widths.items()}


def elect(
    kept: Sequence[Kept],
    sizes: Mapping[str, int],
    *,
    rng: Callable[[str], np.random.Generator],
    ballot: Rule = "softmax",
    tau: float = 0.1,
    quorum: int | None = None,
    weights: np.ndarray | None = None,
) -> Election:
    """Orders the channels of each axis by a rule.

    "softmax" (MVP, Eq. 1) draws them without replacement, see `sample`. The others draw nothing: most votes first;
    channels with equally many go by the voters that keep them, the first voter's before the second's and so on (the
    nearest task's, in `mvp.vote`), then by index. The paper knows Eq. 1 only. "k_of_n" elects the channels that at
    least `quorum` voters keep, whatever their weight, "intersection" those that all keep; they come first in the order.
    Where none is elected the first of the order is, so that no axis is ever empty.

    Args:
        kept: {axis: kept indices} of each voter; an axis that is absent is kept whole.
        sizes: {axis: channels n}.
        rng: Source of an axis's noise; only "softmax" asks for it.
        ballot: The rule.
        tau: Temperature of Eq. 1, >= 0.
        quorum: For "k_of_n", 1..voters; more than half of the voters when None.
        weights: Weight of each voter, positive, (voters,); None counts heads.

    Raises:
        OptionError: Lists what is wrong with ballot, quorum and tau.
    """
    check_ballot(len(kept), ballot=ballot, tau=tau, quorum=quorum)
    votes = tally(kept, sizes, weights)
    if ballot == "softmax":
        order = {axis: draw_order(v, tau=tau, rng=rng(axis)) for axis, v in votes.items()}
        return Election(votes, order, dict(sizes))
    heads = votes if weights is None else tally(kept, sizes)
    needed = {"deterministic": 0, "k_of_n": quorum or len(kept) // 2 + 1, "intersection": len(kept)}[ballot]
    passed = {axis: v >= needed for axis, v in heads.items()}
    order = _ranked(kept, sizes, votes, passed)
    return Election(votes, order, {axis: max(1, int(p.sum())) for axis, p in passed.items()})


def check_ballot(n_voters: int, *, ballot: str, tau: float, quorum: int | None) -> None:
    """Checks a rule and its numbers.

    Raises:
        OptionError: Lists every one that is wrong.
    """
    problems = []
    if ballot not in RULES:
        problems.append(f"ballot: got {ballot!r}, expected one of {', '.join(RULES)}")
    if not 0 <= tau < math.inf:
        problems.append(f"tau: got {tau}, expected a finite number, 0 or more")
    if quorum is not None and ballot != "k_of_n":
        problems.append(f"quorum: got {quorum} with ballot={ballot!r}, expected None; only 'k_of_n' has one")
    elif quorum is not None and not (isinstance(quorum, int) and 1 <= quorum <= n_voters):
        problems.append(f"quorum: got {quorum}, expected 1..{n_voters}, the number of voters")
    if problems:
        raise OptionError("the vote's options do not fit", problems=problems)


def tally(kept: Sequence[Kept], sizes: Mapping[str, int], weights: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """The votes of each channel, v_k of Eq. 1: how many voters keep it, or the sum of their weights.

    One bincount over the concatenated channels of all axes and voters.

    Args:
        kept: {axis: kept indices} of each voter; an axis that is absent is kept whole.
        sizes: {axis: channels n}.
        weights: Weight of each voter, (voters,), or None.

    Returns:
        {axis: (n,)}, int64 in 0..voters; with weights float64, rounded to 12 decimals so that sums of equal weights tie
        in whatever order they were added.
    """
    each = np.ones(len(kept), np.int64) if weights is None else np.asarray(weights, np.float64)
    total = sum(sizes.values())
    places, lengths, at, whose = [], [], [], []
    whole = np.zeros(len(sizes), each.dtype)
    for v, own in enumerate(kept):
        for a, (axis, start) in enumerate(zip(sizes, accumulate(sizes.values(), initial=0), strict=False)):
            mine = own.get(axis)
            if mine is None:
                whole[a] += each[v]
                continue
            places.append(mine)
            lengths.append(len(mine))
            at.append(start)
            whose.append(v)
    channels = np.concatenate(places) + np.repeat(at, lengths) if places else np.zeros(0, np.int64)
    share = None if weights is None else np.repeat(each[np.array(whose, np.int64)], lengths)
    votes = np.bincount(channels, share, minlength=total) + np.repeat(whole, list(sizes.values()))
    return _split(votes if weights is None else np.round(votes, 12), sizes)


def weigh(values: Sequence[float]) -> np.ndarray:
    """Positive weights from similarities or accuracies of either sign: n exp(s_i) / sum_j exp(s_j).

    LEEP is a mean log-likelihood, so with it voters count by the likelihood of the target's labels. Measures within
    [-1, 1] and accuracies differ by a factor of at most e^2. Adding a constant to all values changes nothing, equal
    values weigh exactly 1 each, and the weights sum to n, so that tau keeps its meaning. MVP does not weigh voters.

    Args:
        values: One finite number a voter.

    Returns:
        float64 (n,), >= 0 (a value 745 below the best underflows to 0), sum n.

    Raises:
        OptionError: A value is not finite.
    """
    given = np.asarray(values, np.float64)
    if not np.isfinite(given).all():
        raise OptionError("voters cannot be weighed", got=given.tolist(), expected="one finite number each")
    likelihood = np.exp(given - given.max())
    return len(given) * likelihood / likelihood.sum()


def draw_order(votes: np.ndarray, *, tau: float, rng: np.random.Generator) -> np.ndarray:
    """All channels in the order in which Eq. 1 draws them without replacement; see `sample`."""
    noise = rng.gumbel(size=len(votes))
    # In double precision the noise spans less than 41. At a small tau the smallest difference in votes outweighs that,
    # so the noise only breaks ties, and in the sum it would be rounded away.
    levels = np.unique(votes)
    gap = np.diff(levels).min() if len(levels) > 1 else 1
    return np.lexsort((-noise, -votes)) if tau < 0.02 * min(gap, 1) else np.argsort(-(votes / tau + noise))


def sample(votes: np.ndarray, n_keep: int, *, tau: float, rng: np.random.Generator) -> np.ndarray:
    """Draws `n_keep` channels without replacement with p(k) = softmax(v / tau) (MVP, Eq. 1).

    Gumbel top-k: adding standard Gumbel noise to v / tau and taking the largest is exactly successive sampling without
    replacement from the renormalised softmax (Vieira 2014; Kool et al. 2019). tau = 0 takes the most votes and breaks
    ties by the same noise.

    Args:
        votes: Votes, shape (n,).
        n_keep: Channels to draw, 1..n.
        tau: Temperature, >= 0.
        rng: Source of the noise.

    Returns:
        Sorted int32 indices, shape (n_keep,).
    """
    return np.sort(draw_order(votes, tau=tau, rng=rng)[:n_keep]).astype(np.int32)


def masks_of(kept: Sequence[Kept], sizes: Mapping[str, int]) -> dict[str, np.ndarray]:
    """{axis: bool (voters, n), True = kept}."""
    masks = {axis: np.zeros((len(kept), n), bool) for axis, n in sizes.items()}
    for axis, mask in masks.items():
        for row, own in zip(mask, kept, strict=True):
            row[own.get(axis, slice(None))] = True
    return masks


def _ranked(
    kept: Sequence[Kept], sizes: Mapping[str, int], votes: Mapping[str, np.ndarray], passed: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    # The last key of a lexsort decides first, and what all keys leave equal stays in the order of indices.
    masks = masks_of(kept, sizes)
    return {axis: np.lexsort((*(~masks[axis][::-1]), -votes[axis], ~passed[axis])).astype(np.int64) for axis in sizes}


def _split(values: np.ndarray, sizes: Mapping[str, int]) -> dict[str, np.ndarray]:
    ends = accumulate(sizes.values())
    return {axis: values[end - n : end] for (axis, n), end in zip(sizes.items(), ends, strict=True)}
