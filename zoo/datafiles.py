"""Where the files that ship with the project lie: `zoo/_data` in a wheel, `data/` beside the package in a checkout."""

import hashlib
from pathlib import Path

from zoo.errors import CorruptionError, NotFoundError, OptionError

_PACKAGE = Path(__file__).resolve().parent
_CHUNK = 1 << 20


def data_root() -> Path:
    """The folder of the shipped data files.

    Returns:
        `zoo/_data` where the package was installed from a wheel, else `data` beside the package.

    Raises:
        NotFoundError: Neither exists: the installation is incomplete.
    """
    shipped, checkout = _PACKAGE / "_data", _PACKAGE.parent / "data"
    # A bare `data` folder beside an installed package would be somebody else's; ours holds the label tables.
    for folder in (shipped, checkout):
        if (folder / "labels").is_dir():
            return folder
    raise NotFoundError(
        "the project's data folder is missing",
        expected=f"{shipped} (installed) or {checkout} (a checkout)",
        hint="Reinstall mvp-zoo, or run from a complete checkout",
    )


def data_path(name: str) -> Path:
    """Path of a shipped file or folder.

    Args:
        name: Relative to the data folder, with forward slashes, such as "wordnet_nouns.npz" or "labels/cifar100.json".

    Returns:
        An existing path.

    Raises:
        OptionError: `name` is absolute or leaves the data folder.
        NotFoundError: There is no such file in the data folder.
    """
    root = data_root()
    relative = Path(name)
    if relative.is_absolute() or ".." in relative.parts:
        raise OptionError("a data file is named relative to the data folder", got=repr(name))
    path = root / relative
    if not path.exists():
        there = ", ".join(sorted(p.name for p in root.iterdir())) or "nothing"
        raise NotFoundError(
            f"the shipped data file {name!r} is missing",
            got=f"{there} in {root}",
            hint="Reinstall mvp-zoo, or restore the file from the repository",
        )
    return path


def sha256(path: Path) -> str:
    """SHA-256 of a file, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def check_sum(name: str) -> None:
    """Compare a shipped file with its line in `SHA256SUMS`.

    Args:
        name: As in `data_path`; a file.

    Raises:
        NotFoundError: The file, the list of sums, or the file's line in it is missing.
        CorruptionError: The file's bytes have another hash.
    """
    path = data_path(name)
    for line in data_path("SHA256SUMS").read_text(encoding="utf-8").splitlines():
        expected, _, listed = line.partition(" ")
        # `sha256sum` writes two spaces, or " *" in binary mode.
        if listed.lstrip(" *").removeprefix("./") == name:
            found = sha256(path)
            if found != expected:
                raise CorruptionError(
                    f"{name} is damaged: its SHA-256 is wrong", got=found, expected=expected, hint="Restore the file"
                )
            return
    raise NotFoundError(f"SHA256SUMS has no line for {name!r}")
