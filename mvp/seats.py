"""How many channels of each axis a vote leaves: a keep ratio, a ballot's own outcome, or a budget."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mvp.ballot import Election
from mvp.budget import Budget, ladder, nearest_width
from mvp.plan import keep_counts, prunable
from zoo.errors import OptionError
from zoo.records import Base


def check_sizes(
    keep: float | None, limits: Sequence[Budget | None], compensation: Mapping[str, float] | None, multiple: int
) -> None:
    """Checks what is asked for beside the ballot.

    Raises:
        OptionError: Lists every mistake: a keep ratio beside a budget, a compensation without one or for unknown axes
            and layers, a multiple that is no whole number.
    """
    problems = []
    if keep is not None and limits != [None]:
        problems.append(f"keep: got {keep} beside a budget, expected one of the two")
    if not isinstance(multiple, int) or isinstance(multiple, bool) or multiple < 1:
        problems.append(f"multiple: got {multiple!r}, expected a whole number of at least 1")
    if compensation is not None and limits == [None]:
        problems.append("compensation: given without a budget, which it is for")
    values = dict(compensation or {})
    base = limits[0].base if limits[0] is not None else None
    known = set() if base is None else _names(base)
    problems += [f"compensation[{n!r}]: no such prunable axis, or layer of one" for n in values if n not in known]
    problems += [f"compensation[{n!r}]: got {b}, expected a finite number" for n, b in values.items() if not _finite(b)]
    if problems:
        raise OptionError("the sizes asked for do not fit", problems=problems)


def _finite(value: Any) -> bool:
    return isinstance(value, int | float | np.integer | np.floating) and math.isfinite(value)


def _names(base: Base) -> set[str]:
    axes = {axis: base.plan["axes"][axis] for axis in prunable(base.plan)}
    return set(axes) | {w["layer"] for info in axes.values() for w in info["writers"]}


def widths_of(
    base: Base, election: Election, keep: float | None, budget: Budget | None, n_voters: int,
    compensation: Mapping[str, float] | None, multiple: int, widest: Mapping[str, int],
) -> dict[str, int]:  # fmt: skip
    """How many channels of each axis stay; see `vote`."""
    axes, elected = base.plan["axes"], election.elected
    rungs = {a: ladder(axes[a]["n"], 1 if axes[a]["kind"] == "head" else multiple) for a in elected}
    if budget is None:
        asked = elected if keep is None else keep_counts(base.plan, keep)
        return {a: nearest_width(min(asked[a], elected[a]), rungs[a]) for a in elected}
    least = keep_counts(base.plan, budget.equal() / 2)
    gains, allowed, floors = {}, {}, {}
    for axis, order in election.order.items():
        n, rung = elected[axis], rungs[axis]
        info = axes[axis]
        beta = sum((compensation or {}).get(name, 0.0) for name in (axis, *(w["layer"] for w in info["writers"])))
        # Only channels that a ballot elects have a share; in which order it would draw them does not matter here.
        shares = np.zeros(info["n"])
        shares[:n] = -np.sort(-election.votes[axis][order[:n]]) / n_voters
        gains[axis] = shares + beta
        top = min(max(n, rung[0]), widest[axis])
        floor = rung[rung <= max(min(least[axis], top), rung[0])][-1]
        allowed[axis], floors[axis] = rung[rung <= top], int(floor)
    # Multiples can make the least widths of narrow axes so costly that no floor fits beside them.
    if budget.cost(floors) <= budget.limit:
        allowed = {axis: rung[rung >= floors[axis]] for axis, rung in allowed.items()}
    return budget.widths(gains, allowed)
