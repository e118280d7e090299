"""How sure LEEP is, and the ranking of models by it: bootstrap over the target's images.

Source of the score: Nguyen et al. 2020 (`zoo.leep`). They give no uncertainty; here images are drawn again with
replacement inside each class (Efron 1979), so that a resample has the task's class counts, hence its range of LEEP. All
models see the same draws, so that differences between models that respond alike are not drowned by the images' own.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from zoo.errors import OptionError
from zoo.leep import FLOOR, Floats, Ints, label_entropy, leep_many
from zoo.table import Table

NUMBERS_AT_ONCE = 1 << 22  # float64 numbers of one intermediate result: 32 MB
ENDS = (0.025, 0.975)  # quantiles that a 95% interval lies between


@dataclass(frozen=True, eq=False)
class LeepIntervals:
    """LEEP of M models with 95% intervals of the value and of the rank.

    Attributes:
        value: float64 (M,) in nats, LEEP on the images as they are.
        low: float64 (M,), lower ends; low <= high, both in [-H(Y), 0].
        high: float64 (M,), upper ends.
        first: float64 (M,), share of resamples in which the model ranks first, in [0, 1]; models that tie for it share
            the resample, so that the shares sum to 1.
        rank_low: int64 (M,), best rank, 1 = most transferable; models that tie have the best of their ranks.
        rank_high: int64 (M,), worst rank.
    """

    value: Floats
    low: Floats
    high: Floats
    first: Floats
    rank_low: Ints
    rank_high: Ints

    def table(self, names: Sequence[str] | None = None) -> Table:
        """One line a model, best first, ties in the order given."""
        order = np.argsort(-self.value, kind="stable")
        return Table(
            {
                "model": [names[m] if names is not None else int(m) for m in order],
                "leep": self.value[order].tolist(),
                "low": self.low[order].tolist(),
                "high": self.high[order].tolist(),
                "ranks first": self.first[order].tolist(),
                "rank low": self.rank_low[order].tolist(),
                "rank high": self.rank_high[order].tolist(),
            },
            "LEEP with 95% intervals over images",
        )


def leep_intervals(
    responses: Sequence[npt.ArrayLike] | np.ndarray, labels: npt.ArrayLike, resamples: int = 1000, seed: int = 0
) -> LeepIntervals:
    """LEEP of many models on one task, and how sure their ranking is; see the module for the method.

    A resample is a weight a image (how often it was drawn), not a copy of the responses, so all resamples of a model
    are two matrix products a class.

    LEEP fits P(y|z) to the images that it is then measured on, so it lies above what endless images would give, and a
    resample, of fewer different images, lies as much higher again. The interval is one of the value on endless images:
    it mirrors the resamples' quantiles at the value (the basic bootstrap, Davison & Hinkley 1997, Eq. 5.6), and may lie
    below the value as a whole. Measured on synthetic 5-way tasks of 100 to 500 images and 5 to 100 source classes, it
    holds the truth in 87-93% of cases, plain percentiles in 4-78%. Ranks, which the shift hardly moves when models have
    the same number of source classes, are plain percentiles.

    Args:
        responses: As for `leep_many`.
        labels: int (n,).
        resamples: B, at least 1.
        seed: Of the draws.

    Returns:
        LeepIntervals.

    Raises:
        DataError: As `leep_many`.
        OptionError: Fewer than one resample.
    """
    if isinstance(resamples, bool) or not isinstance(resamples, int | np.integer) or resamples < 1:
        raise OptionError("leep_intervals: resamples", got=repr(resamples), expected="a whole number of at least 1")
    value = leep_many(responses, labels)
    if not len(value):
        return LeepIntervals(value, value, value, value, np.empty(0, np.int64), np.empty(0, np.int64))
    y = np.asarray(labels)
    weights = image_weights(y, int(resamples), seed)
    drawn = np.stack([drawn_leep(np.asarray(theta, np.float64), y, weights) for theta in responses])
    lower, upper = np.quantile(drawn, ENDS, axis=1)
    lowest = -label_entropy(y)
    low, high = np.clip(2 * value - upper, lowest, 0.0), np.clip(2 * value - lower, lowest, 0.0)
    first, rank_low, rank_high = _ranks(drawn)
    return LeepIntervals(value, low, high, first, rank_low, rank_high)


def image_weights(labels: npt.ArrayLike, resamples: int, seed: int) -> Floats:
    """How often each image is drawn when the images of every class are drawn with replacement, float64 (B, n).

    The weights of a class's images sum to their number in every row.
    """
    y = np.asarray(labels)
    rng = np.random.default_rng(seed)
    weights = np.empty((resamples, len(y)))
    for c in np.unique(y):
        members = np.flatnonzero(y == c)
        weights[:, members] = rng.multinomial(len(members), np.full(len(members), 1 / len(members)), size=resamples)
    return weights


def drawn_leep(theta: Floats, labels: npt.ArrayLike, weights: Floats) -> Floats:
    """LEEP of one model on images that count several times or not at all.

    Args:
        theta: Softmax outputs, float64 (n, Z).
        labels: int (n,).
        weights: float64 (B, n), whole numbers; in each row they sum to n.

    Returns:
        float64 (B,), each what `leep` gives for a copy of the responses that repeats image i weights[b, i] times.
    """
    y = np.asarray(labels)
    members = [np.flatnonzero(y == c) for c in np.unique(y)]
    result = np.empty(len(weights))
    step = max(1, NUMBERS_AT_ONCE // max(len(theta), theta.shape[1] * len(members)))
    for start in range(0, len(weights), step):
        part = slice(start, start + step)
        joint = np.stack([weights[part, own] @ theta[own] for own in members])
        total = joint.sum(axis=0)
        conditional = np.divide(joint, total, out=joint, where=total > 0)
        logs = np.zeros(len(total))
        for own, of_class in zip(members, conditional):
            inner = theta[own] @ of_class.T
            logs += np.einsum("bi,ib->b", weights[part, own], np.log(np.maximum(inner, FLOOR)))
        result[part] = logs / len(theta)
    return np.clip(result, -label_entropy(y), 0.0)


def _ranks(drawn: Floats) -> tuple[Floats, Ints, Ints]:
    """Share of first places, and the ends of the interval of ranks, from LEEP (M, B)."""
    from scipy.stats import rankdata

    ranks = rankdata(-drawn, method="min", axis=0)
    winners = ranks == 1
    first = (winners / winners.sum(axis=0)).mean(axis=1)
    # Ranks are counts: an interval must end at a rank that was drawn.
    ends = np.quantile(ranks, ENDS, axis=1, method="inverted_cdf").astype(np.int64)
    return first, ends[0], ends[1]
