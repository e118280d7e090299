"""What a data set's folder holds: its layout, class folders, annotation files, and torchvision's copy of it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from zoo.errors import DataError

_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")


def find_folder(
    dataset: str, root: Path, inner: Sequence[str], needed: Sequence[str], *, can_download: bool = False
) -> Path:
    """The first of several inner folders ("." is `root` itself) that has what is needed.

    Raises:
        DataError: None has; says what the likeliest one lacks.
    """
    lacks = {name: [n for n in needed if not (root / name / n).exists()] for name in inner}
    best = min(inner, key=lambda name: len(lacks[name]))
    if not lacks[best]:
        return root / best
    if len(lacks[best]) == len(needed):
        expected = f"a folder with {', '.join(needed)}, or with it in {' or '.join(n for n in inner if n != '.')}"
        raise not_found(dataset, root, expected, can_download=can_download)
    raise DataError(
        f"{dataset}: {root / best} is not complete",
        problems=[f"{name} is missing" for name in lacks[best]],
        hint="Extract the archive again.",
    )


def not_found(dataset: str, root: Path, expected: str, *, can_download: bool = False) -> DataError:
    """The error for a folder that does not hold a data set."""
    hint = "download=True fetches it." if can_download else "Extract its archive there."
    return DataError(f"{dataset}: not in {root}", got=listing(root), expected=expected, hint=hint)


def torchvision_set(dataset: str, name: str, root: str | Path, expected: str, **options: Any) -> Any:
    """One of torchvision's data sets, which checks files by their MD5 sums.

    Args:
        dataset: For messages.
        name: torchvision's class.
        root: Its `root`.
        expected: The files it wants, for messages.
        options: Its other arguments.

    Raises:
        DataError: Files are missing or damaged, or the download failed.
    """
    from torchvision import datasets

    try:
        return getattr(datasets, name)(str(root), **options)
    except (RuntimeError, OSError) as error:  # torchvision raises plain RuntimeErrors, downloads raise OSErrors
        raise DataError(
            f"{dataset}: cannot read {root}: {error}".rstrip("."),
            got=listing(Path(root)),
            expected=expected,
            hint=None if options.get("download") else "Delete damaged files; download=True fetches what is missing.",
        ) from error


@contextmanager
def annotations(dataset: str, folder: Path) -> Iterator[None]:
    """Turns what goes wrong while annotation files are put together into a DataError."""
    try:
        yield
    except DataError:
        raise
    except (KeyError, IndexError, ValueError) as error:
        raise DataError(
            f"{dataset}: the annotation files in {folder} do not fit together",
            got=f"{type(error).__name__}: {error}",
            hint="Extract the archive again.",
        ) from error


def lines(file: Path) -> list[str]:
    """The lines of a text file, stripped, empty ones left out."""
    return [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]


def has_folders(folder: Path) -> bool:
    """Whether there is such a folder and it holds folders (hidden ones aside)."""
    return folder.is_dir() and any(p.is_dir() and not p.name.startswith(".") for p in folder.iterdir())


def class_folders(folder: Path, dataset: str) -> list[str]:
    """Names of the folders in a folder, sorted, hidden ones aside.

    Raises:
        DataError: There are none.
    """
    if not has_folders(folder):
        raise DataError(
            f"{dataset}: no class folders in {folder}", got=listing(folder), expected="one folder of images a class"
        )
    return sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def image_files(folder: Path) -> list[Path]:
    """Image files directly in a folder, sorted by name; none when there is no such folder."""
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in _SUFFIXES and not p.name.startswith("."))


def listing(folder: Path) -> str:
    """What a message says a folder holds."""
    if not folder.is_dir():
        return "no such folder"
    names = sorted(p.name + ("/" if p.is_dir() else "") for p in folder.iterdir())
    if len(names) > 8:
        names = [*names[:8], f"... ({len(names)} in all)"]
    return ", ".join(names) or "an empty folder"
