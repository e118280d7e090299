"""One Delta table of a zoo: pin a version, load its verified rows, append rows, rewrite files.

The Parquet files are written here, made durable before the commit that names them, and read back here; `deltalake` only
keeps the log. So a power cut leaves at most a file that no log entry names.
"""

import json
import random
import re
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from zoo import arrow
from zoo.deltalog import DAMAGED, SEAL, check_commit, delta, log_name, seal, without_location
from zoo.errors import ConflictError, CorruptionError, NotFoundError, ZooError
from zoo.files import Files
from zoo.parts import ROWS_A_PART, read_group, read_part, write_part

if TYPE_CHECKING:
    from deltalake import DeltaTable

RETRIES = 12
_FIRST_WAIT_S = 0.02
_LONGEST_WAIT_S = 1.0
CHECKED_AT_OPEN = 100
# Larger files are only merged when somebody asks: each merge leaves its old files to older versions.
SMALL_BYTES = 1 << 20
# Names of data files that we or another Delta writer give; a log entry with a path of another form is not followed.
_FILE = re.compile(r"[A-Za-z0-9][\w.-]*\.parquet")
_CONFIGURATION = {"delta.enableExpiredLogCleanup": "false", "delta.checkpointInterval": "100"}


class Table:
    """One Delta table.

    Args:
        files: The zoo's files.
        name: "bases", "tasks", "subnetworks" or "scores".
        version: Pin this version; None follows the newest.
    """

    def __init__(self, files: Files, name: str, version: int | None = None) -> None:
        self.files, self.name, self._pinned = files, name, version
        self._delta: DeltaTable | None = None
        self._kept: dict[str, pa.Table] = {}
        self._group: tuple[str, int, pa.Table] = ("", 0, pa.table({}))
        self._checked = -1

    @property
    def uri(self) -> str:
        """Where the table lies, as deltalake wants it."""
        return f"{self.files.uri}/{self.name}"

    def create(self) -> None:
        """Make the empty table unless it exists.

        Delta Lake writes into a table's first log entry where the table lies. A zoo that is passed on should not name
        its maker's folders, so a local table is made elsewhere and its first entry moved in without that.
        """
        from deltalake.exceptions import CommitFailedError, DeltaError

        first = log_name(self.name, 0)
        try:
            if not self.files.local:
                self._create_at(self.uri)
            elif not self.files.exists(first):
                with tempfile.TemporaryDirectory() as elsewhere:
                    self._create_at(elsewhere)
                    entry = (Path(elsewhere) / "_delta_log" / Path(first).name).read_text(encoding="utf-8")
                self.files.put_new(first, without_location(entry).encode())
        except (CommitFailedError, DeltaError, ZooError):
            # Another process may have created it in this moment; then it is there now.
            if not self.files.exists(first):
                raise

    def _create_at(self, uri: str) -> None:
        from deltalake import DeltaTable

        with delta(self.name, write=True):
            DeltaTable.create(
                uri, arrow.SCHEMAS[self.name], mode="ignore", configuration=_CONFIGURATION, name=self.name
            )

    def refresh(self) -> int:
        """Go to the newest version (or the pinned one) and return its number.

        Raises:
            CorruptionError: The log cannot be read.
            NotFoundError: The pinned version does not exist.
        """
        from deltalake import DeltaTable

        with delta(self.name):
            if self._delta is None:
                if not self.files.exists(log_name(self.name, 0)) and not self.files.names(f"{self.name}/_delta_log"):
                    raise CorruptionError(f"{self.name}: the table's log is missing", hint=DAMAGED)
                if self._pinned is not None and self._pinned > (newest := DeltaTable(self.uri).version()):
                    raise NotFoundError(f"{self.name} has no version {self._pinned} yet", expected=f"0 to {newest}")
                self._delta = DeltaTable(self.uri, version=self._pinned)
            elif self._pinned is None and self.files.exists(log_name(self.name, self._delta.version() + 1)):
                # Versions have no gaps, so without that file nothing is newer: one look instead of Delta's listing.
                self._delta.update_incremental()
            version = self._delta.version()
        # Everything older is `zoo verify`'s: an open must not get slower with every add.
        first = max(self._checked + 1, version - CHECKED_AT_OPEN)
        for number in range(first, version + 1):
            check_commit(self.files, self.name, number)
        self._checked = version
        return version

    def sizes(self) -> dict[str, int]:
        """The data files of the version last refreshed to: {name: size in bytes}, sorted by name.

        Raises:
            CorruptionError: The log names a file that no Delta writer would write.
        """
        current = self._current()
        with delta(self.name):
            actions = pa.RecordBatchReader.from_stream(current.get_add_actions()).read_all()
        names = actions["path"].to_pylist()
        for name in names:
            if not _FILE.fullmatch(name):
                raise CorruptionError(f"{self.name}: the log names a file outside the table", got=repr(name)[:120])
        return dict(sorted(zip(names, actions["size_bytes"].to_pylist())))

    def parts(self) -> list[str]:
        """Names of the data files of the version last refreshed to, sorted."""
        return list(self.sizes())

    def small_parts(self) -> list[str]:
        """Those that are small enough to be merged behind an add."""
        return [name for name, size in self.sizes().items() if size < SMALL_BYTES]

    def load(self, columns: Sequence[str] | None = None, parts: Sequence[str] | None = None) -> pa.Table:
        """Rows, verified, file by file.

        Args:
            columns: Only these; None = all.
            parts: Only these data files, in this order; None = those of the version last refreshed to, sorted.

        Raises:
            CorruptionError: A file is missing, unreadable or damaged.
        """
        names = self.parts() if parts is None else list(parts)
        schema = arrow.SCHEMAS[self.name]
        wanted = schema.names if columns is None else list(columns)
        # Not `schema.empty_table()`: that imports pandas, which a reader has no need of.
        empty = pa.Table.from_batches([], pa.schema([schema.field(name) for name in wanted]))
        loaded = pa.concat_tables([empty, *(self._columns(part, wanted) for part in names)])
        if parts is None:
            self._kept = {part: rows for part, rows in self._kept.items() if part in set(names)}
        return loaded

    def _columns(self, part: str, names: list[str]) -> pa.Table:
        """Columns of one data file. A file that is kept is read once; large ones of sub-networks are not kept."""
        if part not in self._kept:
            # Their channels and embeddings are most of a zoo, and few questions need them.
            if self.name == "subnetworks" and self.files.size(f"{self.name}/{part}") >= SMALL_BYTES:
                return read_part(self.files, self.name, part, names)
            self._kept[part] = read_part(self.files, self.name, part)
        return self._kept[part].select(names)

    def row(self, part: str, row: int) -> dict[str, Any]:
        """One row of a data file, compared with its own checksums."""
        if part in self._kept:
            return self._kept[part].slice(row, 1).to_pylist()[0]
        held, first, rows = self._group
        if held != part or not first <= row < first + len(rows):
            first, rows = read_group(self.files, self.name, part, row)
            self._group = (part, first, rows)  # those who ask for one row often ask for the next
        one = rows.slice(row - first, 1)
        arrow.check(self.name, one)
        return one.to_pylist()[0]

    def read(self, part: str) -> pa.Table:
        """The verified rows of one data file, from the disk."""
        return read_part(self.files, self.name, part)

    def append(self, rows: pa.Table) -> None:
        """Add rows in one commit, durable when this returns.

        Raises:
            ConflictError: Other writers won every retry.
            ReadOnlyError: The folder cannot be written.
            ZooError: The disk is full or failed.
        """
        part = write_part(self.files, self.name, rows)
        self._retry(lambda: self._commit([self._entry(part, rows)], []), undo=[part])

    def rewrite(self, change: Callable[[pa.Table], pa.Table], parts: Callable[[], Sequence[str]]) -> None:
        """Replace data files by new ones that hold their changed rows, in one commit.

        Args:
            change: Old rows -> new rows; may return an empty table.
            parts: Names the files to replace; asked again at each retry.

        Raises:
            ConflictError: Other writers won every retry.
        """
        from deltalake.exceptions import CommitFailedError

        def attempt() -> None:
            old = list(parts())
            if not old:
                return
            rows = change(self.load(parts=old))
            pieces = [rows.slice(first, ROWS_A_PART) for first in range(0, len(rows), ROWS_A_PART)]
            written = {write_part(self.files, self.name, piece): piece for piece in pieces}
            try:
                self._commit([self._entry(part, piece) for part, piece in written.items()], old)
            except CommitFailedError:
                for part in written:
                    self.files.delete(f"{self.name}/{part}")
                raise

        self._retry(attempt)

    def forget(self, parts: Sequence[str]) -> None:
        """Take files out of the table's newest version without looking at them; for those that are lost.

        Raises:
            ConflictError: Other writers won every retry.
        """
        self._retry(lambda: self._commit([], list(parts)))

    def vacuum(self, *, retention_hours: int, keep: Sequence[int]) -> None:
        """Delete data files that no version younger than the retention, nor a kept one, has.

        Args:
            retention_hours: Age of the youngest versions that may lose files.
            keep: Versions that keep theirs.
        """
        self.refresh()
        with delta(self.name, write=True):
            self._current().vacuum(
                retention_hours=retention_hours, dry_run=False, enforce_retention_duration=False,
                # Files that no log entry names go too, once no running add can be about to name them.
                full=retention_hours >= 24, keep_versions=list(keep) or None,
            )  # fmt: skip

    def _current(self) -> "DeltaTable":
        if self._delta is None:
            self.refresh()
        if self._delta is None:
            raise CorruptionError(f"{self.name}: the table is not open")
        return self._delta

    def _entry(self, part: str, rows: pa.Table) -> Any:
        from deltalake.transaction import AddAction

        size = self.files.size(f"{self.name}/{part}")
        return AddAction(
            path=part, size=size, partition_values={}, modification_time=int(time.time() * 1000), data_change=True,
            stats=json.dumps({"numRecords": len(rows)}),
        )  # fmt: skip

    def _commit(self, entries: list[Any], old: list[str]) -> None:
        from deltalake import CommitProperties, PostCommitHookProperties
        from deltalake.transaction import RemoveAction

        current = self._current()
        before = current.version()
        removed = [
            RemoveAction(path=part, deletion_timestamp=int(time.time() * 1000), data_change=True, partition_values={})
            for part in old
        ]
        with delta(self.name, write=True):
            current.create_write_transaction(
                [*entries, *removed], "append", arrow.SCHEMAS[self.name],
                commit_properties=CommitProperties(custom_metadata={SEAL: seal((e.path for e in entries), old)}),
                # A version of years ago must stay readable as long as its files are there.
                post_commithook_properties=PostCommitHookProperties(create_checkpoint=True, cleanup_expired_logs=False),
            )  # fmt: skip
            current.update_incremental()
        self._sync(before + 1, current.version())

    def _retry(self, attempt: Callable[[], None], undo: Sequence[str] = ()) -> None:
        from deltalake.exceptions import CommitFailedError

        for trial in range(RETRIES):
            self.refresh()
            try:
                return attempt()
            except CommitFailedError as error:
                last = error
                time.sleep(random.uniform(0.5, 1) * min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2**trial))
        # Only now: after any other failure the commit may have happened, and then the file is needed.
        for part in undo:
            self.files.delete(f"{self.name}/{part}")
        raise ConflictError(
            f"{self.name}: other writers won {RETRIES} times in a row",
            hint="Try again; let fewer processes write at once",
        ) from last

    def _sync(self, first: int, last: int) -> None:
        """Make the log entries of a range of versions durable: delta-rs itself never calls fsync."""
        folder = f"{self.name}/_delta_log"
        names = [log_name(self.name, version) for version in range(first, last + 1)]
        if any(version % 100 == 99 for version in range(first, last + 1)):
            names += [name for name in self.files.names(folder) if "checkpoint" in name]
        self.files.sync(names, [folder])
