"""The measures of task similarity: pure functions of a snapshot's rows, in one list.

To add one: write a function `Query -> float64 (m,)` with its definition, range and source in the docstring, put a line
into `MEASURES`, and its name into the tests' list. Larger always means more similar.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from zoo import labels as _labels
from zoo.channels import iou_rows
from zoo.errors import BaseMismatchError, DataError, MissingScoresError, NotFoundError, OptionError
from zoo.index import Space, cosine
from zoo.rows import HAS_CHANNELS, Rows, Target
from zoo.taskwup import How

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Query:
    """One target and the stored sub-networks it is compared with.

    Attributes:
        rows: The snapshot's sub-networks.
        target: What they are compared with.
        which: Rows to compare, int64 (m,).
        how: How class similarities become a task similarity, for `wup`.
        embedding: The target's embedding, for `prototype` and `stamp`; None = look it up.
    """

    rows: Rows
    target: Target
    which: Ints
    how: How = "best_match"
    embedding: npt.ArrayLike | None = None

    def only(self, positions: Ints) -> "Query":
        """The same query over some of its rows."""
        return replace(self, which=self.which[positions])


@dataclass(frozen=True)
class Measure:
    """A named similarity.

    Attributes:
        name: What users write in `by=`.
        range: Smallest and largest value.
        source: Paper and place.
        score: Query -> float64 (m,), finite; raises MissingScoresError for what the zoo lacks.
        usable: Query -> bool (m,), rows on which the measure is defined; None = all.
        unusable: What the other rows lack, for messages.
        propose: (Query, k) -> positions in `which` that contain the k best for certain; None = the measure scores all.
    """

    name: str
    range: tuple[float, float]
    source: str
    score: Callable[[Query], Floats]
    usable: Callable[[Query], Bools] | None = None
    unusable: str = ""
    propose: Callable[[Query, int], Ints] | None = None


def wup(query: Query) -> Floats:
    """WordNet similarity of two tasks from their labels alone: symmetric best match of the classes' wup, in (0, 1].

    Source: MVP, sec. 3.2, with Wu & Palmer 1994; how class similarities become a task's is not said there, see
    `zoo.taskwup`. Symmetric. Labels of stored tasks without a noun take no part.

    Raises:
        UnknownLabelsError: Some labels of a target that is not stored have no noun.
    """
    table, place = query.rows.wup_table
    return table.scores(_nouns(query.target), query.how)[place[query.which]]


def leep(query: Query) -> Floats:
    """LEEP of each sub-network on the target's training images, as stored in `scores`, in [-H(Y), 0] nats.

    Source: MVP, sec. 3.2, with Nguyen et al. 2020; definition in `zoo.leep`. Directional: sub-network -> target task.

    Raises:
        MissingScoresError: Sub-networks without a LEEP score on the target.
    """
    dense = np.full(len(query.rows), np.nan)
    stored = query.rows.scores("leep")
    rows, values = stored.get(query.target.task_id, (np.empty(0, np.int64), np.empty(0)))
    dense[rows] = values
    found = dense[query.which]
    missing = int(np.isnan(found).sum())
    if missing:
        hint = 'mvp.score(z, data, by="leep") computes them from images of the task'
        same = {t for t, labels in _stored_tasks(query) if t in stored and labels == set(query.target.labels)}
        if len(rows) == 0 and same:
            # LEEP rows carry a task's id, which the order of labels, the split and the seed are part of.
            hint += f"; the same classes were scored as task {min(same)[:12]}: give this id instead of labels"
        raise MissingScoresError(
            f"{missing} of {len(found)} sub-networks have no LEEP score on task {query.target.task_id[:12]} "
            f"({', '.join(query.target.labels)})",
            hint=hint,
        )
    return found


def prototype(query: Query) -> Floats:
    """Cosine of the tasks' embeddings by one base (the mean features of their training images), in [-1, 1].

    Source: none of the papers, which define no task embedding; this project's. Symmetric.

    Raises:
        MissingScoresError: The target or some sub-networks have no embedding.
        BaseMismatchError: The sub-networks come from several bases, whose features cannot be compared.
        DataError: A given embedding does not fit the stored ones.
    """
    return _cosines(query, "prototype")


def stamp(query: Query) -> Floats:
    """Cosine of the tasks' encodings by a STAMP set encoder, in [-1, 1].

    Source: STAMP (ICLR 2021 submission), Eq. 9: the set encoding; that tasks are found by it is this project's.
    Symmetric. All encodings of one base must come from one generator file.

    Raises:
        MissingScoresError, BaseMismatchError, DataError: As for `prototype`.
    """
    return _cosines(query, "stamp")


def _cosines(query: Query, name: str) -> Floats:
    mine, theirs = _embeddings(query, name)
    return cosine(mine, np.stack(theirs)) if theirs else np.empty(0)


def mask_iou(query: Query) -> Floats:
    """IoU of the kept channels, mean over axes (each once; those that no sub-network prunes are left out), in [0, 1].

    Source: MVP, sec. 3.2 ("Overlap Between Tasks"), used as a similarity here. Symmetric.

    The target is a stored sub-network, or the most accurate stored one of the task.

    Raises:
        NotFoundError: No sub-network of the target is stored.
    """
    if not len(query.which):
        return np.empty(0)
    row = _own_row(query)
    members, packed = query.rows.packed(str(query.rows.base_ids[row]), str(query.rows.mode[row]))
    at, own = np.searchsorted(members, query.which), np.searchsorted(members, [row])
    axes: dict[str, list[str]] = {}
    for key in packed.sizes:
        if not packed.whole(key):
            axes.setdefault(key.partition("@")[0], []).append(key)
    if not axes:
        return np.ones(len(at))
    return np.mean([iou_rows(packed.joined(keys)[own], packed.joined(keys)[at])[0] for keys in axes.values()], axis=0)


def _nouns(target: Target) -> list[str]:
    """Synsets of a target: all of a new task's labels, those there are of a stored one's."""
    stored = [synset for synset in target.synsets if synset is not None] if target.row is not None else []
    return stored or _labels.require(target)


def _mapped(query: Query) -> Bools:
    _nouns(query.target)  # a query that cannot be placed is said first, before what is left of the zoo
    mapped: Bools = query.rows.mapped_labels[query.which] > 0
    return mapped


def _alike(query: Query) -> Bools:
    if not len(query.which):
        return np.zeros(0, bool)
    row, rows = _own_row(query), query.rows
    same = (rows.base_ids == rows.base_ids[row]) & (rows.mode == rows.mode[row]) & np.isin(rows.kind, HAS_CHANNELS)
    return same[query.which]


def _own_row(query: Query) -> int:
    """The stored sub-network whose channels stand for the target."""
    rows, target = query.rows, query.target
    if target.row is not None:
        return target.row
    bases = set(rows.base_ids[query.which])
    mine = [
        i for i, task in enumerate(rows.task_ids)
        if task == target.task_id and rows.kind[i] in HAS_CHANNELS and rows.base_ids[i] in bases
    ]  # fmt: skip
    if not mine:
        raise NotFoundError(
            f"by='mask_iou' compares channel sets: the zoo has no sub-network of task {target.task_id[:12]} "
            f"({', '.join(target.labels)})",
            hint="Prune one and add it, or ask with the id of a stored sub-network",
        )
    return min(mine, key=lambda i: (-np.nan_to_num(rows.accuracy[i], nan=-np.inf), rows.ids[i]))


def _nearest(name: str) -> Callable[[Query, int], Ints]:
    def propose(query: Query, k: int) -> Ints:
        mine, theirs = _embeddings(query, name)
        return Space(name, [query.rows.ids[i] for i in query.which], theirs).propose(mine, k)

    return propose


def _embeddings(query: Query, name: str) -> tuple[np.ndarray, list[np.ndarray]]:
    rows, target, stored = query.rows, query.target, query.rows.embeddings(name)
    bases = sorted(set(rows.base_ids[query.which]))
    if len(bases) > 1:
        raise BaseMismatchError(
            f"by={name!r} compares features of one base, and the candidates come from several",
            got=", ".join(base[:12] for base in bases), hint="Choose one with base=",
        )  # fmt: skip
    lacking = [rows.ids[i][:12] for i in query.which if stored[i] is None]
    more = ", generator=path" if name == "stamp" else ""
    call = f'mvp.score(z, data, by="{name}"{more}) computes it from images of the task'
    if lacking:
        raise MissingScoresError(
            f"{len(lacking)} of {len(query.which)} sub-networks have no embedding of their task: "
            f"{', '.join(lacking[:5])}{', ...' if len(lacking) > 5 else ''}",
            hint=call,
        )
    theirs = [vector for i in query.which if (vector := stored[i]) is not None]
    mine = query.embedding if query.embedding is not None else _own_embedding(query, bases, name)
    if mine is None:
        raise MissingScoresError(
            f"task {target.task_id[:12]} ({', '.join(target.labels)}) has no embedding",
            hint=f"{call}; or give embedding=",
        )
    vector = np.asarray(mine, np.float32)
    widths = sorted({v.shape for v in theirs} | {vector.shape})
    if len(widths) > 1 or vector.ndim != 1 or not np.isfinite(vector).all() or not vector.any():
        raise DataError(
            f"by={name!r}: the embeddings cannot be compared",
            got=f"shapes {', '.join(map(str, widths))}",
            expected="vectors of one length, finite and not zero",
        )
    return vector, theirs


def _own_embedding(query: Query, bases: list[Any], name: str) -> npt.ArrayLike | None:
    rows, target = query.rows, query.target
    base = bases[0] if bases else None
    own = [target.row] if target.row is not None and rows.base_ids[target.row] == base else []
    same = [i for i, task in enumerate(rows.task_ids) if task == target.task_id and rows.base_ids[i] == base]
    stored = (rows.embeddings(name)[i] for i in [*own, *sorted(same, key=lambda i: rows.ids[i])])
    scored = rows.embedding_scores(name).get((str(base), target.task_id))
    return scored if scored is not None else next((vector for vector in stored if vector is not None), None)


def _stored_tasks(query: Query) -> list[tuple[str, set[str]]]:
    tasks = query.rows.snapshot.tasks
    return [(id, set(labels)) for id, labels in zip(tasks["id"].to_pylist(), tasks["labels"].to_pylist())]


MEASURES = (
    Measure("wup", (0.0, 1.0), "MVP sec. 3.2; Wu & Palmer 1994", wup, _mapped, "no label with a WordNet noun"),
    Measure("leep", (-np.inf, 0.0), "MVP sec. 3.2; Nguyen et al. 2020", leep),
    Measure("prototype", (-1.0, 1.0), "this project", prototype, propose=_nearest("prototype")),
    Measure("stamp", (-1.0, 1.0), "STAMP, Eq. 9; this project", stamp, propose=_nearest("stamp")),
    Measure("mask_iou", (0.0, 1.0), "MVP sec. 3.2; Jaccard 1901", mask_iou, _alike, "another base or mode, or no sets"),
)


def find_measure(by: str) -> Measure:
    """The measure of a name. Raises OptionError, listing the names."""
    for measure in MEASURES:
        if measure.name == by:
            return measure
    raise OptionError("no such measure of similarity", got=repr(by), expected=" | ".join(m.name for m in MEASURES))


def similarity_rows(rows: Rows, which: Ints, by: str, pairs: Bools, *, how: How = "best_match") -> Floats:
    """Similarities of stored sub-networks with each other's tasks.

    Args:
        rows: The zoo's sub-networks.
        which: Rows to compare, int64 (m,).
        by: Name of the measure.
        pairs: bool (m, m); entry (t, j) asks how similar sub-network which[j] is to the task of which[t].
        how: For `wup`.

    Returns:
        float64 (m, m), NaN where not asked for or where the measure is not defined (no label with a noun).

    Raises:
        MissingScoresError: Says how many targets lack scores, with the message of the first one.
    """
    measure = find_measure(by)
    result = np.full(pairs.shape, np.nan)
    lacking: list[MissingScoresError] = []
    asked = np.flatnonzero(pairs.any(axis=1))
    for t in asked:
        columns = np.flatnonzero(pairs[t])
        query = Query(rows, rows.target(int(which[t])), which[columns], how)
        if by == "wup" and not rows.mapped_labels[which[t]]:
            continue
        if measure.usable is not None:
            usable = np.flatnonzero(measure.usable(query))
            query, columns = query.only(usable), columns[usable]
        try:
            result[t, columns] = measure.score(query)
        except MissingScoresError as error:
            lacking.append(error)
    if lacking:
        raise MissingScoresError(
            f"{len(lacking)} of {len(asked)} target tasks lack scores for by={by!r}",
            problems=[lacking[0].what],
            hint=lacking[0].hint,
        )
    return result
