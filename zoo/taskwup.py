"""WordNet similarity of two tasks, from the similarities of their classes, and of one task against many.

How class similarities become a task similarity is stated by no paper. Measured on CIFAR-100: under the mean of all
pairs a task is its own nearest neighbour in only 11 of 20 cases, under the symmetric best match in 20 of 20. So
"best_match" is the default.

Class similarities depend on nothing but the two classes, and sums are of whole numbers (similarities in units of
2^-42, which is 2e-13), which no order of addition changes as long as both tasks have at most 1,024 classes (for "mean",
2,048 pairs of classes). So a score depends neither on the order of labels, nor on which tasks are compared in the same
call, nor on which loop did it: equal tasks get bit-equal scores.
"""

import math
from collections.abc import Sequence
from typing import Literal, Protocol, Self, cast

import numpy as np
import numpy.typing as npt

from zoo import labels, wordnet
from zoo.errors import OptionError, UnknownLabelsError
from zoo.wordnet import FloatArray, IntArray

How = Literal["best_match", "mean", "hungarian"]
HOW: tuple[How, ...] = ("best_match", "mean", "hungarian")

# Rows of class similarities are kept for later queries up to about this many numbers (64 MB).
_KEPT_NUMBERS = 8_000_000
UNIT = 2.0**-42
# Importing the compiled loops takes longer than numpy needs for so many comparisons.
_BY_NUMPY = 300_000


class HasSynsets(Protocol):
    """A task: anything with `synsets` (wnids or names, None where unmapped)."""

    @property
    def synsets(self) -> Sequence[str | None] | None:
        """One a label."""


Synsets = HasSynsets | Sequence[str | None]


class TaskTable:
    """Stored tasks laid out for fast comparison: build it once, ask it often.

    Args:
        tasks: N tasks, or sequences of wnids or synset names. None stands for an unmapped label and is left out of the
            comparison; `unmapped` counts how often.

    Raises:
        UnknownLabelsError: Some synsets are no nouns of WordNet 3.0; all are listed.
    """

    def __init__(self, tasks: Sequence[Synsets]) -> None:
        given = [_given(task) for task in tasks]
        place = {synset: i for i, synset in enumerate(dict.fromkeys(s for synsets in given for s in synsets))}
        flat = np.array([place[synset] for synsets in given for synset in synsets], np.int32)
        self._lay_out(list(place), flat, np.array([len(synsets) for synsets in given], np.int64))

    @classmethod
    def of_codes(cls, names: Sequence[str | None], flat: npt.NDArray[np.int32], lengths: IntArray) -> Self:
        """The same from numbers.

        Args:
            names: wnids or synset names; None = an unmapped label.
            flat: Places in `names` of the synsets of each task, one task after the other, int32.
            lengths: How many each task has, int64 (N,).

        Raises:
            UnknownLabelsError: As above.
        """
        table = cls.__new__(cls)
        table._lay_out(names, flat, lengths)
        return table

    def _lay_out(self, names: Sequence[str | None], flat: npt.NDArray[np.int32], lengths: IntArray) -> None:
        owner = np.repeat(np.arange(len(lengths)), lengths)
        known = np.array([name is not None for name in names] or [False], bool)[flat]
        #: int64 (N,): labels of each task that no synset stands for.
        self.unmapped = np.bincount(owner[~known], minlength=len(lengths)).astype(np.int64)
        numbers = np.full(len(names), -1)
        used = np.flatnonzero(np.bincount(flat[known], minlength=len(names)))
        numbers[used] = wordnet.taxonomy().numbers([cast(str, names[i]) for i in used.tolist()])
        # Two names may be one noun ("dog.n.01" and its wnid).
        vocabulary, place = np.unique(numbers[used], return_inverse=True)
        column_of = np.full(len(names), -1, np.int32)
        column_of[used] = place
        self._vocabulary = wordnet.Vocabulary(vocabulary)
        sizes = np.bincount(owner[known], minlength=len(lengths))
        self._start = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        self._columns = column_of[flat[known]].astype(np.uint32)
        # Tasks of one size are compared together: (places among all tasks, (n, size) columns of the vocabulary).
        self._groups: list[tuple[IntArray, npt.NDArray[np.uint32]]] = []
        for size in np.unique(sizes[sizes > 0]).tolist():
            members = np.flatnonzero(sizes == size)
            self._groups.append((members, self._columns[self._start[members][:, None] + np.arange(size)]))
        self._rows: dict[int, FloatArray] = {}
        self._compared = 0

    def __len__(self) -> int:
        return len(self.unmapped)

    def scores(self, query: Synsets, how: How = "best_match") -> FloatArray:
        """Similarity of one task to every stored task.

        Args:
            query: A task, or a sequence of synsets; all mapped.
            how: See `task_wup`.

        Returns:
            float64 (N,) in (0, 1], bit-equal to `task_wup` of each pair; nan where a stored task has no mapped label.

        Raises:
            UnknownLabelsError: The query has unmapped labels or unknown synsets; all are listed.
            OptionError: No such `how`, or a query without labels.
        """
        if how not in HOW:
            raise OptionError("unknown way to compare tasks by wup", got=repr(how), expected=", ".join(HOW))
        result = np.full(len(self), np.nan)
        numbers = wordnet.taxonomy().numbers(_required(query)).tolist()
        if not self._groups:
            return result
        table = np.stack([self._row(number) for number in numbers])
        self._compared += len(self)
        compiled = how == "best_match" and self._compared > _BY_NUMPY
        for members, columns in self._groups:
            result[members] = _compiled(table, columns) if compiled else _by_numpy(table, columns, how)
        return result

    def top_k(self, k: int) -> tuple[IntArray, FloatArray]:
        """The k nearest others of every stored task, without the N x N scores in memory ("best_match").

        Args:
            k: How many, at least 1.

        Returns:
            Places int64 (N, k) and scores float64 (N, k), best first, ties by place, bit-equal to `scores`; -1 and -1.0
            where there are fewer than k, and for a task without mapped labels.

        Raises:
            OptionError: k below 1.
        """
        from zoo.wupkernel import top_k

        if k < 1:
            raise OptionError("top_k: k is the number of neighbours", got=k, expected="at least 1")
        found, scores = np.full((len(self), k), -1, np.int64), np.full((len(self), k), -1.0)
        if self._groups:
            table = np.stack([self._row(number) for number in self._vocabulary.numbers.tolist()])
            top_k(table, self._start, self._columns, k, UNIT, found, scores)
        return found, scores

    def _row(self, number: int) -> FloatArray:
        row = self._rows.get(number)
        if row is None:
            row = np.rint(self._vocabulary.row(number) / UNIT)
            if (len(self._rows) + 1) * len(row) > _KEPT_NUMBERS:
                self._rows.clear()
            self._rows[number] = row
        return row


def task_wup(a: Synsets, b: Synsets, how: How = "best_match") -> float:
    """Similarity of two tasks by their labels.

    Args:
        a: A task (anything with `synsets`), or a sequence of wnids or synset names, n of them.
        b: The same, m of them.
        how: "best_match": (mean of row maxima + mean of column maxima) / 2 of the (n, m) class similarities, 1 exactly
            when both have the same set of classes. "mean": the mean of all n m of them. "hungarian": the best
            one-to-one matching, its sum divided by max(n, m), so that a class left over counts 0.

    Returns:
        A number in (0, 1]; symmetric; independent of the order of labels. The papers are silent on it.

    Raises:
        UnknownLabelsError: Unmapped labels or unknown synsets in either; all of one task are listed.
        OptionError: No such `how`, or a task without labels.
    """
    return float(TaskTable([_required(b)]).scores(a, how)[0])


def task_wup_many(query: Synsets, tasks: Sequence[Synsets], how: How = "best_match") -> FloatArray:
    """Similarity of one task to N tasks; see `TaskTable` to ask the same N tasks again.

    Args:
        query: A task or a sequence of synsets, all mapped.
        tasks: N of them; None among their synsets is left out.
        how: See `task_wup`.

    Returns:
        float64 (N,) in (0, 1], bit-equal to `task_wup` of each pair; nan where a stored task has no mapped label.

    Raises:
        UnknownLabelsError: Unmapped labels in the query, or unknown synsets anywhere.
        OptionError: No such `how`, or a query without labels.
    """
    return TaskTable(tasks).scores(query, how)


def _by_numpy(table: FloatArray, columns: npt.NDArray[np.uint32], how: How) -> FloatArray:
    """Scores of tasks of one size, from whole numbers (query's classes, vocabulary)."""
    # (stored labels, query labels, tasks)
    pairs = np.stack([table[:, column] for column in columns.T])
    stored, asked, _ = pairs.shape
    if how == "hungarian":
        return _assigned(pairs * UNIT)
    if how == "mean":
        scores: FloatArray = pairs.sum(axis=(0, 1)) / (stored * asked) * UNIT
        return scores
    mine, theirs = pairs.max(axis=1).sum(axis=0), pairs.max(axis=0).sum(axis=0)
    scores = (mine / stored + theirs / asked) / 2 * UNIT
    return scores


def _compiled(table: FloatArray, columns: npt.NDArray[np.uint32]) -> FloatArray:
    """The same for "best_match"."""
    from zoo.wupkernel import LANES, best_match

    asked, width = table.shape
    lanes = np.zeros((width, -(-asked // LANES) * LANES))
    lanes[:, :asked] = table.T
    scores = np.empty(len(columns))
    best_match(lanes, lanes.max(axis=1), asked, columns, UNIT, scores)
    return scores


def _assigned(pairs: FloatArray) -> FloatArray:
    """The "hungarian" score of each task, from (stored labels, query labels, tasks)."""
    from scipy.optimize import linear_sum_assignment

    scores = np.empty(pairs.shape[2])
    for i in range(pairs.shape[2]):
        matrix = pairs[:, :, i]
        matched = matrix[linear_sum_assignment(matrix, maximize=True)]
        # Rounded once, so that neither side's order shows in the sum.
        scores[i] = math.fsum(matched.tolist()) / max(matrix.shape)
    return scores


def _given(task: Synsets) -> list[str | None]:
    if isinstance(task, str):
        raise OptionError("a task is a sequence of synsets, not one text", got=repr(task))
    synsets = task if isinstance(task, Sequence) else task.synsets
    return [] if synsets is None else list(synsets)


def _required(task: Synsets) -> list[str]:
    """A task's synsets, all of which must be there."""
    if not isinstance(task, Sequence) and hasattr(task, "labels"):
        found = labels.require(cast(labels.LabelledTask, task))
    else:
        given = _given(task)
        missing = [i for i, synset in enumerate(given) if synset is None]
        if missing:
            raise UnknownLabelsError(
                f"{len(missing)} of {len(given)} labels have no WordNet noun",
                problems=[f"position {i}: None" for i in missing],
            )
        found = [synset for synset in given if synset is not None]
    if not found:
        raise OptionError("a task without labels cannot be compared")
    return found
