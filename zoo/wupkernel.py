"""Best matches of tasks by WordNet in compiled loops, for many tasks; `zoo.taskwup` says what is computed.

All sums are of whole numbers in float64 (units of `taskwup.UNIT`), which no order changes: these loops and numpy's give
the same bits. Queries are taken five at a time, with zeros in the empty places, and columns are unsigned: what a
compiler cannot prove it checks at every load.
"""

import numba
import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Columns = npt.NDArray[np.uint32]
Floats = npt.NDArray[np.float64]

LANES = 5
_ROWS, _TILE = 512, 64  # tasks whose tables are in the cache at a time, on either side


@numba.njit(cache=True, nogil=True)
def best_match(table: Floats, column_max: Floats, m: int, columns: Columns, unit: float, out: Floats) -> None:
    """One task of m classes against N tasks of equally many; fills `out`.

    Args:
        table: Similarity of each noun of the vocabulary with each of the query's classes, float64 (V, lanes), the lanes
            a multiple of 5 and those beyond m zero.
        column_max: The largest of each row of `table`, float64 (V,).
        m: Classes of the query.
        columns: The tasks' classes as rows of `table`, uint32 (N, size).
        unit: What a whole number of 1 stands for.
        out: float64 (N,).
    """
    n, size = columns.shape
    lanes = table.shape[1]
    for j in range(n):
        mine, theirs = 0.0, 0.0
        for e in range(size):
            mine += column_max[columns[j, e]]
        for first in range(0, lanes, LANES):
            a, b, c, d, f = 0.0, 0.0, 0.0, 0.0, 0.0
            for e in range(size):
                row = table[columns[j, e]]
                a = max(a, row[first])
                b = max(b, row[first + 1])
                c = max(c, row[first + 2])
                d = max(d, row[first + 3])
                f = max(f, row[first + 4])
            theirs += a + b + c + d + f
        out[j] = (mine / size + theirs / m) / 2 * unit


@numba.njit(cache=True, nogil=True)
def top_k(table: Floats, start: Ints, columns: Columns, k: int, unit: float, found: Ints, scores: Floats) -> None:
    """Every task's k nearest others, ties by place; fills `found` and `scores`.

    A best match has two halves, and one task's half is the other's: for each task, the largest similarity of its
    classes with every noun is looked up, not searched. Only two tiles of these rows are in memory.

    Args:
        table: Similarities of the vocabulary's nouns with each other, float64 (V, V).
        start: Where each task's classes begin in `columns`, int64 (N + 1,).
        columns: Classes as rows of `table`, uint32.
        k: How many.
        unit: As in `best_match`.
        found: int64 (N, k), filled with -1.
        scores: float64 (N, k), filled with -1.
    """
    n, width = len(start) - 1, table.shape[1]
    own = np.empty((_ROWS, width), np.float64)
    tile = np.empty((width, _TILE), np.float64)
    mine, theirs = np.empty(_TILE, np.float64), np.empty(_TILE, np.float64)
    for base in range(0, n, _ROWS):
        rows = min(_ROWS, n - base)
        for i in range(rows):
            own[i, :] = 0
            for e in range(start[base + i], start[base + i + 1]):
                for v in range(width):
                    own[i, v] = max(own[i, v], table[columns[e], v])
        for other in range(0, n, _TILE):
            size = min(_TILE, n - other)
            for j in range(size):
                tile[:, j] = 0
                for e in range(start[other + j], start[other + j + 1]):
                    for v in range(width):
                        tile[v, j] = max(tile[v, j], table[columns[e], v])
            for i in range(rows):
                a = base + i
                first, last = start[a], start[a + 1]
                if first == last:
                    continue
                mine[:] = 0
                for e in range(first, last):
                    line = tile[columns[e]]
                    for j in range(_TILE):
                        mine[j] += line[j]
                row = own[i]
                for j in range(size):
                    total = 0.0
                    for e in range(start[other + j], start[other + j + 1]):
                        total += row[columns[e]]
                    theirs[j] = total
                classes, least = last - first, scores[a, k - 1]
                for j in range(size):
                    b = other + j
                    length = start[b + 1] - start[b]
                    if length == 0 or a == b:
                        continue
                    value = (mine[j] / classes + theirs[j] / length) / 2 * unit
                    if value > least:
                        place = k - 1
                        while place > 0 and scores[a, place - 1] < value:
                            scores[a, place], found[a, place] = scores[a, place - 1], found[a, place - 1]
                            place -= 1
                        scores[a, place], found[a, place] = value, b
                        least = scores[a, k - 1]
