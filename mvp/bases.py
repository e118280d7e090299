"""Base models by name: "timm:...", "torchvision:..." or a registered one, with their weights, input spec and plan."""

import copy
import json
import struct
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mvp.nets import REGISTERED
from mvp.plan import make_plan
from zoo.errors import BaseMismatchError, DataError, OptionError
from zoo.records import Base

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
CIFAR = {"mean": (0.5071, 0.4865, 0.4409), "std": (0.2673, 0.2564, 0.2762)}
# What torch's reader raises on bytes that it did not write.
_UNREADABLE = (
    UnpicklingError, EOFError, RuntimeError, LookupError, ValueError, TypeError, AttributeError, struct.error,
)  # fmt: skip
_SAVE = "Save one with torch.save(model.state_dict(), path)."


def register(name: str, factory: Callable[[int], nn.Module]) -> None:
    """Makes your own architecture a base: `register("mynet", lambda num_classes: MyNet(num_classes))`.

    Args:
        name: The name that records will carry; the same name must build the same network wherever the zoo is read.
        factory: Takes the number of classes, returns the module.

    Raises:
        OptionError: The name is taken or contains a colon.
    """
    if name in REGISTERED or ":" in name or not name:
        raise OptionError(f"cannot register base {name!r}", expected="a new name without a colon")
    REGISTERED[name] = factory  # type: ignore[assignment]


def create(name: str, num_classes: int, *, pretrained: bool = False) -> nn.Module:
    """Builds the architecture; its weights are random unless `pretrained`.

    Raises:
        OptionError: No such architecture (lists close names), or no published weights for it and so many classes.
    """
    source, _, rest = name.partition(":")
    if source == "timm" and rest:
        import timm

        if not timm.is_model(rest):
            raise OptionError(f"timm has no model {rest!r}", hint=_close(rest, timm.list_models()))
        return timm.create_model(rest, pretrained=pretrained, num_classes=num_classes)
    if source == "torchvision" and rest:
        from torchvision import models

        if rest not in models.list_models():
            raise OptionError(f"torchvision has no model {rest!r}", hint=_close(rest, models.list_models()))
        if not pretrained:
            return models.get_model(rest, num_classes=num_classes)
        if num_classes != 1000:
            raise OptionError(f"{name}: no published weights for {num_classes} classes", expected="1000")
        return models.get_model(rest, weights="DEFAULT")
    if name not in REGISTERED:
        raise OptionError(
            f"no base named {name!r}", expected=f"timm:NAME, torchvision:NAME or one of {', '.join(sorted(REGISTERED))}"
        )
    if pretrained:
        raise OptionError(f"{name} has no published weights", hint="Pass weights=path, e.g. from `mvp pretrain`.")
    return REGISTERED[name](num_classes)


def _close(name: str, names: list[str]) -> str:
    from difflib import get_close_matches

    return "Close names: " + ", ".join(get_close_matches(name, names, n=4, cutoff=0.4) or names[:4]) + "."


@lru_cache(maxsize=4)
def skeleton(name: str, num_classes: int) -> nn.Module:
    """The architecture with arbitrary weights, built once; never train or change it, `surgery.build` copies from it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return create(name, num_classes).eval()


def load_base(
    name: str,
    weights: str | Path | Mapping[str, Tensor] | bool | None = None,
    *,
    num_classes: int | None = None,
    input: Mapping[str, Any] | None = None,
    plan: dict[str, Any] | None = None,
    seed: int = 0,
) -> Base:
    """A base model as a record: architecture, weights, input spec and channel plan.

    Args:
        name: "timm:resnet18", "torchvision:resnet50" or a registered name ("resnet20").
        weights: A state dict (tensors or arrays) or a file of one (.safetensors, or .pth read with `weights_only`);
            True for the published weights (downloads); None for random ones.
        num_classes: Outputs; read from the weights when they are given, else the architecture's own default.
        input: {"size": [3, H, W], "mean": [...], "std": [...]}, mean and std of pixels in 0..1. What is left out comes
            from the file's metadata, else from the model's own configuration, else CIFAR's for registered names and
            ImageNet's otherwise.
        plan: A plan made before, to skip the tracing.
        seed: Seed of random weights.

    Raises:
        OptionError: No such architecture, or an input spec of another form.
        BaseMismatchError: The weights do not fit the architecture; lists what is missing, unexpected or misshapen.
        DataError: No such file, or it holds no state dict.
    """
    if any(key not in ("size", "mean", "std") or len(value) != 3 for key, value in (input or {}).items()):
        raise OptionError("input spec", got=dict(input or {}), expected="size [3, H, W], mean [r, g, b], std [r, g, b]")
    info: dict[str, Any] = {}
    state: dict[str, Tensor] | None = None
    if isinstance(weights, (str, Path)):
        state, metadata = _read_weights(Path(weights))
        input = {**json.loads(metadata.pop("input", "{}")), **(input or {})}
        info = {k: json.loads(v) for k, v in metadata.items() if k in ("options", "accuracy", "knn_accuracy", "labels")}
    elif isinstance(weights, Mapping):
        state = {k: v if isinstance(v, Tensor) else torch.from_numpy(np.array(v)) for k, v in weights.items()}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if num_classes is None and state is not None:
            num_classes = _outputs(name, state)
        model = create(name, num_classes or _default_classes(name), pretrained=weights is True)
    if state is not None:
        _load(model, state, name)
    num_classes = num_classes or _default_classes(name)
    input = {**_input_spec(name, model), **(input or {})}
    tensors = {k: v.detach().cpu().numpy().copy() for k, v in model.state_dict().items() if _stored(k)}
    if plan is None:
        plan = make_plan(model.eval(), tuple(input["size"]))
    return Base(name=name, num_classes=num_classes, input=input, plan=plan, weights=tensors, info=info)


def full_model(base: Base) -> nn.Module:
    """The base itself as a module, eval mode.

    Raises:
        BaseMismatchError: The installed version of the architecture is not the one the weights belong to.
    """
    model = copy.deepcopy(skeleton(base.name, base.num_classes))
    _load(model, {k: torch.from_numpy(np.array(v)) for k, v in base.weights.items()}, base.name)
    return model


def _stored(name: str) -> bool:
    # Batch norm's step counter is no weight: it decides nothing and would make equal networks differ.
    return not name.endswith("num_batches_tracked")


def _read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    if not path.is_file():
        raise DataError(f"no weights file {path}", hint="`mvp pretrain` makes one.")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt") as file:
                return {k: file.get_tensor(k) for k in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
        except SafetensorError as error:
            raise DataError(f"cannot read weights from {path}", got=str(error)) from error
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        raise DataError(f"cannot read weights from {path}", got=type(error).__name__, hint=_SAVE) from error
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise DataError(f"{path} holds no state dict", got=type(state).__name__, hint=_SAVE)
    return {k.removeprefix("module."): v for k, v in state.items()}, {}


def _default_classes(name: str) -> int:
    return 1000 if ":" in name else 100


def _outputs(name: str, state: Mapping[str, Tensor]) -> int:
    """Number of classes: the one output size that makes the architecture's parameters fit the state."""
    probe = create(name, 7).state_dict()
    rows = [state[k].shape[0] for k, v in probe.items() if v.ndim and len(v) == 7 and k in state and state[k].ndim]
    return next((n for n in rows if n != 7), 7)


def _load(model: nn.Module, state: Mapping[str, Tensor], name: str) -> None:
    want = {k: tuple(v.shape) for k, v in model.state_dict().items() if _stored(k)}
    got = {k: tuple(v.shape) for k, v in state.items() if _stored(k)}
    problems = [f"{k}: missing" for k in want.keys() - got.keys()]
    problems += [f"{k}: unexpected" for k in got.keys() - want.keys()]
    problems += [f"{k}: shape {got[k]}, expected {want[k]}" for k in want.keys() & got.keys() if got[k] != want[k]]
    if problems:
        raise BaseMismatchError(f"these weights are not {name}'s", problems=sorted(problems)[:20])
    model.load_state_dict(state, strict=False)


def _input_spec(name: str, model: nn.Module) -> dict[str, Any]:
    config = getattr(model, "pretrained_cfg", None)
    if name.startswith("timm:") and config:
        return {"size": list(config["input_size"]), "mean": list(config["mean"]), "std": list(config["std"])}
    stats, size = (IMAGENET, 224) if ":" in name else (CIFAR, 32)
    return {"size": [3, size, size], "mean": list(stats["mean"]), "std": list(stats["std"])}
