"""Automatic head and node pruning of vision transformers: MVP's Algorithm 3."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from mvp.data import Data
from mvp.finetune import check_data, make_optimizer, run_steps, seeded_noise
from mvp.gates import Gates
from mvp.options import at_least, between, check_options, one_of, whole
from mvp.plan import Plan, keep_counts
from mvp.producers import check_keep, recorded
from mvp.producers.gating import fold
from mvp.progress import track
from mvp.subnetwork import export, task_model
from mvp.surgery import indices, shrink
from mvp.train import InputSpec, accuracy, batches, derive_seed, pick_device, place, step
from zoo.errors import OptionError
from zoo.records import Base, SubNetwork

KINDS = ("head", "node")  # the two pools
Sets = dict[str, np.ndarray]


@dataclass(frozen=True)
class AHNP:
    """Learns a score for every attention head and MLP node together with the weights, and removes the low ones.

    Source: MVP (Zhao et al.), Algorithm 3 and section 3.1, after UVC (Yu et al. 2022). Each score starts at 1 and
    multiplies its unit's activation where the next layer reads it; an L1 penalty pulls the scores down. During J steps
    units with a score below tau are removed until every layer has reached its target, max(1, round(keep n)) units;
    then the scores are removed and the network is fine-tuned for K steps. Heads go whole, and at least one per block
    stays. The network shrinks physically at each removal; the optimiser's moments of what stays are kept.

    Stated: J = 1000, learning rates 5e-5 (inherited weights) and 0.05 (scores), training as in DeiT (Touvron et al.
    2021: AdamW). Not stated, chosen here: tau (see `threshold`), the L1 weight, K, the rate of the new output layer,
    which is not inherited and would hardly move at 5e-5; learning rates are constant in the J steps, and the K steps
    are those of `mvp.finetune` (AdamW, 2e-4, cosine to 0). The penalty ends when the last target is reached. Axes of
    other kinds (filters of a hybrid) stay whole.

    Attributes:
        steps: J, steps in which scores and weights train together.
        finetune_steps: K, steps after the scores are gone.
        threshold: "quantile": heads and nodes are two pools, and tau is in each the quantile of the current scores
            that lets the pool's size fall linearly to its target, reached after `until` of the steps; a layer that has
            reached its own target loses no more. "fixed": tau is `tau`; what is left above its target after the last
            step goes then, lowest first (counted in the metric "forced").
        tau: The fixed threshold.
        until: See `threshold`.
        prune_every: Steps between removals; max(1, J // 100) when None.
        l1: Weight of the penalty, the sum of the absolute scores; the default is about the gradient of a node's score
            on the small ViT (a head's is thirty times as large). One that outweighs them moves all scores alike.
        lr: Learning rate of inherited weights.
        lr_scores: Learning rate of scores.
        lr_head: Learning rate of the output layer.
        batch_size: Images a step.
        weight_decay: Decoupled, on weights only; 0.05 as in DeiT.
        remove: How the scores are removed. "fold": multiplied into the next layer's weights, which changes no output.
            "drop": set back to 1, which costs accuracy that the fine-tuning must win back.
    """

    steps: int = 1000
    finetune_steps: int = 100
    threshold: Literal["quantile", "fixed"] = "quantile"
    tau: float = 0.5
    until: float = 0.5
    prune_every: int | None = None
    l1: float = 1e-4
    lr: float = 5e-5
    lr_scores: float = 0.05
    lr_head: float = 1e-3
    batch_size: int = 128
    weight_decay: float = 0.05
    remove: Literal["fold", "drop"] = "fold"

    name: ClassVar[str] = "ahnp"
    paper: ClassVar[str] = "MVP (Zhao et al.), Alg. 3"
    kind: ClassVar[str] = "node+head"
    needs: ClassVar[str] = "task data"
    widths: ClassVar[str] = "equal"
    claim: ClassVar[str] = "89.5% (small DeiT, 5 classes of ImageNet, keep 0.1, 1,000 steps; random 58.7%)"

    def __post_init__(self) -> None:
        check_options(
            self, steps=whole(1), finetune_steps=whole(0), threshold=one_of("quantile", "fixed"), tau=at_least(0),
            until=between(0, 1), prune_every=whole(1, optional=True), l1=at_least(0), lr=at_least(0),
            lr_scores=at_least(0), lr_head=at_least(0), batch_size=whole(2), weight_decay=at_least(0),
            remove=one_of("fold", "drop"),
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
            OptionError: The base has neither heads nor MLP nodes.
            DataError: Too few images.
        """
        check_keep(keep)
        check_data(data, base)
        where, started = pick_device(device), time.perf_counter()
        spec, plan = InputSpec.of(dict(base.input)), dict(base.plan)
        target = {axis: n for axis, n in keep_counts(plan, keep).items() if plan["axes"][axis]["kind"] in KINDS}
        if not target:
            raise OptionError(f"ahnp: {base.name} has no heads or MLP nodes", hint="Use ifp for convolutions.")
        run = _Run(self, place(task_model(base, len(data.labels), seed=seed), where), plan, list(target))
        stream = batches(
            data.train_images, data.train_labels, spec, batch_size=self.batch_size,
            seed=derive_seed(seed, "batches"), device=where,
        )  # fmt: skip
        forced, above = 0, True
        with seeded_noise(seed, where):
            for j in track(range(1, self.steps + 1), "ahnp", progress=progress):
                above = above and any(len(run.sets[axis]) > n for axis, n in target.items())
                run.step(*next(stream), l1=self.l1 if above else 0.0)
                if not above or (j % self._every and j not in (self._end, self.steps)):
                    continue
                kept = survivors(run.values(), target, pools(plan, target, self._left(j)), self._tau)
                if j == self.steps:
                    final = survivors(run.values(), target, pools(plan, target, 0.0))
                    forced = sum(len(kept[axis]) - len(final[axis]) for axis in target)
                    kept = final
                run.shrink(kept)
        model = run.finish(folded=self.remove == "fold")
        run_steps(
            model, make_optimizer(model, base), data, spec, steps=self.finetune_steps, batch_size=self.batch_size,
            seed=derive_seed(seed, "finetune"), device=where, progress=progress,
        )  # fmt: skip
        seconds = time.perf_counter() - started
        top1 = accuracy(model, data.test_images, data.test_labels, spec, device=where)
        metrics = {"accuracy": top1, "seconds": seconds, "steps": self.steps + self.finetune_steps}
        return export(
            model, base, data.task, run.sets, producer=self.name, keep=keep, seed=seed, options=recorded(self),
            metrics=metrics | ({"forced": forced} if self.threshold == "fixed" else {}),
        )  # fmt: skip

    @property
    def _end(self) -> int:
        """The step after which the pools have reached their targets."""
        return max(1, round(self.until * self.steps))

    @property
    def _tau(self) -> float | None:
        return self.tau if self.threshold == "fixed" else None

    def _left(self, j: int) -> float:
        """The share of what is to be removed that may still be there after step j."""
        return 0.0 if self.threshold == "fixed" else max(0.0, 1 - j / self._end)


def pools(plan: Plan, target: Mapping[str, int], left: float) -> list[tuple[list[str], int]]:
    """Heads and nodes apart: the axes of each, and the units that may stay of them all together.

    Args:
        plan: The base's plan.
        target: {axis: units that stay in the end}.
        left: The share of what is to be removed that may stay, in [0, 1].
    """
    out = []
    for kind in KINDS:
        axes = [axis for axis in target if plan["axes"][axis]["kind"] == kind]
        n, end = sum(plan["axes"][axis]["n"] for axis in axes), sum(target[axis] for axis in axes)
        out.append((axes, end + round(left * (n - end))))
    return out


def survivors(
    scores: Mapping[str, np.ndarray], target: Mapping[str, int], pools: Sequence[tuple[list[str], int]],
    tau: float | None = None,
) -> Sets:  # fmt: skip
    """Positions that stay, per axis: in each pool the lowest scores go until it has its size, or while below tau.

    No axis loses more once it has its target. Among equal scores the later unit goes first.

    Args:
        scores: {axis: scores of what is left}.
        target: {axis: units that stay in the end}.
        pools: The axes of each pool and the size it may have.
        tau: Only scores below it go, when given.

    Returns:
        {axis: sorted positions}.
    """
    gone: dict[str, list[int]] = {axis: [] for axis in scores}
    for axes, size in pools:
        queue = sorted(
            (float(scores[axis][i]), -k, -i) for k, axis in enumerate(axes) for i in range(len(scores[axis]))
        )
        surplus = len(queue) - size
        for value, k, i in queue:
            axis = axes[-k]
            if surplus <= 0 or (tau is not None and value >= tau):
                break
            if len(scores[axis]) - len(gone[axis]) > target[axis]:
                gone[axis].append(-i)
                surplus -= 1
    return {axis: np.setdiff1d(np.arange(len(values)), gone[axis]) for axis, values in scores.items()}


class _Run:
    """A network that shrinks, with its scores and its optimiser."""

    def __init__(self, options: AHNP, model: nn.Module, plan: Plan, axes: list[str]) -> None:
        where = next(model.parameters()).device
        self.options, self.model, self.plan = options, model, plan
        self.scores = {axis: nn.Parameter(torch.ones(plan["axes"][axis]["n"], device=where)) for axis in axes}
        self.sets: Sets = {axis: np.arange(len(score)) for axis, score in self.scores.items()}
        self._start()

    def _start(self) -> None:
        """An optimiser for the network as it is now."""
        head = set(self.plan["head"])
        named = dict(self.model.named_parameters())
        decay = self.options.weight_decay
        self.optimizer = torch.optim.AdamW([
            {"params": [p for k, p in named.items() if k not in head], "lr": self.options.lr, "weight_decay": decay},
            {"params": [p for k, p in named.items() if k in head], "lr": self.options.lr_head, "weight_decay": decay},
            {"params": list(self.scores.values()), "lr": self.options.lr_scores, "weight_decay": 0.0},
        ])  # fmt: skip

    def values(self) -> dict[str, np.ndarray]:
        """The scores on the CPU."""
        return {axis: score.detach().cpu().numpy() for axis, score in self.scores.items()}

    def gated(self) -> Gates:
        """Inside, each unit's activation is multiplied by its score on its way into the layer that reads it."""
        gates = Gates(self.model, self.plan, self.scores, activations=False)
        gates.scales.update({key: self.scores[key[0]] for key in gates.scales})
        return gates

    def step(self, x: Tensor, y: Tensor, *, l1: float) -> None:
        """One step on cross-entropy + l1 * sum of |scores|."""
        self.model.train()
        # The penalty's gradient joins that of the loss, which stays the one of every other training here.
        handles = [
            score.register_hook(lambda grad, score=score: grad + l1 * score.detach().sign())
            for score in self.scores.values()
        ]
        with self.gated():
            step(self.model, self.optimizer, x, y)
        for handle in handles:
            handle.remove()

    def shrink(self, kept: Sets) -> None:
        """Leaves only these positions of each axis, in the network, its scores and the optimiser's moments."""
        if all(len(kept[axis]) == len(score) for axis, score in self.scores.items()):
            return
        chosen, state = indices(self.plan, kept), self.optimizer.state
        moments = {name: dict(state[p]) for name, p in self.model.named_parameters() if p in state}
        score_moments = {axis: dict(state[score]) for axis, score in self.scores.items() if score in state}
        where = next(self.model.parameters()).device
        self.model, self.plan = shrink(self.model, self.plan, kept)
        place(self.model, where)
        rows = {axis: {0: torch.from_numpy(positions).to(where)} for axis, positions in kept.items()}
        self.scores = {a: nn.Parameter(_take(score.detach(), rows[a])) for a, score in self.scores.items()}
        self.sets = {axis: positions[kept[axis]] for axis, positions in self.sets.items()}
        self._start()
        named = dict(self.model.named_parameters())
        for name, old in moments.items():
            self.optimizer.state[named[name]] = {k: _take(v, chosen.get(name, {})) for k, v in old.items()}
        for axis, old in score_moments.items():
            self.optimizer.state[self.scores[axis]] = {k: _take(v, rows[axis]) for k, v in old.items()}

    def finish(self, *, folded: bool) -> nn.Module:
        """The network without scores; `folded`: they become a part of the weights behind them."""
        if folded:
            fold(self.model, self.plan, self.scores)
        return self.model


def _take(tensor: Tensor, dims: Mapping[int, Tensor]) -> Tensor:
    for d, kept in dims.items() if tensor.ndim else ():  # AdamW's step count has no dimension
        tensor = tensor.index_select(d, kept.to(tensor.device))
    return tensor
