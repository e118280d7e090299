"""What a measure is asked, and the measures that read labels, stored scores or channel sets; no measure does I/O."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from zoo import labels as _labels
from zoo.channels import iou_rows
from zoo.errors import MissingScoresError, NotFoundError
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
        given: {id of a sub-network: value}, for `leep_probe`.
    """

    rows: Rows
    target: Target
    which: Ints
    how: How = "best_match"
    embedding: npt.ArrayLike | None = None
    given: Mapping[str, float] | None = None

    def only(self, positions: Ints) -> "Query":
        """The same query over some of its rows."""
        return replace(self, which=self.which[positions])


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
    return _stored_scores(query, "leep", "LEEP score")


def leep_probe(query: Query) -> Floats:
    """LEEP of each sub-network on those images of a fixed probe that are of the target's classes, in [-H(Y), 0] nats.

    Source: as `leep`; that responses are stored once and LEEP is estimated from them is this project's (`zoo.probe`).
    No forward pass; asked through `z.nearest`, which reads the responses.

    Raises:
        MissingScoresError: No probe has the target's classes, or sub-networks were not run on it.
    """
    found = np.array([(query.given or {}).get(query.rows.ids[i], np.nan) for i in query.which], np.float64)
    missing = int(np.isnan(found).sum())
    if missing:
        raise MissingScoresError(
            f"{missing} of {len(found)} sub-networks have no stored responses for {', '.join(query.target.labels)}",
            hint="mvp.cache_responses(z, source) runs them on a probe of the data set; then ask z.nearest(task, ...)",
        )
    return found


def nce(query: Query) -> Floats:
    """NCE of each sub-network on the target's training images, as stored in `scores`, in [-H(Y), 0] nats.

    Source: Tran et al. 2019, sec. 3; definition in `zoo.nce`. Directional: sub-network -> target task.

    Raises:
        MissingScoresError: Sub-networks without an NCE score on the target.
    """
    return _stored_scores(query, "nce", "NCE score")


def logme(query: Query) -> Floats:
    """LogME of each sub-network's features on the target's training images, as stored in `scores`, in [-1.08, 6] nats.

    Source: You et al. 2021, sec. 4; definition in `zoo.logme`. Directional: sub-network -> target task.

    Raises:
        MissingScoresError: Sub-networks without a LogME score on the target.
    """
    return _stored_scores(query, "logme", "LogME score")


def hscore(query: Query) -> Floats:
    """H-score of each sub-network's features on the target's training images, as stored in `scores`, 0 or more.

    Source: Bao et al. 2019; definition in `zoo.hscore`, whose largest value for K classes is K - 1.
    Directional: sub-network -> target task.

    Raises:
        MissingScoresError: Sub-networks without an H-score on the target.
    """
    return _stored_scores(query, "hscore", "H-score")


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


def _stored_scores(query: Query, measure: str, called: str) -> Floats:
    """Values in `scores` of each sub-network on the target."""
    dense = np.full(len(query.rows), np.nan)
    stored = query.rows.scores(measure)
    rows, values = stored.get(query.target.task_id, (np.empty(0, np.int64), np.empty(0)))
    dense[rows] = values
    found = dense[query.which]
    missing = int(np.isnan(found).sum())
    if missing:
        hint = f'mvp.score(z, data, by="{measure}") computes them from images of the task'
        same = {t for t, labels in _stored_tasks(query) if t in stored and labels == set(query.target.labels)}
        if len(rows) == 0 and same:
            # Rows carry a task's id, which the order of labels, the split and the seed are part of.
            hint += f"; the same classes were scored as task {min(same)[:12]}: give this id instead of labels"
        raise MissingScoresError(
            f"{missing} of {len(found)} sub-networks have no {called} on task {query.target.task_id[:12]} "
            f"({', '.join(query.target.labels)})",
            hint=hint,
        )
    return found


def _nouns(target: Target) -> list[str]:
    """Synsets of a target: all of a new task's labels, those there are of a stored one's."""
    stored = [synset for synset in target.synsets if synset is not None] if target.row is not None else []
    return stored or _labels.require(target)


def mapped(query: Query) -> Bools:
    """Rows that `wup` is defined on: those with a label that has a noun."""
    _nouns(query.target)  # a query that cannot be placed is said first, before what is left of the zoo
    found: Bools = query.rows.mapped_labels[query.which] > 0
    return found


def alike(query: Query) -> Bools:
    """Rows that `mask_iou` is defined on: those of the target's base and mode that have channel sets."""
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


def _stored_tasks(query: Query) -> list[tuple[str, set[str]]]:
    tasks = query.rows.snapshot.tasks
    return [(id, set(labels)) for id, labels in zip(tasks["id"].to_pylist(), tasks["labels"].to_pylist())]
