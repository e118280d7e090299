"""Tiny bases and tiny separable data: a producer, a fine-tuning or a populate run on them takes milliseconds."""

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mvp.bases import full_model, load_base, register
from mvp.data import Data
from mvp.nets import REGISTERED
from mvp.train import InputSpec
from mvp.verify import randomised
from zoo.records import Base

torch.set_num_threads(1)

_FOLDER = TemporaryDirectory(prefix="mvp-tests-")
LABELS = ("dog", "cat", "horse", "sheep", "goat", "lion", "tiger", "wolf", "fox", "bear")
INPUT = {"size": [3, 8, 8], "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}


class TinyCNN(nn.Module):
    """A stem and one residual block: "a0" is written by conv1 and conv3, "a1" by conv2 alone."""

    def __init__(self, num_classes: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 12, 3, 1, 1, bias=False), nn.BatchNorm2d(12)
        self.conv3, self.bn3 = nn.Conv2d(12, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8)
        self.dropout, self.fc = nn.Dropout(dropout), nn.Linear(8, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(x + self.bn3(self.conv3(torch.relu(self.bn2(self.conv2(x))))))
        return self.fc(self.dropout(x.mean((2, 3))))


def _vit(num_classes: int) -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(
        img_size=8, patch_size=4, embed_dim=12, depth=2, num_heads=3, mlp_ratio=2, num_classes=num_classes
    )


FACTORIES: dict[str, Callable[[int], nn.Module]] = {
    "tests-cnn": TinyCNN, "tests-dropout": lambda num_classes: TinyCNN(num_classes, 0.5), "tests-vit": _vit,
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def registered() -> Iterator[None]:
    """Import it into a test module: the tiny architectures are registered while the module's tests run."""
    for name, factory in FACTORIES.items():
        register(name, factory)
    yield
    for name in FACTORIES:
        del REGISTERED[name]


@cache
def base(name: str = "cnn") -> Base:
    """ "cnn", "vit" or "dropout"; no weight, bias or running statistic is zero or constant."""
    plain = load_base(f"tests-{name}", num_classes=len(LABELS), input=INPUT)
    state = randomised(full_model(plain)).float().state_dict()
    state = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    return load_base(f"tests-{name}", state, num_classes=len(LABELS), input=INPUT, plan=plain.plan)


@cache
def data(train: int = 20, test: int = 8) -> Data:
    """Ten animals of 8 px: each has a pattern of its own, with noise; `train` and `test` images a class."""
    rng = np.random.default_rng(0)
    patterns = rng.integers(0, 256, (len(LABELS), 3, 2, 2)).repeat(4, axis=2).repeat(4, axis=3)

    def split(n: int) -> tuple[Tensor, Tensor]:
        labels = rng.permutation(np.arange(len(LABELS)).repeat(n))
        images = np.clip(patterns[labels] + rng.normal(0, 25, (len(labels), 3, 8, 8)), 0, 255).astype(np.uint8)
        return torch.from_numpy(images), torch.from_numpy(labels)

    return Data("animals", LABELS, *split(train), *split(test))


@cache
def generator(name: str = "cnn") -> Path:
    """A file for the producer "stamp": a mask generator meta-trained in two iterations, the tiny base's weights frozen.

    It lies in a temporary folder that goes when Python ends.
    """
    from mvp.producers.stamp_train import meta_train

    out = Path(_FOLDER.name) / f"{name}.safetensors"
    options = {"iterations": 2, "tasks": 2, "images": 24, "batch_size": 12, "width": 16}
    meta_train(base(name), data(), out, splits=3, frozen=True, progress=False, **options)
    return out


def task(*labels: str | int) -> Data:
    """The data of some classes; of the first three without arguments."""
    return data().subset(labels or (0, 1, 2))


SPEC = InputSpec.of(INPUT)
CPU = torch.device("cpu")
