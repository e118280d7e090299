"""The store: weights as content-addressed Parquet beside four Delta tables.

An add writes weights first, then the base, the task, and last the sub-network's one row: that commit makes it visible.
A crash leaves at most files that nothing names. Reading pins the tables in the reverse order, so no reference dangles.
"""

import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from zoo import arrow
from zoo.checks import check_subnetwork
from zoo.columns import Columns
from zoo.deltalog import check_process
from zoo.errors import (
    ConflictError,
    CorruptionError,
    ReadOnlyError,
    RecordError,
)
from zoo.files import Files
from zoo.marker import open_folder
from zoo.probe import ProbeScores
from zoo.records import Base, Score, SubNetwork, Tensors
from zoo.snapshot import WRITE_ORDER, Snapshot, make_token, order, parse_token, queried
from zoo.tables import Table
from zoo.weights import MASK, LazyTensors, blob_path, decode, encode, lazy

# A compaction of 41 files takes half a second and conflicts with writers; a read of 60 small files costs about 60 ms.
SMALL_FILES = 60


class Store:
    """An open zoo's bytes; `zoo.open` gives users a `Zoo` around it.

    Args:
        path: A folder, absent or empty (then it is made a zoo) or a zoo; or a URL such as "s3://bucket/my.zoo".
        version: A token of `Zoo.version`: pins all tables; the store is then read-only.
        create: Make an absent or empty folder a zoo; otherwise it is an error.
        read_only: Refuse to write.

    Raises:
        NotAZooError: The folder holds something else, or nothing and `create` is False.
        FormatError: The zoo was written by a newer version of this project.
        CorruptionError: The marker file is damaged.
        OptionError: `version` is no token.
        NotFoundError: `version` names a version that the zoo does not have.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        version: str | None = None,
        create: bool = True,
        read_only: bool = False,
    ) -> None:
        check_process()
        pins: Mapping[str, int] = parse_token(version) if version is not None else {}
        self.files = Files(path)
        self.pinned = version
        self.read_only = read_only or version is not None
        self._lock = threading.RLock()
        open_folder(self.files, create=create and not self.read_only)
        self.tables = {name: Table(self.files, name, pins.get(name)) for name in WRITE_ORDER}
        self.probes = ProbeScores(self.files)
        self._versions: dict[str, int] = {}
        self._rows: dict[str, Any] = {}
        self._snapshot: Snapshot | None = None
        self._bases: dict[str, Base] = {}
        if version is not None:
            for table in self.tables.values():
                table.refresh()

    # Reading ---------------------------------------------------------------------------------------------------------

    def snapshot(self) -> Snapshot:
        """The newest state (or the pinned one), verified; the same object as long as nothing changed.

        Raises:
            CorruptionError: A file is missing or unreadable, a row is damaged, or a reference dangles.
            ConflictError: The process was forked.
        """
        check_process()
        with self._lock:
            versions = {name: self.tables[name].refresh() for name in reversed(WRITE_ORDER)}
            if self._snapshot is not None and versions == self._versions:
                return self._snapshot
            old: Columns | None = self._rows.get("subnetworks")
            for name, table in self.tables.items():
                if self._versions.get(name) == versions[name]:
                    continue
                if name == "subnetworks":
                    self._rows[name] = Columns(table, old)
                else:
                    self._rows[name] = order(name, table.load())
            subs: Columns = self._rows["subnetworks"]
            shared: int = len(subs) if subs is old else subs.shared
            same = all(self._versions.get(name) == versions[name] for name in ("bases", "tasks"))
            self._check_references(shared if same else 0)
            self._versions = versions
            # What the last queried state had worked out is gone on from where sub-networks were only added since.
            last = self._snapshot if shared else None
            before = last if last is None or queried(last) else last.before
            self._snapshot = Snapshot(token=make_token(versions), before=before, **self._rows)
            return self._snapshot

    def _check_references(self, start: int) -> None:
        """Compare what sub-networks name, from row `start` on, with what is there."""
        named = self._rows["subnetworks"].select(["base_id", "task_id"], start)
        for column, name in (("base_id", "bases"), ("task_id", "tasks")):
            there = pc.is_in(named[column], value_set=self._rows[name]["id"])
            if missing := sorted(set(named[column].filter(pc.invert(there)).to_pylist())):
                self._versions, self._rows = {}, {}
                raise CorruptionError(
                    f"subnetworks: {len(missing)} {column}(s) are not in {name}", got=missing[0],
                    hint="Run `zoo verify PATH` to see what is damaged",
                )  # fmt: skip

    def tensors(self, digest: str) -> dict[str, Any]:
        """All tensors of a weights file, its digest checked.

        Raises:
            CorruptionError: The file is missing or damaged.
        """
        name = blob_path(digest)
        try:
            return decode(self.files.read(name), digest)
        except FileNotFoundError:
            raise CorruptionError(
                f"weights {digest} are missing", hint="Run `zoo verify PATH` to find all damage"
            ) from None

    def _lazy(self, digest: str) -> tuple[LazyTensors, LazyTensors]:
        # Checked now: a damaged digest is the row's fault, not that of whoever first touches the weights.
        blob_path(digest)
        return lazy(lambda: self.tensors(digest))

    def base(self, key: str, snapshot: Snapshot | None = None) -> Base:
        """A stored base by id or prefix; one object an id, its weights read when first asked for.

        Raises:
            NotFoundError: There is none, or there are several of that prefix.
        """
        snapshot = snapshot or self.snapshot()
        key = snapshot.find(key, table="bases")
        with self._lock:
            if key not in self._bases:
                row = snapshot.bases.slice(snapshot.base_rows[key], 1).to_pylist()[0]
                self._bases[key] = arrow.base_of(row, self._lazy(row["weights_digest"])[0])
            return self._bases[key]

    def get(self, key: str, snapshot: Snapshot | None = None) -> SubNetwork:
        """A stored sub-network by id or prefix of at least six characters; its tensors are read when first asked for.

        Raises:
            NotFoundError: There is none, or there are several of that prefix.
            CorruptionError: Its row is damaged; its tensors, when they are asked for.
        """
        snapshot = snapshot or self.snapshot()
        row = snapshot.row(snapshot.find(key))
        return arrow.subnetwork_of(row, self.base(row["base_id"], snapshot), *self._lazy(row["weights_digest"]))

    # Writing ---------------------------------------------------------------------------------------------------------

    def check_writable(self) -> None:
        """Refuse to write through a handle that is for reading.

        Raises:
            ReadOnlyError: It is pinned to a version or was opened read-only.
        """
        check_process()
        if self.pinned is not None:
            raise ReadOnlyError(
                f"this zoo is pinned to version {self.pinned}", hint="Open it without version= to write"
            )
        if self.read_only:
            raise ReadOnlyError(
                f"{self.files.uri} is open for reading only", hint="`zoo.sample(copy_to=path)` gives a copy to write to"
            )

    def add(self, subs: Sequence[SubNetwork]) -> list[str]:
        """Add sub-networks, with their bases and tasks where new, in one commit a table.

        Returns:
            Their ids, in order; those that are there already are not written again.

        Raises:
            RecordError: Lists everything that does not fit; nothing was written.
            ReadOnlyError, ConflictError, ZooError: See `Table.append`; nothing became visible.
        """
        self.check_writable()
        with self._lock:
            snapshot = self.snapshot()
            ids = [_identity(sub) for sub in subs]
            new = {key: sub for key, sub in zip(ids, subs) if key not in snapshot.rows}
            if not new:
                return ids
            now = datetime.now(UTC)
            bases = {sub.base.id: sub.base for sub in new.values() if sub.base.id not in snapshot.base_rows}
            wanted = {sub.task.id: sub.task for sub in new.values()}
            there = pc.is_in(pa.array(list(wanted), pa.string()), value_set=snapshot.tasks["id"]).to_pylist()
            tasks = {key: task for (key, task), known in zip(wanted.items(), there) if not known}
            for sub in new.values():
                check_subnetwork(sub, bases[sub.base.id] if sub.base.id in bases else self.base(sub.base.id, snapshot))
            # Rows are made before anything is written: what has no row must leave no trace.
            rows = {
                "bases": arrow.to_table("bases", [arrow.base_row(base, now) for base in bases.values()]),
                "tasks": arrow.to_table("tasks", [arrow.task_row(task, now) for task in tasks.values()]),
                "subnetworks": arrow.to_table("subnetworks", [arrow.subnetwork_row(sub) for sub in new.values()]),
            }
            blobs = [_blob(base.weights, {}, base.weights_digest, f"base {base.name}") for base in bases.values()]
            blobs += [
                _blob(sub.weights, sub.element_masks, sub.weights_digest, f"sub-network {key[:12]}")
                for key, sub in new.items()
            ]
            # A blob that is there already is written again all the same: that repairs a damaged one, and makes one
            # that a concurrent gc holds for an orphan young.
            for digest, data in blobs:
                self.files.put(blob_path(digest), data)
            for name, table in rows.items():
                if len(table):
                    self.tables[name].append(table)
                    self._tidy(name)
            return ids

    def add_scores(self, scores: Iterable[Score]) -> int:
        """Add measurements in one commit; a later one replaces an earlier one of the same source, target, measure and
        device for readers.

        Returns:
            How many were new or different; equal ones are not written again.

        Raises:
            RecordError: A source is neither a sub-network nor a base of this zoo.
        """
        self.check_writable()
        with self._lock:
            snapshot = self.snapshot()
            now = datetime.now(UTC)
            batch = list(scores)
            unknown = sorted({str(s.source) for s in batch} - set(snapshot.rows) - set(snapshot.base_rows))
            if unknown:
                raise RecordError(
                    f"{len(unknown)} score(s) are of something that the zoo does not hold", problems=unknown[:10],
                    hint="Add the sub-network or the base first",
                )  # fmt: skip
            if len(snapshot.scores):
                # The newest row wins, so a clock that was set back must not make this one older than what is there.
                newest = snapshot.scores["created_at"][-1].as_py()
                now = max(now, newest + timedelta(microseconds=1))
            key = ("source", "target", "measure", "device")
            # Only rows of these sources: a zoo has a score for every pair, a call adds those of a few.
            mine = pc.is_in(snapshot.scores["source"], pa.array(sorted({s.source for s in batch}), pa.string()))
            same = snapshot.scores.filter(mine).select([*key, "value", "vector"])
            stored = {tuple(row[k] for k in key): row for row in same.to_pylist()}
            rows = {tuple(row[k] for k in key): row for row in (arrow.score_row(s, now) for s in batch)}
            new = [r for k, r in rows.items() if k not in stored or not arrow.scores_equal(r, stored[k])]
            if new:
                self.tables["scores"].append(arrow.to_table("scores", new))
                self._tidy("scores")
            return len(new)

    def remove(self, key: str) -> str:
        """Take a sub-network out of the newest version; pinned versions still show it.

        Returns:
            Its whole id.

        Raises:
            NotFoundError: There is none of that id or prefix.
        """
        self.check_writable()
        with self._lock:
            key = self.snapshot().find(key)
            table = self.tables["subnetworks"]
            table.rewrite(
                lambda rows: rows.filter(pc.not_equal(rows["id"], key)),
                lambda: [part for part in table.parts() if key in table.load(["id"], [part])["id"].to_pylist()],
            )
            return key

    def compact(self) -> None:
        """Merge each table's files into one, dropping rows that readers do not see.

        Raises:
            ConflictError: Other writers won every retry.
        """
        self.check_writable()
        with self._lock:
            for name, table in self.tables.items():
                table.refresh()
                if len(table.parts()) > 1:
                    table.rewrite(partial(order, name), table.parts)

    def _tidy(self, name: str) -> None:
        """Behind an add: merge small files where there are many of them."""
        table = self.tables[name]
        if len(table.small_parts()) > SMALL_FILES:
            # The add is done, and the next writer tries again.
            with suppress(ConflictError):
                table.rewrite(partial(order, name), table.small_parts)


def _identity(sub: SubNetwork) -> str:
    if not isinstance(sub, SubNetwork):
        raise RecordError("only sub-networks can be added", got=type(sub).__name__, hint="See zoo.SubNetwork")
    try:
        return sub.id
    except (TypeError, ValueError) as error:
        raise RecordError("a sub-network holds something that JSON cannot hold", got=str(error)[:120]) from error


def _blob(weights: Tensors, masks: Tensors, digest: str, what: str) -> tuple[str, bytes]:
    tensors = {**weights, **{MASK + name: mask for name, mask in masks.items()}}
    found, data = encode(tensors)
    if found != digest:
        raise RecordError(
            f"{what}: the tensors do not have the digest that the record names", got=found, expected=digest,
            hint="Make the record anew with weights_digest='' when its tensors change",
        )  # fmt: skip
    return digest, data
