"""A limit on MACs or parameters, and the widest sub-network within it."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from mvp.plan import keep_counts
from mvp.subnetwork import cost
from zoo.errors import OptionError
from zoo.records import Base

Sets = dict[str, np.ndarray]


@dataclass(frozen=True)
class Budget:
    """What a sub-network of a base may cost.

    Attributes:
        base: The base.
        n_classes: Outputs of the task's head, which counts.
        constraint: "macs" (multiply-accumulates of one image) or "params".
        limit: The most allowed.
    """

    base: Base
    n_classes: int
    constraint: str
    limit: int

    @classmethod
    def given(cls, base: Base, n_classes: int, limits: Mapping[str, int]) -> "Budget":
        """A limit said outright: {"macs": n} or {"params": n}.

        Raises:
            OptionError: Not exactly one of the two, or n is not a whole number above 0.
        """
        if len(limits) == 1:
            ((constraint, limit),) = limits.items()
            whole = isinstance(limit, int | np.integer) and not isinstance(limit, bool)
            if constraint in ("macs", "params") and whole and limit > 0:
                return cls(base, n_classes, constraint, int(limit))
        raise OptionError(
            "no such budget", got=dict(limits), expected="{'macs': n} or {'params': n}, n a whole number above 0"
        )

    @classmethod
    def of(
        cls, base: Base, n_classes: int, *, keep: float, constraint: str = "macs", share: float | None = None
    ) -> "Budget":
        """What the sub-network costs that keeps `keep` of every axis; with `share`, that share of the whole model.

        The first makes producers with unequal widths comparable, at one `keep`, with those of equal ones.

        Raises:
            OptionError: keep or share outside (0, 1], or an unknown constraint.
        """
        if constraint not in ("macs", "params"):
            raise OptionError("no such constraint", got=repr(constraint), expected="'macs' or 'params'")
        if share is not None and not 0 < share <= 1:
            raise OptionError("share of the budget out of range", got=share, expected="a number in (0, 1]")
        counts = keep_counts(base.plan, keep)
        full = {axis: base.plan["axes"][axis]["n"] for axis in counts}
        whole = cls(base, n_classes, constraint, 0)
        limit = whole.cost(counts) if share is None else int(share * whole.cost(full))
        return cls(base, n_classes, constraint, limit)

    def cost(self, counts: Mapping[str, int]) -> int:
        """MACs or parameters of the sub-network with these numbers of units per axis (absent: whole)."""
        params, macs = cost(self.base, {axis: range(n) for axis, n in counts.items()}, self.n_classes)  # type: ignore[misc]
        return macs if self.constraint == "macs" else params

    def fill(self, scores: Mapping[str, np.ndarray], *, floor: float = 0.0, least: int = 1) -> Sets:
        """Prunes units in ascending order of score, over all axes together, until the budget is met.

        Units that still fit afterwards are restored, the best first, so that restoring any one pruned unit would exceed
        the budget. Equal scores are ordered by axis and index, the later one goes first.

        Args:
            scores: {axis: float array (n,)}, larger matters more; axes absent here stay whole.
            floor: Share of every axis that must stay: at most floor(n (1 - floor)) units of it go.
            least: Units of every axis that must stay, where it has so many.

        Returns:
            {axis: sorted kept indices}.

        Raises:
            OptionError: Even the smallest sub-network allowed costs more.
        """
        sizes = {axis: len(values) for axis, values in scores.items()}
        queue = self.order(scores, floor=floor, least=least)
        start = {axis: n - sum(axis == a for a, _ in queue) for axis, n in sizes.items()}
        widths, back = dict(start), list[tuple[str, int]]()
        for axis, _ in reversed(queue):
            widths[axis] += 1
            back.append((axis, widths[axis]))
        counts = self._greedy(start, back)
        lost: dict[str, list[int]] = {axis: [] for axis in sizes}
        for axis, i in queue:
            if len(lost[axis]) < sizes[axis] - counts[axis]:
                lost[axis].append(i)
        return {axis: np.setdiff1d(np.arange(n), np.asarray(lost[axis], dtype=np.int64)) for axis, n in sizes.items()}

    def widths(self, gains: Mapping[str, np.ndarray], allowed: Mapping[str, np.ndarray]) -> dict[str, int]:
        """Widths within the budget, units taken in descending order of gain per cost, over all axes together.

        A whole axis counts alike whatever its width: a unit's gain counts 1/n of it. Its cost is what the whole network
        saves with one unit less on that axis (the product form of MACs makes costs depend on the other widths; the
        whole network's are used throughout, so that the order does not depend on the budget). From one allowed width to
        the next, the mean gain of the units between counts. Equal ratios alternate between axes, by the share of the
        axis already taken. A step that does not fit ends its axis; the others go on.

        Args:
            gains: {axis: float (n,)}, descending; n is the width of the whole axis.
            allowed: {axis: ascending widths to choose from}; the first is the least. Axes absent here stay whole.

        Returns:
            {axis: width}. No wider width of any one axis would meet the budget too.

        Raises:
            OptionError: Even the least widths cost more.
        """
        whole = {axis: len(values) for axis, values in gains.items()}
        full = self.cost(whole)
        steps = []
        for place, (axis, widths) in enumerate(allowed.items()):
            n = whole[axis]
            price = n * max(full - self.cost(whole | {axis: n - 1}), 1)
            sums = np.concatenate([[0.0], np.cumsum(gains[axis])])
            ratio = np.diff(sums[widths]) / np.diff(widths) / price
            # Rounding in the sums must not order equal gains, nor put a wider step before a narrower one.
            ratio = np.minimum.accumulate(np.array([float(f"{r:.9e}") for r in ratio]))
            steps += [(-r, w / n, place, axis, int(w)) for r, w in zip(ratio.tolist(), widths[1:], strict=True)]
        ordered = [(axis, w) for *_, axis, w in sorted(steps)]
        return self._greedy({axis: int(widths[0]) for axis, widths in allowed.items()}, ordered)

    def _greedy(self, start: dict[str, int], steps: list[tuple[str, int]]) -> dict[str, int]:
        """Takes steps (axis, its next width) in order while they fit; the first that does not ends its axis."""
        smallest = self.cost(start)
        if smallest > self.limit:
            raise OptionError(
                f"{self.base.name}: the budget of {self.limit:,} {self.constraint} cannot be met",
                got=f"{smallest:,} with the fewest units allowed", hint="Raise it, or ask for less of each axis.",
            )  # fmt: skip
        counts = dict(start)
        while steps:
            low, high = 0, len(steps)
            while low < high:
                middle = (low + high + 1) // 2
                if self.cost(counts | dict(steps[:middle])) <= self.limit:
                    low = middle
                else:
                    high = middle - 1
            counts |= dict(steps[:low])
            # Costs only grow from here on: an axis that did not fit once never will.
            full = steps[low][0] if low < len(steps) else None
            steps = [step for step in steps[low + 1 :] if step[0] != full]
        return counts

    def equal(self) -> float:
        """The largest keep ratio, in steps of 1/1024, whose equal widths meet the budget; 1/1024 when none does."""
        low, high = 1, 1024
        while low < high:
            middle = (low + high + 1) // 2
            if self.cost(keep_counts(self.base.plan, middle / 1024)) <= self.limit:
                low = middle
            else:
                high = middle - 1
        return low / 1024

    @staticmethod
    def order(scores: Mapping[str, np.ndarray], *, floor: float = 0.0, least: int = 1) -> list[tuple[str, int]]:
        """The order in which `fill` would remove units, down to what must stay of every axis: (axis, index) each."""
        # Within an axis only its lowest `most` units may go; then all axes are one queue.
        most = _most({axis: len(values) for axis, values in scores.items()}, floor, least)
        queue = [
            (float(values[i]), -place, -i, axis)
            for place, (axis, values) in enumerate(scores.items())
            for i in np.lexsort((-np.arange(len(values)), values))[: most[axis]].tolist()
        ]
        return [(axis, -i) for _, _, i, axis in sorted(queue)]


def _most(sizes: Mapping[str, int], floor: float, least: int) -> dict[str, int]:
    return {axis: min(int(n * (1 - floor) + 1e-9), max(0, n - least)) for axis, n in sizes.items()}


def ladder(n: int, multiple: int = 1) -> np.ndarray:
    """The widths that an axis of n units may have: the multiples of `multiple` up to n, or all where n is less.

    Returns:
        int64, ascending, at least one, each in 1..n.
    """
    step = multiple if n >= multiple else 1
    return np.arange(step, n + 1, step)


def nearest_width(width: int, widths: np.ndarray) -> int:
    """The one of some ascending widths that is nearest to `width`; the larger one of two equally near."""
    return int(widths[::-1][np.abs(widths[::-1] - width).argmin()])
