"""Images with their task: train and test tensors, subsets of classes, and seeded draws of n-class tasks.

`Data` is what every other part takes. Readers of particular data sets are in `mvp/datasets.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

import zoo
from zoo.errors import DataError, OptionError


@dataclass(frozen=True, eq=False)
class Data:
    """A labelled data set in memory, split into train and test.

    Attributes:
        dataset: Name of the data set ("cifar100"); part of the task's identity.
        labels: Class names; the label tensors index into them.
        train_images: uint8, shape (n, 3, H, W), values 0..255, not normalised (each base has its own input spec).
        train_labels: int64, shape (n,).
        test_images: uint8, shape (m, 3, H, W).
        test_labels: int64, shape (m,).
        synsets: wnids in label order when the data set knows them better than a look-up by name.
        seed: Seed of the draw when the classes were sampled, else None.

    Raises:
        DataError: The tensors do not have these shapes and types, a label is out of range, or class names repeat.
    """

    dataset: str
    labels: tuple[str, ...]
    train_images: Tensor = field(repr=False)
    train_labels: Tensor = field(repr=False)
    test_images: Tensor = field(repr=False)
    test_labels: Tensor = field(repr=False)
    synsets: tuple[str | None, ...] | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", tuple(str(label) for label in self.labels))
        problems = []
        if repeated := sorted({label for label in self.labels if self.labels.count(label) > 1}):
            problems.append(f"labels: more than one class is called {', '.join(repeated)}")
        for split in ("train", "test"):
            images, labels = getattr(self, f"{split}_images"), getattr(self, f"{split}_labels")
            if not isinstance(images, Tensor) or images.ndim != 4 or images.shape[1] != 3:
                shape = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
                problems.append(f"{split}_images: got {shape}, expected a tensor of shape (n, 3, H, W)")
                continue
            if images.dtype != torch.uint8:
                problems.append(f"{split}_images: got dtype {images.dtype}, expected torch.uint8 (0..255)")
            if not isinstance(labels, Tensor) or labels.shape != images.shape[:1] or labels.dtype != torch.int64:
                problems.append(f"{split}_labels: expected an int64 tensor of {images.shape[0]} labels")
            elif len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(self.labels):
                problems.append(
                    f"{split}_labels: values {int(labels.min())}..{int(labels.max())}, "
                    f"expected 0..{len(self.labels) - 1}"
                )
            if not len(images):
                problems.append(f"{split}_images: no images")
        if problems:
            raise DataError(
                f"data set {self.dataset!r} is not usable",
                problems=problems,
                hint="mvp.data.arrays(...) turns numpy arrays of images into a Data.",
            )

    @cached_property
    def task(self) -> "zoo.Task":
        """The task these images belong to."""
        return zoo.Task(labels=self.labels, dataset=self.dataset, synsets=self.synsets, seed=self.seed)

    def subset(self, classes: Sequence[str | int], *, seed: int | None = None) -> "Data":
        """The images of some classes, relabelled 0..len(classes)-1 in the order given.

        Args:
            classes: Names or indices of classes, without repeats.
            seed: Recorded in the task when the classes were drawn at random.

        Raises:
            DataError: A class that is not there, or one named twice.
        """
        names = {label: i for i, label in enumerate(self.labels)}
        ids = [int(c) if isinstance(c, int | np.integer) else names.get(c, -1) for c in classes]
        wrong = [str(c) for c, i in zip(classes, ids, strict=True) if not 0 <= i < len(self.labels)]
        if wrong or len(set(ids)) != len(ids) or not ids:
            raise DataError(
                f"{self.dataset}: cannot take these classes",
                got="unknown " + ", ".join(wrong) if wrong else f"{len(ids)} classes, {len(set(ids))} different",
                expected=f"different classes out of {len(self.labels)}: {', '.join(self.labels[:8])}, ...",
            )
        new = torch.full((len(self.labels),), -1, dtype=torch.int64)
        new[torch.tensor(ids)] = torch.arange(len(ids))
        train, test = new[self.train_labels], new[self.test_labels]
        return Data(
            self.dataset,
            tuple(self.labels[i] for i in ids),
            self.train_images[train >= 0],
            train[train >= 0],
            self.test_images[test >= 0],
            test[test >= 0],
            synsets=None if self.synsets is None else tuple(self.synsets[i] for i in ids),
            seed=seed,
        )

    def sample(self, n: int, *, seed: int) -> "Data":
        """At most `n` training images, as equally many of each class as there are; the test split stays whole."""
        rng = np.random.default_rng(seed)
        labels = self.train_labels.numpy()
        order = rng.permutation(len(labels))
        # Rank within the class first, then the class: a prefix of this order is balanced.
        rank = np.empty(len(labels), dtype=np.int64)
        for c in range(len(self.labels)):
            of_class = order[labels[order] == c]
            rank[of_class] = np.arange(len(of_class))
        chosen = torch.from_numpy(np.sort(np.lexsort((labels, rank))[:n]))
        return Data(
            self.dataset, self.labels, self.train_images[chosen], self.train_labels[chosen],
            self.test_images, self.test_labels, self.synsets, self.seed,
        )  # fmt: skip


def draw_tasks(labels: Sequence[str], n_tasks: int, *, n_classes: int = 5, seed: int = 0) -> list[tuple[str, ...]]:
    """Draws tasks of `n_classes` classes each without replacement (MVP, section 3.1); no class set comes twice.

    Args:
        labels: The classes to draw from.
        n_tasks: Number of tasks.
        n_classes: Classes a task.
        seed: Seed of the draw.

    Returns:
        One tuple of labels a task, in drawn order.

    Raises:
        OptionError: Fewer than two classes a task, or more than there are.
    """
    from math import comb

    if not 2 <= n_classes <= len(labels) or n_tasks > comb(len(labels), n_classes):
        raise OptionError(
            f"cannot draw {n_tasks} different tasks of {n_classes} classes from {len(labels)}",
            hint="A task has at least two classes and at most all of them.",
        )
    rng = np.random.default_rng(seed)
    seen: set[frozenset[int]] = set()
    tasks: list[tuple[str, ...]] = []
    while len(tasks) < n_tasks:
        drawn = rng.choice(len(labels), size=n_classes, replace=False)
        if frozenset(drawn.tolist()) not in seen:
            seen.add(frozenset(drawn.tolist()))
            tasks.append(tuple(labels[i] for i in drawn))
    return tasks


# Every reader is `mvp.data.<name>` too. They build `Data`, so they are imported when first asked for.
if TYPE_CHECKING:
    from mvp.datasets import cifar10 as cifar10
    from mvp.datasets import cifar100 as cifar100
    from mvp.datasets import digits as digits
    from mvp.datasets import fashion_mnist as fashion_mnist
    from mvp.datasets import load as load
    from mvp.datasets import svhn as svhn
    from mvp.photos import caltech256 as caltech256
    from mvp.photos import cub200 as cub200
    from mvp.photos import fgvc_aircraft as fgvc_aircraft
    from mvp.photos import flowers102 as flowers102
    from mvp.photos import imagenet_folder as imagenet_folder
    from mvp.photos import oxford_pets as oxford_pets
    from mvp.readers import arrays as arrays
    from mvp.readers import hub_parquet as hub_parquet
    from mvp.readers import image_folder as image_folder
else:
    _READERS = {
        "mvp.datasets": ("cifar10", "cifar100", "digits", "fashion_mnist", "load", "svhn"),
        "mvp.photos": ("caltech256", "cub200", "fgvc_aircraft", "flowers102", "imagenet_folder", "oxford_pets"),
        "mvp.readers": ("arrays", "hub_parquet", "image_folder"),
    }

    def __getattr__(name: str) -> Any:
        module = next((module for module, names in _READERS.items() if name in names), None)
        if module is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(module), name)

    def __dir__() -> list[str]:
        return sorted([*globals(), *(name for names in _READERS.values() for name in names)])
