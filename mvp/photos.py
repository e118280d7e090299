"""The data sets of photographs that the papers use, each from the folder its authors publish, with its own split.

All take `size` (see `mvp/images.py` for how an image is cropped and resized) and open only files of the classes asked
for. Where torchvision can fetch a set, `download=True` does so; nothing is fetched otherwise.
"""

from pathlib import Path

import numpy as np

from mvp.data import Data
from mvp.folders import (
    annotations,
    class_folders,
    find_folder,
    has_folders,
    image_files,
    lines,
    not_found,
    torchvision_set,
)
from mvp.images import Classes, Labelled, check_count, photographs, pick, split_files
from zoo import wordnet
from zoo.errors import OptionError


def fgvc_aircraft(
    root: str | Path, classes: Classes = None, *, level: str = "variant", size: int = 224, download: bool = False
) -> Data:
    """FGVC-Aircraft 2013b (6,667 + 3,333 photographs); the 20 rows of the copyright banner are cut off.

    Args:
        root: Folder that holds `fgvc-aircraft-2013b`, or that folder itself.
        classes: Class names to take, in this order; all when None.
        level: "variant" (100 classes), "family" (70) or "manufacturer" (30, as STAMP uses it).
        size: Side of the images in pixels.
        download: Let torchvision fetch it into `root`.

    Raises:
        DataError: Files are missing or cannot be read, or a class is unknown.
        OptionError: An unknown level.
    """
    name_lists = {"variant": "variants.txt", "family": "families.txt", "manufacturer": "manufacturers.txt"}
    if level not in name_lists:
        raise OptionError(f"fgvc_aircraft has no level {level!r}", expected=", ".join(name_lists))
    root = Path(root)
    if download:
        torchvision_set("fgvc_aircraft", "FGVCAircraft", root, "an empty folder", download=True)
    needed = [name_lists[level], f"images_{level}_trainval.txt", f"images_{level}_test.txt", "images"]
    folder = find_folder("fgvc_aircraft", root, ("fgvc-aircraft-2013b/data", "data", "."), needed, can_download=True)
    with annotations("fgvc_aircraft", folder):
        names = lines(folder / name_lists[level])
        place = {name: i for i, name in enumerate(names)}
        train, test = (_aircraft_split(folder, file, place) for file in needed[1:3])
    return photographs("fgvc_aircraft", names, pick(names, classes, "fgvc_aircraft"), train, test, size, cut=20)


def _aircraft_split(folder: Path, file: str, place: dict[str, int]) -> list[Labelled]:
    rows = [line.split(" ", 1) for line in lines(folder / file)]
    return [(folder / "images" / f"{image}.jpg", place[name]) for image, name in rows]


def caltech256(
    root: str | Path,
    classes: Classes = None,
    *,
    size: int = 224,
    train_per_class: int = 60,
    seed: int = 0,
    clutter: bool = False,
    download: bool = False,
) -> Data:
    """Caltech-256 (29,780 photographs); labels are folder names without their number ("001.ak47" -> "ak47").

    The data set defines no split and MVP names none. As usual (Griffin et al. 2007) a fixed number of images a class,
    drawn at random, are for training and all others for testing.

    Args:
        root: Folder that holds `256_ObjectCategories` (also inside `caltech256`), or that folder itself.
        classes: Class names to take, in this order; all when None.
        size: Side of the images in pixels.
        train_per_class: Training images a class; the smallest class has 80 images.
        seed: Seed of the draw; a class is split the same way whichever others are taken.
        clutter: Take the 257th class, "clutter" (background), too. It is left out by default: it is no object.
        download: Let torchvision fetch it into `root`.

    Raises:
        DataError: Folders are missing, a class is unknown or has too few images, or files cannot be read.
    """
    check_count("train_per_class", train_per_class)
    root = Path(root)
    if download:
        torchvision_set("caltech256", "Caltech256", root, "an empty folder", download=True)
    inner = ("caltech256/256_ObjectCategories", "256_ObjectCategories", ".")
    folder = find_folder("caltech256", root, inner, ["001.ak47"], can_download=True)
    folders = [f for f in class_folders(folder, "caltech256") if clutter or not f.endswith(".clutter")]
    names = [f.split(".", 1)[-1] for f in folders]
    chosen = pick(names, classes, "caltech256")
    files = [(file, i) for i in chosen for file in image_files(folder / folders[i])]
    train, test = split_files(files, names, lambda n: n - train_per_class, seed, "caltech256")
    return photographs("caltech256", names, chosen, train, test, size)


def cub200(root: str | Path, classes: Classes = None, *, size: int = 224) -> Data:
    """CUB-200-2011 (5,994 + 5,794 photographs of birds) from its extracted folder, with its own split.

    Args:
        root: Folder `CUB_200_2011`, or the one that holds it.
        classes: Class names to take, in this order, written as "Black footed Albatross"; all when None.
        size: Side of the images in pixels.

    Raises:
        DataError: Files are missing or cannot be read, or a class is unknown.
    """
    tables = ["images.txt", "classes.txt", "image_class_labels.txt", "train_test_split.txt"]
    folder = find_folder("cub200", Path(root), ("CUB_200_2011", "."), [*tables, "images"])
    train: list[Labelled] = []
    test: list[Labelled] = []
    with annotations("cub200", folder):
        paths, folders, class_of, is_train = (dict(line.split(" ", 1) for line in lines(folder / t)) for t in tables)
        place = {number: i for i, number in enumerate(folders)}
        for image, path in paths.items():
            split = {"1": train, "0": test}[is_train[image]]
            split.append((folder / "images" / path, place[class_of[image]]))
    names = [name.split(".", 1)[-1].replace("_", " ") for name in folders.values()]
    return photographs("cub200", names, pick(names, classes, "cub200"), train, test, size)


def flowers102(root: str | Path, classes: Classes = None, *, size: int = 224, download: bool = False) -> Data:
    """Flowers-102: training and validation split (2,040 photographs) to train on, the test split (6,149) to test.

    Args:
        root: Folder that holds torchvision's `flowers-102`, or that folder itself.
        classes: Class names to take, in this order, as torchvision spells them; all when None.
        size: Side of the images in pixels.
        download: Let torchvision fetch it into `root`.

    Raises:
        DataError: Files are missing or cannot be read, or a class is unknown.
    """
    from scipy.io import loadmat
    from torchvision.datasets import Flowers102

    root = Path(root)
    if download:
        torchvision_set("flowers102", "Flowers102", root, "an empty folder", download=True)
    needed = ["setid.mat", "imagelabels.mat", "jpg"]
    folder = find_folder("flowers102", root, ("flowers-102", "."), needed, can_download=True)
    names = list(Flowers102.classes)
    splits: list[list[Labelled]] = []
    with annotations("flowers102", folder):
        ids = loadmat(folder / "setid.mat")
        class_of = loadmat(folder / "imagelabels.mat")["labels"].ravel().astype(np.int64) - 1
        for numbers in (np.hstack([ids["trnid"], ids["valid"]]), ids["tstid"]):
            files = [(folder / "jpg" / f"image_{i:05d}.jpg", int(class_of[i - 1])) for i in numbers.ravel().tolist()]
            splits.append(files)
    return photographs("flowers102", names, pick(names, classes, "flowers102"), splits[0], splits[1], size)


def oxford_pets(root: str | Path, classes: Classes = None, *, size: int = 224, download: bool = False) -> Data:
    """Oxford-IIIT Pet (3,680 + 3,669 photographs, 37 breeds), with its own split.

    Args:
        root: Folder that holds torchvision's `oxford-iiit-pet`, or that folder itself.
        classes: Breeds to take, in this order, as torchvision spells them ("American Bulldog"); all when None.
        size: Side of the images in pixels.
        download: Let torchvision fetch it into `root`.

    Raises:
        DataError: Files are missing or cannot be read, or a class is unknown.
    """
    root = Path(root)
    if download:
        torchvision_set("oxford_pets", "OxfordIIITPet", root, "an empty folder", download=True)
    needed = ["annotations/trainval.txt", "annotations/test.txt", "images"]
    folder = find_folder("oxford_pets", root, ("oxford-iiit-pet", "."), needed, can_download=True)
    with annotations("oxford_pets", folder):
        rows = [[line.split() for line in lines(folder / name) if line[0] != "#"] for name in needed[:2]]
        # The breed is the file's name without its number; breeds are numbered in the second column.
        breeds = {int(row[1]): row[0].rsplit("_", 1)[0] for row in rows[0] + rows[1]}
        place = {number: i for i, number in enumerate(sorted(breeds))}
        train, test = ([(folder / "images" / f"{row[0]}.jpg", place[int(row[1])]) for row in split] for split in rows)
    names = [breeds[number].replace("_", " ").title() for number in sorted(breeds)]
    return photographs("oxford_pets", names, pick(names, classes, "oxford_pets"), train, test, size)


def imagenet_folder(root: str | Path, classes: Classes = None, *, size: int = 224, limit: int | None = None) -> Data:
    """ImageNet from `train/<wnid>/` and `val/<wnid>/`; the validation images are the test split.

    Labels are the synsets' names ("tench.n.01"), which are unique and readable; the task's synsets are the wnids.

    Args:
        root: Folder with `train` and `val`.
        classes: wnids ("n01440764") or synset names to take, in this order. All when None, which needs `limit`.
        size: Side of the images in pixels.
        limit: At most this many images a class and split, the first in name order.

    Raises:
        DataError: Folders are missing, a class is unknown, or files cannot be read.
        OptionError: Neither `classes` nor `limit`: all of ImageNet takes about 190 GB at 224 px.
    """
    if limit is not None:
        check_count("limit", limit)
    if classes is None and limit is None:
        raise OptionError(
            "imagenet: give classes or limit", hint="All of it, decoded at 224 px, is about 190 GB of memory."
        )
    folder = Path(root)
    if not (has_folders(folder / "train") and has_folders(folder / "val")):
        raise not_found("imagenet", folder, "train/<wnid>/*.JPEG and val/<wnid>/*.JPEG, val sorted into folders too")
    wnids = class_folders(folder / "train", "imagenet")
    known = [wordnet.taxonomy().find(w) is not None for w in wnids]
    names = [wordnet.synset_name(w) if k else w for w, k in zip(wnids, known)]
    if classes is not None:
        spelt = dict(zip(wnids, names))
        classes = [spelt.get(c, c) if isinstance(c, str) else c for c in classes]
    chosen = pick(names, classes, "imagenet")
    train, test = (
        [(file, i) for i in chosen for file in image_files(folder / split / wnids[i])[:limit]]
        for split in ("train", "val")
    )
    synsets = [w if k else None for w, k in zip(wnids, known)]
    return photographs("imagenet", names, chosen, train, test, size, synsets=synsets)
