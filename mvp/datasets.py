"""Readers of known data sets, by name: a folder in the layout its authors publish -> `mvp.data.Data`.

`READERS` is the list, `load` calls one by name. Where torchvision can fetch a set, `download=True` does so; nothing is
fetched otherwise. How photographs are cropped and resized: see `mvp/images.py`.
"""

import difflib
import gzip
import inspect
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mvp.data import Data
from mvp.folders import not_found, torchvision_set
from mvp.images import Classes, check_count, fraction_of, held_out, pick
from mvp.photos import caltech256, cub200, fgvc_aircraft, flowers102, imagenet_folder, oxford_pets
from mvp.readers import hub_parquet, image_folder
from zoo.errors import DataError, OptionError

_FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")


def cifar10(root: str | Path, classes: Classes = None, *, download: bool = False) -> Data:
    """CIFAR-10 (50,000 + 10,000 images of 32 px), in torchvision's or the Hub's layout.

    Args:
        root: Folder that holds `cifar-10-batches-py`, or Parquet files in the Hub's layout.
        classes: Class names to take, in this order; all when None.
        download: Let torchvision fetch what is missing into `root`.

    Raises:
        DataError: Neither layout is there, a file is damaged, or a class is unknown.
    """
    return _cifar("cifar10", "CIFAR10", "label", Path(root), classes, download)


def cifar100(root: str | Path, classes: Classes = None, *, download: bool = False) -> Data:
    """CIFAR-100 (50,000 + 10,000 images of 32 px, the 100 fine classes), in torchvision's or the Hub's layout.

    Args:
        root: Folder that holds `cifar-100-python`, or Parquet files in the Hub's layout.
        classes: Class names to take, in this order; all when None.
        download: Let torchvision fetch what is missing into `root`.

    Raises:
        DataError: Neither layout is there, a file is damaged, or a class is unknown.
    """
    return _cifar("cifar100", "CIFAR100", "fine_label", Path(root), classes, download)


def svhn(root: str | Path, classes: Classes = None, *, download: bool = False) -> Data:
    """SVHN's cropped digits (73,257 + 26,032 images of 32 px, classes "0" to "9"; the `extra` split is left out).

    Args:
        root: Folder with `train_32x32.mat` and `test_32x32.mat`.
        classes: Class names to take, in this order; all when None.
        download: Let torchvision fetch what is missing into `root`.

    Raises:
        DataError: The files are missing or damaged, or a class is unknown.
    """
    files = "train_32x32.mat and test_32x32.mat"
    splits = [torchvision_set("svhn", "SVHN", root, files, split=s, download=download) for s in ("train", "test")]
    train, test = ((torch.from_numpy(np.ascontiguousarray(s.data)), torch.from_numpy(s.labels)) for s in splits)
    return _of_classes(Data("svhn", tuple("0123456789"), *train, *test), classes)


def fashion_mnist(root: str | Path, classes: Classes = None, *, size: int = 28, download: bool = False) -> Data:
    """Fashion-MNIST (60,000 + 10,000 grey images of 28 px), as RGB.

    Args:
        root: Folder with the four idx files (`train-images-idx3-ubyte`, ..., plain or .gz, as in Debian's package
            `dataset-fashion-mnist`), or torchvision's, which has them in `FashionMNIST/raw`.
        classes: Class names to take, in this order; all when None.
        size: Side in pixels; other than 28 resizes (bilinear, antialiased). The registered CIFAR bases want 32.
        download: Let torchvision fetch what is missing into `root`.

    Raises:
        DataError: The files are missing or damaged, or a class is unknown.
    """
    check_count("size", size)
    root = Path(root)
    if download:
        torchvision_set("fashion_mnist", "FashionMNIST", root, "an empty folder", download=True)
    names = [f"{s}-{kind}-ubyte" for s in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
    folders = (root, root / "raw", root / "FashionMNIST" / "raw")
    folder = next((f for f in folders if all(_plain_or_gz(f / name) for name in names)), None)
    if folder is None:
        raise not_found("fashion_mnist", root, f"{', '.join(names)} (plain or .gz)", can_download=True)
    train, test = (_idx_split(folder / names[i], folder / names[i + 1], size) for i in (0, 2))
    return _of_classes(Data("fashion_mnist", _FASHION, *train, *test), classes)


def digits(classes: Classes = None, *, size: int = 32, test_fraction: float = 0.25, seed: int = 0) -> Data:
    """scikit-learn's digits (1,797 grey images of 8 px, classes "0" to "9"); they come with it, nothing is fetched.

    Args:
        classes: Class names to take, in this order; all when None.
        size: Side in pixels; other than 8 resizes (bilinear, antialiased).
        test_fraction: Share of each class that becomes the test split, in (0, 1); scikit-learn defines none.
        seed: Seed of that draw; a class is split the same way whichever others are taken.

    Raises:
        DataError: An unknown class.
        OptionError: `size` or `test_fraction` out of range.
    """
    from sklearn.datasets import load_digits

    check_count("size", size)
    pixels, target = load_digits(return_X_y=True)
    grey = torch.from_numpy(pixels.reshape(-1, 1, 8, 8) * (255 / 16)).float()
    images = _resized(grey.expand(-1, 3, -1, -1), size)
    labels, names = target.astype(np.int64), tuple("0123456789")
    held = torch.from_numpy(held_out(labels, names, fraction_of(test_fraction), seed, "digits"))
    targets = torch.from_numpy(labels)
    return _of_classes(Data("digits", names, images[~held], targets[~held], images[held], targets[held]), classes)


READERS: dict[str, Callable[..., Data]] = {
    "caltech256": caltech256,
    "cifar10": cifar10,
    "cifar100": cifar100,
    "cub200": cub200,
    "digits": digits,
    "fashion_mnist": fashion_mnist,
    "fgvc_aircraft": fgvc_aircraft,
    "flowers102": flowers102,
    "hub_parquet": hub_parquet,
    "image_folder": image_folder,
    "imagenet_folder": imagenet_folder,
    "oxford_pets": oxford_pets,
    "svhn": svhn,
}


def load(name: str, root: str | Path | None = None, **options: Any) -> Data:
    """Reads a data set by the name of its reader.

    Args:
        name: A key of `READERS`.
        root: Its folder; only "digits" needs none.
        options: Keyword arguments of the reader (`classes`, `size`, ...).

    Raises:
        OptionError: An unknown name or option, or a missing folder or option; lists what there is.
        DataError: See the reader.
    """
    reader = READERS.get(name)
    if reader is None:
        near = difflib.get_close_matches(name, READERS, n=1)
        raise OptionError(
            f"no data set {name!r}",
            expected=", ".join(READERS),
            hint=f"Did you mean {near[0]}?" if near else "image_folder and hub_parquet read any other.",
        )
    parameters = inspect.signature(reader).parameters
    problems = [f"{name} has no option {option!r}" for option in options if option not in parameters]
    given = dict(options) if root is None else {"root": root, **options}
    if root is not None and "root" not in parameters:
        problems.append(f"{name} comes with an installed package, it has no folder")
    problems += [
        f"{name} needs {'its folder (root)' if p.name == 'root' else p.name}"
        for p in parameters.values()
        if p.default is p.empty and p.name not in given
    ]
    if problems:
        raise OptionError(
            f"cannot read {name}", problems=problems, hint=f"Its options are {', '.join(p for p in parameters)}."
        )
    return reader(**given)


def _cifar(name: str, torchvision_name: str, label: str, root: Path, classes: Classes, download: bool) -> Data:
    folder = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}[name]
    files = f"{folder}/, or train*.parquet and test*.parquet"
    if not download and not (root / folder).is_dir():
        if not any(root.glob("train*.parquet")) and not any(root.glob("*/train*.parquet")):
            raise not_found(name, root, files, can_download=True)
        return hub_parquet(root, classes, dataset=name, label=label)
    splits = [torchvision_set(name, torchvision_name, root, files, train=t, download=download) for t in (True, False)]
    train, test = ((torch.from_numpy(s.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(s.targets)) for s in splits)
    return _of_classes(Data(name, tuple(splits[0].classes), *train, *test), classes)


def _of_classes(data: Data, classes: Classes) -> Data:
    return data if classes is None else data.subset(pick(data.labels, classes, data.dataset))


def _plain_or_gz(file: Path) -> Path | None:
    """The file, or the file with .gz appended, whichever is there."""
    return next((f for f in (file, file.with_name(file.name + ".gz")) if f.is_file()), None)


def _idx_split(images: Path, labels: Path, size: int) -> tuple[Tensor, Tensor]:
    grey = torch.from_numpy(_idx(images))
    return _resized(grey[:, None].expand(-1, 3, -1, -1), size), torch.from_numpy(_idx(labels).astype(np.int64))


def _idx(name: Path) -> np.ndarray:
    """Unsigned bytes in the idx format: two zeros, type 8, number of dimensions, their sizes (big endian), data."""
    file = _plain_or_gz(name)
    if file is None:
        raise DataError(f"{name} is missing")
    try:
        content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        zero, kind, dims = struct.unpack(">HBB", content[:4])
        shape = struct.unpack(f">{dims}I", content[4 : 4 + 4 * dims])
    except (OSError, EOFError, struct.error) as error:
        raise DataError(f"{file} is no idx file: {error}") from error
    data = np.frombuffer(content, np.uint8, offset=4 + 4 * dims)
    if zero or kind != 8 or dims not in (1, 3) or data.size != np.prod(shape):
        raise DataError(
            f"{file} is damaged", got=f"{data.size} bytes for shape {shape}", expected="an idx file of bytes"
        )
    return data.reshape(shape).copy()


def _resized(images: Tensor, size: int) -> Tensor:
    """(n, 3, h, w) with values 0..255 -> uint8 (n, 3, size, size), bilinear and antialiased."""
    if images.shape[-1] != size:
        images = F.interpolate(images.float(), (size, size), mode="bilinear", antialias=True, align_corners=False)
    return (images if images.dtype == torch.uint8 else images.round().clamp(0, 255).to(torch.uint8)).contiguous()
