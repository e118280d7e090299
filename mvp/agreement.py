"""How far voters agree: diagnostics of a vote, what chance would give, and how stable its outcome is."""

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np

from mvp.ballot import masks_of
from zoo.errors import OptionError
from zoo.records import SubNetwork


def diagnostics(
    votes: Mapping[str, np.ndarray], channels: Mapping[str, np.ndarray], voters: Sequence[SubNetwork]
) -> dict[str, float]:
    """How sure a vote is, per axis and as a mean over axes.

    entropy: of the votes as a distribution over channels, divided by log n: 1 when all have equally many votes.
    zero_share: share of the drawn channels that nobody voted for. agreement: mean IoU over pairs of voters (1 for one);
    "vote/random_floor" is what it must exceed to say anything, see `agreement_floor`.
    """
    return vote_metrics(votes, voters, None) | zero_shares(votes, channels)


def vote_metrics(
    votes: Mapping[str, np.ndarray], voters: Sequence[SubNetwork], similarities: Sequence[float] | None
) -> dict[str, float]:
    """The part of `diagnostics` that does not depend on how many channels are kept, and that of the similarities."""
    found: dict[str, float] = {}
    sizes = {axis: len(v) for axis, v in votes.items()}
    masks = masks_of([s.channels for s in voters], sizes)
    for axis, v in votes.items():
        p = v[v > 0] / v.sum()
        found[f"vote/entropy/{axis}"] = float(-(p * np.log(p)).sum() / np.log(len(v)))
        found[f"vote/agreement/{axis}"] = _agreement(masks[axis])
    for name in ("entropy", "agreement"):
        found[f"vote/{name}"] = float(np.mean([found[f"vote/{name}/{axis}"] for axis in votes]))
    found["vote/random_floor"] = agreement_floor(
        sizes, [{axis: len(kept) for axis, kept in s.channels.items()} for s in voters]
    )
    if similarities is not None:
        found["vote/score_best"] = float(max(similarities))
        found["vote/score_margin"] = float(max(similarities) - min(similarities))
    return found


def zero_shares(votes: Mapping[str, np.ndarray], channels: Mapping[str, np.ndarray]) -> dict[str, float]:
    """The share of the kept channels that nobody voted for, per axis and as a mean over axes."""
    found = {f"vote/zero_share/{axis}": float((v[channels[axis]] == 0).mean()) for axis, v in votes.items()}
    return found | {"vote/zero_share": float(np.mean(list(found.values())))}


def _agreement(masks: np.ndarray) -> float:
    both = masks.astype(np.float64) @ masks.T.astype(np.float64)
    kept = np.diag(both)
    i, j = np.tril_indices(len(masks), -1)
    return float((both[i, j] / (kept[i] + kept[j] - both[i, j])).mean()) if len(i) else 1.0


def agreement_floor(sizes: Mapping[str, int], widths: Sequence[Mapping[str, int]]) -> float:
    """The random floor: the mean IoU that pairs of random voters of these widths stay below in 95% of cases.

    It follows from the vote alone. |A ∩ B| of two random sets is hypergeometric; the IoUs of pairs of independent
    random sets are pairwise independent, those of different axes too, so mean and variance of "vote/agreement" (the
    mean over pairs, then over axes) are exact, and the 95% point is taken from the normal distribution with these. Not
    in a paper: MVP draws the expectation alone (Fig. 7; `zoo.channels.random_floor`), which random voters exceed half
    the time.

    Args:
        sizes: {axis: channels n}.
        widths: {axis: channels kept} of each voter; an axis that is absent is kept whole.

    Returns:
        A number in [0, 1]. 0 with fewer than two voters, of whose agreement nothing can be said; 1 where all keep
        everything.
    """
    pairs = [(i, j) for i in range(len(widths)) for j in range(i)]
    if not pairs or not sizes:
        return 0.0
    mean = variance = 0.0
    for axis, n in sizes.items():
        own = [w.get(axis, n) for w in widths]
        moments = [_iou_moments(n, *sorted((own[i], own[j]))) for i, j in pairs]
        mean += sum(m for m, _ in moments) / len(pairs)
        variance += sum(v for _, v in moments) / len(pairs) ** 2
    return min(1.0, mean / len(sizes) + 1.645 * math.sqrt(variance) / len(sizes))


def weak(agreement: float, floor: float) -> bool:
    """Whether voters agree no more than random ones; never where everybody keeps everything, which says nothing."""
    return agreement <= floor + 1e-12 and floor < 1


def stability(
    voters: Sequence[SubNetwork], channels: Mapping[str, np.ndarray], *, resamples: int = 1000, seed: int = 0
) -> dict[str, np.ndarray]:
    """The share of bootstrap resamples of the voters in which each channel stays elected.

    As many voters as there are, drawn with replacement (Efron 1979), elect as many channels of each axis as `channels`
    keeps, by most votes; channels that tie for the last places have an equal chance of them, which counts as that
    fraction. Votes are not weighed. Not in the paper.

    Args:
        voters: Sub-networks of one base.
        channels: {axis: kept indices} of the voted sub-network; only the numbers matter.
        resamples: Resamples.
        seed: Of the resamples.

    Returns:
        {axis: float64 (n,)} in [0, 1]; an axis's values sum to the channels it keeps.

    Raises:
        OptionError: No voters, or fewer than one resample.
    """
    if not voters or resamples < 1:
        raise OptionError("no bootstrap", got=f"{len(voters)} voters, {resamples} resamples", expected="1 or more")
    axes = voters[0].base.plan["axes"]
    masks = masks_of([v.channels for v in voters], {axis: axes[axis]["n"] for axis in channels})
    chances = np.full(len(voters), 1 / len(voters))
    times = np.random.default_rng(seed).multinomial(len(voters), chances, size=resamples).astype(np.float64)
    shares = {}
    for axis, mask in masks.items():
        votes = times @ mask  # sums of small whole numbers: exact
        seats = len(channels[axis])
        cut = np.partition(votes, -seats, axis=1)[:, [-seats]]
        above, tied = votes > cut, votes == cut
        left = seats - above.sum(axis=1, keepdims=True)
        shares[axis] = (above + tied * (left / tied.sum(axis=1, keepdims=True))).mean(axis=0)
    return shares


@lru_cache(maxsize=65536)
def _iou_moments(n: int, a: int, b: int) -> tuple[float, float]:
    """Mean and variance of the IoU of two random sets of a and b out of n."""
    from scipy.stats import hypergeom

    both = np.arange(max(0, a + b - n), min(a, b) + 1)
    chance, iou = hypergeom.pmf(both, n, a, b), both / (a + b - both)
    mean = float(chance @ iou)
    return mean, max(0.0, float(chance @ iou**2) - mean**2)
