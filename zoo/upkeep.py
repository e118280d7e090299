"""Upkeep of a zoo: verify every byte, delete what nothing needs, drop what is lost."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from zoo import arrow
from zoo.deltalog import check_commit, delta
from zoo.errors import CorruptionError, OptionError, ZooError
from zoo.files import TEMPORARY
from zoo.snapshot import WRITE_ORDER, order, parse_token
from zoo.store import Store
from zoo.weights import blob_path, decode

# A blob younger than this may belong to an add that is about to commit.
GRACE_S = 3600.0
_BLOBS = ("bases", "subnetworks")


@dataclass(frozen=True)
class Report:
    """What `verify` found.

    Attributes:
        problems: Damage, one line each; a sound zoo has none.
        notes: Harmless leftovers that `gc` deletes.
        counts: How many of each kind were checked.
    """

    problems: tuple[str, ...]
    notes: tuple[str, ...]
    counts: dict[str, int]

    @property
    def ok(self) -> bool:
        """Whether the zoo is sound."""
        return not self.problems

    def __bool__(self) -> bool:
        return self.ok

    def __str__(self) -> str:
        checked = ", ".join(f"{number} {what}" for what, number in self.counts.items())
        lines = [f"{'sound' if self.ok else 'DAMAGED'}: {checked} checked"]
        return "\n".join([*lines, *(f"  - {p}" for p in self.problems), *(f"  note: {n}" for n in self.notes)])


@dataclass(frozen=True)
class Freed:
    """What `gc` deleted: a number of files, and their size in bytes."""

    files: int
    size_bytes: int


def verify(store: Store) -> Report:
    """Read everything that the zoo's version holds and check it: log, rows, references, ids, weights.

    Args:
        store: An open store; nothing is written.

    Returns:
        A report with every problem, not only the first.
    """
    problems: list[str] = []
    named: set[str] = set()
    tables = {name: _verify_table(store, name, problems, named) for name in reversed(WRITE_ORDER)}
    subs, bases = tables["subnetworks"], tables["bases"]
    for column, name in (("base_id", "bases"), ("task_id", "tasks")):
        known = set(tables[name]["id"].to_pylist())
        for row in subs.select(["id", column]).to_pylist():
            if row[column] not in known:
                problems.append(
                    f"subnetworks: row {row['id']} names the {column} {row[column]}, which is not in {name}"
                )
    digests = {row["weights_digest"]: f"base {row['id']}" for row in bases.to_pylist()}
    digests |= {row["weights_digest"]: f"sub-network {row['id']}" for row in subs.to_pylist()}
    for digest, owner in digests.items():
        try:
            decode(store.files.read(blob_path(digest)), digest)
        except FileNotFoundError:
            problems.append(f"{owner}: its weights {digest} are missing")
        except (CorruptionError, OSError) as error:
            problems.append(f"{owner}: {error}")
    if not problems:
        problems += _verify_records(store, tables)
    counts = {name: len(tables[name]) for name in WRITE_ORDER} | {"weights": len(digests)}
    return Report(tuple(problems), tuple(_leftovers(store, set(digests), named)), counts)


def _verify_table(store: Store, name: str, problems: list[str], named: set[str]) -> pa.Table:
    table, good = store.tables[name], [arrow.SCHEMAS[name].empty_table()]
    try:
        version = table.refresh()
        parts = table.parts()
    except ZooError as error:
        problems.append(str(error))
        return good[0]
    live: set[str] = set()
    for number in range(version + 1):
        try:
            added, removed = check_commit(store.files, name, number)
            live = (live | set(added)) - set(removed)
            named.update(f"{name}/{part}" for part in (*added, *removed))
        except CorruptionError as error:
            problems.append(str(error))
    # A damaged checkpoint shows here: what the log says, commit by commit, is not what Delta Lake makes of it.
    problems += [f"{name}: the log and its checkpoint disagree about {part}" for part in sorted(live ^ set(parts))]
    for part in parts:
        try:
            rows = table.read(part)
            arrow.check(name, rows)
            good.append(rows)
        except CorruptionError as error:
            problems.append(str(error))
    return order(name, pa.concat_tables(good))


def _verify_records(store: Store, tables: dict[str, pa.Table]) -> Iterator[str]:
    """Problems of rows whose checksums are right and whose fields do not give their ids: not damage, but forgery."""
    for row in tables["tasks"].to_pylist():
        if (found := arrow.task_of(row).id) != row["id"]:
            yield f"tasks: row {row['id']} has fields that give the id {found}"
    for key in tables["subnetworks"]["id"].to_pylist():
        try:
            store.get(key)
        except ZooError as error:
            yield str(error)


def _leftovers(store: Store, digests: set[str], named: set[str]) -> Iterator[str]:
    if strays := sorted(set(_data_files(store)) - named):
        yield f"{len(strays)} data file(s) that no log entry names, of stopped writers or of a lost entry: {strays[0]}"
    known = digests | _named_digests(store, strict=False)
    orphans = [name for name, _, _ in _blobs(store) if _digest_of(name) not in known]
    if orphans:
        yield f"{len(orphans)} weights file(s) belong to nothing (z.gc() deletes them): {orphans[0]}"
    if unfinished := [name for name, _, _ in store.files.stats(recursive=True) if TEMPORARY in name]:
        yield f"{len(unfinished)} unfinished file(s) of writers that were stopped: {unfinished[0]}"


def _blobs(store: Store) -> list[tuple[str, int, float]]:
    return [entry for entry in store.files.stats("weights", recursive=True) if entry[0].endswith(".parquet")]


def _digest_of(name: str) -> str:
    return name.rsplit("/", 1)[-1].removesuffix(".parquet")


def _named_digests(store: Store, *, strict: bool) -> set[str]:
    """Weights digests in every data file on disk, those of older versions and of unfinished adds included."""
    found: set[str] = set()
    for table in _BLOBS:
        for name in store.files.names(table):
            if not name.endswith(".parquet"):
                continue
            try:
                data = pq.ParquetFile(pa.BufferReader(store.files.read(name))).read(columns=["weights_digest"])
                found.update(data["weights_digest"].to_pylist())
            except (pa.ArrowException, OSError, KeyError) as error:
                if strict:
                    raise CorruptionError(
                        f"{name} cannot be read, so it is not known which weights are needed",
                        hint="Run `zoo verify PATH`; nothing was deleted from weights",
                    ) from error
    return found


def gc(store: Store, *, retention_days: float = 30.0, keep: Sequence[str] = (), grace_s: float = GRACE_S) -> Freed:
    """Delete data files of old versions, weights that no version names, and what stopped writers left.

    Args:
        store: An open store that may be written.
        retention_days: Versions younger than this stay readable, at least 0.
        keep: Tokens of versions that stay readable whatever their age.
        grace_s: Weights and unfinished files younger than this stay: an add may be about to commit. In seconds.

    Returns:
        What was deleted.

    Raises:
        OptionError: `retention_days` or `grace_s` is negative, or `keep` holds no token.
        CorruptionError: A data file cannot be read.
    """
    store.check_writable()
    if retention_days < 0 or grace_s < 0:
        raise OptionError("gc: an age is not negative", got=f"retention_days={retention_days}, grace_s={grace_s}")
    pinned = [parse_token(token) for token in keep]
    before = _data_files(store)
    for name, table in store.tables.items():
        table.vacuum(retention_hours=int(retention_days * 24), keep=sorted({pin[name] for pin in pinned}))
    gone = [size for name, size in before.items() if name not in _data_files(store)]
    needed, now = _named_digests(store, strict=True), time.time()
    for name, size, modified in _blobs(store):
        if _digest_of(name) not in needed and now - modified >= grace_s:
            store.files.delete(name)
            gone.append(size)
    for name, size, modified in store.files.stats(recursive=True):
        if TEMPORARY in name and now - modified >= grace_s:
            store.files.delete(name)
            gone.append(size)
    return Freed(files=len(gone), size_bytes=sum(gone))


def _data_files(store: Store) -> dict[str, int]:
    return {
        name: size for table in WRITE_ORDER for name, size, _ in store.files.stats(table) if name.endswith(".parquet")
    }  # fmt: skip


def repair(store: Store) -> list[str]:
    """Drop log entries whose data file is lost, so that the rest can be read again. What they held is gone.

    Returns:
        The names of the files that were dropped.

    Raises:
        CorruptionError: The log itself is damaged.
    """
    store.check_writable()
    dropped = []
    for name, table in store.tables.items():
        with delta(name):
            table.refresh()
        if lost := [part for part in table.parts() if not store.files.exists(f"{name}/{part}")]:
            table.forget(lost)
            dropped += [f"{name}/{part}" for part in lost]
    return dropped
