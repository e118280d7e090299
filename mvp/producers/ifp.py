"""Iterative filter pruning: MVP's Algorithm 2, with activation or Taylor importance."""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mvp.data import Data
from mvp.finetune import check_data, seeded_noise
from mvp.gates import Gates
from mvp.masks import apply_masks, layer_sets
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

    def __post_init__(self) -> None:
        whole = [self.steps, self.batch_size] + ([] if self.prune_every is None else [self.prune_every])
        parts = [self.prune_share, self.lr, self.weight_decay]
        if not all(isinstance(v, int) for v in whole) or not all(isinstance(v, int | float) for v in parts):
            raise OptionError(
                "ifp: options of the wrong type", got=asdict(self),
                expected="whole steps, batch_size and prune_every; numbers for prune_share, lr and weight_decay",
            )  # fmt: skip
        problems = []
        if self.importance not in ("activation", "taylor"):
            problems.append(f"importance: got {self.importance!r}, expected 'activation' or 'taylor'")
        if self.mode not in ("coupled", "independent"):
            problems.append(f"mode: got {self.mode!r}, expected 'coupled' or 'independent'")
        if self.steps < 1 or self.batch_size < 2:
            problems.append(f"steps {self.steps}, batch_size {self.batch_size}: expected at least 1 and 2")
        if not 0 < self.prune_share < 1:
            problems.append(f"prune_share: got {self.prune_share}, expected a share in (0, 1)")
        if self.prune_every is not None and self.prune_every < 1:
            problems.append(f"prune_every: got {self.prune_every}, expected at least 1")
        if self.lr < 0 or self.weight_decay < 0:
            problems.append(f"lr {self.lr}, weight_decay {self.weight_decay}: expected 0 or more")
        if problems:
            raise OptionError("ifp: options out of range", problems=problems)
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
            options=asdict(self), metrics={"accuracy": top1, "seconds": seconds},
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
        measure = _activation if self.importance == "activation" else _taylor
        by_writer = measure(model, plan, axes, data, spec, where)
        if self.mode == "coupled":
            scores = {axis: sum(v.double().cpu() for v in by_writer[axis].values()).numpy() for axis in axes}  # type: ignore[union-attr]
        else:
            scores = {
                key: by_writer[key.partition("@")[0]][key.partition("@")[2]].double().cpu().numpy()[sets[key]]
                for key in sets
            }
        if self.importance == "taylor":
            for key, now in scores.items():
                full = memory.setdefault(key, np.full(_size(base, key), np.nan))
                old = full[sets[key]]
                scores[key] = full[sets[key]] = np.where(np.isnan(old), now, 0.9 * old + 0.1 * now)
        return scores


def _size(base: Base, key: str) -> int:
    return base.plan["axes"][key.partition("@")[0]]["n"]


def _chunks(data: Data, size: int) -> "list[tuple[Tensor, Tensor]]":
    x, y = data.train_images, data.train_labels
    return [(x[i : i + size], y[i : i + size]) for i in range(0, len(x), size)]


@torch.no_grad()
def _activation(
    model: nn.Module, plan: dict[str, Any], axes: list[str], data: Data, spec: InputSpec, where: torch.device
) -> dict[str, dict[str, Tensor]]:
    model.eval()
    with Gates(model, plan, axes, scales=False) as gates:
        for x, _ in _chunks(data, 500):
            model(spec(x.to(where)))
        return gates.activations()


def _taylor(
    model: nn.Module, plan: dict[str, Any], axes: list[str], data: Data, spec: InputSpec, where: torch.device
) -> dict[str, dict[str, Tensor]]:
    """(dL/dgate)^2 averaged over mini-batches of 128."""
    model.eval()
    total: dict[str, dict[str, Tensor]] = {axis: {} for axis in axes}
    chunks = _chunks(data, 128)
    with Gates(model, plan, axes, activations=False) as gates:
        keys = list(gates.scales)
        for x, y in chunks:
            loss = F.cross_entropy(model(spec(x.to(where))), y.to(where))
            grads = torch.autograd.grad(loss, [gates.scales[k] for k in keys])
            for (axis, writer), grad in zip(keys, grads, strict=True):
                squared = grad.detach() ** 2 / len(chunks)
                total[axis][writer] = total[axis].get(writer, torch.zeros_like(squared)) + squared
    return total
