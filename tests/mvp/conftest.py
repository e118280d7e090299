"""Tiny bases, separable images and random sub-networks, shared by the tests of `mvp`."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mvp.bases import load_base, register
from mvp.data import Data
from mvp.nets import REGISTERED
from mvp.plan import keep_counts
from mvp.subnetwork import cost, new_head
from mvp.surgery import slice_tensors
from mvp.verify import randomised
from zoo.records import Base, SubNetwork, Task

torch.set_num_threads(1)

LABELS = ("dog", "cat", "horse", "apple", "pear", "truck")
# One colour a class, far enough apart for a few training steps.
COLOURS = ((230, 30, 30), (30, 230, 30), (30, 30, 230), (230, 230, 30), (230, 30, 230), (30, 230, 230))
INPUT = {"size": [3, 16, 16], "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}


class TinyCNN(nn.Module):
    """A stem, a residual block with an identity shortcut and one with a convolved shortcut, all with batch norm.

    Its plan has four axes: a0, the stem's residual group (8; `stem`, `conv2`), a1 (10; `conv1`), a2, the second stage's
    residual group (12; `shortcut.0`, `conv4`), and a3 (9; `conv3`).
    """

    def __init__(self, num_classes: int = 6) -> None:
        super().__init__()
        self.stem, self.bn0 = nn.Conv2d(3, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8)
        self.conv1, self.bn1 = nn.Conv2d(8, 10, 3, 1, 1, bias=False), nn.BatchNorm2d(10)
        self.conv2, self.bn2 = nn.Conv2d(10, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8)
        self.conv3, self.bn3 = nn.Conv2d(8, 9, 3, 2, 1, bias=True), nn.BatchNorm2d(9)
        self.conv4, self.bn4 = nn.Conv2d(9, 12, 3, 1, 1, bias=False), nn.BatchNorm2d(12)
        self.shortcut = nn.Sequential(nn.Conv2d(8, 12, 1, 2, bias=False), nn.BatchNorm2d(12))
        self.fc = nn.Linear(12, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn0(self.stem(x)))
        x = F.relu(x + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        x = F.relu(self.shortcut(x) + self.bn4(self.conv4(F.relu(self.bn3(self.conv3(x))))))
        return self.fc(x.mean((2, 3)))


def tiny_vit_model(num_classes: int = 6) -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(img_size=16, patch_size=4, embed_dim=32, depth=2, num_heads=4, num_classes=num_classes)


TINY: dict[str, Callable[[int], nn.Module]] = {"tiny_cnn": TinyCNN, "tiny_vit": tiny_vit_model}


def make_tiny_base(name: str, seed: int = 0, **options: Any) -> Base:
    """A tiny base with weights in which no parameter or running statistic is zero or constant."""
    weights = {k: v.float() for k, v in randomised(REGISTERED[name](6), seed).state_dict().items()}
    return load_base(name, weights, input=INPUT, **options)


@functools.cache
def _tiny_base(name: str) -> Base:
    return make_tiny_base(name)


@pytest.fixture(scope="module")
def tiny_names() -> Iterator[dict[str, Callable[[int], nn.Module]]]:
    """The tiny architectures, registered as "tiny_cnn" and "tiny_vit" while the module's tests run."""
    for name, factory in TINY.items():
        register(name, factory)
    yield TINY
    for name in TINY:
        del REGISTERED[name]


@pytest.fixture(scope="module")
def tiny_cnn(tiny_names: Any) -> Base:
    """A base of 6 classes, 3 x 16 x 16 inputs, random weights (no training); see `TinyCNN`."""
    return _tiny_base("tiny_cnn")


@pytest.fixture(scope="module")
def tiny_vit(tiny_names: Any) -> Base:
    """A ViT base of 6 classes, 3 x 16 x 16 inputs, patch 4, width 32, 2 blocks of 4 heads, random weights."""
    return _tiny_base("tiny_vit")


@pytest.fixture(scope="module")
def tiny_base(tiny_names: Any) -> Callable[..., Base]:
    """`make_tiny_base(name, seed=0)`: another seed gives other weights, so another base id."""
    return make_tiny_base


def make_data(
    labels: tuple[str, ...] = LABELS, n: int = 8, *, n_test: int = 4, size: int = 16, noise: float = 25.0,
    seed: int = 0, dataset: str = "tiny",
) -> Data:  # fmt: skip
    """Images of one colour a class with uniform noise: `n` training and `n_test` test images of each class."""
    rng = np.random.default_rng(seed)

    def split(each: int) -> tuple[Tensor, Tensor]:
        y = rng.permutation(np.repeat(np.arange(len(labels)), each))
        which = [LABELS.index(label) if label in LABELS else i % 6 for i, label in enumerate(labels)]
        x = np.array(COLOURS)[which][y][:, :, None, None] + rng.uniform(-noise, noise, (len(y), 3, size, size))
        return torch.from_numpy(x.clip(0, 255).astype(np.uint8)), torch.from_numpy(y.astype(np.int64))

    return Data(dataset, tuple(labels), *split(n), *split(n_test))


@pytest.fixture(scope="session")
def tiny_data() -> Callable[..., Data]:
    """`make_data(labels=LABELS, n=8, *, n_test=4, size=16, noise=25, seed=0)`."""
    return make_data


def make_sub(
    base: Base, labels: tuple[str, ...] = LABELS[:3], *, keep: float = 0.5, seed: int = 0, noise: float = 0.1,
    channels: dict[str, Any] | None = None, **fields: Any,
) -> SubNetwork:  # fmt: skip
    """A sub-network with random channels whose weights are the base's, cut, each scaled by exp(noise * normal).

    Args:
        base: The base.
        labels: Classes of its task, of the data set "tiny".
        keep: Keep ratio of every prunable axis.
        seed: Of channels, noise and head.
        noise: 0 gives the base's own weights.
        channels: Given instead of drawn.
        **fields: Of the record.
    """
    rng = np.random.default_rng(seed)
    if channels is None:
        sizes = {a: info["n"] for a, info in base.plan["axes"].items()}
        channels = {a: rng.choice(sizes[a], k, replace=False) for a, k in keep_counts(base.plan, keep).items()}
    channels = {a: np.sort(np.asarray(kept)) for a, kept in channels.items()}
    full = {k: torch.from_numpy(np.array(v)) for k, v in base.weights.items() if k not in base.plan["head"]}
    cut = {k: v.numpy() for k, v in slice_tensors(full, base.plan, channels).items()}
    weights = {k: (v * np.exp(noise * rng.normal(size=v.shape))).astype(v.dtype) for k, v in cut.items()}
    weights |= {k: v.numpy() for k, v in new_head(base, len(labels), channels, seed=seed).items()}
    params, macs = cost(base, channels, len(labels))
    fields = {"producer": "ifp", "seed": seed, "metrics": {"accuracy": 0.5}, "params": params, "macs": macs, **fields}
    return SubNetwork(
        task=Task(labels=labels, dataset="tiny"), base=base, channels=channels, weights=weights, keep=keep, **fields
    )


@pytest.fixture(scope="session")
def tiny_sub() -> Callable[..., SubNetwork]:
    """`make_sub(base, labels=LABELS[:3], *, keep=0.5, seed=0, noise=0.1, channels=None, **fields)`."""
    return make_sub


@pytest.fixture(scope="session")
def rebadge() -> Callable[..., SubNetwork]:
    """`dataclasses.replace` for sub-networks, digest and all: a record changed so is a new one with its own id."""
    return lambda sub, **changes: dataclasses.replace(sub, weights_digest="", **changes)
