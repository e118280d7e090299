"""The measures that compare task embeddings: stored vectors of one base, and of which tasks they are lacking."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from zoo.errors import BaseMismatchError, DataError, MissingScoresError
from zoo.index import cosine
from zoo.similarity import Floats, Ints, Query


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


def task2vec(query: Query) -> Floats:
    """Symmetric Task2Vec similarity of the tasks' Fisher embeddings by one base, in [0, 1].

    Source: Achille et al. 2019, sec. 3, "Symmetric distances": the cosine of F_a / (F_a + F_b) and F_b / (F_a + F_b),
    divided entry by entry, so that every filter of the base counts alike however large its Fisher information is; an
    entry that is 0 in both takes no part. The embedding is made by `mvp.task2vec`. Symmetric.

    Raises:
        MissingScoresError, BaseMismatchError, DataError: As for `prototype`; also for embeddings with negative entries,
            which no Fisher information has.
    """
    mine, theirs = _embeddings(query, "task2vec")
    if not theirs:
        return np.empty(0)
    a, b = mine.astype(np.float64), np.stack(theirs).astype(np.float64)
    if a.min() < 0 or b.min() < 0:
        raise DataError("by='task2vec': Fisher information is not negative", got=f"{min(a.min(), b.min()):.3g}")
    total = a + b
    known = total > 0
    x, y = (np.divide(v, total, out=np.zeros_like(total), where=known) for v in (np.broadcast_to(a, b.shape), b))
    # Row by row, so that a value does not depend on which other rows are there (see `zoo.index.cosine`).
    lengths = np.sqrt((x * x).sum(axis=1) * (y * y).sum(axis=1))
    return np.clip(np.divide((x * y).sum(axis=1), lengths, out=np.zeros(len(b)), where=lengths > 0), 0.0, 1.0)


def _cosines(query: Query, name: str) -> Floats:
    mine, theirs = _embeddings(query, name)
    return cosine(mine, np.stack(theirs)) if theirs else np.empty(0)


def nearest_by_cosine(name: str) -> Callable[[Query, int], Ints]:
    """A `Measure.propose` for cosines of the named embeddings: FAISS finds the candidates."""

    def propose(query: Query, k: int) -> Ints:
        mine, _ = _embeddings(query, name)
        space, place = query.rows.space(name, str(query.rows.base_ids[query.which[0]]))
        at = np.full(len(space), -1)
        at[place[query.which]] = np.arange(len(query.which))
        return np.sort(at[space.propose(mine, k, None if len(query.which) == len(space) else at >= 0)])

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
