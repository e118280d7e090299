"""What readers are made of: image files to tensors, labels to class indices, seeded test splits.

Photographs are cut to the largest central square and resized to `size` pixels (bilinear, antialiased), which is a
resize of the shorter side and a centre crop in one step. EXIF rotation is not applied, transparency is dropped, grey
becomes RGB.
"""

import difflib
import io
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from mvp.data import Data
from mvp.progress import bar
from mvp.train import derive_seed
from zoo.errors import DataError, OptionError

#: Class names or indices; None for all.
Classes = Sequence[str | int] | None
#: A file and the index of its class.
Labelled = tuple[Path, int]
#: What an image is called in a message, and its file or bytes.
Source = tuple[str, Path | bytes | None]
#: Problems of one kind that a message lists.
LISTED = 20

_SHOW_PROGRESS_FROM = 2000


def photographs(
    dataset: str,
    names: Sequence[str],
    chosen: Sequence[int],
    train: Iterable[Labelled],
    test: Iterable[Labelled],
    size: int,
    *,
    synsets: Sequence[str | None] | None = None,
    cut: int = 0,
) -> Data:
    """Reads the listed files of some classes into a `Data`.

    Args:
        dataset: Name recorded in the task.
        names: All class names of the data set.
        chosen: Indices of the classes to take, in this order.
        train: Files with their index into `names`; files of other classes are passed over.
        test: The same.
        size: Side of the images in pixels.
        synsets: wnids of all classes.
        cut: Rows of pixels to cut off at the bottom of each image first.

    Raises:
        DataError: A class without images, files that cannot be read.
    """
    check_count("size", size)
    new = {old: i for i, old in enumerate(chosen)}
    labels = tuple(names[i] for i in chosen)
    splits = {s: [(p, new[c]) for p, c in files if c in new] for s, files in (("train", train), ("test", test))}
    targets = {s: torch.tensor([c for _, c in files], dtype=torch.int64) for s, files in splits.items()}
    for s in splits:  # before the hours that reading may take
        check_classes(dataset, labels, targets[s].numpy(), s)
    images = {}
    for s, files in splits.items():
        sources: list[Source] = [(str(p), p) for p, _ in files]
        images[s] = read_images(
            (sources[i : i + 256] for i in range(0, len(sources), 256)), len(sources), size, cut=cut
        )
    return Data(
        dataset, labels, images["train"], targets["train"], images["test"], targets["test"],
        synsets=None if synsets is None else tuple(synsets[i] for i in chosen),
    )  # fmt: skip


def decode(source: Path | bytes | None, size: int | None, cut: int = 0) -> np.ndarray:
    """One image file as uint8 (H, W, 3); see the module for how it is cropped.

    Raises:
        OSError, ValueError: It is no image, is damaged, or has more than 8 bits a channel.
    """
    if source is None:
        raise ValueError("a path without bytes")
    with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
        if image.mode[0] in "IF":  # Pillow would clip these to 255 without a word
            raise ValueError(f"mode {image.mode}: more than 8 bits a channel")
        rgb = image.convert("RGB")
    if cut:
        rgb = rgb.crop((0, 0, rgb.width, max(1, rgb.height - cut)))
    return np.asarray(rgb if size is None else ImageOps.fit(rgb, (size, size), Image.Resampling.BILINEAR))


def read_images(chunks: Iterable[Sequence[Source]], n: int, size: int | None, *, cut: int = 0) -> Tensor:
    """Decodes images in several threads, with a progress bar on a terminal when there are thousands.

    Args:
        chunks: The images in order, a few hundred at a time, so that only so many lie in memory undecoded.
        n: How many there are.
        size: Side in pixels; None takes them as they are, of one size.
        cut: See `decode`.

    Returns:
        uint8 (n, 3, H, W).

    Raises:
        DataError: Images that cannot be read or differ in size; names them.
    """

    def attempt(source: Source) -> np.ndarray | str:
        try:
            return decode(source[1], size, cut)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # what Pillow raises
            return f"{source[0]}: {error}"

    out: np.ndarray | None = None
    at, problems = 0, []
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool, bar(progress=n >= _SHOW_PROGRESS_FROM) as shown:
        line = shown.add_task("reading images", total=n)
        for chunk in chunks:
            for (name, _), image in zip(chunk, pool.map(attempt, chunk), strict=True):
                if isinstance(image, str):
                    problems.append(image)
                    continue
                if out is None:
                    out = np.empty((n, 3, *image.shape[:2]), np.uint8)
                if image.shape[:2] != out.shape[2:]:
                    problems.append(f"{name}: {pixels(image.shape)}, the first image has {pixels(out.shape[2:])}")
                    continue
                out[at] = image.transpose(2, 0, 1)
                at += 1
            shown.advance(line, len(chunk))
    if problems or out is None:
        raise DataError(
            f"{len(problems)} of {n} images cannot be used",
            problems=shorten(problems),
            hint="Remove or replace these files." if size else "Give size= to bring all images to one size.",
        )
    return torch.from_numpy(out)


def held_out(
    labels: np.ndarray, names: Sequence[str], n_test: Callable[[int], int], seed: int, dataset: str
) -> np.ndarray:
    """Draws a test split class by class: the draw of a class depends on seed, name and number of images alone.

    Args:
        labels: int64 (n,), indices into `names`.
        names: Class names.
        n_test: Number of test images of a class of so many images.
        seed: Seed.
        dataset: For messages.

    Returns:
        bool (n,), True where an image belongs to the test split.

    Raises:
        DataError: Classes with too few images for both splits.
    """
    held = np.zeros(len(labels), bool)
    short = []
    for c in np.unique(labels).tolist():
        of_class = np.flatnonzero(labels == c)
        k = n_test(len(of_class))
        if not 0 < k < len(of_class):
            short.append(f"{names[c]}: {len(of_class)}")
            continue
        order = np.random.default_rng(derive_seed(seed, "test split", names[c])).permutation(len(of_class))
        held[of_class[order[:k]]] = True
    if short:
        raise DataError(f"{dataset}: too few images to split into train and test", problems=shorten(short))
    return held


def fraction_of(test_fraction: float) -> Callable[[int], int]:
    """Number of test images of a class: the share, rounded, at least one and never all."""
    if not 0 < test_fraction < 1:
        raise OptionError("test_fraction is out of range", got=test_fraction, expected="a share in (0, 1)")
    return lambda n: min(max(1, round(test_fraction * n)), n - 1)


def split_files(
    files: Sequence[Labelled], names: Sequence[str], n_test: Callable[[int], int], seed: int, dataset: str
) -> tuple[list[Labelled], list[Labelled]]:
    """Files as (train, test), see `held_out`."""
    held = held_out(np.array([c for _, c in files], np.int64), names, n_test, seed, dataset)
    return [f for f, h in zip(files, held) if not h], [f for f, h in zip(files, held) if h]


def pick(names: Sequence[str], classes: Classes, dataset: str) -> list[int]:
    """Indices of classes given by name or index; all when None.

    Raises:
        DataError: Unknown or repeated classes; all of them are listed, with the nearest names.
    """
    if classes is None:
        return list(range(len(names)))
    if isinstance(classes, str):
        raise DataError(f"{dataset}: classes is one text", got=repr(classes), expected="a list of class names")
    place = {name: i for i, name in enumerate(names)}
    chosen: list[int] = []
    problems = []
    for c in classes:
        i = int(c) if isinstance(c, int | np.integer) else place.get(c, -1)
        if not 0 <= i < len(names):
            near = difflib.get_close_matches(str(c), names, n=3)
            problems.append(f"no class {c!r}" + (f"; did you mean {', '.join(near)}?" if near else ""))
        elif i in chosen:
            problems.append(f"{names[i]!r} is given twice")
        else:
            chosen.append(i)
    if problems or not chosen:
        known = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
        raise DataError(
            f"{dataset}: cannot take these classes",
            problems=shorten(problems) or ["no class is given"],
            hint=f"There are {len(names)}: {known}",
        )
    return chosen


def index_labels(
    values: dict[str, np.ndarray], names: Sequence[str] | None, dataset: str
) -> tuple[list[str], dict[str, np.ndarray]]:
    """Label values of each split (integers or names) as int64 indices into class names.

    Args:
        values: Split -> (n,) integers or texts.
        names: Class names that the integers index into; the sorted values of the first split when None.
        dataset: For messages.

    Raises:
        DataError: Values that are neither, or outside the names.
    """
    if names is None:
        seen = sorted({v for v in next(iter(values.values())).tolist() if isinstance(v, int | str)})
        names, keys = [str(v) for v in seen], {v: i for i, v in enumerate(seen)}
    else:
        names = [str(name) for name in names]
        keys = {v: i for i, name in enumerate(names) for v in (i, name)}
    index, problems = {}, []
    for split, of_split in values.items():
        plain = of_split.tolist()
        # A column with nulls arrives as floats; 1.0 would pass for 1.
        if wrong := [str(v) for v in plain if isinstance(v, float) or v not in keys]:
            values_wrong = ", ".join(sorted(set(wrong))[:8])
            problems.append(f"{split}: {len(wrong)} labels are none of the {len(names)} classes: {values_wrong}")
        else:
            index[split] = np.array([keys[v] for v in plain], np.int64)
    if problems:
        raise DataError(
            f"{dataset}: unusable labels", problems=problems, hint="-1 marks images whose label is not published."
        )
    return names, index


def check_classes(dataset: str, names: Sequence[str], labels: np.ndarray, split: str) -> None:
    """Raises DataError unless every class has an image in the split; lists all that have none."""
    there = set(labels.tolist())
    if empty := [name for i, name in enumerate(names) if i not in there]:
        raise DataError(
            f"{dataset}: {len(empty)} of {len(names)} classes have no {split} image", problems=shorten(empty)
        )


def check_count(name: str, value: Any) -> None:
    """Raises OptionError unless the value of a named option is a positive integer."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise OptionError(f"{name} is out of range", got=repr(value), expected="a positive integer")


def first(files: Iterable[Labelled], limit: int | None) -> list[Labelled]:
    """The first `limit` files of each class; all when None."""
    count: dict[int, int] = {}
    kept = []
    for file, c in files:
        count[c] = count.get(c, 0) + 1
        if limit is None or count[c] <= limit:
            kept.append((file, c))
    return kept


def shorten(problems: Sequence[str]) -> list[str]:
    """The first problems, and how many more there are."""
    more = len(problems) - LISTED
    return [*problems[:LISTED], f"and {more} more"] if more > 0 else list(problems)


def pixels(shape: Sequence[int]) -> str:
    """Height and width for a message."""
    return f"{shape[0]} x {shape[1]}"
