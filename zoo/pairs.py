"""Which group of similarity each pair of a study is in, and how many classes it shares: a byte or two a pair.

Similarities are float64 and made for a block of targets at a time, so that of 10,000 sub-networks no N x N matrix but
the groups' (100 MB) and the shared classes' (200 MB) ever exists.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from zoo.channels import Ints
from zoo.errors import MissingScoresError, OptionError
from zoo.measures import similarity_rows
from zoo.overlap import GroupMatrix, row_blocks
from zoo.query import groups_of
from zoo.rows import Bools, Rows
from zoo.taskwup import How


@dataclass(frozen=True, eq=False)
class Pairs:
    """Ordered pairs of N sub-networks.

    Attributes:
        group: (N, N), the smallest unsigned type that holds it; group of j among the neighbours of t, 1 = most similar,
            0 = left out.
        shared: uint16 (N, N), classes that t and j share.
    """

    group: GroupMatrix
    shared: npt.NDArray[np.uint16]

    def by_shared(self, rows: slice) -> GroupMatrix:
        """Shared classes as groups, for `group_means`: a pair that shares 0, 1, ... is in group 1, 2, ..."""
        return np.where(self.group[rows] > 0, self.shared[rows].astype(np.int32) + 1, 0)

    def most(self) -> int:
        """The largest group of `by_shared`, 0 when every pair is left out."""
        return max((int(self.by_shared(rows).max()) for rows in row_blocks(len(self.group))), default=0)


def pair_groups(
    rows: Rows, which: Ints, by: str, groups: int, binning: str, exclude: str | None, how: How = "best_match"
) -> Pairs:
    """The groups of `iou_by_depth`; see there for the arguments.

    Args:
        rows: The zoo's sub-networks.
        which: Those to compare, int64 (N,).
        by: Name of the measure.
        groups: Number of groups.
        binning: "equal_width" | "quantile".
        exclude: Which pairs are left out besides a sub-network and itself.
        how: For "wup".

    Raises:
        MissingScoresError: Some targets lack scores.
        OptionError: An unknown `exclude`.
    """
    n = len(which)
    group, shared = np.zeros((n, n), np.min_scalar_type(groups)), np.zeros((n, n), np.uint16)
    classes = _SharedClasses(rows, which)
    for block in row_blocks(n):
        size = block.stop - block.start
        shared[block] = classes.rows(block)
        asked = ~_excluded(rows, which, block, shared[block], exclude)
        # The block's targets go first, then all candidates, of which alone a target asks.
        members = np.concatenate([which[block], which])
        try:
            found = similarity_rows(rows, members, by, np.pad(asked, ((0, 0), (size, 0))), how=how)[:, size:]
        except MissingScoresError as error:
            some = "" if block.stop == n else f" (among the first {block.stop} of {n}, where the study stopped)"
            raise MissingScoresError(error.what + some, problems=error.problems, hint=error.hint) from error
        for t, scores in enumerate(found, block.start):
            known = np.isfinite(scores)
            group[t, known] = groups_of(scores[known], groups, binning)
    return Pairs(group, shared)


class _SharedClasses:
    """How many classes two rows share, by the rule of `Rows.shared`, as products of sparse 0/1 matrices."""

    def __init__(self, rows: Rows, which: Ints) -> None:
        labels = [set(rows.labels[i]) for i in which]
        self.unsaid = np.array([rows.datasets[i] is None for i in which], bool)
        self.by_name = _one_hot(labels)
        self.by_class = _one_hot([{(rows.datasets[i], label) for label in own} for i, own in zip(which, labels)])

    def rows(self, block: slice) -> npt.NDArray[np.uint16]:
        """uint16 (m, N)."""
        unsaid = self.unsaid[block][:, None] | self.unsaid[None, :]
        by_class = (self.by_class[block] @ self.by_class.T).toarray()
        if not unsaid.any():
            return by_class
        return np.where(unsaid, (self.by_name[block] @ self.by_name.T).toarray(), by_class)


def _one_hot(groups: list[set[str]] | list[set[tuple[str | None, str]]]):  # type: ignore[no-untyped-def]
    from scipy.sparse import csr_array

    place = {c: i for i, c in enumerate(dict.fromkeys(c for group in groups for c in group))}
    columns = [place[c] for group in groups for c in group]
    starts = np.concatenate([[0], np.cumsum([len(group) for group in groups])])
    ones = np.ones(len(columns), np.uint16)
    return csr_array((ones, columns, starts), shape=(len(groups), len(place)))


def _excluded(rows: Rows, which: Ints, block: slice, shared: npt.NDArray[np.uint16], exclude: str | None) -> Bools:
    """Pairs that are left out, bool (m, N), for the targets of a block."""
    own = np.arange(len(which))[block, None] == np.arange(len(which))
    if exclude is None:
        return own
    if exclude == "same_classes":
        size = np.array([len(rows.labels[i]) for i in which])
        return own | ((shared == size[block, None]) & (shared == size[None, :]))
    if exclude == "overlap":
        return own | (shared > 0)
    if exclude == "same_task":
        task = np.array([rows.task_ids[i] for i in which], dtype=object)
        return own | np.asarray(task[block, None] == task[None, :], bool)
    raise OptionError("exclude: which pairs are left out", got=repr(exclude),
                      expected="same_classes | same_task | overlap | None")  # fmt: skip
