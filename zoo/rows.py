"""The sub-networks of a snapshot as plain columns, and the look-ups that query and study share.

A snapshot is anything with pyarrow tables `bases`, `tasks`, `subnetworks` and `scores`; nothing here touches a store.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from zoo.arrays import Codes, ColumnSource, TextLists, codes, indices, numbers, ragged
from zoo.channels import Packed, channel_keys, pack_column, plan_of
from zoo.snapshot import KEPT
from zoo.taskwup import TaskTable

if TYPE_CHECKING:
    from zoo.index import Space

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

HAS_CHANNELS = ("structured", "mixed")  # kinds of sub-networks that have channel sets


_READ = (
    "id", "base_id", "task_id", "dataset", "labels", "synsets", "kind", "mode", "producer", "keep", "accuracy",
    "generation",
)  # fmt: skip
_NAMES = ("base_id", "dataset", "kind", "mode", "producer")


class Snapshot(Protocol):
    """One pinned state of a zoo: what `zoo.store` hands out, and all that query and study need."""

    token: str
    bases: pa.Table
    tasks: pa.Table
    subnetworks: ColumnSource | pa.Table
    scores: pa.Table


@dataclass(frozen=True)
class Target:
    """What is compared with the stored sub-networks: a task, and the stored sub-network it came from if it did.

    Attributes:
        task_id: Id of the task.
        labels: Its class names.
        dataset: Its data set; None when it is not said.
        synsets: A wnid or synset name a label, None where unmapped.
        row: Row of the stored sub-network that was asked for; None when a task was.
    """

    task_id: str
    labels: tuple[str, ...]
    dataset: str | None
    synsets: tuple[str | None, ...]
    row: int | None = None


class Rows:
    """Columns of `snapshot.subnetworks`, row by row in the snapshot's order.

    Args:
        snapshot: One state of a zoo.
        before: The rows of an older state which are the first of this one's: only the others are read.
    """

    labels: TextLists
    given_synsets: TextLists

    def __init__(self, snapshot: Snapshot, before: "Rows | None" = None) -> None:
        table, self.snapshot = snapshot.subnetworks, snapshot
        if before is None:
            new = table.select(_READ)
        elif isinstance(table, pa.Table):
            new = table.slice(len(before)).select(_READ)
        else:
            new = table.select(_READ, len(before))
        self.ids: list[str] = new["id"].to_pylist()
        self.task_ids: list[str] = new["task_id"].to_pylist()
        self.labels = TextLists(new["labels"], before.labels if before else None)
        self.given_synsets = TextLists(new["synsets"], before.given_synsets if before else None)
        self._codes: dict[str, tuple[Codes, list[Any]]] = {
            name: codes(new[name], before._codes[name][1] if before else ()) for name in _NAMES
        }
        self.keep: Floats = numbers(new["keep"], "<f8")
        self.accuracy: Floats = numbers(new["accuracy"], "<f8")
        self.generation: Ints = numbers(new["generation"], "<i4").astype(np.int64)
        if before is not None:
            self._follow(before)

    def _follow(self, before: "Rows") -> None:
        """Puts the rows of an older state in front."""
        self.ids, self.task_ids = [*before.ids, *self.ids], [*before.task_ids, *self.task_ids]
        for name, (own, names) in self._codes.items():
            self._codes[name] = (np.concatenate([before._codes[name][0], own]), names)
        for name in ("keep", "accuracy", "generation"):
            setattr(self, name, np.concatenate([getattr(before, name), getattr(self, name)]))

    @classmethod
    def of(cls, snapshot: Snapshot) -> "Rows":
        """The rows of a snapshot, read once and kept with it: a handle keeps its snapshot until the zoo changes."""
        kept = vars(snapshot)
        if KEPT not in kept:
            before = kept.get("before")
            kept[KEPT] = cls(snapshot, None if before is None else cls.of(before))
            if before is not None:
                # What is left of the older state may go.
                kept["before"] = None
        return kept[KEPT]

    def __len__(self) -> int:
        return len(self.ids)

    def _column(self, name: str) -> npt.NDArray[Any]:
        own, names = self._codes[name]
        return np.array([*names, None], dtype=object)[own]

    @cached_property
    def base_ids(self) -> npt.NDArray[Any]:
        """Base of each row, object (N,)."""
        return self._column("base_id")

    @cached_property
    def producer(self) -> npt.NDArray[Any]:
        """Producer of each row, object (N,)."""
        return self._column("producer")

    @cached_property
    def kind(self) -> npt.NDArray[Any]:
        """Kind of each row, object (N,)."""
        return self._column("kind")

    @cached_property
    def mode(self) -> npt.NDArray[Any]:
        """Mode of each row, object (N,)."""
        return self._column("mode")

    @cached_property
    def datasets(self) -> npt.NDArray[Any]:
        """Data set of each row or None, object (N,)."""
        return self._column("dataset")

    def where(self, name: str, wanted: Collection[Any]) -> Bools:
        """Rows whose "base_id", "producer", "kind", "mode" or "dataset" is one of these, bool (N,)."""
        own, names = self._codes[name]
        return np.array([value in wanted for value in names] or [False], bool)[own]

    @cached_property
    def place(self) -> dict[str, int]:
        """{sub-network id: row}."""
        return {id: i for i, id in enumerate(self.ids)}

    @cached_property
    def id_rank(self) -> Ints:
        """The place of each row among the ids in alphabetical order, int64 (N,)."""
        rank = np.empty(len(self), np.int64)
        rank[sorted(range(len(self)), key=self.ids.__getitem__)] = np.arange(len(self))
        return rank

    @cached_property
    def best_first(self) -> Ints:
        """Rows by accuracy, best first, unmeasured ones last, ties by id, int64 (N,)."""
        return np.lexsort((self.id_rank, -np.nan_to_num(self.accuracy, nan=-np.inf)))

    @cached_property
    def synsets(self) -> "_Synsets":
        """A wnid or name a label of each row, None where unmapped."""
        return _Synsets(self.given_synsets, self.labels.lengths)

    @cached_property
    def mapped_labels(self) -> Ints:
        """Labels of each row that have a synset, int64 (N,)."""
        return self.given_synsets.hits([name is not None for name in self.given_synsets.names] or [False])

    @cached_property
    def unmapped(self) -> Bools:
        """Rows with at least one label without a synset."""
        return self.mapped_labels < self.labels.lengths

    @cached_property
    def task_codes(self) -> tuple[Ints, Ints]:
        """The number of each row's task, int64 (N,), and the first row of each task, int64 (tasks,)."""
        place = {task: i for i, task in enumerate(dict.fromkeys(self.task_ids))}
        own = np.array(list(map(place.__getitem__, self.task_ids)), np.int64)
        row = np.zeros(len(place), np.int64)
        row[own[::-1]] = np.arange(len(self))[::-1]
        return own, row

    @cached_property
    def wup_table(self) -> tuple[TaskTable, Ints]:
        """The tasks laid out for wup, and the place of each row's among them."""
        own, row = self.task_codes
        return TaskTable.of_codes(self.given_synsets.names, *self.given_synsets.entries(row)), own

    @cached_property
    def class_sets(self) -> Ints:
        """A number for each row's data set and set of classes: equal where both are, int64 (N,)."""
        own, row = self.task_codes
        data = self._codes["dataset"][0][row].astype(np.int64)
        lengths, sets = self.labels.lengths[row], np.empty(len(row), np.int64)
        first = 0
        for length in np.unique(lengths).tolist():
            members = np.flatnonzero(lengths == length)
            classes = self.labels.codes[self.labels.start[row[members]][:, None] + np.arange(length)]
            number = data[members]
            for column in np.sort(classes, axis=1).T:
                number = np.unique(number * len(self.labels.names) + column, return_inverse=True)[1]
            sets[members] = first + number
            first += int(number.max(initial=-1)) + 1
        return sets[own]

    def target(self, row: int) -> Target:
        """A stored sub-network as a target."""
        return Target(self.task_ids[row], self.labels[row], self.datasets[row], self.synsets[row], row)

    def shared_with(self, target: Target, row: int) -> int:
        """Classes that one row shares with a target; see `shared`."""
        alike = target.dataset is None or self.datasets[row] in (target.dataset, None)
        return len(set(self.labels[row]) & set(target.labels)) if alike else 0

    def shared(self, target: Target) -> Ints:
        """Classes that each row shares with a target, int64 (N,).

        A class is a (data set, label) pair; where one side does not say its data set, the label alone decides.
        """
        mine = set(target.labels)
        number = self.labels.hits([name in mine for name in self.labels.names] or [False])
        if target.dataset is None:
            return number
        return np.where(self.where("dataset", (target.dataset, None)), number, 0)

    def same_classes(self, target: Target) -> Bools:
        """Rows whose set of classes is the target's, in any order."""
        size = len(target.labels)
        return (self.shared(target) == size) & (self.labels.lengths == size)

    def plan(self, base_id: str) -> dict[str, Any]:
        """The channel plan of a base."""
        at = self.snapshot.bases["id"].to_pylist().index(base_id)
        return plan_of(self.snapshot.bases["plan"][at].as_py())

    def packed(self, base_id: str, mode: str) -> tuple[Ints, Packed]:
        """All rows of a base and mode that have channel sets, ascending, and their sets packed in this order."""
        key = (base_id, mode)
        if key not in self._packed:
            alike = (self.base_ids == base_id) & (self.mode == mode) & np.isin(self.kind, HAS_CHANNELS)
            members = np.flatnonzero(alike)
            column = self.snapshot.subnetworks["channels"].take(indices(members))
            self._packed[key] = (members, pack_column(column, channel_keys(self.plan(base_id), mode)))
        return self._packed[key]

    @cached_property
    def _packed(self) -> dict[tuple[str, str], tuple[Ints, Packed]]:
        return {}

    def embeddings(self, name: str) -> list[np.ndarray | None]:
        """The named embedding of each row's task in its base: its own, or else the one in `scores`.

        Half precision where all of them were made in it, else float32.
        """
        if name not in self._named_embeddings:
            scored = self.embedding_scores(name)
            own = ragged(self.snapshot.subnetworks["embeddings"], "<f4")
            found = [next((vector for key, vector in pairs or () if key == name), None) for pairs in own]
            for i, vector in enumerate(found):
                if vector is None:
                    found[i] = scored.get((self.base_ids[i], self.task_ids[i]))
            self._named_embeddings[name] = _halved(found)
        return self._named_embeddings[name]

    def space(self, name: str, base_id: str) -> tuple["Space", Ints]:
        """All rows of a base that have the named embedding as one space, and the place of each row in it.

        Returns:
            The space, and int64 (N,), -1 for rows that are not in it.

        Raises:
            DataError: Lists the rows whose embeddings cannot be compared.
        """
        from zoo.index import Space

        if (name, base_id) not in self._spaces:
            stored, mine = self.embeddings(name), self.where("base_id", (base_id,))
            members = [i for i in np.flatnonzero(mine).tolist() if stored[i] is not None]
            place = np.full(len(self), -1)
            place[members] = np.arange(len(members))
            vectors = [vector for i in members if (vector := stored[i]) is not None]
            self._spaces[name, base_id] = (Space(name, [self.ids[i] for i in members], vectors), place)
        return self._spaces[name, base_id]

    def embedding_scores(self, name: str) -> dict[tuple[str, str], np.ndarray]:
        """{(base id, task id): embedding} of the measure of this name in `scores`."""
        if name not in self._named_scores:
            table = self.snapshot.scores.select(["source", "target", "measure", "vector"])
            rows = table.filter(pc.equal(table["measure"], name)).to_pylist()
            self._named_scores[name] = {
                (r["source"], r["target"]): np.array(r["vector"], np.float32) for r in rows if r["vector"] is not None
            }
        return self._named_scores[name]

    @cached_property
    def _spaces(self) -> dict[tuple[str, str], tuple["Space", Ints]]:
        return {}

    @cached_property
    def _named_scores(self) -> dict[str, dict[tuple[str, str], np.ndarray]]:
        return {}

    @cached_property
    def _named_embeddings(self) -> dict[str, list[np.ndarray | None]]:
        return {}

    @cached_property
    def _scored(self) -> dict[str, dict[str, tuple[Ints, Floats]]]:
        return {}

    def scores(self, measure: str) -> dict[str, tuple[Ints, Floats]]:
        """{target task id: (rows, values)} of a measure in `scores`; of several devices the last one counts."""
        if measure not in self._scored:
            table = self.snapshot.scores.filter(pc.equal(self.snapshot.scores["measure"], measure))
            source, ids = codes(table["source"])
            target, names = codes(table["target"])
            rows, values = np.array([self.place.get(id, -1) for id in ids] or [-1])[source], table["value"]
            known = np.flatnonzero(rows >= 0)[::-1]
            rows, target = rows[known], target[known].astype(np.int64)
            values = numbers(values, "<f8")[known]
            _, first = np.unique(target * max(len(self), 1) + rows, return_index=True)
            rows, target, values = rows[first], target[first], values[first]
            bounds = np.searchsorted(target, np.arange(len(names) + 1))
            parts = [slice(bounds[i], bounds[i + 1]) for i in range(len(names))]
            self._scored[measure] = {name: (rows[part], values[part]) for name, part in zip(names, parts)}
        return self._scored[measure]


class _Synsets(Sequence[tuple[str | None, ...]]):
    """Synsets of each row; None for each label of a row that has no synsets at all."""

    def __init__(self, given: TextLists, labels: Ints) -> None:
        self._given, self._labels = given, labels

    def __len__(self) -> int:
        return len(self._given)

    def __getitem__(self, i: Any) -> Any:
        return self._given[i] or (None,) * int(self._labels[i])


def _halved(vectors: list[np.ndarray | None]) -> list[np.ndarray | None]:
    """Vectors in half precision when that changes none of them: they take half the memory."""
    halves = []
    for vector in vectors:
        half = None if vector is None else vector.astype(np.float16)
        if half is not None and not np.array_equal(half, vector):  # type: ignore[arg-type]
            return vectors
        halves.append(half)
    return halves
