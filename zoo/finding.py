"""What users mean by a base, a sub-network or a task: ids, prefixes of ids, names, records, labels."""

from collections.abc import Iterable, Sequence

import numpy as np

from zoo.errors import NotFoundError, OptionError
from zoo.records import SubNetwork, Task
from zoo.rows import Ints, Rows, Snapshot, Target
from zoo.snapshot import MIN_PREFIX


def find_base(snapshot: Snapshot, wanted: str) -> str:
    """Id of a base given by its id, a prefix of it, or its name.

    Raises:
        NotFoundError: There is none, or more than one.
    """
    ids, names = snapshot.bases["id"].to_pylist(), snapshot.bases["name"].to_pylist()
    if wanted in ids:
        return wanted
    found = [id for id, name in zip(ids, names) if name == wanted or id.startswith(wanted)]
    if len(found) != 1:
        raise NotFoundError(
            f"base {wanted!r}: {len(found)} of the zoo's bases fit",
            problems=[f"{id[:12]}  {name}" for id, name in zip(ids, names)],
            hint="Give a longer prefix of an id" if found else "Give a name or an id listed here",
        )
    return found[0]


def find_row(rows: Rows, wanted: str) -> int:
    """Row of a sub-network given by its id or a prefix of it. Raises NotFoundError unless exactly one fits."""
    if wanted in rows.place:
        return rows.place[wanted]
    found = [i for i, id in enumerate(rows.ids) if len(wanted) >= MIN_PREFIX and id.startswith(wanted)]
    if len(found) != 1:
        raise NotFoundError(
            f"sub-network {wanted!r}: {len(found)} of {len(rows)} ids start like this",
            hint="Give a longer prefix"
            if found
            else f"z.ids() lists them; a prefix has at least {MIN_PREFIX} characters",
        )
    return found[0]


def find_rows(rows: Rows, ids: Iterable[str]) -> Ints:
    """Rows of several ids or prefixes, in the order given, int64 (n,)."""
    if isinstance(ids, str):
        raise OptionError("ids are one collection of ids", got=repr(ids), hint=f"Write [{ids!r}]")
    return np.array([find_row(rows, id) for id in ids], np.int64)


def find_target(rows: Rows, task: Task | SubNetwork | Sequence[str] | str) -> Target:
    """What a user means by a task.

    Args:
        rows: The zoo's sub-networks.
        task: A Task; a SubNetwork (its task); a list of labels; or the id, or a prefix of it, of a stored task or
            sub-network.

    Raises:
        NotFoundError: A text that is no id here, or more than one.
        RecordError: A list of labels that makes no task.
    """
    if isinstance(task, SubNetwork):
        row = rows.place.get(task.id)
        if row is not None:
            return rows.target(row)
        task = task.task
    if not isinstance(task, str):
        given = task if isinstance(task, Task) else Task(labels=tuple(task))
        return Target(given.id, given.labels, given.dataset, given.synsets or (None,) * len(given.labels))
    tasks = rows.snapshot.tasks
    task_ids = tasks["id"].to_pylist()
    if task in rows.place:
        return rows.target(rows.place[task])
    found: list[tuple[str, int]] = [("task", i) for i, id in enumerate(task_ids) if id == task]
    if not found and len(task) >= MIN_PREFIX:
        found = [("task", i) for i, id in enumerate(task_ids) if id.startswith(task)]
        found += [("sub-network", i) for i, id in enumerate(rows.ids) if id.startswith(task)]
    if len(found) != 1:
        raise NotFoundError(
            f"{task!r}: {len(found)} ids of tasks and sub-networks start like this",
            hint="Give a longer prefix" if found else f"Class names are given as a list: [{task!r}, ...]",
        )
    kind, i = found[0]
    if kind == "sub-network":
        return rows.target(i)
    row = tasks.slice(i, 1).to_pylist()[0]
    labels = tuple(row["labels"])
    return Target(row["id"], labels, row["dataset"], tuple(row["synsets"] or (None,) * len(labels)))
