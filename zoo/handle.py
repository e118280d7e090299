"""`Zoo`, the handle that `zoo.open` returns: each call takes one snapshot and passes it on."""

import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from zoo import arrow
from zoo.errors import EmptyZooError, OptionError
from zoo.records import Base, Score, SubNetwork, Task
from zoo.store import Store

if TYPE_CHECKING:
    from duckdb import DuckDBPyRelation
    from matplotlib.figure import Figure

    from zoo.neighbours import Neighbours
    from zoo.snapshot import Snapshot
    from zoo.sql import Parameters
    from zoo.study import Against, Study
    from zoo.upkeep import Freed, Report


class Zoo:
    """An open zoo. Made by `zoo.open` and `zoo.sample`.

    Every call looks for a newer version of the zoo, takes one snapshot of it, and works on that one throughout. Threads
    may share a handle; other processes open the zoo themselves (start them by spawn, never by fork).
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def __repr__(self) -> str:
        snapshot = self.snapshot()
        return (
            f"<Zoo {self.path}: {len(snapshot.subnetworks)} sub-networks, {len(snapshot.tasks)} tasks, "
            f"{len(snapshot.bases)} bases, version {snapshot.token}{', read-only' if self.read_only else ''}>"
        )

    def __len__(self) -> int:
        """Number of sub-networks."""
        return len(self.snapshot().subnetworks)

    def __contains__(self, key: object) -> bool:
        """Whether it holds the sub-network of this (whole) id."""
        return key in self.snapshot().rows

    def __iter__(self) -> Iterator[SubNetwork]:
        """All sub-networks of one snapshot, oldest first; tensors are read when first asked for."""
        snapshot = self.snapshot()
        return (self._store.get(key, snapshot) for key in list(snapshot.rows))

    @property
    def path(self) -> str:
        """Folder or URL of the zoo."""
        return self._store.files.uri

    @property
    def read_only(self) -> bool:
        """Whether this handle refuses to write: it is pinned to a version, or was opened so."""
        return self._store.read_only

    @property
    def version(self) -> str:
        """Token of the current version, such as "b1-c40-s12-t9"; `zoo.open(path, version=token)` gives it again."""
        return self.snapshot().token

    def snapshot(self) -> "Snapshot":
        """The current state as verified Arrow tables; do not change them.

        Raises:
            CorruptionError: A file is missing or damaged.
            ConflictError: The process was forked after it had touched a zoo.
        """
        return self._store.snapshot()

    # Records ---------------------------------------------------------------------------------------------------------

    def add(self, sub: SubNetwork) -> str:
        """Add a sub-network, with its base and task where new. Durable when this returns.

        Returns:
            Its id. Adding it again returns the same id and writes nothing.

        Raises:
            RecordError: Lists everything about it that does not fit its base; the zoo is unchanged.
            ReadOnlyError: The handle or the folder is read-only.
            ConflictError: Other writers won every retry.
        """
        return self._store.add([sub])[0]

    def add_many(self, subs: Iterable[SubNetwork]) -> list[str]:
        """Add sub-networks in one commit: all become visible, or none. Much faster than one by one.

        Returns:
            Their ids, in order.

        Raises:
            RecordError, ReadOnlyError, ConflictError: As for `add`.
        """
        return self._store.add(list(subs))

    def add_scores(self, scores: Iterable[Score]) -> int:
        """Add measurements in one commit. A later one replaces an earlier one of the same source, target, measure and
        device; an equal one is not written again.

        Returns:
            How many were written.

        Raises:
            RecordError: A source is neither a sub-network nor a base of this zoo.
            ReadOnlyError, ConflictError: As for `add`.
        """
        return self._store.add_scores(scores)

    def get(self, key: str) -> SubNetwork:
        """A sub-network by its id, or by the first characters of it (at least six) where only one has them.

        Returns:
            The record; its tensors, and its base's, are read and checked when first asked for.

        Raises:
            NotFoundError: None has this id; or several do, which are then listed.
            CorruptionError: Its row or its tensors are damaged.
        """
        return self._store.get(key)

    def remove(self, key: str) -> str:
        """Remove a sub-network in a new version; older versions still show it.

        Returns:
            Its whole id.

        Raises:
            NotFoundError: As for `get`.
            ReadOnlyError, ConflictError: As for `add`.
        """
        return self._store.remove(key)

    def ids(self) -> list[str]:
        """Ids of all sub-networks, oldest first."""
        return list(self.snapshot().rows)

    def bases(self) -> list[Base]:
        """All base models, oldest first."""
        return [self._store.base(key) for key in self.snapshot().base_rows]

    def tasks(self) -> list[Task]:
        """All tasks, oldest first; those of removed sub-networks too."""
        return [arrow.task_of(row) for row in self.snapshot().tasks.to_pylist()]

    def base(self, key: str | None = None) -> Base:
        """A base model by id, by the first characters of it (at least six), or by name.

        Args:
            key: None asks for the only one.

        Raises:
            EmptyZooError: The zoo has no base.
            OptionError: `key` is None, or a name, and the zoo has several such bases.
            NotFoundError: None is called so.
        """
        snapshot = self.snapshot()
        names = dict(zip(snapshot.base_rows, snapshot.bases["name"].to_pylist()))
        if not names:
            raise EmptyZooError(f"{self.path} has no base yet", hint="z.add(sub) adds a sub-network with its base")
        found = [k for k, name in names.items() if key is None or name == key]
        if len(found) > 1:
            raise OptionError(
                f"the zoo has {len(found)} bases{'' if key is None else f' of the name {key!r}'}",
                problems=[f"{k[:12]} {names[k]}" for k in found], hint="Say which: z.base(id)",
            )  # fmt: skip
        return self._store.base(found[0] if found or key is None else key)

    # Queries and studies ---------------------------------------------------------------------------------------------

    def sql(self, text: str, params: "Parameters | None" = None) -> "DuckDBPyRelation":
        """Run one SELECT over the views `subnetworks`, `tasks`, `bases`, `scores`; see `zoo.sql.query`.

        Args:
            text: One SELECT statement.
            params: Values of `?` (a sequence) or `$name` (a mapping) in it.

        Returns:
            A DuckDB relation: `.df()`, `.fetchall()`, `.arrow()`.

        Raises:
            OptionError: The text is not one SELECT over these views.
        """
        from zoo import sql

        return sql.query(self.snapshot(), text, params)

    def nearest(
        self,
        task: "Task | SubNetwork | Sequence[str] | str",
        *,
        k: int | None = 5,
        by: str = "wup",
        base: str | None = None,
        producer: str | Collection[str] | None = None,
        where: str | None = None,
        exclude: "str | Collection[str] | None" = "same_classes",
        per_task: int | None = 1,
        group: int | None = None,
        groups: int = 5,
        binning: str = "equal_width",
        sample: int | None = None,
        embedding: Any = None,
        how: Any = "best_match",
    ) -> "Neighbours":
        """The k stored sub-networks whose tasks are most similar to a task, best first; see `zoo.query.nearest`.

        Args:
            task: A Task, a SubNetwork, labels, or the id of a stored task or sub-network.
            k: How many; None = all.
            by: "wup" | "leep" | "leep_probe" | "nce" | "logme" | "hscore" | "prototype" | "stamp" | "task2vec" |
                "mask_iou"; see `zoo.measures`.
            base: Only sub-networks of this base.
            producer: Only sub-networks of this producer, or of these.
            where: Only sub-networks that meet this SQL condition: "accuracy > 0.7 and keep < 0.5".
            exclude: "same_classes" | "same_task" | "overlap" | ids | None.
            per_task: At most this many of the same classes; None = no limit.
            group: Only this similarity group, 1 = most similar.
            groups: Number of groups.
            binning: "equal_width" | "quantile".
            sample: Seed: draw k at random instead of the k best.
            embedding: The task's embedding, float (d,), for "prototype", "stamp" or "task2vec".
            how: "best_match" | "mean" | "hungarian", for "wup".

        Raises:
            OptionError: An argument outside its range, or a condition that DuckDB refuses.
            EmptyZooError, NotFoundError, UnknownLabelsError, MissingScoresError: See `zoo.query.nearest`.
        """
        from zoo import query, sql

        snapshot = self.snapshot()
        given = self._probe_leep(snapshot, task, base) if by == "leep_probe" else None
        return query.nearest(
            snapshot, task, k=k, by=by, base=base, producer=producer,
            allowed=None if where is None else sql.matching_ids(snapshot, where), exclude=exclude, per_task=per_task,
            group=group, groups=groups, binning=binning, sample=sample, embedding=embedding, how=how, given=given,
        )  # fmt: skip

    def _probe_leep(self, snapshot: "Snapshot", task: Any, base: str | None) -> dict[str, float]:
        from zoo.finding import find_base, find_target
        from zoo.rows import Rows

        target = find_target(Rows.of(snapshot), task)
        bases = list(snapshot.base_rows) if base is None else [find_base(snapshot, base)]
        return self._store.probes.leep(target.dataset, target.labels, bases)

    def iou_by_depth(
        self,
        *,
        by: str = "wup",
        groups: int = 5,
        binning: str = "equal_width",
        per: str = "axis",
        base: str | None = None,
        mode: str | None = None,
        producer: str | None = None,
        keep: float | None = None,
        generation: int | None = 0,
        ids: Collection[str] | None = None,
        exclude: str | None = "same_classes",
        how: Any = "best_match",
        bootstrap: int = 1000,
        seed: int = 0,
    ) -> "Study":
        """IoU of kept channels by depth, for groups of task pairs from most to least similar.

        See `zoo.depth.iou_by_depth`.

        Args:
            by: "wup" | "leep" | "prototype" | "stamp" | "task2vec" | "mask_iou"; see `zoo.measures`.
            groups: Number of groups.
            binning: "equal_width" (the paper's) | "quantile".
            per: "axis" | "layer" | "block".
            base: Only this base: id, prefix or name.
            mode: Only this mode.
            producer: Only this producer's.
            keep: Only this keep ratio.
            generation: Only this generation; None = any.
            ids: Exactly these sub-networks.
            exclude: Pairs left out: "same_classes" | "same_task" | "overlap" | None.
            how: For "wup": "best_match" | "mean" | "hungarian".
            bootstrap: Resamples for the 95% intervals.
            seed: Of the resampling.

        Raises:
            MixtureError, EmptyZooError, OptionError, MissingScoresError: See `zoo.depth.iou_by_depth`.
        """
        from zoo import depth

        return depth.iou_by_depth(
            self.snapshot(), by=by, groups=groups, binning=binning, per=per, base=base, mode=mode, producer=producer,
            keep=keep, generation=generation, ids=ids, exclude=exclude, how=how, bootstrap=bootstrap, seed=seed,
        )  # fmt: skip

    def iou_against(
        self,
        ids: "Collection[str] | Mapping[str, Collection[str]]",
        reference: "str | Collection[str]" = "same_task",
        *,
        producer: str | None = None,
        per: str = "axis",
        bootstrap: int = 1000,
        seed: int = 0,
    ) -> "Against":
        """IoU of some sub-networks with reference ones, by depth: voted against random ones (MVP, Fig. 7).

        See `zoo.depth.iou_against`.

        Args:
            ids: Ids, or {name of the line: ids}: {"voted": [...], "random": [...]}.
            reference: "same_task": the pruned sub-networks with the same classes; or ids.
            producer: Only references of this producer.
            per: "axis" | "layer" | "block".
            bootstrap: Resamples for the 95% intervals.
            seed: Of the resampling.

        Raises:
            MixtureError, EmptyZooError, NotFoundError: See `zoo.depth.iou_against`.
        """
        from zoo import depth

        return depth.iou_against(
            self.snapshot(), ids, reference, producer=producer, per=per, bootstrap=bootstrap, seed=seed
        )

    def plot_channels(
        self,
        ids: "Collection[str] | str",
        path: "str | os.PathLike[str] | None" = None,
        *,
        names: Sequence[str] | None = None,
    ) -> "Figure":
        """The kept channels of each layer of some sub-networks, side by side (STAMP, Fig. 5).

        Args:
            ids: One to eight sub-networks of one base and mode.
            path: Where to save it; None = nowhere.
            names: What to call them; None = the first classes of their tasks.

        Raises:
            NotFoundError, MixtureError, EmptyZooError: See `zoo.plots.plot_channels`.
        """
        from zoo import plots

        return plots.plot_channels(self.snapshot(), [ids] if isinstance(ids, str) else ids, path, names=names)

    def plot_widths(
        self,
        ids: "Collection[str] | str",
        path: "str | os.PathLike[str] | None" = None,
        *,
        names: Sequence[str] | None = None,
    ) -> "Figure":
        """The share of channels that some sub-networks keep at each layer (LcP, Fig. 3).

        Args:
            ids: Sub-networks of one base and mode.
            path: Where to save it; None = nowhere.
            names: What to call them; None = the first classes of their tasks.

        Raises:
            NotFoundError, MixtureError, EmptyZooError: See `zoo.plots.plot_widths`.
        """
        from zoo import plots

        return plots.plot_widths(self.snapshot(), [ids] if isinstance(ids, str) else ids, path, names=names)

    # Upkeep ----------------------------------------------------------------------------------------------------------

    def verify(self) -> "Report":
        """Read and check everything: log, rows, references, ids, weights. Writes nothing; see `zoo.upkeep.verify`."""
        from zoo import upkeep

        return upkeep.verify(self._store)

    def compact(self) -> None:
        """Merge the small files of each table, as happens by itself every sixty adds. Older versions stay readable."""
        self._store.compact()

    def gc(self, *, retention_days: float = 30.0, keep: Sequence[str] = ()) -> "Freed":
        """Delete what only versions older than the retention need, and what stopped writers left; see `zoo.upkeep.gc`.

        Args:
            retention_days: Versions younger than this stay readable.
            keep: Tokens of versions that stay readable whatever their age.
        """
        from zoo import upkeep

        return upkeep.gc(self._store, retention_days=retention_days, keep=keep)

    def repair(self) -> list[str]:
        """Drop log entries whose file is lost, so that the rest can be read again; returns their names."""
        from zoo import upkeep

        return upkeep.repair(self._store)
