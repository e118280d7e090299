"""WordNet similarity of two tasks, from the similarities of their classes, and of one task against many.

How class similarities become a task similarity is stated by no paper. Measured on CIFAR-100: under the mean of all
pairs a task is its own nearest neighbour in only 11 of 20 cases, under the symmetric best match in 20 of 20. So
"best_match" is the default.

Class similarities depend on nothing but the two classes, and sums run over sorted values, so a score depends neither on
the order of labels, nor on which tasks are compared in the same call: equal tasks get bit-equal scores.
"""

import math
from collections.abc import Sequence
from typing import Literal, Protocol, cast

import numpy as np

from zoo import labels, wordnet
from zoo.errors import OptionError, UnknownLabelsError
from zoo.wordnet import FloatArray, IntArray

How = Literal["best_match", "mean", "hungarian"]
HOW: tuple[How, ...] = ("best_match", "mean", "hungarian")

# Rows of class similarities are kept for later queries up to about this many numbers (64 MB).
_KEPT_NUMBERS = 8_000_000


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
        mapped = [[synset for synset in synsets if synset is not None] for synsets in given]
        #: int64 (N,): labels of each task that no synset stands for.
        self.unmapped = np.array([len(a) - len(b) for a, b in zip(given, mapped)], np.int64)
        flat = wordnet.taxonomy().numbers([synset for synsets in mapped for synset in synsets])
        vocabulary, column = np.unique(flat, return_inverse=True)
        self._vocabulary = wordnet.Vocabulary(vocabulary)
        lengths = np.array([len(synsets) for synsets in mapped], np.int64)
        first = np.cumsum(lengths) - lengths
        # Tasks of one size are compared together: (places among all tasks, (size, n) columns of the vocabulary).
        self._groups: list[tuple[IntArray, IntArray]] = []
        for size in np.unique(lengths[lengths > 0]).tolist():
            members = np.flatnonzero(lengths == size)
            self._groups.append((members, column[first[members] + np.arange(size)[:, None]]))
        self._rows: dict[int, FloatArray] = {}

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
        for members, columns in self._groups:
            # (stored labels, query labels, tasks)
            pairs = np.stack([table[:, column] for column in columns])
            if how == "best_match":
                result[members] = (_mean(pairs.max(axis=0)) + _mean(pairs.max(axis=1))) / 2
            elif how == "mean":
                result[members] = _mean(pairs.reshape(-1, len(members)))
            else:
                result[members] = _assigned(pairs)
        return result

    def _row(self, number: int) -> FloatArray:
        row = self._rows.get(number)
        if row is None:
            row = self._vocabulary.row(number)
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


def _mean(values: FloatArray) -> FloatArray:
    """Mean over the first axis, summed in sorted order and one by one, whatever the other axis holds."""
    ordered = np.sort(values, axis=0)
    total = ordered[0].copy()
    for row in ordered[1:]:
        total += row
    mean: FloatArray = total / len(ordered)
    return mean


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
