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
        most = _most(sizes, floor, least)
        smallest = self.cost({axis: n - most[axis] for axis, n in sizes.items()})
        if smallest > self.limit:
            raise OptionError(
                f"{self.base.name}: the budget of {self.limit:,} {self.constraint} cannot be met",
                got=f"{smallest:,} with the fewest units allowed", hint="Keep more, or lower the floor of each axis.",
            )  # fmt: skip
        queue = self.order(scores, floor=floor, least=least)
        low, high = 0, len(queue)
        while low < high:
            middle = (low + high) // 2
            if self.cost(_counts(sizes, queue[:middle])) <= self.limit:
                high = middle
            else:
                low = middle + 1
        gone, counts, full = set(queue[:low]), _counts(sizes, queue[:low]), set[str]()
        for unit in reversed(queue[:low]):
            axis = unit[0]
            # Costs only grow from here on: an axis that did not fit once never will.
            if axis in full:
                continue
            wider = counts | {axis: counts[axis] + 1}
            if self.cost(wider) <= self.limit:
                gone.remove(unit)
                counts = wider
            else:
                full.add(axis)
        lost = {axis: [i for name, i in gone if name == axis] for axis in sizes}
        return {axis: np.setdiff1d(np.arange(n), np.asarray(lost[axis], dtype=np.int64)) for axis, n in sizes.items()}

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


def _counts(sizes: Mapping[str, int], removed: list[tuple[str, int]]) -> dict[str, int]:
    counts = dict(sizes)
    for axis, _ in removed:
        counts[axis] -= 1
    return counts
