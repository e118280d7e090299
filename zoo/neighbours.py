"""What a query gives back: the nearest stored sub-networks, best first."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, overload

from zoo.table import Table

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl
    import pyarrow as pa


@dataclass(frozen=True)
class Neighbour:
    """One stored sub-network and how near its task is.

    Attributes:
        id: Id of the sub-network.
        score: Similarity by the query's measure; larger is nearer.
        labels: Classes of its task.
        dataset: Their data set.
        producer: The method that made it.
        keep: Keep ratio asked for.
        accuracy: Test accuracy in 0..1; None when it was not measured.
        shared: Classes that its task shares with the query's (leakage: images may be shared too).
        generation: 0 unless voted.
        task_id: Id of its task.
        base_id: Id of its base.
    """

    id: str
    score: float
    labels: tuple[str, ...]
    dataset: str | None
    producer: str
    keep: float
    accuracy: float | None
    shared: int
    generation: int
    task_id: str
    base_id: str


class Neighbours(Sequence[Neighbour]):
    """Rows best first; ties by id. A sequence: `n[0].labels`, `for row in n`, `n[:3]` (again Neighbours), `len(n)`.

    Each field of a row is also a column: `n.id`, `n.score`, `n.labels`, `n.producer`, `n.accuracy`, `n.shared`, ...

    Attributes:
        measure: Name of the measure.
        target: Classes of the query's task.
        unmapped: Candidate tasks with labels that have no WordNet noun (only counted for `wup`): compared by their
            other labels, left out if there are none.
        removed: {filter: how many sub-networks it removed}, in the order they were applied.
    """

    def __init__(
        self,
        rows: Sequence[Neighbour],
        measure: str,
        target: Sequence[str],
        unmapped: int = 0,
        removed: dict[str, int] | None = None,
    ) -> None:
        self._rows = tuple(rows)
        self.measure, self.target, self.unmapped = measure, tuple(target), unmapped
        self.removed = dict(removed or {})

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Neighbour]:
        return iter(self._rows)

    @overload
    def __getitem__(self, index: int) -> Neighbour: ...
    @overload
    def __getitem__(self, index: slice) -> "Neighbours": ...
    def __getitem__(self, index: int | slice) -> "Neighbour | Neighbours":
        if isinstance(index, slice):
            return Neighbours(self._rows[index], self.measure, self.target, self.unmapped, self.removed)
        return self._rows[index]

    @property
    def id(self) -> tuple[str, ...]:
        """Ids of the sub-networks."""
        return tuple(row.id for row in self._rows)

    @property
    def score(self) -> tuple[float, ...]:
        """Similarities, largest first."""
        return tuple(row.score for row in self._rows)

    @property
    def labels(self) -> tuple[tuple[str, ...], ...]:
        """Classes of each task."""
        return tuple(row.labels for row in self._rows)

    @property
    def dataset(self) -> tuple[str | None, ...]:
        """Data set of each task."""
        return tuple(row.dataset for row in self._rows)

    @property
    def producer(self) -> tuple[str, ...]:
        """Method that made each sub-network."""
        return tuple(row.producer for row in self._rows)

    @property
    def keep(self) -> tuple[float, ...]:
        """Keep ratio of each."""
        return tuple(row.keep for row in self._rows)

    @property
    def accuracy(self) -> tuple[float | None, ...]:
        """Test accuracy of each, in 0..1."""
        return tuple(row.accuracy for row in self._rows)

    @property
    def shared(self) -> tuple[int, ...]:
        """Classes that each task shares with the query's."""
        return tuple(row.shared for row in self._rows)

    @property
    def task_id(self) -> tuple[str, ...]:
        """Id of each task."""
        return tuple(row.task_id for row in self._rows)

    def table(self) -> Table:
        """All rows and fields."""
        names = [field.name for field in fields(Neighbour)]
        return Table({name: [getattr(row, name) for row in self._rows] for name in names})

    def to_pandas(self) -> "pd.DataFrame":
        """One row a neighbour, all fields, as a pandas DataFrame."""
        return self.table().to_pandas()

    def to_arrow(self) -> "pa.Table":
        """The same as a pyarrow Table."""
        return self.table().to_arrow()

    def to_polars(self) -> "pl.DataFrame":
        """The same as a Polars DataFrame; needs the extra `polars`."""
        return self.table().to_polars()

    def _shown(self) -> Table:
        shown: dict[str, list[Any]] = {
            "id": [row.id[:12] for row in self._rows],
            self.measure: [row.score for row in self._rows],
            "shared": [row.shared for row in self._rows],
            "labels": [row.labels for row in self._rows],
            "producer": [row.producer for row in self._rows],
            "accuracy": [row.accuracy for row in self._rows],
        }
        notes = []
        if self.unmapped:
            notes.append(f"{self.unmapped} candidate task(s) have labels without a WordNet noun, which were left out")
        return Table(shown, f"nearest to {', '.join(self.target)}", notes)

    def __str__(self) -> str:
        return str(self._shown())

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return self._shown()._repr_html_()
