"""How a user comes to a zoo: `open` one of their own, or the `sample` that ships with the project."""

import os
import shutil
from pathlib import Path

from zoo.datafiles import data_path
from zoo.errors import NotAZooError
from zoo.files import Files, writing
from zoo.handle import Zoo
from zoo.store import Store

SAMPLE = "sample.zoo"


def open(
    path: str | os.PathLike[str],
    version: str | None = None,
    *,
    create: bool = True,
    read_only: bool = False,
) -> Zoo:
    """Open a zoo, or make one of an absent or empty folder.

    Args:
        path: A folder, or a URL such as "s3://bucket/my.zoo", credentials from the environment. Object stores share the
            code of local folders, but have not been run against a real service yet.
        version: Token of `Zoo.version`: pins that version, read-only.
        create: Make an absent or empty folder a zoo; False makes it an error.
        read_only: Refuse to write.

    Raises:
        NotAZooError: The folder holds something else, or nothing and it may not be made a zoo.
        FormatError: The zoo was written by a newer version of this project.
        NotFoundError: The zoo does not have this version.
        OptionError: `version` is no token, or the path cannot be used.
        CorruptionError: The zoo's marker or log is damaged.
        ReadOnlyError: The zoo cannot be made there.
    """
    return Zoo(Store(path, version=version, create=create, read_only=read_only))


def sample(copy_to: str | os.PathLike[str] | None = None) -> Zoo:
    """The zoo that ships with the project.

    Args:
        copy_to: An absent or empty folder: copies the zoo there and opens the copy, which may be written.

    Returns:
        The zoo, read-only unless copied.

    Raises:
        NotFoundError: The installation lacks it.
        NotAZooError: `copy_to` is not empty.
        ReadOnlyError: `copy_to` cannot be written.
    """
    source = data_path(SAMPLE)
    if copy_to is None:
        return open(source, create=False, read_only=True)
    target = Path(Files(copy_to).root)
    with writing(str(target)):
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise NotAZooError(f"{target} is not empty", hint="Give a folder that does not exist yet")
        # File by file, without modes and times: the shipped files may be read-only, the copy is for writing, and a
        # fresh time keeps gc from taking anything for old.
        for file in sorted(p for p in source.rglob("*") if p.is_file()):
            copy = target / file.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)
    return open(target, create=False)
