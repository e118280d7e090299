"""Arrow columns as numpy arrays, from their buffers: `to_numpy` and `pa.array(numpy)` would import pandas, which takes
longer than everything else that opening a zoo does.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Ints = npt.NDArray[np.int64]
Codes = npt.NDArray[np.int32]


def numbers(column: "pa.ChunkedArray | pa.Array", dtype: str) -> npt.NDArray[Any]:
    """A column of fixed-width numbers as numpy.

    Args:
        column: Without nulls, or of floats, whose nulls become nan.
        dtype: Of its values, e.g. "<i8".
    """
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    return np.concatenate([np.empty(0, dtype), *(_or_nan(chunk, dtype) for chunk in chunks)])


def _or_nan(chunk: pa.Array, dtype: str) -> npt.NDArray[Any]:
    values = _buffer(chunk, dtype)
    if not chunk.null_count:
        return values
    bits = np.unpackbits(np.frombuffer(chunk.buffers()[0], np.uint8), bitorder="little")
    return np.where(bits[chunk.offset : chunk.offset + len(chunk)] > 0, values, np.nan)


def indices(rows: Ints) -> pa.Array:
    """Row numbers as an Arrow array, for `take`."""
    rows = np.ascontiguousarray(rows, np.int64)
    return pa.Array.from_buffers(pa.int64(), len(rows), [None, pa.py_buffer(rows)])


def codes(column: "pa.ChunkedArray | pa.Array", known: Sequence[Any] = ()) -> tuple[Codes, list[Any]]:
    """A column of text as numbers.

    Args:
        column: Of strings; null is a value too.
        known: Values that have numbers already, by place.

    Returns:
        int32 (n,), and the values that the numbers stand for: `known`, then new ones as they come.
    """
    place = {value: i for i, value in enumerate(known)}
    parts = [np.empty(0, np.int32)]
    for chunk in column.chunks if isinstance(column, pa.ChunkedArray) else [column]:
        encoded = chunk.dictionary_encode(null_encoding="encode")
        mine = np.array([place.setdefault(v, len(place)) for v in encoded.dictionary.to_pylist()] or [0], np.int32)
        parts.append(mine[_buffer(encoded.indices, "<i4")])
    return np.concatenate(parts), list(place)


class ColumnSource(Protocol):
    """Rows whose columns are read when they are asked for (`zoo.columns.Columns`)."""

    ids: list[str]

    @property
    def column_names(self) -> list[str]:
        """The columns there are."""

    def __len__(self) -> int: ...

    def __getitem__(self, name: str) -> pa.ChunkedArray: ...

    def select(self, names: Sequence[str], start: int = 0) -> pa.Table:
        """Some columns of the rows from `start` on."""

    def table(self) -> pa.Table:
        """All columns."""

    def row(self, i: int) -> dict[str, Any]:
        """One row with all its fields."""


def taken(table: pa.Table, rows: Ints) -> pa.Table:
    """Rows in an order; as they are where that is theirs."""
    return table if np.array_equal(rows, np.arange(len(table))) else table.take(indices(rows))


class TextLists(Sequence[tuple[Any, ...]]):
    """A column of lists of text: `lists[i]` is a tuple.

    Attributes:
        names: The different texts.
        codes: int32 (m,): the number in `names` of every entry, row after row.
        start: int64 (n + 1,): where each row's entries begin.
    """

    names: list[Any]
    codes: Codes
    start: Ints

    def __init__(self, column: "pa.ChunkedArray | pa.Array", before: "TextLists | None" = None) -> None:
        chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
        values = [chunk.flatten() for chunk in chunks]
        mine, self.names = codes(pa.chunked_array(values, pa.string()), before.names if before else ())
        lengths = [np.diff(_buffer(chunk.offsets, "<i4")) for chunk in chunks]
        ends = np.cumsum(np.concatenate([np.empty(0, np.int64), *lengths]), dtype=np.int64)
        if before is None:
            self.codes, self.start = mine, np.concatenate([[0], ends])
        else:
            self.codes = np.concatenate([before.codes, mine])
            self.start = np.concatenate([before.start, before.start[-1] + ends])

    @property
    def lengths(self) -> Ints:
        """Entries of each row."""
        return np.diff(self.start)

    def hits(self, marked: Any) -> Ints:
        """How many entries of each row are among the marked names.

        Args:
            marked: bool (len(names),).
        """
        found = np.asarray(marked, bool)[self.codes]
        if len(self) and len(found) == len(self) * (size := int(self.start[1])) and (self.lengths == size).all():
            return found.reshape(len(self), size).sum(axis=1)
        sums = np.concatenate([[0], np.cumsum(found, dtype=np.int64)])
        return sums[self.start[1:]] - sums[self.start[:-1]]

    def entries(self, rows: Ints) -> tuple[Codes, Ints]:
        """The codes of some rows, one row after the other, and how many each has."""
        lengths = self.lengths[rows]
        ends = np.cumsum(lengths)
        places = np.arange(ends[-1] if len(ends) else 0) + np.repeat(self.start[rows] - (ends - lengths), lengths)
        return self.codes[places], lengths

    def __len__(self) -> int:
        return len(self.start) - 1

    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, slice):
            return [self[j] for j in range(*i.indices(len(self)))]
        if not -len(self) <= i < len(self):
            raise IndexError(f"row {i} of {len(self)}")
        i %= len(self)
        return tuple(self.names[c] for c in self.codes[self.start[i] : self.start[i + 1]].tolist())

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        flat, start = [self.names[c] for c in self.codes.tolist()], self.start.tolist()
        return (tuple(flat[a:b]) for a, b in pairwise(start))


def ragged(column: pa.ChunkedArray, dtype: str) -> list[list[tuple[str, np.ndarray]] | None]:
    """A map<string, list<number>> column as one list of (key, array) a row, without a Python object a number."""
    out: list[list[tuple[str, np.ndarray]] | None] = []
    for chunk in column.chunks:
        keys, items = chunk.keys.to_pylist(), chunk.items
        if chunk.null_count or items.null_count or items.values.null_count:
            # We never write one; what has one fails its check.
            out += [None] * len(chunk)
            continue
        starts, inner = _buffer(chunk.offsets, "<i4"), _buffer(items.offsets, "<i4")
        values = _buffer(items.values, dtype)
        for i in range(len(chunk)):
            out.append([(keys[j], values[inner[j] : inner[j + 1]]) for j in range(starts[i], starts[i + 1])])
    return out


def _buffer(array: pa.Array, dtype: str) -> npt.NDArray[Any]:
    """The values of an array without nulls."""
    buffer = array.buffers()[1]
    return np.frombuffer(buffer or b"", dtype=dtype)[array.offset : array.offset + len(array)]
