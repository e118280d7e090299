"""nearest(): the stored sub-networks whose tasks are most similar to a task.

Source: MVP (Zhao et al.), sec. 3.2 (similarities) and Alg. 1 (the N nearest tasks). The paper leaves open how ties,
several sub-networks of a task and shared classes are treated; every choice made here is an argument.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from zoo.channels import Ints
from zoo.errors import EmptyZooError, OptionError
from zoo.finding import find_base, find_rows, find_target
from zoo.measures import MEASURES, Measure, Query, find_measure, similarity_rows
from zoo.neighbours import Neighbour, Neighbours
from zoo.records import SubNetwork, Task
from zoo.rows import Bools, Rows, Snapshot, Target
from zoo.taskwup import HOW, How

__all__ = ["MEASURES", "Neighbour", "Neighbours", "candidates", "groups_of", "nearest", "similarity_rows"]

AnyTask = Task | SubNetwork | Sequence[str] | str
Exclude = str | Collection[str] | None
EXCLUDE = ("same_classes", "same_task", "overlap")
BINNING = ("equal_width", "quantile")


def nearest(
    snapshot: Snapshot,
    task: AnyTask,
    *,
    k: int | None = 5,
    by: str = "wup",
    base: str | None = None,
    producer: str | Collection[str] | None = None,
    allowed: Collection[str] | None = None,
    exclude: Exclude = "same_classes",
    per_task: int | None = 1,
    group: int | None = None,
    groups: int = 5,
    binning: str = "equal_width",
    sample: int | None = None,
    embedding: npt.ArrayLike | None = None,
    how: How = "best_match",
    given: Mapping[str, float] | None = None,
) -> Neighbours:
    """The k stored sub-networks whose tasks are most similar to a task, best first, ties by id.

    Filters apply in the order base, producer, allowed, exclude, what the measure is defined on, per_task, group.

    Args:
        snapshot: One state of a zoo.
        task: A Task, a SubNetwork, a list of labels, or the id (or a prefix of it) of a stored task or sub-network.
        k: How many; None = all that are left.
        by: "wup" (labels only), "leep", "nce", "logme", "hscore" (stored scores), "leep_probe" (stored responses),
            "prototype", "task2vec" (embeddings by the base), "stamp" (by a STAMP set encoder), "mask_iou" (kept
            channels).
        base: Only sub-networks of this base: its id, a prefix, or its name. None = of any base, which is fine for
            labels and LEEP; votes need one base, and so do "prototype", "stamp" and "mask_iou".
        producer: Only sub-networks of this producer, or of these.
        allowed: Only these ids, such as those that a SQL condition leaves.
        exclude: "same_classes": tasks with the query's classes, in any order; "same_task": the very task (by id);
            "overlap": tasks that share any class; a collection of ids of sub-networks; None. A class is (data set,
            label), where one side does not say its data set the label alone.
        per_task: At most this many sub-networks with the same classes: the most accurate ones, ties by id, chosen
            before scores are looked at (so that it is known which need one); voted ones may be among them. None = no
            limit.
        group: Only this similarity group, 1 = most similar, of those of `groups_of` over all that is left.
        groups: Number of groups.
        binning: "equal_width" (the paper's) | "quantile".
        sample: Seed: draw k at random instead of the k best (MVP Fig. 4b samples inside a group); the result is still
            in order of similarity.
        embedding: The task's embedding for "prototype" or "stamp", float (d,); None = the stored one.
        how: How class similarities become a task's, for "wup": "best_match" | "mean" | "hungarian".
        given: {id: value}, for "leep_probe".

    Returns:
        Neighbours.

    Raises:
        EmptyZooError: Nothing stored, or fewer candidates than k; says which filter removed how many.
        OptionError: An argument outside its range.
        NotFoundError: An id or a base that is not there.
        UnknownLabelsError: by="wup" and labels that WordNet does not have.
        MissingScoresError: The zoo lacks what the measure reads; names the call that computes it.
        BaseMismatchError: by="prototype" or "stamp" over several bases.
    """
    measure = find_measure(by)
    _check_options(k=k, per_task=per_task, group=group, groups=groups, binning=binning, how=how)
    rows = Rows.of(snapshot)
    filters = _Filters(rows)
    target = find_target(rows, task)
    query = _chosen(rows, filters, target, measure, base, producer, allowed, exclude, per_task, how, embedding)
    query = replace(query, given=given)
    unmapped = int(rows.unmapped[query.which].sum()) if by == "wup" else 0
    if len(query.which) < (k or 1):
        raise filters.empty(k or 1)
    if measure.propose is not None and k is not None and group is None and sample is None and k < len(query.which):
        query = query.only(measure.propose(query, k))
    scores = measure.score(query)
    if group is not None:
        inside = groups_of(scores, groups, binning) == group
        filters.apply(f"group={group} of {groups}", np.isin(np.arange(len(rows)), query.which[inside]))
        query, scores = query.only(np.flatnonzero(inside)), scores[inside]
    if len(query.which) < (k or 1):
        raise filters.empty(k or 1)
    wanted = k or len(query.which)
    order = _ranked(scores, rows.id_rank[query.which], wanted if sample is None else len(scores))
    if sample is not None:
        order = order[np.sort(np.random.default_rng(sample).permutation(len(order))[:wanted])]
    found = [_neighbour(rows, int(query.which[i]), float(scores[i]), target) for i in order[:wanted]]
    return Neighbours(found, measure.name, target.labels, unmapped, filters.removed)


def candidates(
    snapshot: Snapshot,
    task: AnyTask,
    *,
    by: str = "leep",
    base: str | None = None,
    producer: str | Collection[str] | None = None,
    allowed: Collection[str] | None = None,
    exclude: Exclude = "same_classes",
    per_task: int | None = 1,
) -> list[str]:
    """Ids of the sub-networks that `nearest` with the same arguments would compare: those that need scores.

    Returns:
        Ids in the snapshot's order; empty when nothing is left.
    """
    _check_options(per_task=per_task)
    rows = Rows.of(snapshot)
    target = find_target(rows, task)
    query = _chosen(rows, _Filters(rows), target, find_measure(by), base, producer, allowed, exclude, per_task)
    return [rows.ids[i] for i in query.which]


def groups_of(scores: npt.ArrayLike, groups: int = 5, binning: str = "equal_width") -> Ints:
    """Similarity group of each score, 1 = most similar.

    Source: MVP sec. 3.2, "partition them into five groups of equal intervals": equal width between the smallest and the
    largest score, as written, not quintiles. Sizes are therefore uneven, and groups can be empty.

    Args:
        scores: float (n,), finite; larger is more similar.
        groups: How many, at least 1.
        binning: "equal_width" | "quantile" (equal counts; equal scores stay together).

    Returns:
        int64 (n,) in 1..groups. An interval holds its lower bound and not its upper one, but for group 1, which holds
        the largest score. When all scores are equal, all are in group 1.
    """
    values = np.asarray(scores, np.float64)
    _check_options(groups=groups, binning=binning)
    if not len(values) or values.min() == values.max():
        return np.ones(len(values), np.int64)
    if binning == "quantile":
        inner = np.quantile(values, np.arange(1, groups) / groups)
    else:
        inner = np.linspace(values.min(), values.max(), groups + 1)[1:-1]
    return groups - np.searchsorted(inner, values, side="right").astype(np.int64)


class _Filters:
    """Which rows are left, and what removed the others."""

    def __init__(self, rows: Rows) -> None:
        if not len(rows):
            raise EmptyZooError("the zoo has no sub-networks", hint="Add one with z.add(...), or try zoo.sample()")
        self.rows, self.left, self.removed = rows, np.ones(len(rows), bool), dict[str, int]()

    def apply(self, name: str, mask: Bools) -> None:
        removed = int((self.left & ~mask).sum())
        if removed:
            self.removed[name] = removed
        self.left = self.left & mask

    def empty(self, k: int) -> EmptyZooError:
        return EmptyZooError(
            f"{k} neighbour(s) wanted, {int(self.left.sum())} of {len(self.rows)} sub-networks left to choose from",
            problems=[f"{name} removed {count}" for name, count in self.removed.items()],
            hint="Ask for a smaller k, or relax a filter" if self.removed else "Ask for a smaller k",
        )


def _chosen(
    rows: Rows,
    filters: _Filters,
    target: Target,
    measure: Measure,
    base: str | None,
    producer: str | Collection[str] | None,
    allowed: Collection[str] | None,
    exclude: Exclude,
    per_task: int | None,
    how: How = "best_match",
    embedding: npt.ArrayLike | None = None,
) -> Query:
    if base is not None:
        filters.apply(f"base={base!r}", rows.where("base_id", (find_base(rows.snapshot, base),)))
    if producer is not None:
        names = [producer] if isinstance(producer, str) else sorted(producer)
        filters.apply(f"producer={', '.join(names)}", rows.where("producer", names))
    if allowed is not None:
        inside = set(allowed)
        filters.apply("where", np.array([id in inside for id in rows.ids], bool))
    filters.apply(f"exclude={exclude!r}" if isinstance(exclude, str) else "exclude", ~excluded(rows, target, exclude))
    query = Query(rows, target, np.flatnonzero(filters.left), how, embedding)
    if measure.usable is not None:
        usable = np.zeros(len(rows), bool)
        usable[query.which[measure.usable(query)]] = True
        filters.apply(f"by={measure.name!r} ({measure.unusable})", usable)
    if per_task is not None:
        filters.apply(f"per_task={per_task}", _best_of_each_task(rows, filters.left, per_task))
    return Query(rows, target, np.flatnonzero(filters.left), how, embedding)


def excluded(rows: Rows, target: Target, exclude: Exclude) -> Bools:
    """Rows that an `exclude=` keeps out of a target's neighbours, bool (N,); see `nearest`."""
    if exclude is None:
        return np.zeros(len(rows), bool)
    if not isinstance(exclude, str):
        mask = np.zeros(len(rows), bool)
        mask[find_rows(rows, exclude)] = True
        return mask
    if exclude == "same_classes":
        return rows.same_classes(target)
    if exclude == "same_task":
        return np.array([task == target.task_id for task in rows.task_ids], bool)
    if exclude == "overlap":
        return rows.shared(target) > 0
    raise OptionError(
        "exclude says which tasks are no neighbours", got=repr(exclude), expected=f"{' | '.join(EXCLUDE)} | ids | None"
    )


def _best_of_each_task(rows: Rows, left: Bools, limit: int) -> Bools:
    """The `limit` most accurate of the rows left with the same classes, ties by id; unmeasured ones come last."""
    best = rows.best_first[left[rows.best_first]]
    sets = rows.class_sets[best]
    mask = np.zeros(len(rows), bool)
    if limit == 1:
        # Of several values for one place the last one stays: backwards, the best.
        first = np.full(len(rows), -1)
        first[sets[::-1]] = best[::-1]
        mask[first[first >= 0]] = True
        return mask
    by_set = np.argsort(sets, kind="stable")
    starts = np.flatnonzero(np.diff(sets[by_set], prepend=-1))
    place = np.arange(len(best)) - np.repeat(starts, np.diff(starts, append=len(best)))
    mask[best[by_set[place < limit]]] = True
    return mask


def _ranked(scores: npt.NDArray[np.float64], ids: Ints, wanted: int) -> Ints:
    """Positions of the largest scores, best first, ties by the rank of the id."""
    if wanted < len(scores):
        # Everything that ties with the last one wanted stays in until ids decide.
        near = np.flatnonzero(scores >= np.partition(scores, len(scores) - wanted)[len(scores) - wanted])
    else:
        near = np.arange(len(scores))
    return near[np.lexsort((ids[near], -scores[near]))][:wanted]


def _neighbour(rows: Rows, i: int, score: float, target: Target) -> Neighbour:
    accuracy = float(rows.accuracy[i])
    return Neighbour(
        rows.ids[i], score, rows.labels[i], rows.datasets[i], str(rows.producer[i]), float(rows.keep[i]),
        None if np.isnan(accuracy) else accuracy, rows.shared_with(target, i), int(rows.generation[i]),
        rows.task_ids[i], str(rows.base_ids[i]),
    )  # fmt: skip


def _check_options(
    binning: str = "equal_width",
    how: str = "best_match",
    group: int | None = None,
    groups: int = 5,
    **counts: int | None,
) -> None:
    problems = [
        f"{name}: got {value!r}, expected a whole number of at least 1"
        for name, value in {**counts, "group": group, "groups": groups}.items()
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1)
    ]
    if not problems and group is not None and group > groups:
        problems.append(f"group: got {group}, expected 1..{groups}")
    for name, text, known in (("binning", binning, BINNING), ("how", how, HOW)):
        if text not in known:
            problems.append(f"{name}: got {text!r}, expected {' | '.join(known)}")
    if problems:
        raise OptionError("nearest: options outside their range", problems=problems)
