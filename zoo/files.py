"""The one place where bytes of a zoo are read and written, on a local disk or an object store.

Delta's log is written by `deltalake`; everything else (weights, the marker, the tables' Parquet files) goes through
`Files`. A local write is durable when `put` returns: temporary name, fsync, rename, fsync of the folder. An object
store publishes an object whole when its upload ends. The object-store side has not been run against a real service yet.
"""

import errno
import os
import re
import secrets
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from zoo.errors import NotAZooError, OptionError, ReadOnlyError, ZooError

_URL = re.compile(r"[a-z][a-z0-9+.-]+://")
_READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)
TEMPORARY = ".tmp-"


class Files:
    """Files below one root, by relative path with forward slashes.

    Args:
        root: A local path, or a URL such as "s3://bucket/my.zoo" (credentials come from the environment).

    Raises:
        OptionError: A local path with a percent code ("%20"), which Delta Lake would decode, or an empty one.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        from pyarrow import fs

        text = os.fspath(root)
        if not text or "\0" in text:
            raise OptionError("a zoo's path is empty or holds a NUL character", got=repr(text)[:80])
        self.local = not _URL.match(text) or text.startswith("file://")
        self._fs: Any
        if self.local:
            path = Path(text.removeprefix("file://")).expanduser().absolute()
            if re.search(r"%[0-9A-Fa-f]{2}", str(path)):
                raise OptionError(
                    "a zoo's path holds a percent code, which Delta Lake decodes",
                    got=str(path),
                    hint="Rename the folder",
                )
            self.root, self._fs = str(path), fs.LocalFileSystem()
        else:
            self._fs, self.root = fs.FileSystem.from_uri(text)
        self.uri = self.root if self.local else text.rstrip("/")

    def path(self, name: str) -> str:
        """Full path of a name.

        Raises:
            OptionError: The name leaves the root.
        """
        if name.startswith("/") or ".." in name.split("/"):
            raise OptionError("a file of a zoo is named relative to the zoo", got=repr(name)[:80])
        return f"{self.root}/{name}" if name else self.root

    def names(self, folder: str = "", *, recursive: bool = False) -> list[str]:
        """Files and folders in a folder, relative to the root, sorted; [] when there is no such folder.

        Raises:
            NotAZooError: The folder is a file.
        """
        return sorted(name for name, _, _ in self.stats(folder, recursive=recursive))

    def stats(self, folder: str = "", *, recursive: bool = False) -> list[tuple[str, int, float]]:
        """(name, size in bytes, modification time in seconds) of what lies in a folder."""
        from pyarrow import fs

        here = self._fs.get_file_info(self.path(folder))
        if here.type == fs.FileType.NotFound:
            return []
        if here.type == fs.FileType.File:
            raise NotAZooError(f"{self.path(folder)} is a file", expected="a folder")
        with writing(self.root):
            found = self._fs.get_file_info(fs.FileSelector(self.path(folder), recursive=recursive))
        start = len(self.root.rstrip("/")) + 1
        return [(info.path[start:], info.size or 0, (info.mtime_ns or 0) / 1e9) for info in found]

    def exists(self, name: str) -> bool:
        """Whether there is a file of that name."""
        from pyarrow import fs

        return self._fs.get_file_info(self.path(name)).type == fs.FileType.File

    def read(self, name: str) -> bytes:
        """All bytes of a file.

        Raises:
            FileNotFoundError: There is none.
        """
        with self._fs.open_input_stream(self.path(name)) as stream:
            return stream.read()

    def open(self, name: str) -> Any:
        """A file for reading in places, to be used as a context manager.

        Raises:
            FileNotFoundError: There is none.
        """
        return self._fs.open_input_file(self.path(name))

    def put(self, name: str, data: bytes) -> None:
        """Write a file so that it is there whole and for good, or not at all.

        Raises:
            ReadOnlyError: The folder cannot be written.
            ZooError: The disk is full or failed.
        """
        with writing(self.root):
            if not self.local:
                with self._fs.open_output_stream(self.path(name)) as stream:
                    stream.write(data)
                return
            self._place(name, data, Path.replace)

    def put_new(self, name: str, data: bytes) -> bool:
        """`put` on a local file system unless the file is there already; of several writers one wins.

        Returns:
            Whether this call wrote it.

        Raises:
            ReadOnlyError: The folder cannot be written.
            ZooError: The disk is full or failed.
        """
        with writing(self.root):
            try:
                self._place(name, data, lambda temporary, target: target.hardlink_to(temporary))
            except FileExistsError:
                return False
            return True

    def _place(self, name: str, data: bytes, move: Callable[[Path, Path], object]) -> None:
        """Write a temporary file beside the target, make it durable, then move it into place."""
        target = Path(self.path(name))
        new_folders = [p for p in (target.parent, *target.parent.parents) if not p.exists()]
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.parent / f"{TEMPORARY}{secrets.token_hex(8)}"
        try:
            with temporary.open("xb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            move(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
        for folder in (target.parent, *(p.parent for p in new_folders)):
            _fsync(folder)

    def size(self, name: str) -> int:
        """Size of a file in bytes."""
        return self._fs.get_file_info(self.path(name)).size or 0

    def make(self, folder: str) -> None:
        """Make a folder and those above it."""
        with writing(self.root):
            self._fs.create_dir(self.path(folder), recursive=True)

    def sync(self, names: list[str], folders: list[str]) -> None:
        """Make files that deltalake wrote, and their folders' entries, survive a power cut; skips missing ones."""
        if self.local:
            for name in (*names, *folders):
                if (path := Path(self.path(name))).exists():
                    _fsync(path)

    def delete(self, name: str) -> None:
        """Delete a file; no error when it is gone already."""
        with writing(self.root):
            try:
                self._fs.delete_file(self.path(name))
            except FileNotFoundError:
                return


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class writing:
    """Turns an OSError of the block into a ReadOnlyError, or into a ZooError that says what the disk said."""

    def __init__(self, root: str) -> None:
        self._root = root

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if not isinstance(error, OSError) or isinstance(error, ZooError):
            return
        if error.errno in _READ_ONLY:
            raise ReadOnlyError(
                f"{self._root} cannot be written ({error.strerror})",
                hint="Copy the zoo to a folder of your own, or change the folder's permissions",
            ) from error
        raise ZooError(
            f"{self._root} could not be written ({error.strerror or error})",
            hint="Nothing was added. Free some space and try again"
            if error.errno == errno.ENOSPC
            else "Nothing was added",
        ) from error
