"""The sub-networks of one version of a zoo, a column at a time: read and verified when it is asked for, never kept.

Channels and embeddings are most of a zoo's bytes; a query by labels has no need of them.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from zoo import arrow
from zoo.arrays import indices, numbers
from zoo.tables import Table

Ints = npt.NDArray[np.int64]


class Columns:
    """The rows of a version, an id once (the earliest row), ordered by `created_at`, then id.

    Behaves as a pyarrow Table where readers need one: `columns["id"]`, `columns.select([...])`, `len(columns)`.

    Args:
        table: The table `subnetworks`, refreshed to the version.
        before: The same of an older version, whose work is reused where rows were only added since.

    Attributes:
        ids: The ids, in order.
        shared: How many of the first rows are those of `before`, in its order: all of its rows, or 0.

    Raises:
        CorruptionError: A file is missing or damaged.
    """

    def __init__(self, table: Table, before: "Columns | None" = None) -> None:
        self._table, self.schema = table, arrow.SCHEMAS[table.name]
        names = table.parts()
        old = () if before is None or not set(before._parts) <= set(names) else before._parts
        self._parts = (*old, *(name for name in names if name not in set(old)))
        keys = [table.load(["created_at", "id"], [part]) for part in self._parts[len(old) :]]
        added = pa.concat_tables(keys) if keys else table.load(["created_at", "id"], [])
        created, ids = numbers(added["created_at"].cast(pa.int64()), "<i8"), added["id"].to_pylist()
        lengths = [len(rows) for rows in keys]
        self.shared = 0
        if before is not None and old:
            self._ends = np.concatenate([before._ends, before._rows + np.cumsum(lengths, dtype=np.int64)])
            grown = _ranks(created, ids)
            newest = before._created[before._order[-1]] if len(before) else np.iinfo(np.int64).min
            self._created = np.concatenate([before._created, created])
            self._raw_ids = [*before._raw_ids, *ids]
            if (not ids or created.min() > newest) and before._known.isdisjoint(ids):
                self.shared = len(before)
                self._order = np.concatenate([before._order, before._rows + grown])
        else:
            self._ends = np.cumsum(lengths, dtype=np.int64)
            self._created, self._raw_ids = created, ids
        if not self.shared:
            self._order = _ranks(self._created, self._raw_ids)
        self.ids = [self._raw_ids[i] for i in self._order.tolist()]
        self._known = frozenset(self.ids)

    @property
    def _rows(self) -> int:
        """Rows in the files, those of ids that came again included."""
        return int(self._ends[-1]) if len(self._ends) else 0

    def __len__(self) -> int:
        return len(self._order)

    @property
    def num_rows(self) -> int:
        """How many there are."""
        return len(self)

    @property
    def column_names(self) -> list[str]:
        """The table's columns."""
        return list(self.schema.names)

    def __getitem__(self, name: str) -> pa.ChunkedArray:
        return pa.chunked_array([pa.array(self.ids, pa.string())]) if name == "id" else self.select([name])[name]

    def select(self, names: Sequence[str], start: int = 0) -> pa.Table:
        """Some columns of the rows from `start` on."""
        order = self._order[start:]
        if not len(order):
            return self._table.load(names, [])
        first = int(np.searchsorted(self._ends, order.min(), side="right"))
        skipped = int(self._ends[first - 1]) if first else 0
        rows = self._table.load(names, self._parts[first:])
        picks = order - skipped
        if np.array_equal(picks, np.arange(len(rows))):
            return rows
        return rows.take(indices(picks))

    def table(self) -> pa.Table:
        """All columns."""
        return self.select(self.column_names)

    def row(self, i: int) -> dict[str, Any]:
        """One row with all its fields, read alone."""
        raw = int(self._order[i])
        part = int(np.searchsorted(self._ends, raw, side="right"))
        within = raw - (int(self._ends[part - 1]) if part else 0)
        return self._table.row(self._parts[part], within)


def _ranks(created: Ints, ids: Sequence[str]) -> Ints:
    """Rows by creation, then id; of an id that comes again only the earliest."""
    if len(ids) < 2:
        return np.arange(len(ids))
    order = np.arange(len(ids))
    if not (np.diff(created) > 0).all():
        keys = pa.table({"created": indices(created), "id": pa.array(ids, pa.string())})
        ranks = pc.sort_indices(keys, sort_keys=[("created", "ascending"), ("id", "ascending")])
        order = numbers(ranks, "<u8").astype(np.int64)
    if len(set(ids)) < len(ids):
        first = {ids[i]: i for i in reversed(order.tolist())}
        order = np.array([i for i in order.tolist() if first[ids[i]] == i], np.int64)
    return order
