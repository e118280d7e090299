"""The sub-networks of a snapshot as plain columns, and the look-ups that query and study share.

A snapshot is anything with pyarrow tables `bases`, `tasks`, `subnetworks` and `scores`; nothing here touches a store.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from zoo.channels import Packed, channel_keys, pack_column, plan_of
from zoo.errors import NotFoundError, OptionError
from zoo.records import SubNetwork, Task
from zoo.snapshot import MIN_PREFIX
from zoo.taskwup import TaskTable

if TYPE_CHECKING:
    import pyarrow as pa

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

HAS_CHANNELS = ("structured", "mixed")  # kinds of sub-networks that have channel sets


class Snapshot(Protocol):
    """One pinned state of a zoo: what `zoo.store` hands out, and all that query and study need."""

    token: str
    bases: "pa.Table"
    tasks: "pa.Table"
    subnetworks: "pa.Table"
    scores: "pa.Table"


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
    """Columns of `snapshot.subnetworks`, row by row in the snapshot's order."""

    def __init__(self, snapshot: Snapshot) -> None:
        table = snapshot.subnetworks
        self.snapshot = snapshot

        def column(name: str) -> list[Any]:
            return table[name].to_pylist()

        self.ids: list[str] = column("id")
        self.base_ids = np.array(column("base_id"), dtype=object)
        self.task_ids: list[str] = column("task_id")
        self.datasets: list[str | None] = column("dataset")
        self.labels = [tuple(labels) for labels in column("labels")]
        self.synsets = [
            tuple(given) if given else (None,) * len(labels) for given, labels in zip(column("synsets"), self.labels)
        ]
        self.producer = np.array(column("producer"), dtype=object)
        self.kind = np.array(column("kind"), dtype=object)
        self.mode = np.array(column("mode"), dtype=object)
        self.keep = np.array(column("keep"), dtype=np.float64)
        self.accuracy = np.array([np.nan if a is None else a for a in column("accuracy")], dtype=np.float64)
        self.generation = np.array(column("generation"), dtype=np.int64)

    @classmethod
    def of(cls, snapshot: Snapshot) -> "Rows":
        """The rows of a snapshot, read once and kept with it: a handle keeps its snapshot until the zoo changes."""
        kept = vars(snapshot)
        if "_query_rows" not in kept:
            kept["_query_rows"] = cls(snapshot)
        return kept["_query_rows"]

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def place(self) -> dict[str, int]:
        """{sub-network id: row}."""
        return {id: i for i, id in enumerate(self.ids)}

    @cached_property
    def mapped_labels(self) -> Ints:
        """Labels of each row that have a synset, int64 (N,)."""
        return np.array([sum(s is not None for s in synsets) for synsets in self.synsets], np.int64)

    @cached_property
    def unmapped(self) -> Bools:
        """Rows with at least one label without a synset."""
        return self.mapped_labels < np.array([len(labels) for labels in self.labels], np.int64)

    @cached_property
    def wup_table(self) -> tuple[TaskTable, Ints]:
        """The different label sets laid out for wup, and the place of each row's among them."""
        different = {synsets: i for i, synsets in enumerate(dict.fromkeys(self.synsets))}
        place = np.array([different[synsets] for synsets in self.synsets], np.int64)
        return TaskTable([list(synsets) for synsets in different]), place

    def target(self, row: int) -> Target:
        """A stored sub-network as a target."""
        return Target(self.task_ids[row], self.labels[row], self.datasets[row], self.synsets[row], row)

    def shared(self, target: Target) -> Ints:
        """Classes that each row shares with a target, int64 (N,).

        A class is a (data set, label) pair; where one side does not say its data set, the label alone decides.
        """
        mine = set(target.labels)
        return np.array([
            len(mine.intersection(labels)) if dataset == target.dataset or None in (dataset, target.dataset) else 0
            for labels, dataset in zip(self.labels, self.datasets)
        ], np.int64)  # fmt: skip

    def same_classes(self, target: Target) -> Bools:
        """Rows whose set of classes is the target's, in any order."""
        size = len(target.labels)
        return (self.shared(target) == size) & np.array([len(labels) == size for labels in self.labels], bool)

    def shared_matrix(self, which: Ints) -> Ints:
        """Classes that pairs of rows share, int64 (m, m); the same rule as `shared`."""

        def products(classes: list[set[Any]]) -> Ints:
            place = {c: i for i, c in enumerate(dict.fromkeys(c for group in classes for c in group))}
            hot = np.zeros((len(classes), len(place)), np.float32)
            for i, group in enumerate(classes):
                hot[i, [place[c] for c in group]] = 1
            return (hot @ hot.T).astype(np.int64)

        labels = [set(self.labels[i]) for i in which]
        unsaid = np.array([self.datasets[i] is None for i in which], bool)
        by_name = products(labels)
        by_class = products([{(self.datasets[i], label) for label in group} for i, group in zip(which, labels)])
        return np.where(unsaid[:, None] | unsaid[None, :], by_name, by_class)

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
            column = self.snapshot.subnetworks["channels"].take(members)
            self._packed[key] = (members, pack_column(column, channel_keys(self.plan(base_id), mode)))
        return self._packed[key]

    @cached_property
    def _packed(self) -> dict[tuple[str, str], tuple[Ints, Packed]]:
        return {}

    @cached_property
    def prototypes(self) -> list[np.ndarray | None]:
        """`embeddings` of the name "prototype"."""
        return self.embeddings("prototype")

    def embeddings(self, name: str) -> list[np.ndarray | None]:
        """The named embedding of each row's task in its base, float32: its own, or else the one in `scores`."""
        if name not in self._named_embeddings:
            own = [dict(pairs or ()).get(name) for pairs in self.snapshot.subnetworks["embeddings"].to_pylist()]
            scored = self.embedding_scores(name)
            found = [
                scored.get((base, task)) if vector is None else vector
                for vector, base, task in zip(own, self.base_ids, self.task_ids)
            ]
            self._named_embeddings[name] = [None if v is None else np.array(v, np.float32) for v in found]
        return self._named_embeddings[name]

    def embedding_scores(self, name: str) -> dict[tuple[str, str], np.ndarray]:
        """{(base id, task id): embedding} of the measure of this name in `scores`."""
        if name not in self._named_scores:
            import pyarrow.compute as pc

            table = self.snapshot.scores.select(["source", "target", "measure", "vector"])
            rows = table.filter(pc.equal(table["measure"], name)).to_pylist()
            self._named_scores[name] = {
                (r["source"], r["target"]): np.array(r["vector"], np.float32) for r in rows if r["vector"] is not None
            }
        return self._named_scores[name]

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
            import pyarrow as pa
            import pyarrow.compute as pc

            table = self.snapshot.scores
            table = table.filter(pc.equal(table["measure"], measure))
            rows = pc.fill_null(pc.index_in(table["source"], value_set=pa.array(self.ids, pa.string())), -1).to_numpy()
            codes = table["target"].combine_chunks().dictionary_encode()
            values = table["value"].to_numpy()
            target = codes.indices.to_numpy().astype(np.int64)
            known = np.flatnonzero(rows >= 0)[::-1]
            rows, target, values = rows[known].astype(np.int64), target[known], values[known]
            _, first = np.unique(target * max(len(self), 1) + rows, return_index=True)
            rows, target, values = rows[first], target[first], values[first]
            names = codes.dictionary.to_pylist()
            bounds = np.searchsorted(target, np.arange(len(names) + 1))
            parts = [slice(bounds[i], bounds[i + 1]) for i in range(len(names))]
            self._scored[measure] = {name: (rows[part], values[part]) for name, part in zip(names, parts)}
        return self._scored[measure]


def find_base(snapshot: Snapshot, wanted: str) -> str:
    """Id of a base given by its id, a prefix of it, or its name.

    Raises:
        NotFoundError: There is none, or more than one.
    """
    ids, names = snapshot.bases["id"].to_pylist(), snapshot.bases["name"].to_pylist()
    if wanted in ids:
        return wanted
    found = [id for id, name in zip(ids, names) if name == wanted or id.startswith(wanted)]
    if len(found) != 1:
        raise NotFoundError(
            f"base {wanted!r}: {len(found)} of the zoo's bases fit",
            problems=[f"{id[:12]}  {name}" for id, name in zip(ids, names)],
            hint="Give a longer prefix of an id" if found else "Give a name or an id listed here",
        )
    return found[0]


def find_row(rows: Rows, wanted: str) -> int:
    """Row of a sub-network given by its id or a prefix of it. Raises NotFoundError unless exactly one fits."""
    if wanted in rows.place:
        return rows.place[wanted]
    found = [i for i, id in enumerate(rows.ids) if len(wanted) >= MIN_PREFIX and id.startswith(wanted)]
    if len(found) != 1:
        raise NotFoundError(
            f"sub-network {wanted!r}: {len(found)} of {len(rows)} ids start like this",
            hint="Give a longer prefix"
            if found
            else f"z.ids() lists them; a prefix has at least {MIN_PREFIX} characters",
        )
    return found[0]


def find_rows(rows: Rows, ids: Iterable[str]) -> Ints:
    """Rows of several ids or prefixes, in the order given, int64 (n,)."""
    if isinstance(ids, str):
        raise OptionError("ids are one collection of ids", got=repr(ids), hint=f"Write [{ids!r}]")
    return np.array([find_row(rows, id) for id in ids], np.int64)


def find_target(rows: Rows, task: Task | SubNetwork | Sequence[str] | str) -> Target:
    """What a user means by a task.

    Args:
        rows: The zoo's sub-networks.
        task: A Task; a SubNetwork (its task); a list of labels; or the id, or a prefix of it, of a stored task or
            sub-network.

    Raises:
        NotFoundError: A text that is no id here, or more than one.
        RecordError: A list of labels that makes no task.
    """
    if isinstance(task, SubNetwork):
        row = rows.place.get(task.id)
        if row is not None:
            return rows.target(row)
        task = task.task
    if not isinstance(task, str):
        given = task if isinstance(task, Task) else Task(labels=tuple(task))
        return Target(given.id, given.labels, given.dataset, given.synsets or (None,) * len(given.labels))
    tasks = rows.snapshot.tasks
    task_ids = tasks["id"].to_pylist()
    if task in rows.place:
        return rows.target(rows.place[task])
    found: list[tuple[str, int]] = [("task", i) for i, id in enumerate(task_ids) if id == task]
    if not found and len(task) >= MIN_PREFIX:
        found = [("task", i) for i, id in enumerate(task_ids) if id.startswith(task)]
        found += [("sub-network", i) for i, id in enumerate(rows.ids) if id.startswith(task)]
    if len(found) != 1:
        raise NotFoundError(
            f"{task!r}: {len(found)} ids of tasks and sub-networks start like this",
            hint="Give a longer prefix" if found else f"Class names are given as a list: [{task!r}, ...]",
        )
    kind, i = found[0]
    if kind == "sub-network":
        return rows.target(i)
    row = tasks.slice(i, 1).to_pylist()[0]
    labels = tuple(row["labels"])
    return Target(row["id"], labels, row["dataset"], tuple(row["synsets"] or (None,) * len(labels)))
