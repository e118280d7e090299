"""Loops that numpy has no fast form of, compiled by numba; only the functions that use them import this file.

Compiled code is kept on disk (`NUMBA_CACHE_DIR`, else `__pycache__` beside this file, else the user's cache folder), so
that only the first process ever waits for the compiler. Nothing runs in parallel: a result does not depend on threads.
"""

import math
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numba.extending import intrinsic

TILE = 512  # sub-networks compared at a time: their packed channels stay in the L2 cache
FACTORS = 16  # numbers of at least 1e-12 whose product is far from underflow: one logarithm for all of them


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function compiled at its first call for each combination of types, kept on disk where a folder allows it.

    Sums may be reordered, so that they run on vectors; NaN and infinite values keep their meaning.
    """
    options: dict[str, Any] = {"nogil": True, "fastmath": {"reassoc", "contract"}}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # numba found no folder that it may write to
        return numba.njit(**options)(function)


def _ctpop(typing: Any, word: Any) -> Any:
    """Set bits of an integer, in its own type: an instruction that numba has no name for."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.ctpop(arguments[0])

    return word(word), build


_popcount: Any = intrinsic(_ctpop)


@compiled
def leep_sums(theta: np.ndarray, label: np.ndarray, classes: int, floor: float, tolerance: float) -> np.ndarray:
    """LEEP before it is cut to its range, of many models; see `zoo.leep` for the definition.

    Args:
        theta: float32 or float64 (M, n, Z), C order.
        label: int64 (n,) in 0..classes - 1.
        classes: Y.
        floor: Under the logarithm.
        tolerance: Of row sums.

    Returns:
        float64 (M,); NaN for a model with a negative value or a row that does not sum to 1 within the tolerance.
    """
    models, images, width = theta.shape
    result = np.empty(models)
    joint, total = np.empty((classes, width)), np.empty(width)
    for m in range(models):
        joint[:] = 0.0
        valid = True
        for i in range(images):
            row, own = theta[m, i], joint[label[i]]
            mass, negative = 0.0, np.int64(0)
            for z in range(width):
                value = np.float64(row[z])
                own[z] += value
                mass += value
                negative += np.int64(value < 0.0)
            # NaN compares false, so that it is caught here too.
            valid &= (abs(mass - 1.0) <= tolerance) & (negative == 0)
        if not valid:
            result[m] = np.nan
            continue
        total[:] = 0.0
        for y in range(classes):
            total += joint[y]
        for y in range(classes):
            own = joint[y]
            for z in range(width):
                own[z] = own[z] / total[z] if total[z] > 0.0 else 0.0
        logs, product = 0.0, 1.0
        for i in range(images):
            row, conditional = theta[m, i], joint[label[i]]
            inner = 0.0
            for z in range(width):
                inner += conditional[z] * np.float64(row[z])
            product *= max(inner, floor)
            if i % FACTORS == FACTORS - 1:
                logs += math.log(product)
                product = 1.0
        result[m] = (logs + math.log(product)) / images
    return result


@compiled
def widen(bits: np.ndarray, out: np.ndarray) -> None:
    """Half precision numbers of at least 0, given as uint16 bits, as float32.

    Shifting a half's bits into a float's fields leaves only the exponent's bias to be made up for, 2**112, which a
    product does exactly, subnormal halves included. What is negative, infinite or NaN becomes a number above 60,000.
    """
    given, wide, fields = bits.reshape(-1), out.reshape(-1), out.reshape(-1).view(np.uint32)
    for i in range(len(given)):
        fields[i] = np.uint32(given[i]) << 13
    for i in range(len(given)):
        wide[i] *= np.float32(2.0**112)


@compiled
def group_sums(
    bits: np.ndarray, starts: np.ndarray, kept: np.ndarray, group: np.ndarray, first: int, sums: np.ndarray
) -> None:
    """Sums of the IoU of some sub-networks with all in each group, a tile of them at a time; see `zoo.overlap`.

    Args:
        bits: uint64 (words, N), the packed channels of all units one after the other.
        starts: int64 (U + 1,), the first word of each unit.
        kept: int32 (U, N), set bits.
        group: uint8 (m, N), or wider, 0 = leave out.
        first: The first of the m sub-networks among the N.
        sums: float64 (U, N, groups), added to.
    """
    units, n, groups = sums.shape
    both, overlap, inside = np.empty(TILE, np.int32), np.empty(TILE), np.empty((groups, TILE))
    for low in range(0, n, TILE):
        size = min(TILE, n - low)
        for t in range(group.shape[0]):
            own_groups = group[t, low : low + size]
            for g in range(groups):
                share = inside[g]
                for j in range(size):
                    share[j] = np.float64(own_groups[j] == g + 1)
            for u in range(units):
                both[:] = 0
                for w in range(starts[u], starts[u + 1]):
                    own, row = bits[w, first + t], bits[w, low : low + size]
                    for j in range(size):
                        both[j] += np.int32(_popcount(own & row[j]))
                own_kept, other_kept = kept[u, first + t], kept[u, low : low + size]
                for j in range(size):
                    union = np.int32(own_kept + other_kept[j] - both[j])
                    # Two empty sets are equal: 1, as in `zoo.channels.iou`.
                    overlap[j] = np.float64(both[j]) / np.float64(union) if union > 0 else 1.0
                for g in range(groups):
                    share, total = inside[g], 0.0
                    for j in range(size):
                        total += overlap[j] * share[j]
                    sums[u, first + t, g] += total
