"""Iterative filter pruning: MVP's Algorithm 2, with activation or Taylor importance."""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import nn

from mvp.data import Data
from mvp.finetune import check_data, seeded_noise
from mvp.importance import activation, taylor
from mvp.masks import apply_masks, layer_sets
from mvp.options import at_least, between, check_options, one_of, whole
from mvp.plan import keep_counts
from mvp.producers import check_keep
from mvp.progress import track
from mvp.subnetwork import export, task_model
from mvp.surgery import shrink
from mvp.train import InputSpec, accuracy, batches, derive_seed, pick_device, place, step
from zoo.errors import OptionError
from zoo.records import Base, SubNetwork

Sets = dict[str, np.ndarray]


@dataclass(frozen=True)
class IFP:
    """Alternates SGD steps with the removal of the least important remaining filters of every layer.

    Source: MVP (Zhao et al.), Algorithm 2 and section 3.1. For j = 1..J: if j % h == 0 and a layer still has more than
    (1 - r) n filters, p of its *remaining* filters with the smallest importance over the task's training images go;
    then one SGD step on what is left. The last layer is never pruned. The paper is silent on p and h: p = 20% and
    h = max(1, J // 100) fit its FLOPs column (35 full-size iterations of 1,000). A layer loses
    max(1, round(p x remaining)) at a time and never falls below max(1, round(keep n)). A removal restarts the
    optimiser's momentum. In mode "coupled" the layers of a residual group share one set, their importance is summed,
    and the network shrinks physically at each removal. In mode "independent" every layer has its own set and removed
    filters are held at zero.

    Attributes:
        importance: "activation": mean over images and positions of the filter's post-norm, post-ReLU output, mean
            absolute without a ReLU (Molchanov et al. 2016). "taylor": a gate of 1 behind each filter, its gradient
            squared, averaged over mini-batches, in eval mode, with a momentum of 0.9 over the removals (Molchanov et
            al. 2019).
        steps: J, SGD steps in all.
        prune_share: p, the share of remaining filters removed at a time.
        prune_every: h, steps between removals; max(1, J // 100) when None.
        lr: Learning rate, constant.
        batch_size: Images a step.
        weight_decay: L2 penalty; momentum is 0.9.
        mode: "coupled" or "independent".
    """

    importance: Literal["activation", "taylor"] = "activation"
    steps: int = 1000
    prune_share: float = 0.2
    prune_every: int | None = None
    lr: float = 0.005
    batch_size: int = 128
    weight_decay: float = 5e-4
    mode: Literal["coupled", "independent"] = "coupled"

    name: ClassVar[str] = "ifp"
    paper: ClassVar[str] = "MVP (Zhao et al.), Alg. 2"
    kind: ClassVar[str] = "filter+node+head"
    needs: ClassVar[str] = "task data"
    widths: ClassVar[str] = "equal"
    claim: ClassVar[str] = "88.0% (ResNet-18, 5 classes of CIFAR-100, keep 0.1, 1,000 steps; random channels 33.1%)"

    def __post_init__(self) -> None:
        check_options(
            self, importance=one_of("activation", "taylor"), steps=whole(1), prune_share=between(0, 1, open=True),
            prune_every=whole(1, optional=True), lr=at_least(0), batch_size=whole(2), weight_decay=at_least(0),
            mode=one_of("coupled", "independent"),
        )  # fmt: skip
        # Options are what a record stores and what a resumed run compares, so they say what was used.
        object.__setattr__(self, "prune_every", self._every)

    @property
    def _every(self) -> int:
        return self.prune_every or max(1, self.steps // 100)

    def prune(
        self, base: Base, data: Data, *, keep: float, seed: int = 0, device: str | None = None, progress: bool = True
    ) -> SubNetwork:
        """See `Producer.prune`.

        Raises:
            OptionError: The steps end before the removals reach `keep`.
            DataError: Too few images.
        """
        check_keep(keep)
        check_data(data, base)
        where, started = pick_device(device), time.perf_counter()
        spec = InputSpec.of(dict(base.input))
        coupled = self.mode == "coupled"
        sizes = {axis: base.plan["axes"][axis]["n"] for axis in keep_counts(base.plan, keep)}
        target = keep_counts(base.plan, keep)
        if not coupled:
            target = {key: target[key.partition("@")[0]] for key in layer_sets(base.plan)}
            sizes = {key: sizes[key.partition("@")[0]] for key in target}
        self._check_reach(sizes, target)
        sets: Sets = {key: np.arange(n) for key, n in sizes.items()}
        memory: dict[str, np.ndarray] = {}
        model, plan = task_model(base, len(data.labels), seed=seed), dict(base.plan)
        place(model, where)
        optimizer = self._optimizer(model)
        stream = batches(
            data.train_images, data.train_labels, spec, batch_size=self.batch_size,
            seed=derive_seed(seed, "batches"), device=where,
        )  # fmt: skip
        with seeded_noise(seed, where):
            for j in track(range(1, self.steps + 1), "ifp", progress=progress):
                if j % self._every == 0 and any(len(sets[key]) > target[key] for key in target):
                    scores = self._scores(model, plan, base, data, spec, sets, memory, where)
                    kept = {key: self._survivors(scores[key], target[key]) for key in target}
                    sets = {key: sets[key][kept[key]] for key in target}
                    if coupled:
                        model, plan = shrink(model, plan, kept)
                        place(model, where)
                    else:
                        apply_masks(model, base.plan, sets)
                    optimizer = self._optimizer(model)
                model.train()
                step(model, optimizer, *next(stream))
                if not coupled:
                    apply_masks(model, base.plan, sets)
        seconds = time.perf_counter() - started
        top1 = accuracy(model, data.test_images, data.test_labels, spec, device=where)
        return export(
            model, base, data.task, sets, producer=self.name, keep=keep, mode=self.mode, seed=seed,
            options=asdict(self), metrics={"accuracy": top1, "seconds": seconds, "steps": self.steps},
        )  # fmt: skip

    def _optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), lr=self.lr, momentum=0.9, weight_decay=self.weight_decay)

    def _removed(self, n: int, target: int) -> int:
        return min(max(1, round(self.prune_share * n)), n - target) if n > target else 0

    def _survivors(self, scores: np.ndarray, target: int) -> np.ndarray:
        """Sorted positions that stay; among equal scores the later position goes first."""
        removed = self._removed(len(scores), target)
        order = np.lexsort((-np.arange(len(scores)), scores))
        return np.sort(order[removed:])

    def _check_reach(self, sizes: Mapping[str, int], target: Mapping[str, int]) -> None:
        need, every = 0, self._every
        for key, n in sizes.items():
            passes = 0
            while n > target[key]:
                n, passes = n - self._removed(n, target[key]), passes + 1
            need = max(need, passes)
        if need > self.steps // every:
            raise OptionError(
                f"ifp cannot reach its target in {self.steps} steps", got=f"{self.steps // every} removals",
                expected=f"{need}", hint=f"Give steps >= {need * every} or a smaller prune_every.",
            )  # fmt: skip

    def _scores(
        self, model: nn.Module, plan: dict[str, Any], base: Base, data: Data, spec: InputSpec, sets: Sets,
        memory: dict[str, np.ndarray], where: torch.device,
    ) -> Sets:  # fmt: skip
        """Importance of every remaining unit over all training images, by key of `sets`."""
        axes = sorted({key.partition("@")[0] for key in sets})
        measure = activation if self.importance == "activation" else taylor
        by_writer = measure(model, plan, axes, data, spec, where)
        if self.mode == "coupled":
            scores = {axis: torch.stack(list(by_writer[axis].values())).sum(0).numpy() for axis in axes}
        else:
            scores = {key: by_writer[key.partition("@")[0]][key.partition("@")[2]].numpy()[sets[key]] for key in sets}
        if self.importance == "taylor":
            for key, now in scores.items():
                full = memory.setdefault(key, np.full(_size(base, key), np.nan))
                old = full[sets[key]]
                scores[key] = full[sets[key]] = np.where(np.isnan(old), now, 0.9 * old + 0.1 * now)
        return scores


def _size(base: Base, key: str) -> int:
    return base.plan["axes"][key.partition("@")[0]]["n"]
