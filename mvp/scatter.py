"""The inner loops of averaging: compact weights of several voters added up where the wanted channels lie.

Imported where it is used, since numba takes a second to load; compiled once, the result is cached on disk.
"""

import numpy as np
from numba import njit

SKIP, ZERO, PRETRAINED = 0, 1, 2  # what a voter without the entry adds: nothing, zero, the pre-trained weight


@njit(cache=True, error_model="numpy")
def scatter_mean(
    mode: int,
    places: np.ndarray,
    first: np.ndarray,
    last: np.ndarray,
    runs: np.ndarray,
    filled: np.ndarray,
    place_start: np.ndarray,
    widths: np.ndarray,
    own_widths: np.ndarray,
    full_widths: np.ndarray,
    wanted: np.ndarray,
    maps: np.ndarray,
    source: np.ndarray,
    source_start: np.ndarray,
    pretrained: np.ndarray,
    start: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The mean over voters of every entry of every tensor, all tensors laid end to end.

    Entry (i_0, ..., i_d) of tensor t is a run of `runs[t]` numbers. Its place in voter v along a dimension is looked up
    in `maps`; -1 = the voter lacks it. Sums are in float64 and in the order of the voters.

    Args:
        mode: SKIP, ZERO or PRETRAINED, for a place that is missing along dimension `filled[t]`; a place missing along
            another dimension always skips.
        places: int64; which expression each dimension of each tensor has: those of t are places[first[t]:last[t]].
        first: int64 (T,).
        last: int64 (T,).
        runs: int64 (T,), numbers an entry.
        filled: int64 (T,), a dimension, or -1.
        place_start: int64 (E,), where an expression's part of a row of `maps` starts.
        widths: int64 (E,), wanted entries along an expression.
        own_widths: int64 (V, E), each voter's entries.
        full_widths: int64 (E,), the base's entries.
        wanted: int64 (sum of widths,), positions in the base.
        maps: int64 (V, sum of widths), positions in the voter or -1.
        source: float (all voters' numbers), C order.
        source_start: int64 (V, T).
        pretrained: float, the base's numbers that are wanted, laid out like the result; read in mode PRETRAINED only.
        start: int64 (T + 1,), where a tensor starts in the result.

    Returns:
        (float64 (start[-1],): the means, 0 where nobody holds the entry; int64 (T,): how many entries that are;
        int64: which they are, tensor after tensor, in the result; int64: and in the base).
    """
    mean = np.zeros(start[-1], np.float64)
    missing = np.zeros(len(runs), np.int64)
    cells = 0
    for t in range(len(runs)):
        cells += (start[t + 1] - start[t]) // runs[t]
    to_cell, from_cell, found = np.empty(cells, np.int64), np.empty(cells, np.int64), 0
    for t in range(len(runs)):
        run = runs[t]
        outer = 1
        for d in range(first[t], last[t] - 1):
            outer *= widths[places[d]]
        inner_place = places[last[t] - 1]
        inner = widths[inner_place]
        count = np.zeros(outer * inner, np.int64)
        for v in range(len(own_widths)):
            own_inner = own_widths[v, inner_place]
            for row in range(outer):
                at, rest, stride, held, filling = 0, row, own_inner, True, False
                for d in range(last[t] - 2, first[t] - 1, -1):
                    e = places[d]
                    p = maps[v, place_start[e] + rest % widths[e]]
                    rest //= widths[e]
                    if p >= 0:
                        at += p * stride
                    elif mode != SKIP and d - first[t] == filled[t]:
                        filling = True
                    else:
                        held = False
                    stride *= own_widths[v, e]
                if not held:
                    continue
                may_fill = mode != SKIP and last[t] - 1 - first[t] == filled[t]
                for j in range(inner):
                    p = maps[v, place_start[inner_place] + j]
                    if p < 0 and not may_fill:
                        continue
                    cell = row * inner + j
                    to = start[t] + cell * run
                    count[cell] += 1
                    if p >= 0 and not filling:
                        come = source_start[v, t] + (at + p) * run
                        for r in range(run):
                            mean[to + r] += source[come + r]
                    elif mode == PRETRAINED:
                        for r in range(run):
                            mean[to + r] += pretrained[to + r]
        for cell in range(outer * inner):
            if count[cell] == 0:
                at, rest, stride = 0, cell, 1
                for d in range(last[t] - 1, first[t] - 1, -1):
                    e = places[d]
                    at += wanted[place_start[e] + rest % widths[e]] * stride
                    rest //= widths[e]
                    stride *= full_widths[e]
                to_cell[found], from_cell[found] = cell, at
                found += 1
                missing[t] += 1
            elif count[cell] > 1:
                to = start[t] + cell * run
                for r in range(run):
                    mean[to + r] /= count[cell]
    return mean, missing, to_cell[:found], from_cell[:found]
