"""Runs as the rows of a CSV file that grows while they are made."""

import csv
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar

from zoo.errors import DataError

R = TypeVar("R")
_TYPES = {"int": int, "float": float, "str": str}


def read_runs(kind: type[R], path: str | Path | None) -> list[R]:
    """The runs of a file; none when there is no file.

    Args:
        kind: A dataclass of int, float and str fields: a column each.
        path: The file.

    Raises:
        DataError: The file holds something else.
    """
    if path is None or not Path(path).exists():
        return []
    names = {f.name: _TYPES[getattr(f.type, "__name__", str(f.type))] for f in fields(kind)}  # type: ignore[arg-type]
    with Path(path).open(newline="", encoding="utf-8") as stream:
        try:
            return [kind(**{name: of(row[name]) for name, of in names.items()}) for row in csv.DictReader(stream)]
        except (KeyError, ValueError, TypeError) as error:
            raise DataError(
                f"{path} does not hold such runs", got=str(error), hint="Give another file, or delete it."
            ) from error


def append_run(run: Any, path: str | Path | None) -> None:
    """Adds a run's row, with the header when the file is new; nothing when there is no path."""
    if path is None:
        return
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, [f.name for f in fields(run)])
        if new:
            writer.writeheader()
        writer.writerow(asdict(run))
