"""Which sub-networks a study compares: of one base, mode, producer and keep, or an error that lists what is there."""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from zoo.channels import Ints, Packed
from zoo.errors import EmptyZooError, MixtureError
from zoo.finding import find_base, find_rows
from zoo.rows import HAS_CHANNELS, Rows


@dataclass(frozen=True)
class Cohort:
    """The sub-networks of a study: rows, their packed sets, and the plan they follow."""

    which: Ints
    packed: Packed
    plan: Mapping[str, Any]
    about: dict[str, Any]


def choose(
    rows: Rows, base: str | None, mode: str | None, producer: str | None, keep: float | None, generation: int | None,
    ids: Collection[str] | None,
) -> Cohort:  # fmt: skip
    """The sub-networks of a study; the arguments are those of `iou_by_depth`.

    Raises:
        MixtureError: Several bases, modes, producers or keep ratios, that were not chosen between.
        EmptyZooError: Fewer than two are left.
    """
    if not len(rows):
        raise EmptyZooError("the zoo has no sub-networks", hint="Add some with z.add(...), or try zoo.sample()")
    left = np.isin(rows.kind, HAS_CHANNELS)
    if ids is not None:
        given = find_rows(rows, ids)
        require_channels(rows, given)
        left &= np.isin(np.arange(len(rows)), given)
    elif generation is not None:
        left &= rows.generation == generation
    if base is not None:
        left &= rows.base_ids == find_base(rows.snapshot, base)
    if mode is not None:
        left &= rows.mode == mode
    if producer is not None:
        left &= rows.producer == producer
    if keep is not None:
        left &= np.isclose(rows.keep, keep, rtol=0, atol=1e-9)
    which = np.flatnonzero(left)
    asked = {"base": base, "mode": mode, "producer": producer, "keep": keep}
    if len(which) < 2:
        wanted = {**asked, "generation": generation if ids is None else None}
        raise EmptyZooError(
            f"{len(which)} of {len(rows)} sub-networks fit, a study compares at least two",
            got=", ".join(f"{name}={value!r}" for name, value in wanted.items() if value is not None) or None,
        )
    checked = {name: value for name, value in asked.items() if ids is None or name in ("base", "mode")}
    require_one(rows, which, checked)
    base_id, one_mode = str(rows.base_ids[which[0]]), str(rows.mode[which[0]])
    members, packed = rows.packed(base_id, one_mode)
    about = {name: "several" if len(seen := _values(rows, which, name)) > 1 else next(iter(seen)) for name in asked}
    about |= {"base_id": base_id, "subnetworks": len(which), "generation": "any" if ids is not None else generation}
    return Cohort(which, packed.take(np.searchsorted(members, which)), rows.plan(base_id), about)


def _values(rows: Rows, which: Ints, name: str) -> Counter[Any]:
    if name == "base":
        table = rows.snapshot.bases
        names = dict(zip(table["id"].to_pylist(), table["name"].to_pylist()))
        return Counter(f"{names.get(id, '?')} ({id[:12]})" for id in rows.base_ids[which])
    # Keep ratios are one value within the tolerance of the filter: 0.1 + 0.2 is 0.3.
    column = {"mode": rows.mode, "producer": rows.producer, "keep": rows.keep.round(9)}[name][which]
    return Counter(column.tolist())


def require_one(rows: Rows, which: Ints, asked: Mapping[str, Any]) -> None:
    """Raise MixtureError unless rows are alike in each of the named fields; lists what is there and how to choose."""
    problems = []
    for name in asked:
        seen = _values(rows, which, name)
        if len(seen) > 1:
            listed = ", ".join(f"{value} x {number}" for value, number in sorted(seen.items(), key=lambda x: str(x[0])))
            first = sorted(seen, key=lambda value: (-seen[value], str(value)))[0]
            choice = first.rpartition("(")[2].rstrip(")") if name == "base" else first
            problems.append(f"{name}: {listed}; choose with {name}={choice!r}")
    if problems:
        raise MixtureError(
            f"{len(which)} sub-networks that may not be compared with each other: channels are alike only within one "
            "base and mode, and IoU depends on the keep ratio and the producer",
            problems=problems,
        )


def require_channels(rows: Rows, which: Ints) -> None:
    """Raise MixtureError if some rows have no channel sets (element-wise masks, dropped tokens)."""
    wrong = [i for i in which if rows.kind[i] not in HAS_CHANNELS]
    if wrong:
        raise MixtureError(
            f"{len(wrong)} sub-networks have no channel sets",
            problems=[f"{rows.ids[i][:12]}: {rows.kind[i]}" for i in wrong],
        )
