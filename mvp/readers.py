"""Readers for any data: image folders, Parquet files in the Hub's layout, numpy arrays. Known sets: `datasets.py`."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image, ImageOps

from mvp.data import Data
from mvp.folders import class_folders, has_folders, image_files, listing
from mvp.images import (
    LISTED,
    Classes,
    Source,
    check_classes,
    check_count,
    first,
    fraction_of,
    held_out,
    index_labels,
    photographs,
    pick,
    pixels,
    read_images,
    split_files,
)
from zoo.errors import DataError, OptionError


def image_folder(
    root: str | Path,
    classes: Classes = None,
    *,
    dataset: str | None = None,
    size: int = 224,
    limit: int | None = None,
    test_fraction: float = 0.2,
    seed: int = 0,
) -> Data:
    """Any folder with one sub-folder of images a class; the folders' names are the labels, in name order.

    Args:
        root: Folder with `train/<class>/` and `test/<class>/` (or `val`, `valid`, `validation`), or with `<class>/`
            alone, which is then split by `test_fraction`.
        classes: Folder names to take, in this order; all when None.
        dataset: Name recorded in the task; the folder's name when None.
        size: Side of the images in pixels.
        limit: At most this many images a class and split, the first in name order.
        test_fraction: Share of each class, in (0, 1), that becomes the test split where the folder has none. It is
            drawn class by class, so a class is split the same way whichever others are read with it.
        seed: Seed of that draw.

    Raises:
        DataError: No class folders, unknown classes, a class without images in a split, unreadable files.
        OptionError: `size`, `limit` or `test_fraction` out of range.
    """
    root = Path(root)
    dataset = dataset or root.resolve().name
    if limit is not None:
        check_count("limit", limit)
    if not (root / "train").is_dir():
        names = class_folders(root, dataset)
        chosen = pick(names, classes, dataset)
        files = [(file, i) for i in chosen for file in image_files(root / names[i])]
        train, test = split_files(files, names, fraction_of(test_fraction), seed, dataset)
        return photographs(dataset, names, chosen, first(train, limit), first(test, limit), size)
    names = class_folders(root / "train", dataset)
    tests = [t for s in ("test", "val", "valid", "validation") if has_folders(t := root / s)]
    if not tests:
        raise DataError(
            f"{dataset}: {root} has a train folder but no test folder with classes",
            got=listing(root),
            expected="train/<class>/ and test/<class>/ (or val, valid, validation)",
            hint=f"Give {root / 'train'} to split it by test_fraction.",
        )
    chosen = pick(names, classes, dataset)
    train, test = (
        [(file, i) for i in chosen for file in image_files(folder / names[i])[:limit]]
        for folder in (root / "train", tests[0])
    )
    return photographs(dataset, names, chosen, train, test, size)


def hub_parquet(
    root: str | Path,
    classes: Classes = None,
    *,
    dataset: str,
    image: str | None = None,
    label: str | None = None,
    size: int | None = None,
    train: str = "train",
    test: str | None = None,
) -> Data:
    """Parquet files in the Hugging Face Hub's image layout: `{bytes, path}` structs beside a label column.

    Args:
        root: Folder with `train*.parquet` and `test*.parquet` (or `validation*`), shards in name order; a folder whose
            only such sub-folder has them (`data/`) will do.
        classes: Class names or indices to take, in this order; all when None. Other images are not decoded.
        dataset: Name recorded in the task.
        image: Image column; the first struct column with `bytes` when None.
        label: Label column; the first `ClassLabel` of the schema, else "label", when None. Without class names in the
            schema, the values of the column are the labels.
        size: Side of the images in pixels; None takes them as they are, of one size.
        train: Name of the training split's files.
        test: Name of the test split's files; "test", else "validation", when None.

    Raises:
        DataError: No such files or columns, rows without a label, unknown classes, unreadable images, images of
            several sizes without `size`.
    """
    import pyarrow.parquet as pq

    folder = _parquet_folder(Path(root), train, dataset)
    files = {"train": sorted(folder.glob(f"{train}*.parquet"))}
    tests = (test,) if test else ("test", "validation")
    files["test"] = next((found for t in tests if (found := sorted(folder.glob(f"{t}*.parquet")))), [])
    if not files["test"]:
        raise DataError(
            f"{dataset}: no test split in {folder}", got=listing(folder), expected=f"{' or '.join(tests)}*.parquet"
        )
    schema = pq.read_schema(files["train"][0])
    features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    image = image or next((f.name for f in schema if _is_image(f.type)), "image")
    class_labels = (c for c, f in features.items() if isinstance(f, dict) and f.get("_type") == "ClassLabel")
    label = label or next(class_labels, "label")
    problems = []
    for file in files["train"] + files["test"]:
        own = pq.read_schema(file)
        if image not in own.names or label not in own.names or not _is_image(own.field(image).type):
            columns = ", ".join(f"{f.name}: {f.type}" for f in own)
            problems.append(f"{file.name} has {columns}")
    if problems:
        raise DataError(
            f"{dataset}: columns are missing", problems=problems,
            expected=f"{image!r} with structs of bytes and path, and {label!r}", hint="Name them: image=, label=.",
        )  # fmt: skip
    values = {s: pq.read_table(files[s], columns=[label])[label].to_numpy() for s in files}
    given = features.get(label, {}).get("names")
    names, index = index_labels(values, given, dataset)
    chosen = pick(names, classes, dataset)
    new = np.full(len(names), -1, np.int64)
    new[chosen] = np.arange(len(chosen))
    images, targets = {}, {}
    for s in files:
        of_split = new[index[s]]
        keep = of_split >= 0
        targets[s] = torch.from_numpy(of_split[keep])
        check_classes(dataset, [names[i] for i in chosen], of_split[keep], s)
        images[s] = read_images(_parquet_images(files[s], image, keep), int(keep.sum()), size)
    return Data(
        dataset, tuple(names[i] for i in chosen), images["train"], targets["train"], images["test"], targets["test"]
    )  # fmt: skip


def arrays(
    train_images: np.ndarray | Sequence[np.ndarray],
    train_labels: Sequence[int] | Sequence[str] | np.ndarray,
    test_images: np.ndarray | Sequence[np.ndarray] | None = None,
    test_labels: Sequence[int] | Sequence[str] | np.ndarray | None = None,
    *,
    labels: Sequence[str] | None = None,
    dataset: str = "arrays",
    size: int | None = None,
    test_fraction: float = 0.2,
    seed: int = 0,
) -> Data:
    """Images that are already in memory.

    Args:
        train_images: uint8, values 0..255: one array (n, H, W), (n, H, W, 1) or (n, H, W, 3), or a list of arrays
            (H, W), (H, W, 1) or (H, W, 3), of several sizes when `size` is given. Floats are refused, because their
            range (0..1 or 0..255) would have to be guessed.
        train_labels: n class names, or n integers that index into `labels`.
        test_images: The test split; drawn from the training images when None (see `image_folder`, `test_fraction`).
        test_labels: Its labels.
        labels: Class names in label order; the sorted values of `train_labels`, as text, when None.
        dataset: Name recorded in the task.
        size: Side of the images in pixels; None takes them as they are.
        test_fraction: Share of each class that becomes the test split where none is given, in (0, 1).
        seed: Seed of that draw.

    Raises:
        DataError: Images that are not uint8 or have another shape, lengths that differ, labels out of range, classes
            without images; everything at once.
    """
    if (test_images is None) != (test_labels is None):
        raise OptionError("arrays: test_images and test_labels go together", got="one of them")
    splits = {"train": (train_images, train_labels)}
    if test_images is not None and test_labels is not None:
        splits["test"] = (test_images, test_labels)
    problems: list[str] = []
    images = {s: _rgb_arrays(x, s, size, problems) for s, (x, _) in splits.items()}
    values = {s: np.asarray(y) for s, (_, y) in splits.items()}
    for s, (x, _) in splits.items():
        if values[s].shape != (len(x),):
            problems.append(f"{s}_labels: shape {values[s].shape} for {len(x)} images")
    if problems:
        raise DataError(f"{dataset}: the arrays are not usable", problems=problems)
    names, index = index_labels(values, labels, dataset)
    tensors = {s: torch.from_numpy(np.stack(x)).permute(0, 3, 1, 2).contiguous() for s, x in images.items()}
    if "test" not in index:
        held = held_out(index["train"], names, fraction_of(test_fraction), seed, dataset)
        tensors = {"train": tensors["train"][torch.from_numpy(~held)], "test": tensors["train"][torch.from_numpy(held)]}
        index = {"train": index["train"][~held], "test": index["train"][held]}
    for s in index:
        check_classes(dataset, names, index[s], s)
    return Data(
        dataset, tuple(names), tensors["train"], torch.from_numpy(index["train"]),
        tensors["test"], torch.from_numpy(index["test"]),
    )  # fmt: skip


def _rgb_arrays(images: Any, split: str, size: int | None, problems: list[str]) -> list[np.ndarray]:
    """Images as uint8 (H, W, 3) arrays of one size; what is wrong goes into `problems`."""
    if size is not None:
        check_count("size", size)
    out: list[np.ndarray] = []
    wrong: dict[str, int] = {}
    for image in images:
        array = np.asarray(image)
        grey = array[..., None] if array.ndim == 2 else array
        if array.dtype != np.uint8:
            reason = f"dtype {array.dtype}, expected uint8 (0..255); floats in 0..1: (x * 255).round().astype('uint8')"
        elif grey.ndim != 3 or grey.shape[2] not in (1, 3) or not grey.size:
            reason = f"an image of shape {array.shape}, expected (H, W), (H, W, 1) or (H, W, 3)"
            if grey.ndim == 3 and grey.shape[0] in (1, 3):
                reason += "; channels go last: x.transpose(0, 2, 3, 1)"
        else:
            rgb = np.broadcast_to(grey, (*grey.shape[:2], 3))
            if size is not None:
                fitted = ImageOps.fit(
                    Image.fromarray(np.ascontiguousarray(rgb)), (size, size), Image.Resampling.BILINEAR
                )
                rgb = np.asarray(fitted)
            out.append(rgb)
            continue
        wrong[reason] = wrong.get(reason, 0) + 1
    problems += [f"{split}_images: {n} with {reason}" for reason, n in list(wrong.items())[:LISTED]]
    if not len(images):
        problems.append(f"{split}_images: no images")
    if len(sizes := {pixels(a.shape) for a in out}) > 1:
        problems.append(f"{split}_images: {len(sizes)} sizes ({', '.join(sorted(sizes)[:4])}); give size=")
    return out


def _is_image(kind: pa.DataType) -> bool:
    return pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0


def _parquet_folder(root: Path, train: str, dataset: str) -> Path:
    """The folder itself or its only sub-folder with training files."""
    folders = [root, *sorted(p for p in root.iterdir() if p.is_dir())] if root.is_dir() else []
    found = [f for f in folders if any(f.glob(f"{train}*.parquet"))]
    if found and (found[0] == root or len(found) == 1):
        return found[0]
    raise DataError(
        f"{dataset}: {'several folders' if found else 'no folder'} with training files in {root}",
        got=", ".join(f.name for f in found) or listing(root),
        expected=f"{train}*.parquet in the folder or in one of its sub-folders",
    )


def _parquet_images(files: Sequence[Path], column: str, keep: np.ndarray) -> Iterator[list[Source]]:
    """The images of the rows to keep, batch by batch; `keep` runs over the rows of all files."""
    import pyarrow.parquet as pq

    at = 0
    for file in files:
        row = 0
        with pq.ParquetFile(file) as opened:
            for batch in opened.iter_batches(batch_size=512, columns=[column]):
                rows = np.flatnonzero(keep[at : at + len(batch)])
                structs = batch.column(0).take(pa.array(rows)).to_pylist()
                yield [
                    (f"{file.name} row {row + i}", None if struct is None else struct["bytes"])
                    for i, struct in zip(rows.tolist(), structs)
                ]
                at, row = at + len(batch), row + len(batch)
