"""A network that gets narrower pass by pass, by norms that add up while it trains.

What the producers of the meta-pruning proposal (`norm`, `intersection`, `meta_norm`) have in common.
"""

from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from mvp.data import Data
from mvp.finetune import make_optimizer
from mvp.gates import Gates
from mvp.importance import Scores, weight_sums
from mvp.options import Rule, at_least, between, flag, one_of, whole
from mvp.plan import Plan, keep_counts, kept_indices
from mvp.reinit import reinitialised
from mvp.subnetwork import new_head, task_model
from mvp.surgery import build, shrink
from mvp.train import InputSpec, batches, place, step
from zoo.errors import OptionError
from zoo.records import Base

Counts = Mapping[str, int]
Sets = dict[str, np.ndarray]


@dataclass(frozen=True)
class NormOptions:
    """How the norms are taken, how much goes at a time, and how the network trains in between.

    Attributes:
        norm: "weight": 2-norm of the weights that write a unit (of a filter: over input channels and kernel, dims 1, 2
            and 3). "activation": 2-norm of what a unit puts out in the batch of this step (over dims 0, 2 and 3).
        normalise: Divide each layer's vector of norms by its maximum before it is added up.
        prune_share: p, the share of its current units that every axis loses in one pass.
        every_epochs: N_i, epochs between two passes.
        lr: Learning rate, constant; 0.01 (SGD, CNN) or 2e-4 (AdamW, ViT) when None.
        batch_size: Images a step.
        weight_decay: 5e-4 (SGD) or 0.05 (AdamW) when None.
    """

    norm: Literal["weight", "activation"] = "weight"
    normalise: bool = False
    prune_share: float = 0.05
    every_epochs: int = 7
    lr: float | None = None
    batch_size: int = 128
    weight_decay: float | None = None


RULES: dict[str, Rule] = {
    "norm": one_of("weight", "activation"), "normalise": flag(), "prune_share": between(0, 1, open=True),
    "every_epochs": whole(1), "lr": at_least(0, optional=True), "batch_size": whole(2),
    "weight_decay": at_least(0, optional=True),
}  # fmt: skip


# ------------------------------------------------------------------------------------------ how much goes when


def one_pass(sizes: Counts, target: Counts, share: float) -> dict[str, int]:
    """Units left on every axis after one pass: floor(share n) of the current n go, never below the target.

    An axis above its target loses at least one, where the floor alone would stick (at 5% from 19 units on).
    """
    # 0.29 * 100 is 28.999...: what is a whole number on paper must not fall to the one below.
    return {a: n if n <= target[a] else max(target[a], n - max(1, int(share * n + 1e-9))) for a, n in sizes.items()}


def passes_needed(sizes: Counts, target: Counts, share: float) -> int:
    """Passes until every axis is at its target."""
    passes, now = 0, dict(sizes)
    while any(n > target[axis] for axis, n in now.items()):
        now, passes = one_pass(now, target, share), passes + 1
    return passes


def targets(base: Base, keep: float, name: str) -> tuple[dict[str, int], dict[str, int]]:
    """(units, units to keep) of every prunable axis.

    Raises:
        OptionError: The base has none; named after the producer.
    """
    target = keep_counts(base.plan, keep)
    if not target:
        raise OptionError(f"{name}: {base.name} has no filters, nodes or heads that could go")
    return {axis: base.plan["axes"][axis]["n"] for axis in target}, target


def pass_due(turn: int, turns: int, passes: int) -> bool:
    """Whether a pass follows turn `turn` (0, 1, ...) when `passes` are spread evenly over at least as many turns."""
    return (turn + 1) * passes // turns > turn * passes // turns


def epoch_steps(data: Data, batch_size: int) -> int:
    """Batches an epoch, as `mvp.train.batches` makes them: a single image left over is dropped."""
    n = len(data.train_images)
    return n // batch_size + (n % batch_size > 1)


def part_of(data: Data, share: float, seed: int) -> Data:
    """A share of the training images, the classes balanced."""
    return data if share == 1 else data.sample(max(2, round(share * len(data.train_images))), seed=seed)


# ------------------------------------------------------------------------------------------ the network


class Narrowing:
    """A slim network between two passes: its weights, what it keeps of the base, the norms added up so far.

    Args:
        base: The base.
        options: The producer.
        n_classes: Outputs of the first head.
        where: Device.
        seed: Seed of the first head.

    Attributes:
        model: The network, physically slim.
        plan: Its own plan.
        sets: {axis: kept indices in the base's coordinates}.
        norms: {axis: float64 (units left,)}, sum over steps and over the layers that write the axis.
        steps: Optimiser steps made.
    """

    def __init__(self, base: Base, options: NormOptions, n_classes: int, *, where: torch.device, seed: int) -> None:
        self.base, self.options, self.where = base, options, where
        self.spec = InputSpec.of(dict(base.input))
        self.sets: Sets = {axis: np.arange(base.plan["axes"][axis]["n"]) for axis in keep_counts(base.plan, 1.0)}
        self.steps = 0
        self._heads: dict[Any, tuple[dict[str, Tensor], Sets]] = {}
        self._current: Any = None
        self._take(task_model(base, n_classes, seed=seed), dict(base.plan))

    def _take(self, model: nn.Module, plan: Plan, norms: Sets | None = None) -> None:
        """Goes on with another module, whose optimiser is a new one; norms start from zero unless given."""
        self.model, self.plan = place(model, self.where), plan
        self.optimizer = make_optimizer(
            self.model, self.base, lr=self.options.lr, weight_decay=self.options.weight_decay
        )
        self.norms = norms or {axis: np.zeros(len(kept)) for axis, kept in self.sets.items()}

    def train(self, data: Data, epochs: int, *, seed: int, start: int = 0, measure: bool = True) -> None:
        """Trains for some epochs and adds up the norms of every step.

        Args:
            data: Images; the network's head must be of their task.
            epochs: How many.
            seed: Seed of the order of the images.
            start: Epochs of this seed that were made before.
            measure: False saves the time where no pass follows.
        """
        stream = batches(
            data.train_images, data.train_labels, self.spec, batch_size=self.options.batch_size, seed=seed,
            device=self.where, start=start,
        )  # fmt: skip
        self.model.train()
        with self.gates(self.model, measure) as gates:
            for _ in range(epochs * epoch_steps(data, self.options.batch_size)):
                step(self.model, self.optimizer, *next(stream))
                self.steps += 1
                if measure:
                    self.measure(self.model, gates)

    def gates(self, model: nn.Module, measure: bool = True) -> "Gates | nullcontext[None]":
        """Hooks for activation norms; nothing where they are not needed."""
        if not measure or self.options.norm == "weight":
            return nullcontext()
        return Gates(model, self.plan, list(self.sets), scales=False, order=2)

    def measure(self, model: nn.Module, gates: Gates | None) -> None:
        """Adds the present norms of a network of this shape; those of activations since the gates were last read."""
        now = weight_norms(model, self.plan, self.sets) if gates is None else gates.activations(mean=False)
        if gates is not None:
            gates.reset()
        for axis, layers in now.items():
            for values in layers.values():
                vector = values.cpu().numpy()
                self.norms[axis] += vector / vector.max() if self.options.normalise and vector.max() > 0 else vector

    def narrow(self, counts: Counts) -> None:
        """Only the `counts` units of each axis with the largest norms stay; among equal ones the earlier."""
        self.keep({axis: top(self.norms[axis], n) for axis, n in counts.items()})

    def keep(self, kept: Sets) -> None:
        """Cuts the network to these positions of what is left."""
        self.sets = {axis: self.sets[axis][kept[axis]] for axis in self.sets}
        self._take(*shrink(self.model, self.plan, kept))

    def turn_to(self, task: Any, n_classes: int, *, seed: int) -> None:
        """Puts on the head of a task: as it was left, cut to what the network still keeps, or a new one.

        Args:
            task: Any name; the first head has the name None until it is replaced.
            n_classes: Its outputs.
            seed: Seed of a new head.
        """
        if task == self._current:
            return
        parameters = dict(self.model.named_parameters())
        self._heads[self._current] = ({k: parameters[k].detach() for k in self.base.plan["head"]}, dict(self.sets))
        if task in self._heads:
            tensors, then = self._heads[task]
            head = {name: self._cut(name, tensor, then) for name, tensor in tensors.items()}
        else:
            head = new_head(self.base, n_classes, self.sets, seed=seed)
        self._current = task
        self._take(build(self.model, self.plan, {}, head), self.plan, self.norms)

    def _cut(self, name: str, tensor: Tensor, then: Sets) -> Tensor:
        """A head that was put away when the network kept `then`."""
        if tensor.ndim < 2 or name not in self.base.plan["params"]:
            return tensor
        expr = self.base.plan["params"][name][1]
        old, new = (kept_indices(self.base.plan, expr, sets) for sets in (then, self.sets))
        return tensor.index_select(1, torch.from_numpy(np.searchsorted(old, new)).to(tensor.device))

    def reinitialise(self, n_classes: int, *, seed: int) -> None:
        """Random weights, as the architecture draws them, in what the network still keeps; a new head."""
        fresh = task_model(reinitialised(self.base, seed=seed), n_classes, channels=self.sets, seed=seed)
        self._take(fresh, self.plan, self.norms)


def weight_norms(model: nn.Module, plan: Plan, axes: Iterable[str]) -> Scores:
    """2-norm of the weights that write each unit, {axis: {layer: float64 (n,)}} (the proposal's Algorithm 1)."""
    axes = list(axes)
    names = {f"{writer['layer']}.weight" for axis in axes for writer in plan["axes"][axis]["writers"]}
    parameters = dict(model.named_parameters())
    squares = {name: parameters[name].detach().double().square() for name in names}
    sums = weight_sums(plan, axes, squares)
    return {axis: {layer: values.sqrt() for layer, values in layers.items()} for axis, layers in sums.items()}


def top(scores: np.ndarray, n: int) -> np.ndarray:
    """Positions of the n largest, ascending; among equal ones the earlier stay."""
    return np.sort(np.lexsort((np.arange(len(scores)), -scores))[:n])


def smallest_share(sizes: Counts, target: Counts, passes: int) -> float | None:
    """The smallest share, in whole percent, that reaches the target in so many passes; None when none does."""
    shares = (percent / 100 for percent in range(1, 100))
    return next((share for share in shares if passes_needed(sizes, target, share) <= passes), None)
