"""Best matches of tasks by WordNet in compiled loops, for many tasks; `zoo.taskwup` says what is computed.

All sums are of whole numbers (`taskwup.UNIT`), so these loops and numpy's give the same bits in any order.
"""

import numba
import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Codes = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float64]

_ROWS, _TILE = 512, 64  # tasks whose tables are in the cache at a time, on either side


@numba.njit(cache=True, nogil=True)
def best_match(table: Ints, start: Ints, columns: Codes, shifts: Ints, out: Floats, unit: float) -> None:
    """One task against N: fills `out`.

    Args:
        table: Similarity of each of the query's classes (m) with each noun of the vocabulary, int64 (m, V).
        start: Where each stored task's classes begin in `columns`, int64 (N + 1,).
        columns: Its classes as columns of `table`, int32.
        shifts: Bits to drop for tasks of so many classes, by number of classes.
        out: float64 (N,); nan where a task has no class.
        unit: What a whole number of 1 stands for.
    """
    m, width = table.shape
    column_max = np.empty(width, np.int64)
    for v in range(width):
        best = table[0, v]
        for q in range(1, m):
            best = max(best, table[q, v])
        column_max[v] = best
    for j in range(len(start) - 1):
        first, last = start[j], start[j + 1]
        if first == last:
            out[j] = np.nan
            continue
        shift = shifts[last - first]
        mine = np.int64(0)
        for e in range(first, last):
            mine += column_max[columns[e]] >> shift
        theirs = np.int64(0)
        for q in range(m):
            best = table[q, columns[first]]
            for e in range(first + 1, last):
                best = max(best, table[q, columns[e]])
            theirs += best >> shift
        out[j] = (mine / (last - first) + theirs / m) / 2 * (unit * 2.0**shift)


@numba.njit(cache=True, nogil=True)
def top_k(
    table: Ints, start: Ints, columns: Codes, shifts: Ints, k: int, unit: float, found: Ints, scores: Floats
) -> None:
    """Every task's k nearest others, ties by place; fills `found` and `scores`.

    A best match has two halves, and one task's half is the other's: for each task, the largest similarity of its
    classes with every noun is looked up, not searched. Only two tiles of these rows are in memory.

    Args:
        table: Similarities of the vocabulary's nouns with each other, int64 (V, V).
        start: As in `best_match`.
        columns: As in `best_match`.
        shifts: Bits to drop for pairs of tasks with so many classes, (sizes, sizes).
        k: How many.
        unit: As in `best_match`.
        found: int64 (N, k), filled with -1.
        scores: float64 (N, k), filled with -1.
    """
    n, width = len(start) - 1, table.shape[1]
    own = np.empty((_ROWS, width), np.int64)
    tile = np.empty((width, _TILE), np.int64)
    for base in range(0, n, _ROWS):
        rows = min(_ROWS, n - base)
        for i in range(rows):
            for v in range(width):
                best = np.int64(0)
                for e in range(start[base + i], start[base + i + 1]):
                    best = max(best, table[columns[e], v])
                own[i, v] = best
        for other in range(0, n, _TILE):
            size = min(_TILE, n - other)
            for j in range(size):
                for v in range(width):
                    best = np.int64(0)
                    for e in range(start[other + j], start[other + j + 1]):
                        best = max(best, table[columns[e], v])
                    tile[v, j] = best
            for i in range(rows):
                a = base + i
                first, last = start[a], start[a + 1]
                if first == last:
                    continue
                least = scores[a, k - 1]
                for j in range(size):
                    b = other + j
                    begin, end = start[b], start[b + 1]
                    if a == b or begin == end:
                        continue
                    shift = shifts[last - first, end - begin]
                    mine = np.int64(0)
                    for e in range(first, last):
                        mine += tile[columns[e], j] >> shift
                    theirs = np.int64(0)
                    for e in range(begin, end):
                        theirs += own[i, columns[e]] >> shift
                    value = (mine / (last - first) + theirs / (end - begin)) / 2 * (unit * 2.0**shift)
                    if value > least:
                        place = k - 1
                        while place > 0 and scores[a, place - 1] < value:
                            scores[a, place], found[a, place] = scores[a, place - 1], found[a, place - 1]
                            place -= 1
                        scores[a, place], found[a, place] = value, b
                        least = scores[a, k - 1]
