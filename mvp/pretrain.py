"""`mvp pretrain`: trains a base on a data set, with its labels or without them (SimSiam), with resume after a kill."""

import json
import logging
import math
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import nn

from mvp.data import Data
from mvp.finetune import seeded_noise
from mvp.nets import REGISTERED
from mvp.progress import bar
from mvp.simsiam import SimSiam, knn_accuracy, simsiam_step, two_views
from mvp.train import InputSpec, accuracy, batches, crop_flip_cutout, derive_seed, pick_device, place, step
from zoo.errors import OptionError

log = logging.getLogger(__name__)
METHODS = ("supervised", "simsiam")
_DEFAULTS = {"sgd": {"lr": 0.1, "weight_decay": 5e-4}, "adamw": {"lr": 1e-3, "weight_decay": 0.05}}
_QUICK = 5000  # images of each split in the k-NN between epochs
_COLLAPSED = 0.1  # spread of SimSiam's outputs below which something is wrong


def pretrain(
    name: str,
    data: Data,
    out: str | Path,
    *,
    method: Literal["supervised", "simsiam"] = "supervised",
    epochs: int = 20,
    optimizer: Literal["sgd", "adamw"] = "sgd",
    lr: float | None = None,
    batch_size: int = 128,
    weight_decay: float | None = None,
    seed: int = 0,
    device: str | None = None,
    progress: bool = True,
) -> float:
    """Trains a registered base from scratch, learning rate cosine to 0.

    "supervised": cross-entropy, with crop, flip and cutout. "simsiam": no labels (Chen & He 2021, see `mvp.simsiam`);
    the output layer, which belongs to the tasks, stays as it started. The spread of the outputs is logged after each
    epoch, with a warning when they have collapsed to one point.

    "sgd" is for CNNs: momentum 0.9, Nesterov's for "supervised". "adamw" is for ViTs, which SGD hardly trains: its
    learning rate rises linearly over the first twentieth of the steps (Dosovitskiy et al. 2021 warm up too).

    Resumes from `out` with the suffix .ckpt when it is there and was written with the same options; epoch e's order
    and augmentation (and dropout) depend on (seed, e) alone, so a resumed run ends with the weights of an
    uninterrupted one.

    Args:
        name: A registered architecture ("resnet20").
        data: The training data; its mean and std of pixels become the base's input spec.
        out: Safetensors file to write; the input spec, options and accuracy go into its metadata, as "accuracy" or,
            of "simsiam", as "knn_accuracy".
        method: "supervised" or "simsiam".
        epochs: Passes over the training split.
        optimizer: "sgd" or "adamw".
        lr: Peak learning rate. When None 0.1 (SGD), 0.03 batch_size / 256 (SGD, "simsiam") or 1e-3 (AdamW).
        batch_size: Images a step, each seen twice by "simsiam"; its authors take 512.
        weight_decay: 5e-4 (SGD, an L2 penalty) or 0.05 (AdamW, decoupled) when None.
        seed: Seed of initialisation, order and augmentation.
        device: See `mvp.train.pick_device`.
        progress: Show a progress bar when the output is a terminal.

    Returns:
        Test accuracy in 0..1; of "simsiam" that of a k-NN on the encoder's features (`mvp.simsiam.knn_accuracy`).

    Raises:
        OptionError: An unknown architecture, method or optimizer, epochs, lr or batch_size out of range, or a
            checkpoint of other options.
    """
    if name not in REGISTERED:
        raise OptionError(f"no registered base {name!r}", expected=", ".join(sorted(REGISTERED)))
    for what, got, known in (("optimizer", optimizer, _DEFAULTS), ("method", method, METHODS)):
        if got not in known:
            raise OptionError("cannot pre-train", got=f"{what} {got!r}", expected=" or ".join(known))
    supervised = method == "supervised"
    defaults = _DEFAULTS[optimizer]
    if lr is None:
        lr = defaults["lr"] if supervised or optimizer != "sgd" else 0.03 * batch_size / 256
    weight_decay = defaults["weight_decay"] if weight_decay is None else weight_decay
    if epochs < 1 or batch_size < 2 or lr <= 0:
        raise OptionError(
            "cannot pre-train", got=f"epochs {epochs}, batch_size {batch_size}, lr {lr}",
            expected="epochs >= 1, batch_size >= 2, lr > 0",
        )  # fmt: skip
    where, out = pick_device(device), Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    spec = _spec(data)
    options = {
        "base": name, "dataset": data.dataset, "classes": len(data.labels), "images": len(data.train_images),
        "epochs": epochs, "lr": lr, "batch_size": batch_size, "weight_decay": weight_decay, "seed": seed,
        **({} if optimizer == "sgd" else {"optimizer": optimizer}), **({} if supervised else {"method": method}),
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: nn.Module = REGISTERED[name](len(data.labels))
        learner = model if supervised else SimSiam(model, spec.size)
    place(learner, where)
    trainer = _trainer(learner, optimizer, lr, weight_decay, nesterov=supervised)
    steps_per_epoch = math.ceil(len(data.train_images) / batch_size) - (len(data.train_images) % batch_size == 1)
    checkpoint = out.with_suffix(".ckpt")
    first = _resume(checkpoint, options, learner, trainer, where)
    stream = batches(
        data.train_images, data.train_labels, spec, batch_size=batch_size, seed=seed, device=where,
        augment=crop_flip_cutout(hole=spec.size[0] // 4) if supervised else two_views(spec), start=first,
    )  # fmt: skip

    def measure(most: int | None = None) -> float:
        if supervised:
            return accuracy(model, data.test_images, data.test_labels, spec, device=where)
        return knn_accuracy(model, data, spec, device=where, most=most)

    top1 = None
    with bar(progress=progress) as shown:
        line = shown.add_task("pretrain", total=epochs * steps_per_epoch, completed=first * steps_per_epoch)
        for epoch in range(first, epochs):
            learner.train()
            total, spread = torch.zeros((), device=where), torch.zeros((), device=where)
            with seeded_noise(derive_seed(seed, epoch), where):
                for i in range(steps_per_epoch):
                    done = (epoch * steps_per_epoch + i) / (epochs * steps_per_epoch)
                    rise = 1.0 if optimizer == "sgd" else min(1.0, (done + 1e-3) / 0.05)
                    for group in trainer.param_groups:
                        group["lr"] = lr * rise * (1 + math.cos(math.pi * done)) / 2
                    x, y = next(stream)
                    if isinstance(learner, SimSiam):
                        value, wide = simsiam_step(learner, trainer, x)
                        spread += wide
                    else:
                        value = step(learner, trainer, x, y)
                    total += value
                    shown.advance(line)
            top1 = measure(_QUICK)
            loss, width = float(total) / steps_per_epoch, float(spread) / steps_per_epoch
            kind = "test" if supervised else f"spread {width:.2f}, k-NN"
            log.info("epoch %d/%d: loss %.3f, %s %.4f", epoch + 1, epochs, loss, kind, top1)
            if not supervised and width < _COLLAPSED:
                log.warning("SimSiam has collapsed: its outputs spread %.3f where about 1 is healthy", width)
            shown.update(line, description=f"pretrain, {kind} {top1:.3f}")
            _save(checkpoint, options, learner, trainer, epoch + 1)
    if top1 is None or not supervised:
        top1 = measure()
    if isinstance(learner, SimSiam):
        model = learner.classifier()
    input_spec = {"size": [3, *spec.size], "mean": list(spec.mean), "std": list(spec.std)}
    metadata = {
        "options": json.dumps(options), "input": json.dumps(input_spec), "labels": json.dumps(data.labels),
        "accuracy" if supervised else "knn_accuracy": json.dumps(round(top1, 4)),
    }  # fmt: skip
    tensors = {k: v.contiguous().cpu() for k, v in model.state_dict().items()}
    save_file(tensors, out.with_suffix(".tmp"), metadata=metadata)
    out.with_suffix(".tmp").replace(out)
    return top1


def _spec(data: Data) -> InputSpec:
    """Size, mean and std of the training images, from at most 20,000 of them."""
    pixels = data.train_images[:: max(1, len(data.train_images) // 10_000)].double() / 255
    return InputSpec(
        (data.train_images.shape[-2], data.train_images.shape[-1]),
        tuple(round(v, 4) for v in pixels.mean((0, 2, 3)).tolist()),
        tuple(round(v, 4) for v in pixels.std((0, 2, 3)).tolist()),
    )


def _trainer(
    learner: nn.Module, optimizer: str, lr: float, weight_decay: float, *, nesterov: bool
) -> torch.optim.Optimizer:
    trained = [p for p in learner.parameters() if p.requires_grad]
    if optimizer == "sgd":
        return torch.optim.SGD(trained, lr=lr, momentum=0.9, weight_decay=weight_decay, nesterov=nesterov)
    return torch.optim.AdamW(trained, lr=lr, weight_decay=weight_decay)


def _save(
    checkpoint: Path, options: dict[str, Any], learner: nn.Module, trainer: torch.optim.Optimizer, epoch: int
) -> None:
    state = {"model": learner.state_dict(), "optimizer": trainer.state_dict(), "epoch": epoch}
    torch.save(state | {"options": json.dumps(options)}, checkpoint.with_suffix(".tmp"))
    checkpoint.with_suffix(".tmp").replace(checkpoint)


def _resume(
    checkpoint: Path, options: dict[str, Any], learner: nn.Module, trainer: torch.optim.Optimizer, where: torch.device
) -> int:
    """Loads the checkpoint when there is one; the number of epochs done.

    Raises:
        OptionError: It was written with other options.
    """
    if not checkpoint.exists():
        return 0
    state = torch.load(checkpoint, map_location=where, weights_only=True)
    if json.loads(state["options"]) != options:
        raise OptionError(
            f"{checkpoint} was written with other options", got=state["options"], expected=json.dumps(options),
            hint="Delete it to start again.",
        )  # fmt: skip
    learner.load_state_dict(state["model"])
    trainer.load_state_dict(state["optimizer"])
    return state["epoch"]
