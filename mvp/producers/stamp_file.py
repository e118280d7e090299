"""The file of a meta-trained mask generator: what it was made with, writing and reading it, and its base."""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mvp.bases import load_base
from mvp.data import Data
from mvp.options import at_least, check_options, flag, whole
from mvp.producers.stamp_meta import MaskGenerator
from mvp.train import InputSpec, pick_device
from zoo.errors import BaseMismatchError, DataError, OptionError
from zoo.records import Base

FORMAT = "stamp-generator-1"


@dataclass(frozen=True)
class MetaOptions:
    """What a meta-training run is made of; `SMALL` and `PAPER` are two of them.

    Attributes:
        iterations: Outer steps.
        tasks: Tasks a step; all source tasks when there are fewer.
        images: B, images of a task at each step, equally many of each class: they are the set that is encoded, and in
            mini-batches what is trained on.
        batch_size: Images of a mini-batch.
        width: Width of the set encoder; None for the paper's, as wide as an image has values.
        heads: Attention heads of the set encoder.
        kl: Weight of the KL term, which is divided by a task's number of training images.
        lr: Learning rate of W, inner and outer.
        gate_lr: Of pi: all parameters of the gates.
        encoder_lr: Of theta: the set encoder.
        start: Where the gates start, see `BetaGate`. 2 is what BBDropout's authors take for a VGG: a third of all
            filters is masked at each of the first steps, and it takes thousands; 5 makes it a sixth.
        frozen: Leave W as it is in the outer step, so that the generator belongs to the base given and its
            sub-networks vote with that base's others; the inner steps still train a copy of W.
    """

    iterations: int = 100
    tasks: int = 4
    images: int = 128
    batch_size: int = 64
    width: int | None = 128
    heads: int = 4
    kl: float = 15.0
    lr: float = 1e-3
    gate_lr: float = 1e-2
    encoder_lr: float = 1e-3
    start: float = 5.0
    frozen: bool = False

    name = "meta-train"

    def __post_init__(self) -> None:
        check_options(
            self, iterations=whole(1), tasks=whole(1), images=whole(2), batch_size=whole(2),
            width=whole(1, optional=True), heads=whole(1), kl=at_least(0), lr=at_least(0), gate_lr=at_least(0),
            encoder_lr=at_least(0), start=at_least(-10), frozen=flag(),
        )  # fmt: skip
        if self.width is not None and self.width % self.heads:
            raise OptionError("meta-train: width of the set encoder", got=self.width, expected=f"{self.heads} k")


# Minutes on a few CPU cores with a narrow network; the paper's VGG-19 run, which wants a GPU for hours.
SMALL = MetaOptions()
PAPER = MetaOptions(iterations=2000, tasks=10, images=640, batch_size=128, start=2.0)
CONFIGS = {"small": SMALL, "paper": PAPER}


def write_generator(
    out: Path, state: dict[str, Tensor], base: Base, options: MetaOptions, about: dict[str, Any]
) -> None:
    """Writes a generator, and beside it the meta-trained network unless it is the base that was given.

    Args:
        out: File to write.
        state: The state of a `Masked`: "network.*" and "generator.*".
        base: The base that the run started from.
        options: Of the run.
        about: Further JSON values for the metadata: "curve", "tasks", "seed", and "labels", the classes of the head.
    """
    tensors = {k: v for k, v in state.items() if k.startswith("generator.")}
    info = {
        "options": json.dumps({**asdict(options), "started_from": base.id}), "input": json.dumps(dict(base.input)),
        "labels": json.dumps(about["labels"]),
    }  # fmt: skip
    if not options.frozen:
        network = {k.removeprefix("network."): v for k, v in state.items() if k.startswith("network.")}
        base = _base_of(base.name, network, dict(base.input))
        tensors |= {f"network.{k}": v for k, v in network.items()}
        _write(network, out.with_suffix(".base.safetensors"), info)
    named = {"format": FORMAT, "name": base.name, "base": base.id}
    _write(tensors, out, info | named | {k: json.dumps(v) for k, v in about.items()})


def _write(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    save_file(tensors, path.with_suffix(".tmp"), metadata=metadata)
    path.with_suffix(".tmp").replace(path)


def _base_of(name: str, network: dict[str, Tensor], input: dict[str, Any]) -> Base:
    return load_base(name, {k: v for k, v in network.items() if not k.endswith("num_batches_tracked")}, input=input)


def new_generator(base: Base, options: MetaOptions) -> MaskGenerator:
    """An untrained generator for a base, from torch's global generator."""
    shape = (3, *InputSpec.of(dict(base.input)).size)
    return MaskGenerator(base.plan, shape, width=options.width, heads=options.heads, start=options.start)


def _read(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    if not Path(path).is_file():
        raise DataError(f"no mask generator {path}", hint="`mvp meta-train` makes one.")
    try:
        with safe_open(path, framework="pt") as file:
            tensors, about = {k: file.get_tensor(k) for k in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except SafetensorError as error:
        raise DataError(f"cannot read a mask generator from {path}", got=str(error)) from error
    if about.get("format") != FORMAT:
        raise DataError(f"{path} is no mask generator", got=about.get("format"), expected=FORMAT)
    return tensors, about


def generator_base(path: str | Path) -> Base:
    """The base that a mask generator belongs to: the meta-trained network.

    Raises:
        DataError: No such file, no mask generator, or one made with `frozen=True`, which belongs to its own base.
    """
    tensors, about = _read(path)
    network = {k.removeprefix("network."): v for k, v in tensors.items() if k.startswith("network.")}
    if not network:
        raise DataError(f"{path} holds no network", hint=f"It was made for the base {about['name']} {about['base']}.")
    base = _base_of(about["name"], network, json.loads(about["input"]))
    return replace(base, info={key: json.loads(about[key]) for key in ("options", "labels")})


def load_generator(path: str | Path, base: Base) -> tuple[MaskGenerator, MetaOptions]:
    """A mask generator and the options that it was meta-trained with.

    Raises:
        DataError: No such file, or no mask generator.
        BaseMismatchError: It belongs to another base.
    """
    tensors, about = _read(path)
    if about["base"] != base.id:
        raise BaseMismatchError(
            "the mask generator belongs to another base", got=f"{base.name} {base.id[:12]}",
            expected=f"{about['name']} {about['base'][:12]}", hint="mvp.producers.stamp.generator_base(path) is it.",
        )  # fmt: skip
    stored = json.loads(about["options"])
    options = MetaOptions(**{k: stored[k] for k in asdict(SMALL)})
    with torch.random.fork_rng(devices=[]):
        generator = new_generator(base, options)
    state = {k.removeprefix("generator."): v for k, v in tensors.items() if k.startswith("generator.")}
    try:
        generator.load_state_dict(state)
    except RuntimeError as error:
        raise DataError(f"{path}: its tensors are not a generator's", got=str(error)) from error
    return generator, options


@torch.no_grad()
def task_vector(generator: MaskGenerator, base: Base, data: Data, *, images: int, device: str | None = None) -> Tensor:
    """A task's embedding: the set encoder's vector of at most `images` training images, equally many a class.

    Returns:
        float32 (width,), on the CPU.
    """
    where = pick_device(device)
    sample = data.sample(images, seed=0)
    x = InputSpec.of(dict(base.input))(sample.train_images.to(where))
    return generator.to(where).encoder.vector(x).float().cpu()
