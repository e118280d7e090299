"""Fine-tuning a sub-network on a task: about 100 steps, as MVP does after the vote."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mvp.data import Data
from mvp.masks import apply_elements, apply_masks, element_masks
from mvp.progress import track
from mvp.subnetwork import build, export
from mvp.train import InputSpec, accuracy, batches, derive_seed, pick_device, place, step
from zoo.errors import BaseMismatchError, DataError, OptionError
from zoo.records import Base, SubNetwork


def is_transformer(base: Base) -> bool:
    """Whether the base has attention heads; decides between SGD and AdamW."""
    return any(axis["kind"] == "head" for axis in base.plan["axes"].values())


def make_optimizer(
    model: nn.Module, base: Base, *, lr: float | None = None, weight_decay: float | None = None
) -> torch.optim.Optimizer:
    """MVP's optimisers (section 5.1): SGD with momentum 0.9 at 0.01 for CNNs, AdamW at 2e-4 for ViTs.

    Weight decay is not stated; 5e-4 for SGD and 0.05 for AdamW (Touvron et al. 2021, which MVP follows).
    """
    if is_transformer(base):
        decay = 0.05 if weight_decay is None else weight_decay
        return torch.optim.AdamW(model.parameters(), lr=2e-4 if lr is None else lr, weight_decay=decay)
    decay = 5e-4 if weight_decay is None else weight_decay
    return torch.optim.SGD(model.parameters(), lr=0.01 if lr is None else lr, momentum=0.9, weight_decay=decay)


@contextmanager
def seeded_noise(seed: int, device: torch.device) -> Iterator[None]:
    """Dropout and stochastic depth draw from torch's global generator: seeds it, and puts it back as it was."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(derive_seed(seed, "noise"))
        yield


def check_data(data: Data, base: Base) -> None:
    """Images must be uint8 RGB of at least 2 training images; any size, they are resized to the base's.

    Raises:
        DataError: Fewer than two training images or an empty test split.
    """
    if len(data.train_images) < 2 or not len(data.test_images):
        raise DataError(
            f"{data.dataset}: too few images for {base.name}",
            got=f"{len(data.train_images)} for training, {len(data.test_images)} for testing",
            expected="at least 2 and 1",
        )


def finetune(
    sub: SubNetwork,
    data: Data,
    *,
    steps: int = 100,
    lr: float | None = None,
    batch_size: int = 128,
    weight_decay: float | None = None,
    seed: int | None = None,
    device: str | None = None,
    progress: bool = True,
) -> SubNetwork:
    """Trains a sub-network's weights for a fixed number of steps, learning rate cosine to 0; what it keeps stays.

    Args:
        sub: What to train, usually from `mvp.vote`.
        data: Images of `sub.task`.
        steps: Optimiser steps; 0 only measures.
        lr: Peak learning rate; 0.01 (SGD) or 2e-4 (AdamW, ViT) when None.
        batch_size: Images a step.
        weight_decay: See `make_optimizer`.
        seed: Seed of the batches; the sub-network's own when None.
        device: CUDA when there is one, when None.
        progress: Show a progress bar when the output is a terminal.

    Returns:
        The same sub-network with trained weights and `metrics["accuracy"]` measured on the test split. Producer,
        parents and generation stay; the fine-tuning is recorded under `options["finetune"]`.

    Raises:
        BaseMismatchError: The data's task is not the sub-network's.
        DataError: Too few images.
        OptionError: steps, batch_size, lr or weight_decay out of range; or a sub-network of another kind than
            "structured" or "element", or of kind "element" without masks.
        PlanError: Its element masks do not fit its weights.
    """
    if sub.kind not in ("structured", "element") or (sub.kind == "element" and not sub.element_masks):
        got = f"a sub-network of kind {sub.kind!r}" + (" without masks" if sub.kind == "element" else "")
        raise OptionError("cannot fine-tune", got=got, expected="kind 'structured', or kind 'element' and its masks")
    if steps < 0 or batch_size < 2:
        got = f"{steps} steps of {batch_size} images"
        raise OptionError("cannot fine-tune", got=got, expected="at least 0 and 2")
    if (lr or 0) < 0 or (weight_decay or 0) < 0:
        raise OptionError("cannot fine-tune", got=f"lr {lr}, weight_decay {weight_decay}", expected="0 or more")
    if data.task.labels != sub.task.labels:
        raise BaseMismatchError(
            "the data is of another task than the sub-network", got=", ".join(data.task.labels),
            expected=", ".join(sub.task.labels), hint="Their labels must agree, in order.",
        )  # fmt: skip
    check_data(data, sub.base)
    where = pick_device(device)
    seed = sub.seed if seed is None else seed
    spec = InputSpec.of(dict(sub.base.input))
    model = place(build(sub), where)
    optimizer = make_optimizer(model, sub.base, lr=lr, weight_decay=weight_decay)
    started = time.perf_counter()
    run_steps(
        model, optimizer, data, spec, steps=steps, batch_size=batch_size, seed=seed, device=where, progress=progress,
        keep_masked=None if sub.mode == "coupled" else (sub.base.plan, sub.channels), elements=sub.element_masks,
    )  # fmt: skip
    seconds = time.perf_counter() - started
    top1 = accuracy(model, data.test_images, data.test_labels, spec, device=where)
    group = optimizer.param_groups[0]
    used: dict[str, Any] = {
        "steps": steps, "lr": group["initial_lr"], "batch_size": batch_size, "weight_decay": group["weight_decay"],
        "seed": seed, "optimizer": type(optimizer).__name__,
    }  # fmt: skip
    return export(
        model, sub.base, sub.task, sub.channels, producer=sub.producer, keep=sub.keep, mode=sub.mode, kind=sub.kind,
        init=sub.init, seed=sub.seed, parents=sub.parents, generation=sub.generation,
        options={**sub.options, "finetune": used}, embeddings=sub.embeddings, kept_tokens=sub.kept_tokens,
        removed_blocks=sub.removed_blocks, element_masks=sub.element_masks,
        metrics={**sub.metrics, "accuracy": top1, "finetune_seconds": seconds},
    )  # fmt: skip


def run_steps(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: Data,
    spec: InputSpec,
    *,
    steps: int,
    batch_size: int,
    seed: int,
    device: torch.device,
    progress: bool = False,
    keep_masked: tuple[Any, Mapping[str, np.ndarray]] | None = None,
    elements: Mapping[str, Any] | None = None,
    after: Callable[[int], None] | None = None,
) -> Tensor:
    """`steps` optimiser steps, cosine to 0; returns the last loss. Batches and dropout depend on `seed` alone.

    `keep_masked` (plan, sets) holds removed units at zero in mode "independent", `elements` {parameter: bool mask,
    True = kept} single weights, from before the first step on; `after` is called after each step with the number of
    steps done.
    """
    model.train()
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    stream = batches(
        data.train_images, data.train_labels, spec, batch_size=batch_size, seed=derive_seed(seed, "batches"),
        device=device,
    )  # fmt: skip
    masks = element_masks(model, elements or {})
    apply_elements(model, masks)
    loss = torch.zeros((), device=device)
    with seeded_noise(seed, device):
        for i in track(range(steps), "fine-tune", progress=progress):
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * (1 + math.cos(math.pi * i / steps)) / 2
            loss = step(model, optimizer, *next(stream))
            if keep_masked is not None:
                apply_masks(model, *keep_masked)
            if masks:
                apply_elements(model, masks)
            if after is not None:
                after(i + 1)
                model.train()
    model.eval()
    return loss
