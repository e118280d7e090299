"""Channel sets as packed bits, and their IoU: of a pair, of one against all; `zoo.overlap` has all pairs grouped.

Source: MVP (Zhao et al.), sec. 3.2, "Overlap Between Tasks": IoU = |A ∩ B| / |A ∪ B| (Jaccard 1901) of the channels
that two sub-networks of the same base keep in a layer or block.
"""

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from zoo.errors import CorruptionError, DataError, OptionError

if TYPE_CHECKING:
    import pyarrow as pa

Words = npt.NDArray[np.uint64]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def iou(a: Collection[int] | np.ndarray, b: Collection[int] | np.ndarray) -> float:
    """Intersection over union of two channel sets.

    Args:
        a: Kept channel indices, in any order; repetition does not count twice.
        b: The same.

    Returns:
        |a ∩ b| / |a ∪ b|, in [0, 1]. Two empty sets are equal, hence 1.0 (the paper has no empty set).

    Raises:
        DataError: An index is not an integer.
    """
    sets = []
    for name, given in (("a", a), ("b", b)):
        array = np.asarray(list(given) if not isinstance(given, np.ndarray) else given)
        if array.size and (array.dtype.kind not in "iu" or array.ndim != 1):
            raise DataError(
                f"iou: {name} is no set of channel indices",
                got=f"dtype {array.dtype}, shape {array.shape}",
                expected="integers in one dimension",
                hint="A bool mask becomes indices with numpy.flatnonzero(mask)",
            )
        sets.append(set(array.tolist()))
    union = len(sets[0] | sets[1])
    return len(sets[0] & sets[1]) / union if union else 1.0


@dataclass(frozen=True, eq=False)
class Packed:
    """The channel sets of N sub-networks of one base and mode, one bit a channel.

    Attributes:
        bits: {key: uint64 (N, words)}; key is an axis ("a3"), or "axis@layer" in mode "independent". Bit c % 64 of word
            c // 64 is channel c, 1 = kept; bits beyond the axis are 0.
        sizes: {key: channels of the base there}.
    """

    bits: Mapping[str, Words]
    sizes: Mapping[str, int]

    def __len__(self) -> int:
        return len(next(iter(self.bits.values()))) if self.bits else 0

    def take(self, rows: Sequence[int] | Ints) -> "Packed":
        """The same for a choice of sub-networks, in the order given."""
        return Packed({key: words[np.asarray(rows, np.int64)] for key, words in self.bits.items()}, self.sizes)

    def joined(self, keys: Sequence[str]) -> Words:
        """Several sets as one, uint64 (N, words): channels of different keys are different elements."""
        return np.concatenate([self.bits[key] for key in keys], axis=1)

    def whole(self, key: str) -> bool:
        """Whether every sub-network keeps all channels of a key; its IoU is 1 then and says nothing."""
        return bool((count(self.bits[key]) == self.sizes[key]).all())

    def kept(self, key: str, row: int) -> Ints:
        """Channels that one sub-network keeps, sorted."""
        bits = np.unpackbits(np.ascontiguousarray(self.bits[key][row]).view(np.uint8), bitorder="little")
        return np.flatnonzero(bits[: self.sizes[key]])


def channel_keys(plan: Mapping[str, Any], mode: str) -> dict[str, int]:
    """{key: n} of every channel set that a sub-network of this plan and mode can have, in the plan's order."""
    if mode == "independent":
        return {f"{name}@{w['layer']}": axis["n"] for name, axis in plan["axes"].items() for w in axis["writers"]}
    return {name: axis["n"] for name, axis in plan["axes"].items()}


def pack(sets: Sequence[Mapping[str, Any]], sizes: Mapping[str, int]) -> Packed:
    """Pack channel sets given as {key: kept indices}; a key that is absent is kept whole.

    Raises:
        DataError: An unknown key, or an index outside the axis; all are listed.
    """
    keys = [key for given in sets for key in given]
    rows = np.repeat(np.arange(len(sets)), [len(given) for given in sets])
    kept = [np.asarray(v, np.int64).ravel() for given in sets for v in given.values()]
    lengths = np.array([len(v) for v in kept], np.int64)
    return _pack(len(sets), rows, keys, lengths, np.concatenate(kept) if kept else np.empty(0, np.int64), sizes)


def pack_column(channels: "pa.ChunkedArray | pa.Array", sizes: Mapping[str, int]) -> Packed:
    """Pack a column of Arrow type map<string, list<int32>> without a Python loop over channels.

    Raises:
        DataError: An unknown key, or an index outside the axis; all are listed.
    """
    keys: list[str] = []
    rows, lengths, values = [], [], []
    start = 0
    for chunk in getattr(channels, "chunks", [channels]):
        offsets = np.asarray(chunk.offsets)
        entries = slice(offsets[0], offsets[-1])
        items = chunk.items[entries]
        keys += chunk.keys[entries].to_pylist()
        rows.append(start + np.repeat(np.arange(len(chunk)), np.diff(offsets)))
        bounds = np.asarray(items.offsets)
        lengths.append(np.diff(bounds))
        values.append(np.asarray(items.values[bounds[0] : bounds[-1]]))
        start += len(chunk)
    empty = np.empty(0, np.int64)
    return _pack(start, *(np.concatenate([empty, *rows]), keys, np.concatenate([empty, *lengths])),
                 np.concatenate([empty, *values]), sizes)  # fmt: skip


def _pack(n: int, rows: Ints, keys: list[str], lengths: Ints, values: Ints, sizes: Mapping[str, int]) -> Packed:
    """Entry e says: sub-network rows[e] keeps, under keys[e], the next lengths[e] of values."""
    names = np.array(keys, dtype=object)
    problems = [f"unknown axis {key!r}" for key in sorted(set(keys) - set(sizes))]
    ends = np.cumsum(lengths)
    bits = {}
    for key, size in sizes.items():
        entries = np.flatnonzero(names == key)
        part = np.concatenate([np.empty(0, np.int64), *(values[ends[e] - lengths[e] : ends[e]] for e in entries)])
        if part.size and (part.min() < 0 or part.max() >= size):
            bad = int(part.max() if part.max() >= size else part.min())
            problems.append(f"{key}: index {bad} outside 0..{size - 1}")
            continue
        mask = np.zeros((n, -(-size // 64) * 64), np.bool_)
        mask[:, :size] = True
        mask[rows[entries]] = False
        mask[np.repeat(rows[entries], lengths[entries]), part] = True
        bits[key] = np.packbits(mask, axis=1, bitorder="little").view("<u8")
    if problems:
        raise DataError("channel sets do not fit the plan of their base", problems=problems)
    return Packed(bits, dict(sizes))


def plan_of(text: str) -> dict[str, Any]:
    """A base's plan from its JSON text. Raises CorruptionError when it has no axes."""
    plan = json.loads(text)
    if not isinstance(plan, dict) or "axes" not in plan:
        raise CorruptionError("a base's plan has no axes", hint="Run `zoo verify PATH`")
    return plan


def count(words: Words) -> Ints:
    """Kept channels of each row, int64 (N,)."""
    return np.bitwise_count(words).sum(axis=1, dtype=np.int64)


def iou_rows(words: Words, others: Words) -> Floats:
    """IoU of every row of one matrix with every row of another.

    Args:
        words: uint64 (n, w) packed sets.
        others: uint64 (m, w).

    Returns:
        float64 (n, m); 1.0 where both are empty. All n x m values are in memory: see `zoo.overlap` for all pairs.
    """
    both = np.zeros((len(words), len(others)), np.int32)
    for column, other in zip(np.ascontiguousarray(words.T), np.ascontiguousarray(others.T)):
        both += np.bitwise_count(column[:, None] & other[None, :])
    union = count(words)[:, None] + count(others)[None, :] - both
    return np.divide(both, union, out=np.ones(both.shape), where=union > 0)


def paper_floor(keep: float) -> float:
    """IoU of two random sets as a ratio of expectations: keep^2 / (2 keep - keep^2); 0.053 at keep 0.1.

    It is within 3% of the exact expectation (`random_floor`) from about 20 kept channels on; plots draw the exact one.

    Raises:
        OptionError: keep outside (0, 1].
    """
    if not 0 < keep <= 1:
        raise OptionError("paper_floor: keep is no ratio", got=keep, expected="a number in (0, 1]")
    return keep * keep / (2 * keep - keep * keep)


def random_floor(n: Sequence[int] | int, a: Sequence[int] | int, b: Sequence[int] | int) -> float:
    """Expected IoU of two independent, uniformly drawn channel sets: E[ |A ∩ B| / |A ∪ B| ], exactly.

    |A ∩ B| is hypergeometric in each set of channels; over several sets it is the sum of independent ones (a
    convolution) and the union is a + b minus it.

    Args:
        n: Channels to draw from, one number or one for each set of a unit (the axes of a block).
        a: Kept channels of the first, the same form.
        b: Kept channels of the second.

    Returns:
        A number in [0, 1]; 1.0 when both are empty.

    Raises:
        OptionError: Lengths differ, or more is kept than there is.
    """
    parts = [tuple(x) if isinstance(x, Sequence) else (int(x),) for x in (n, a, b)]
    if len({len(p) for p in parts}) != 1 or any(not 0 <= x <= s for s, *kept in zip(*parts) for x in kept):
        raise OptionError("random_floor: the sizes do not fit each other", got=f"n={n}, a={a}, b={b}")
    return _floor(parts[0], *sorted(parts[1:]))


@lru_cache(maxsize=65536)
def _floor(n: tuple[int, ...], a: tuple[int, ...], b: tuple[int, ...]) -> float:
    chance = np.ones(1)
    for size, x, y in zip(n, a, b):
        chance = np.convolve(chance, _overlap(size, x, y))
    both = np.arange(len(chance))
    union = sum(a) + sum(b) - both
    return float(chance @ np.divide(both, union, out=np.ones(len(chance)), where=union > 0))


def _overlap(n: int, a: int, b: int) -> Floats:
    """P(|A ∩ B| = i), i = 0..min(a, b), for random A and B of a and b out of n."""
    f = _log_factorials(n)
    chance = np.zeros(min(a, b) + 1)
    i = np.arange(max(0, a + b - n), min(a, b) + 1)
    chance[i] = np.exp(
        f[a] - f[i] - f[a - i] + f[n - a] - f[b - i] - f[n - a - b + i] - (f[n] - f[b] - f[n - b])
    )  # fmt: skip
    return chance


@lru_cache(maxsize=256)
def _log_factorials(n: int) -> Floats:
    return np.array([math.lgamma(i + 1) for i in range(n + 1)])
