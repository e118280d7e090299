"""Means over target tasks with bootstrap intervals."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from zoo.channels import Floats, Ints


@dataclass(frozen=True, eq=False)
class Estimate:
    """Means with 95% intervals.

    Attributes:
        mean: float64 (U, G), NaN where no target has a value.
        low: Lower ends, the same shape.
        high: Upper ends.
        targets: int64 (U, G), how many targets a mean is over.
    """

    mean: Floats
    low: Floats
    high: Floats
    targets: Ints


class Bootstrap:
    """Means over targets, and their 95% percentile intervals when whole target tasks are drawn again.

    Args:
        tasks: Task of each target; targets of one task are drawn together.
        resamples: How many times.
        seed: Of the draws.
    """

    def __init__(self, tasks: Sequence[str], resamples: int, seed: int) -> None:
        names, cluster = np.unique(np.array(tasks, dtype=str), return_inverse=True)
        chances = np.full(len(names), 1 / max(len(names), 1))
        draws = np.random.default_rng(seed).multinomial(len(names), chances, size=resamples)
        self.weights = draws[:, cluster].astype(np.float64)

    def estimate(self, values: Floats) -> Estimate:
        """Estimate of (U, T, G) values per target, NaN = the target has none, as (U, G)."""
        known = np.isfinite(values)
        filled = np.where(known, values, 0.0)
        number = known.sum(axis=1)
        mean = np.divide(filled.sum(axis=1), number, out=np.full(number.shape, np.nan), where=number > 0)
        low, high = np.full_like(mean, np.nan), np.full_like(mean, np.nan)
        for u in range(len(values)):
            drawn = self.weights @ known[u]
            sums = self.weights @ filled[u]
            again = np.divide(sums, drawn, out=np.full(sums.shape, np.nan), where=drawn > 0)
            for g in range(values.shape[2]):
                sound = again[np.isfinite(again[:, g]), g]
                if len(sound):
                    low[u, g], high[u, g] = np.quantile(sound, [0.025, 0.975])
        return Estimate(mean, low, high, number)
