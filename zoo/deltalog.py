"""Delta Lake's log: what it raises as this project's errors, and a seal on every commit.

delta-rs reads a log with a damaged line without a word (an "add" whose key lost a bit is no add, and its rows are
gone). So each commit carries a seal, SHA-256 over the names of the files that it adds and removes, checked before it is
used.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from types import TracebackType
from typing import Any, Self

import pyarrow as pa

from zoo.errors import ConflictError, CorruptionError, ReadOnlyError, ZooError
from zoo.files import Files

DAMAGED = "Run `zoo verify PATH` to see what is damaged"
SEAL = "zooSeal"
_process: list[int] = []


def check_process() -> None:
    """Refuse to go on in a forked child: deltalake's threads do not survive a fork.

    Raises:
        ConflictError: The process was forked after it had touched a zoo.
    """
    if not _process:
        _process.append(os.getpid())
    if _process[0] != os.getpid():
        raise ConflictError(
            "this process was forked from one that had used a zoo, and Delta Lake does not work after a fork",
            hint="Start workers by spawn: multiprocessing.get_context('spawn'); a DataLoader takes "
            "multiprocessing_context='spawn'",
        )


class delta:
    """Turns what deltalake raises inside the block into this project's errors; conflicts pass through.

    Args:
        table: Name of the table, for the message.
        write: Whether the block writes: then a failure is the disk's, not the table's.
    """

    def __init__(self, table: str, *, write: bool = False) -> None:
        self._table, self._write = table, write

    def __enter__(self) -> Self:
        check_process()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if error is None or kind is None or isinstance(error, ZooError):
            return
        from deltalake.exceptions import CommitFailedError, DeltaError

        if isinstance(error, CommitFailedError):
            return
        # pyo3's panic derives from BaseException and cannot be imported by name.
        if kind.__name__ == "PanicException":
            raise ConflictError(
                f"{self._table}: Delta Lake stopped ({str(error)[:120]})",
                hint="If this process was forked, use spawn instead; else run `zoo verify PATH`",
            ) from error
        if not isinstance(error, (DeltaError, OSError, pa.ArrowException)):
            return
        text = str(error)
        if "ermission denied" in text or "ead-only file system" in text:
            raise ReadOnlyError(f"{self._table}: the folder cannot be written ({text[:160]})") from error
        if self._write:
            raise ZooError(
                f"{self._table}: the commit could not be written ({text[:200]})", hint="Nothing was added"
            ) from error
        raise CorruptionError(f"{self._table}: the table cannot be read ({text[:200]})", hint=DAMAGED) from error


def seal(added: Iterable[str], removed: Iterable[str]) -> str:
    """SHA-256 over the names of the data files that a commit adds and removes."""
    return hashlib.sha256(json.dumps([sorted(added), sorted(removed)]).encode()).hexdigest()


def log_name(table: str, version: int) -> str:
    """Where a version's log entry lies, relative to the zoo."""
    return f"{table}/_delta_log/{version:020}.json"


def without_location(entry: str) -> str:
    """A log entry (JSON lines) whose commit information does not say in which folder it was made."""
    actions = [json.loads(line) for line in entry.splitlines() if line]
    for action in actions:
        action.get("commitInfo", {}).get("operationParameters", {}).pop("location", None)
    return "".join(json.dumps(action, separators=(",", ":")) + "\n" for action in actions)


def check_commit(files: Files, table: str, version: int) -> tuple[list[str], list[str]]:
    """Read one log entry and compare it with its seal.

    Returns:
        Names of the data files that it adds and that it removes.

    Raises:
        CorruptionError: The entry is missing, is no JSON, or does not have its seal.
    """
    try:
        actions = [json.loads(line) for line in files.read(log_name(table, version)).decode().splitlines() if line]
        added = [action["add"]["path"] for action in actions if "add" in action]
        removed = [action["remove"]["path"] for action in actions if "remove" in action]
        info: dict[str, Any] = next((action["commitInfo"] for action in actions if "commitInfo" in action), {})
        found = info.get(SEAL)
    except FileNotFoundError:
        raise CorruptionError(f"{table}: the log entry of version {version} is missing", hint=DAMAGED) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptionError(f"{table}: the log entry of version {version} is no log entry", hint=DAMAGED) from error
    # Entries without a seal are those of creation and vacuum, which name no file.
    if found != seal(added, removed) and (found is not None or added or removed or not info):
        raise CorruptionError(
            f"{table}: the log entry of version {version} does not have its seal",
            hint=f"{DAMAGED}; it was damaged on disk or written by another program",
        )
    return added, removed
