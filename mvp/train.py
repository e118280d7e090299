"""The one training loop: seeded batches on the device, one step, evaluation. Fine-tuning is `finetune.py`.

Mixed precision and channels_last follow the device: bf16 autocast on CUDA only (on a CPU without bf16 units it is
15 times slower than float32), channels_last on CUDA only (see `memory_format`).
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.errors import OptionError


@dataclass(frozen=True)
class InputSpec:
    """What a base wants to see: image size in pixels (height, width), per-channel mean and std of pixels in 0..1."""

    size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @classmethod
    def of(cls, spec: dict[str, Any]) -> "InputSpec":
        """From the plain dict stored with a base: {"size": [3, H, W], "mean": [...], "std": [...]}."""
        return cls(tuple(spec["size"][-2:]), tuple(spec["mean"]), tuple(spec["std"]))

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 (n, 3, h, w) -> float32 (n, 3, H, W), resized (bilinear, antialiased) where the size differs."""
        x = images.float()
        if x.shape[-2:] != self.size:
            x = F.interpolate(x, self.size, mode="bilinear", antialias=True, align_corners=False).clamp(0, 255)
        mean = torch.tensor(self.mean, device=x.device).view(3, 1, 1) * 255
        std = torch.tensor(self.std, device=x.device).view(3, 1, 1) * 255
        return ((x - mean) / std).contiguous(memory_format=memory_format(x.device))


def pick_device(device: str | torch.device | None) -> torch.device:
    """The device asked for; CUDA when there is one and None was asked; else the CPU.

    Raises:
        OptionError: A CUDA device is asked for and there is none.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise OptionError("device='cuda' but no CUDA device is available", hint="Leave device out to run on the CPU.")
    return device


def memory_format(device: torch.device) -> torch.memory_format:
    """channels_last on CUDA, contiguous on the CPU.

    On a CPU without AVX-512, oneDNN's channels_last convolutions write out of bounds in the backward pass when the
    channel count is no multiple of 8, as in slim networks (measured with torch 2.15: the process aborts).
    """
    return torch.channels_last if device.type == "cuda" else torch.contiguous_format


def place(model: nn.Module, device: torch.device) -> nn.Module:
    """The model on the device, in the memory format that suits it."""
    return model.to(device, memory_format=memory_format(device))  # type: ignore[call-overload]


def derive_seed(*parts: object) -> int:
    """A 63-bit seed from any printable parts, so that one seed gives independent streams by name."""
    return int.from_bytes(hashlib.sha256(json.dumps([str(p) for p in parts]).encode()).digest()[:8], "big") >> 1


Augment = Callable[[Tensor, torch.Generator], Tensor]


def crop_flip_cutout(pad: int = 4, hole: int = 8) -> Augment:
    """Random crop after padding, horizontal flip and cutout (DeVries & Taylor 2017), each drawn per image.

    Args:
        pad: Pixels of zero padding on each side before the crop.
        hole: Side of the square that is set to zero, in pixels; 8 is the paper's length on CIFAR-100.
    """

    def augment(x: Tensor, rng: torch.Generator) -> Tensor:
        n, _, h, w = x.shape
        draw = torch.randint(0, 2**31 - 1, (5, n), generator=rng).to(x.device)
        rows = torch.arange(h, device=x.device) + (draw[0] % (2 * pad + 1))[:, None]
        cols = torch.arange(w, device=x.device).repeat(n, 1)
        cols = torch.where((draw[2] % 2 == 0)[:, None], cols, w - 1 - cols) + (draw[1] % (2 * pad + 1))[:, None]
        padded = F.pad(x, (pad, pad, pad, pad))
        x = padded[torch.arange(n, device=x.device)[:, None, None], :, rows[:, :, None], cols[:, None, :]]
        # Indexing leaves the channels last; see `memory_format` for why that must not reach a convolution on a CPU.
        x = x.permute(0, 3, 1, 2).contiguous(memory_format=memory_format(x.device))
        y0, x0 = (draw[3] % h)[:, None] - hole // 2, (draw[4] % w)[:, None] - hole // 2
        ys, xs = torch.arange(h, device=x.device), torch.arange(w, device=x.device)
        in_y, in_x = (ys >= y0) & (ys < y0 + hole), (xs >= x0) & (xs < x0 + hole)
        return x * ~(in_y[:, None, :, None] & in_x[:, None, None, :])

    return augment


def batches(
    images: Tensor,
    labels: Tensor,
    spec: InputSpec,
    *,
    batch_size: int,
    seed: int,
    device: torch.device,
    augment: Augment | None = None,
    start: int = 0,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless shuffled batches, normalised on the device; epoch e is a function of (seed, e) alone, so runs can resume.

    Args:
        images: uint8, shape (n, 3, h, w); moved to the device whole.
        labels: int64, shape (n,).
        spec: The base's input spec.
        batch_size: Images a batch; the last batch of an epoch may be short, but a single image left over is dropped.
        seed: Seed of order and augmentation; the same batches on CPU and GPU.
        device: Where batches are made.
        augment: Applied after normalisation.
        start: Epoch to start from.

    Yields:
        (float32 (b, 3, H, W), int64 (b,)).

    Raises:
        OptionError: No images, or a batch size below 1; raised when the first batch is asked for.
    """
    if not len(images) or batch_size < 1:  # would look for a batch for ever
        raise OptionError(f"no batches of {batch_size} out of {len(images)} images", expected="at least 1 of both")
    images, labels = images.to(device), labels.to(device)
    n, epoch = len(images), start
    while True:
        rng = torch.Generator().manual_seed(derive_seed(seed, "epoch", epoch))
        order = torch.randperm(n, generator=rng).to(device)
        for i in range(0, n, batch_size):
            if n - i == 1 and i and batch_size > 1:  # batch norm cannot train on one image
                break
            index = order[i : i + batch_size]
            x = spec(images[index])
            yield (x if augment is None else augment(x, rng)), labels[index]
        epoch += 1


def step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> Tensor:
    """One optimiser step on cross-entropy; the loss is returned without waiting for the device."""
    with torch.autocast(x.device.type, torch.bfloat16, enabled=x.device.type == "cuda"):
        loss = F.cross_entropy(model(x), y)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return loss.detach()


@torch.no_grad()
def outputs(
    model: nn.Module, images: Tensor, spec: InputSpec, *, device: torch.device, batch_size: int | None = None
) -> Tensor:
    """Logits of every image, eval mode, float32 on the CPU, shape (n, classes).

    `batch_size` is 64 on a CPU, where activations should stay in the cache, and 500 elsewhere, when None.
    """
    batch_size = batch_size or (64 if device.type == "cpu" else 500)
    was_training = model.training
    model.eval()
    parts = []
    for i in range(0, len(images), batch_size):
        x = spec(images[i : i + batch_size].to(device))
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            parts.append(model(x).float().cpu())
    model.train(was_training)
    return torch.cat(parts)


def accuracy(model: nn.Module, images: Tensor, labels: Tensor, spec: InputSpec, *, device: torch.device) -> float:
    """Top-1 accuracy in 0..1."""
    return float((outputs(model, images, spec, device=device).argmax(1) == labels.cpu()).double().mean())
