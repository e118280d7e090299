"""`mvp pretrain`: trains a base on a data set (SGD or AdamW, cosine, cutout), with resume after a kill."""

import json
import logging
import math
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save_file

from mvp.data import Data
from mvp.finetune import seeded_noise
from mvp.nets import REGISTERED
from mvp.progress import bar
from mvp.train import InputSpec, accuracy, batches, crop_flip_cutout, derive_seed, pick_device, place, step
from zoo.errors import OptionError

log = logging.getLogger(__name__)
_DEFAULTS = {"sgd": {"lr": 0.1, "weight_decay": 5e-4}, "adamw": {"lr": 1e-3, "weight_decay": 0.05}}


def pretrain(
    name: str,
    data: Data,
    out: str | Path,
    *,
    epochs: int = 20,
    optimizer: Literal["sgd", "adamw"] = "sgd",
    lr: float | None = None,
    batch_size: int = 128,
    weight_decay: float | None = None,
    seed: int = 0,
    device: str | None = None,
    progress: bool = True,
) -> float:
    """Trains a registered base from scratch, learning rate cosine to 0, with crop, flip and cutout.

    "sgd" is for CNNs: Nesterov momentum 0.9. "adamw" is for ViTs, which SGD hardly trains: its learning rate rises
    linearly over the first twentieth of the steps (Dosovitskiy et al. 2021 warm up too).

    Resumes from `out` with the suffix .ckpt when it is there and was written with the same options; epoch e's order
    and augmentation (and dropout) depend on (seed, e) alone, so a resumed run ends with the weights of an
    uninterrupted one.

    Args:
        name: A registered architecture ("resnet20").
        data: The training data; its mean and std of pixels become the base's input spec.
        out: Safetensors file to write; the input spec, options and accuracy go into its metadata.
        epochs: Passes over the training split.
        optimizer: "sgd" or "adamw".
        lr: Peak learning rate; 0.1 (SGD) or 1e-3 (AdamW) when None.
        batch_size: Images a step.
        weight_decay: 5e-4 (SGD, an L2 penalty) or 0.05 (AdamW, decoupled) when None.
        seed: Seed of initialisation, order and augmentation.
        device: See `mvp.train.pick_device`.
        progress: Show a progress bar when the output is a terminal.

    Returns:
        Test accuracy in 0..1.

    Raises:
        OptionError: An unknown architecture or optimizer, epochs, lr or batch_size out of range, or a checkpoint of
            other options.
    """
    if name not in REGISTERED:
        raise OptionError(f"no registered base {name!r}", expected=", ".join(sorted(REGISTERED)))
    if optimizer not in _DEFAULTS:
        raise OptionError("cannot pre-train", got=f"optimizer {optimizer!r}", expected=" or ".join(_DEFAULTS))
    defaults = _DEFAULTS[optimizer]
    lr = defaults["lr"] if lr is None else lr
    weight_decay = defaults["weight_decay"] if weight_decay is None else weight_decay
    if epochs < 1 or batch_size < 2 or lr <= 0:
        raise OptionError(
            "cannot pre-train", got=f"epochs {epochs}, batch_size {batch_size}, lr {lr}",
            expected="epochs >= 1, batch_size >= 2, lr > 0",
        )  # fmt: skip
    where, out = pick_device(device), Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    pixels = data.train_images[:: max(1, len(data.train_images) // 10_000)].double() / 255
    spec = InputSpec(
        (data.train_images.shape[-2], data.train_images.shape[-1]),
        tuple(round(v, 4) for v in pixels.mean((0, 2, 3)).tolist()),
        tuple(round(v, 4) for v in pixels.std((0, 2, 3)).tolist()),
    )
    options = {
        "base": name, "dataset": data.dataset, "classes": len(data.labels), "images": len(data.train_images),
        "epochs": epochs, "lr": lr, "batch_size": batch_size, "weight_decay": weight_decay, "seed": seed,
        **({} if optimizer == "sgd" else {"optimizer": optimizer}),
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = place(REGISTERED[name](len(data.labels)), where)
    trainer: torch.optim.Optimizer
    if optimizer == "sgd":
        trainer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=weight_decay, nesterov=True)
    else:
        trainer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=weight_decay)
    steps_per_epoch = math.ceil(len(data.train_images) / batch_size) - (len(data.train_images) % batch_size == 1)
    checkpoint, first = out.with_suffix(".ckpt"), 0
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=where, weights_only=True)
        if json.loads(state["options"]) != options:
            raise OptionError(
                f"{checkpoint} was written with other options", got=state["options"], expected=json.dumps(options),
                hint="Delete it to start again.",
            )  # fmt: skip
        model.load_state_dict(state["model"])
        trainer.load_state_dict(state["optimizer"])
        first = state["epoch"]
    stream = batches(
        data.train_images, data.train_labels, spec, batch_size=batch_size, seed=seed, device=where,
        augment=crop_flip_cutout(hole=spec.size[0] // 4), start=first,
    )  # fmt: skip
    top1 = 0.0
    with bar(progress=progress) as shown:
        line = shown.add_task("pretrain", total=epochs * steps_per_epoch, completed=first * steps_per_epoch)
        for epoch in range(first, epochs):
            model.train()
            total = torch.zeros((), device=where)
            with seeded_noise(derive_seed(seed, epoch), where):
                for i in range(steps_per_epoch):
                    done = (epoch * steps_per_epoch + i) / (epochs * steps_per_epoch)
                    rise = 1.0 if optimizer == "sgd" else min(1.0, (done + 1e-3) / 0.05)
                    for group in trainer.param_groups:
                        group["lr"] = lr * rise * (1 + math.cos(math.pi * done)) / 2
                    total += step(model, trainer, *next(stream))
                    shown.advance(line)
            top1 = accuracy(model, data.test_images, data.test_labels, spec, device=where)
            log.info("epoch %d/%d: loss %.3f, test %.4f", epoch + 1, epochs, float(total) / steps_per_epoch, top1)
            shown.update(line, description=f"pretrain, test {top1:.3f}")
            state = {"model": model.state_dict(), "optimizer": trainer.state_dict(), "epoch": epoch + 1}
            torch.save(state | {"options": json.dumps(options)}, checkpoint.with_suffix(".tmp"))
            checkpoint.with_suffix(".tmp").replace(checkpoint)
    if first == epochs:
        top1 = accuracy(model, data.test_images, data.test_labels, spec, device=where)
    input_spec = {"size": [3, *spec.size], "mean": list(spec.mean), "std": list(spec.std)}
    metadata = {
        "options": json.dumps(options), "input": json.dumps(input_spec), "accuracy": json.dumps(round(top1, 4)),
        "labels": json.dumps(data.labels),
    }  # fmt: skip
    tensors = {k: v.contiguous().cpu() for k, v in model.state_dict().items()}
    save_file(tensors, out.with_suffix(".tmp"), metadata=metadata)
    out.with_suffix(".tmp").replace(out)
    return top1
