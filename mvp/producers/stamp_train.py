"""`mvp meta-train`: STAMP's Algorithm 1, lines 1 to 11, first-order, with resume after a kill."""

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mvp.bases import full_model, load_base
from mvp.data import Data
from mvp.finetune import check_data, seeded_noise
from mvp.producers.stamp_file import CONFIGS, MetaOptions, new_generator, write_generator
from mvp.producers.stamp_meta import Masked, filters
from mvp.progress import bar
from mvp.subnetwork import task_model
from mvp.train import InputSpec, derive_seed, pick_device, place
from zoo.errors import OptionError
from zoo.records import Base

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Curve:
    """Means over the tasks of each outer step, at the last mini-batch: after adapting.

    Attributes:
        loss: Cross-entropy and weighted KL.
        error: Cross-entropy alone.
    """

    loss: list[float]
    error: list[float]


def split_classes(data: Data, tasks: int, *, seed: int = 0) -> list[Data]:
    """Tasks of equally many disjoint classes, drawn by the seed; classes that are left over take no part.

    Raises:
        OptionError: Fewer than two classes a task.
    """
    n = len(data.labels) // max(tasks, 1)
    if tasks < 1 or n < 2:
        raise OptionError(f"cannot split {len(data.labels)} classes into {tasks} tasks", expected="2 classes a task")
    order = torch.randperm(len(data.labels), generator=torch.Generator().manual_seed(derive_seed(seed, "split")))
    return [data.subset([data.labels[c] for c in order[i * n : (i + 1) * n].tolist()]) for i in range(tasks)]


def meta_train(
    base: str | Base,
    source: Data | Sequence[Data],
    out: str | Path,
    *,
    config: str | MetaOptions = "small",
    splits: int = 10,
    seed: int = 0,
    device: str | None = None,
    progress: bool = True,
    **changes: Any,
) -> Curve:
    """Meta-trains a network, gates and a set encoder over tasks, and writes a mask generator for `producer="stamp"`.

    Algorithm 1: at each outer step every task starts from the common parameters phi = {W, pi, theta}; a balanced batch
    of it is encoded and, in mini-batches, trained on with Adam; the gradients at the last mini-batch, taken where the
    others have led, are summed over the tasks and given to the outer Adam (first-order MAML, Eq. 4). All rates fall to
    a tenth at 50% and at 80% of the iterations. The paper is silent on the head: here it has an output for every source
    class, of which a task uses its own, so that tasks of disjoint classes do not contradict each other; a target task
    gets a new one. It is silent on batch norm's running statistics too: the outer ones become the mean of the tasks'.

    Killed and started again it goes on from `out` with the suffix .ckpt when that was written with the same arguments;
    an iteration's draws depend on (seed, iteration) alone, so the result is that of an uninterrupted run.

    Args:
        base: A registered architecture ("vgg_narrow"), whose W starts at random, or a base, whose W is the start; its
            head too, when its `info["labels"]` name all source classes.
        source: The source tasks; or a data set, to be split into tasks of disjoint classes.
        out: Safetensors file to write. Unless W is frozen, the meta-trained network is a base of its own:
            `generator_base(out)`, also beside it as weights for `--weights`, with the suffix .base.safetensors.
        config: "small", "paper" or options of your own.
        splits: Tasks to split a data set into.
        seed: Seed of everything random.
        device: See `mvp.train.pick_device`.
        progress: Show a progress bar when the output is a terminal.
        **changes: Single options that differ from `config`.

    Raises:
        OptionError: An option out of range or unknown, no tasks, a base without filters, or a checkpoint of other
            arguments.
    """
    options, where, out = _options(config, changes), pick_device(device), Path(out)
    tasks = split_classes(source, splits, seed=seed) if isinstance(source, Data) else list(source)
    if not tasks:
        raise OptionError("meta-train: no source tasks")
    labels = list(source.labels if isinstance(source, Data) else dict.fromkeys(c for t in tasks for c in t.labels))
    if isinstance(base, str):
        if options.frozen:
            raise OptionError("meta-train: frozen weights that are random", hint="Give a trained base.")
        base = load_base(base, num_classes=len(labels), seed=derive_seed(seed, "weights"))
        base = replace(base, info={"labels": labels})
    for task in tasks:
        check_data(task, base)
    if not filters(base.plan):
        raise OptionError(f"meta-train: {base.name} has no filters that can be pruned")
    out.parent.mkdir(parents=True, exist_ok=True)
    arguments = json.dumps([asdict(options), base.id, [task.task.id for task in tasks], seed])
    run = _Run(base, tasks, labels, options, seed, where, out.with_suffix(".ckpt"), arguments)
    with bar(progress=progress) as shown:
        line = shown.add_task("meta-train", total=options.iterations, completed=run.done)
        while run.done < options.iterations:
            run.iterate()
            shown.update(line, completed=run.done, description=f"meta-train, loss {run.curve.loss[-1]:.3f}")
    state = {name: value.detach().contiguous().cpu() for name, value in run.model.state_dict().items()}
    about = {"curve": asdict(run.curve), "tasks": [task.task.id for task in tasks], "seed": seed, "labels": run.labels}
    write_generator(out, state, base, options, about)
    return run.curve


def _options(config: str | MetaOptions, changes: dict[str, Any]) -> MetaOptions:
    if isinstance(config, str) and config not in CONFIGS:
        raise OptionError("meta-train: no such configuration", got=repr(config), expected=" or ".join(CONFIGS))
    start = CONFIGS[config] if isinstance(config, str) else config
    if unknown := sorted(changes.keys() - asdict(start).keys()):
        raise OptionError(f"meta-train: no option {', '.join(unknown)}", expected=", ".join(asdict(start)))
    return replace(start, **changes)


class _Run:
    """A meta-training run between two iterations."""

    def __init__(
        self, base: Base, tasks: list[Data], labels: list[str], options: MetaOptions, seed: int, where: torch.device,
        checkpoint: Path, arguments: str,
    ) -> None:  # fmt: skip
        self.base, self.tasks, self.options, self.seed, self.where = base, tasks, options, seed, where
        self.spec = InputSpec.of(dict(base.input))
        # A base that knows all the classes keeps its head, another one gets a new head for them.
        own = list(base.info.get("labels", ()))
        known = len(own) == base.num_classes and set(labels) <= set(own)
        self.labels = own if known else labels
        network = full_model(base) if known else task_model(base, len(labels), seed=seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, "generator"))
            generator = new_generator(base, options)
        self.model = Masked(place(network, where), base.plan, generator.to(where))
        self.model.train()
        self.curve, self.done = Curve([], []), 0
        self.outer = torch.optim.Adam(self._groups(outer=True))
        self.checkpoint, self.arguments = checkpoint, arguments
        self.every = max(1, min(50, options.iterations // 20))
        if checkpoint.exists():
            self._resume()

    def iterate(self) -> None:
        """One outer step."""
        i, options = self.done, self.options
        rng = torch.Generator().manual_seed(derive_seed(self.seed, "tasks", i))
        chosen = torch.randperm(len(self.tasks), generator=rng)[: options.tasks].tolist()
        start = {name: value.clone() for name, value in self.model.state_dict().items()}
        gradients: dict[str, Tensor] = {}
        buffers = {name: torch.zeros_like(v) for name, v in self.model.named_buffers() if v.is_floating_point()}
        losses, errors = [], []
        for n in chosen:
            self.model.load_state_dict(start)
            with seeded_noise(derive_seed(self.seed, i, n), self.where):
                loss, error = self._adapt(self.tasks[n], derive_seed(self.seed, "batch", i, n))
            losses.append(loss)
            errors.append(error)
            for name, parameter in self.model.named_parameters():
                if parameter.grad is not None:
                    gradients[name] = gradients[name] + parameter.grad if name in gradients else parameter.grad.clone()
            for name, value in self.model.named_buffers():
                if name in buffers:
                    buffers[name] += value / len(chosen)
        self.model.load_state_dict(start | ({} if options.frozen else buffers))
        for name, parameter in self.model.named_parameters():
            frozen = options.frozen and name.startswith("network.")
            parameter.grad = None if frozen else gradients.get(name)
        for group, fresh in zip(self.outer.param_groups, self._groups(outer=True), strict=True):
            group["lr"] = fresh["lr"]
        self.outer.step()
        self.done += 1
        self.curve.loss.append(float(torch.stack(losses).mean()))
        self.curve.error.append(float(torch.stack(errors).mean()))
        log.info("iteration %d: loss %.4f, cross-entropy %.4f", self.done, self.curve.loss[-1], self.curve.error[-1])
        if self.done % self.every == 0 or self.done == options.iterations:
            self._save()

    def _adapt(self, task: Data, seed: int) -> tuple[Tensor, Tensor]:
        """Inner steps on all mini-batches but the last, whose gradients stay on the parameters."""
        options = self.options
        batch = task.sample(options.images, seed=seed)
        order = torch.randperm(len(batch.train_images), generator=torch.Generator().manual_seed(seed))
        images = self.spec(batch.train_images[order].to(self.where))
        labels = batch.train_labels[order].to(self.where)
        rows = torch.tensor([self.labels.index(label) for label in task.labels], device=self.where)
        # A mini-batch of one image cannot train batch norm.
        starts = [s for s in range(0, len(images), options.batch_size) if len(images) - s > 1]
        inner = torch.optim.Adam(self._groups())
        weight = options.kl / len(task.train_images)
        loss = error = torch.zeros(())
        for s in starts:
            part = slice(s, s + options.batch_size)
            loss, error = self.model.loss(images[part], labels[part], images, weight, rows)
            inner.zero_grad(set_to_none=True)
            loss.backward()
            if s != starts[-1]:
                inner.step()
        return loss.detach(), error

    def _groups(self, *, outer: bool = False) -> list[dict[str, Any]]:
        options = self.options
        falls = (options.iterations // 2, options.iterations * 4 // 5)
        rate = 0.1 ** sum(self.done >= max(1, fall) for fall in falls)
        # The inner steps train everything; the outer one leaves a frozen W out.
        groups = self.model.groups(rate * options.lr, rate * options.gate_lr, rate * options.encoder_lr)
        return groups[1:] if outer and options.frozen else groups

    def _save(self) -> None:
        state = {
            "model": self.model.state_dict(), "outer": self.outer.state_dict(), "done": self.done,
            "curve": json.dumps(asdict(self.curve)), "arguments": self.arguments,
        }  # fmt: skip
        torch.save(state, self.checkpoint.with_suffix(".tmp"))
        self.checkpoint.with_suffix(".tmp").replace(self.checkpoint)

    def _resume(self) -> None:
        state = torch.load(self.checkpoint, map_location=self.where, weights_only=True)
        if state["arguments"] != self.arguments:
            raise OptionError(
                f"{self.checkpoint} was written with other arguments", got=state["arguments"], expected=self.arguments,
                hint="Delete it to start again.",
            )  # fmt: skip
        self.model.load_state_dict(state["model"])
        self.outer.load_state_dict(state["outer"])
        self.curve, self.done = Curve(**json.loads(state["curve"])), state["done"]
