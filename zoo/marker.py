"""What makes a folder a zoo: its marker file, and the empty tables that are made before it."""

import json

from zoo.errors import CorruptionError, FormatError, NotAZooError
from zoo.files import TEMPORARY, Files
from zoo.records import FORMAT
from zoo.snapshot import WRITE_ORDER
from zoo.tables import Table

MARKER = "zoo.json"
PROJECT = "mvp-zoo"


def open_folder(files: Files, *, create: bool) -> None:
    """Check that a folder is a zoo of a format that this version reads; make it one if it is absent or empty.

    Args:
        files: The folder.
        create: Whether it may be made a zoo.

    Raises:
        NotAZooError: It holds something else, or nothing and `create` is False.
        FormatError: A newer version of this project wrote it.
        CorruptionError: The marker is damaged.
        ReadOnlyError: It cannot be written.
    """
    try:
        text = files.read(MARKER)
    except (FileNotFoundError, NotADirectoryError):
        _create(files, create)
        return
    try:
        marker = json.loads(text)
        project, number = marker["project"], int(marker["format"])
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptionError(
            f"{files.uri}/{MARKER} is damaged ({error})", expected=_marker().decode().strip(), hint="Write it anew"
        ) from error
    if project != PROJECT:
        raise NotAZooError(f"{files.uri} belongs to another project", got=repr(project)[:80], expected=repr(PROJECT))
    if number > FORMAT:
        raise FormatError(
            f"{files.uri} has a newer format than this version reads", got=number, expected=f"at most {FORMAT}",
            hint="Upgrade mvp-zoo",
        )  # fmt: skip


def _create(files: Files, create: bool) -> None:
    """Tables first, marker last: a folder with nothing but our tables is a creation cut short, which goes on."""
    # Another process may be making it in this moment, or have been killed at it.
    found = [name for name in files.names() if not name.startswith(TEMPORARY)]
    if MARKER in found:
        open_folder(files, create=create)
        return
    if set(found) - set(WRITE_ORDER):
        raise NotAZooError(
            f"{files.uri} is not empty and is no zoo", got=", ".join(found[:5]),
            hint="Give a new zoo a folder of its own",
        )  # fmt: skip
    if not create:
        raise NotAZooError(
            f"{files.uri} is no zoo", got="an unfinished zoo" if found else "an absent or empty folder",
            hint="`zoo.open(path)` makes one",
        )  # fmt: skip
    for name in WRITE_ORDER:
        Table(files, name).create()
    files.put(MARKER, _marker())


def _marker() -> bytes:
    return json.dumps({"format": FORMAT, "project": PROJECT}).encode() + b"\n"
