"""The sub-networks of one version of a zoo, a column at a time.

Channels and embeddings are most of a zoo's bytes, and a query by labels has no need of them: what queries filter and
compare by is read at once and kept, every other column is read and verified when it is asked for.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from zoo import arrow
from zoo.arrays import numbers, taken
from zoo.tables import Table

Ints = npt.NDArray[np.int64]

# What queries filter and compare by: about 250 bytes a sub-network.
KEPT = (
    "id", "base_id", "task_id", "dataset", "labels", "synsets", "kind", "mode", "init", "producer", "keep",
    "accuracy", "generation", "params", "macs", "created_at",
)  # fmt: skip


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

    ids: list[str]
    _parts: tuple[str, ...]
    _ends: Ints  # after each file, how many rows have been
    _created: Ints
    _raw_ids: list[str]
    _order: Ints  # rows of the files, in the order of these rows
    _known: frozenset[str]
    _light: pa.Table

    def __init__(self, table: Table, before: "Columns | None" = None) -> None:
        self._table, self.schema = table, arrow.SCHEMAS[table.name]
        names = set(table.parts())
        old = before if before is not None and before._parts and names >= set(before._parts) else None
        done = old._parts if old else ()
        added = {part: table.load(KEPT, [part]) for part in sorted(names - set(done))}
        # Files in the order in which they came: then their rows mostly are in order as they lie.
        by_time = sorted(added, key=lambda part: _created(added[part])[:1].tolist())
        self._parts = (*done, *by_time)
        new = pa.concat_tables([table.load(KEPT, []), *(added[part] for part in by_time)])
        created, ids = _created(new), new["id"].to_pylist()
        ranks, ends = _ranks(created, ids), np.cumsum([len(added[part]) for part in by_time], dtype=np.int64)
        self.shared = 0
        if old is None:
            self._ends, self._created, self._order = ends, created, ranks
            self._light, self.ids = taken(new, ranks), _chosen(ids, ranks)
        else:
            rows, self._created = old._rows, np.concatenate([old._created, created])
            self._ends = np.concatenate([old._ends, rows + ends])
            newest = old._created[old._order[-1]]
            if (not ids or created.min() > newest) and old._known.isdisjoint(ids):
                self.shared = len(old)
                self._order = np.concatenate([old._order, rows + ranks])
                self._light = pa.concat_tables([old._light, taken(new, ranks)])
                self.ids = [*old.ids, *_chosen(ids, ranks)]
            else:
                whole = table.load(KEPT, self._parts)
                everyone = whole["id"].to_pylist()
                self._order = _ranks(self._created, everyone)
                self._light, self.ids = taken(whole, self._order), _chosen(everyone, self._order)
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
        return self.select([name])[name]

    def select(self, names: Sequence[str], start: int = 0) -> pa.Table:
        """Some columns of the rows from `start` on."""
        order = self._order[start:]
        if set(names) <= set(KEPT):
            return self._light.select(names).slice(start)
        if not len(order):
            return self._table.load(names, [])
        first = int(np.searchsorted(self._ends, order.min(), side="right"))
        skipped = int(self._ends[first - 1]) if first else 0
        return taken(self._table.load(names, self._parts[first:]), order - skipped)

    def table(self) -> pa.Table:
        """All columns."""
        return self.select(self.column_names)

    def row(self, i: int) -> dict[str, Any]:
        """One row with all its fields, read alone."""
        raw = int(self._order[i])
        part = int(np.searchsorted(self._ends, raw, side="right"))
        within = raw - (int(self._ends[part - 1]) if part else 0)
        return self._table.row(self._parts[part], within)


def _created(rows: pa.Table) -> Ints:
    """Times of making, in microseconds."""
    return numbers(rows["created_at"].cast(pa.int64()), "<i8")


def _chosen(ids: list[str], ranks: Ints) -> list[str]:
    return [ids[i] for i in ranks.tolist()]


def _ranks(created: Ints, ids: Sequence[str]) -> Ints:
    """Rows by creation, then id; of an id that comes again only the earliest."""
    order = np.arange(len(ids))
    if not (np.diff(created) > 0).all():
        order = np.array(sorted(order.tolist(), key=lambda i: (created[i], ids[i])), np.int64)
    if len(set(ids)) < len(ids):
        first = {ids[i]: i for i in reversed(order.tolist())}
        order = np.array([i for i in order.tolist() if first[ids[i]] == i], np.int64)
    return order
