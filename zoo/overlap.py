"""IoU of all pairs of channel sets, averaged in groups as it is made: the N x N values never exist.

Source: MVP (Zhao et al.), sec. 3.2, Fig. 1 and 2: the IoU of each sub-network with those in each of its groups of
similarity.
"""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from zoo.channels import Floats, Ints, Words, count
from zoo.errors import DataError, OptionError

GroupMatrix = npt.NDArray[np.integer]
#: The groups of all pairs, (N, N), or a function from a slice of rows to these rows of it, (m, N).
Groups = GroupMatrix | Callable[[slice], GroupMatrix]

PAIRS_AT_ONCE = 1 << 22  # pairs whose groups or similarities are in memory at a time: 32 MB of float64


def group_means(units: Sequence[Words], group: Groups, groups: int) -> tuple[Floats, Ints]:
    """Mean IoU of each sub-network with those in each of its groups, for several sets at a time.

    Args:
        units: U matrices uint64 (N, words), at least one, rows alike in all.
        group: int (N, N), or a function that gives some rows of it: entry (t, j) is the group of j among the neighbours
            of t, 1..groups, or 0 = leave out. With a function no N x N matrix exists; uint8 is read without a copy.
        groups: Number of groups, at least 1.

    Returns:
        Means float64 (U, N, groups), NaN where a group is empty, and sizes int64 (N, groups).

    Raises:
        OptionError: groups below 1.
        DataError: Rows of another shape, or a group outside 0..groups.
    """
    from zoo import kernels

    if groups < 1:
        raise OptionError("group_means: number of groups", got=groups, expected="at least 1")
    n = len(units[0])
    # One row a word, so that a word of many sub-networks is read in one go.
    widths = [words.shape[1] for words in units]
    starts = np.concatenate([[0], np.cumsum(widths)]).astype(np.int64)
    bits = np.concatenate([np.empty((0, n), np.uint64), *(words.T for words in units)])
    kept = np.array([count(words) for words in units], np.int32).reshape(len(units), n)
    sums, sizes = np.zeros((len(units), n, groups)), np.zeros((n, groups), np.int64)
    for rows in row_blocks(n):
        block = group_rows(group, rows, n)
        if block.size and (block.min() < 0 or block.max() > groups):
            raise DataError(
                "group_means: groups outside their range", got=f"{block.min()}..{block.max()}", expected=f"0..{groups}"
            )
        small = np.ascontiguousarray(block, np.min_scalar_type(groups))
        for g in range(groups):
            sizes[rows, g] = np.count_nonzero(small == g + 1, axis=1)
        kernels.group_sums(bits, starts, kept, small, rows.start, sums)
    return np.divide(sums, sizes, out=np.full(sums.shape, np.nan), where=sizes > 0), sizes


def row_blocks(n: int) -> list[slice]:
    """Slices that make up 0..n, each of as many rows as hold at most PAIRS_AT_ONCE pairs, or one."""
    step = max(1, PAIRS_AT_ONCE // max(n, 1))
    return [slice(start, min(n, start + step)) for start in range(0, n, step)]


def group_rows(group: Groups, rows: slice, n: int) -> GroupMatrix:
    """Some rows of a matrix of groups that may be given as a function.

    Raises:
        DataError: They have not the shape (m, n), or are no integers.
    """
    found = np.asarray(group(rows) if callable(group) else group[rows])
    wanted = (rows.stop - rows.start, n)
    if found.shape != wanted or found.dtype.kind not in "iu":
        raise DataError(
            "groups of pairs do not fit the sub-networks",
            got=f"shape {found.shape}, dtype {found.dtype}",
            expected=f"integers of shape {wanted}",
        )
    return found
