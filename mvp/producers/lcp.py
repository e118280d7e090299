"""Layer-compensated pruning (LcP), with its baselines: naive, uniform and greedy single-filter pruning."""

import dataclasses
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from mvp.budget import Budget
from mvp.data import Data
from mvp.finetune import check_data
from mvp.options import at_least, between, check_options, one_of, whole
from mvp.plan import full_channels
from mvp.producers import check_keep, recorded
from mvp.producers.lcp_run import Run, Work
from mvp.subnetwork import export
from mvp.train import pick_device
from zoo.errors import OptionError
from zoo.records import Base, SubNetwork


@dataclass(frozen=True)
class LcP:
    """Ranks the filters of all layers together by M_j + beta_l and prunes the lowest until the budget is met.

    Source: Layer-compensated Pruning (Chin et al. 2018), Alg. 1 and Eq. 1-9. The network is fine-tuned on the task
    first. Then beta, one number a layer, is learned so that the pruned network has the smallest loss without tuning
    (Eq. 9), by regularised evolution (section 4.1; see `evolve`) from a pool of 63 draws beta_l ~ N(0, sigma_l) and
    beta = 0, with which the ranking is naive pruning. sigma_l is the standard deviation of the metric in layer l.
    Layers that a residual connection adds up share their filters; each adds its metric and its own beta. The fittest of
    all candidates is pruned and fine-tuned.

    Where the paper is silent or contradicts itself: the sums of Eq. 6-8 are over the pruned filters. "l2" is the sum of
    squares, as the text has it, not its root. alpha falls from 1 to 0 (the formula rises). Members of a tournament are
    16, drawn with replacement. Fitness is the loss, not its distance to the unpruned network's. "Taylor" takes the
    gradient of the mean loss over min(3000, all) training images, eval mode. Units that still fit the budget after the
    last removal return, best first. Tightening (`passes` > 1) goes down to the budget in equal parts, tunes after each
    pass, and starts each search from the previous pool; a unit that returns in a later pass has the weights it had when
    it went. Of an axis at least `floor` stays, and two units where it has so many (one if `floor` is 0). The learning
    rate drops to a tenth at 30%, 60% and 80% of the steps (the paper's epochs 18, 36 and 48 of 60). "Uniform" ranks
    each filter by its place in its own axis, so all lose the same share up to rounding. "Greedy" (Eq. 2-3) removes the
    single filter of smallest metric, again and again; the paper tunes and measures anew after each filter, here it is
    after every `greedy_share` of the filters left, which costs a few dozen tunings rather than hundreds.

    Attributes:
        metric: "l1", "l2" or "taylor", of the filter's weights (section 5.2).
        method: "lcp", or one of the baselines "naive", "uniform", "greedy".
        constraint: What the budget limits, "macs" or "params".
        budget: Share of the whole network's cost; the cost of the sub-network with equal widths of `keep` when None.
        passes: Passes of Algorithm 1; 1 is one-shot.
        floor: Share of every axis that stays. The paper's tenth when None, or half of `keep` where that is less: it
            would leave nothing to choose.
        pool: Candidates in the pool.
        iterations: Mutations; pool + iterations candidates are seen.
        tournament: Candidates drawn for a mutation.
        fitness_images: Training images that fitness is measured on, at most all there are. Under min(3000, all), the
            metric "fitness_rank_correlation" compares it with that many over the first pool.
        greedy_share: Share of the filters left that greedy pruning removes between two measurements.
        greedy_steps: Optimiser steps after each of them.
        tune_steps: Optimiser steps on the task before pruning.
        finetune_steps: Optimiser steps after pruning, shared among the passes.
        lr: Learning rate; 0.01 for SGD with Nesterov momentum 0.9, 2e-4 for AdamW (ViT) when None.
        batch_size: Images a step.
        weight_decay: 5e-4 (SGD) or 0.05 (AdamW) when None.
    """

    metric: Literal["l1", "l2", "taylor"] = "l2"
    method: Literal["lcp", "naive", "uniform", "greedy"] = "lcp"
    constraint: Literal["macs", "params"] = "macs"
    budget: float | None = None
    passes: int = 1
    floor: float | None = None
    pool: int = 64
    iterations: int = 336
    tournament: int = 16
    fitness_images: int = 3000
    greedy_share: float = 0.1
    greedy_steps: int = 10
    tune_steps: int = 200
    finetune_steps: int = 300
    lr: float | None = None
    batch_size: int = 128
    weight_decay: float | None = None

    name: ClassVar[str] = "lcp"
    paper: ClassVar[str] = "LcP (Chin et al. 2018), Alg. 1, Eq. 9"
    kind: ClassVar[str] = "filter+node+head"
    needs: ClassVar[str] = "task data"
    widths: ClassVar[str] = "budget"
    claim: ClassVar[str] = "93.4% at 50% of MACs (ResNet-56, CIFAR-10; naive ranking 93.4%, whole 94.2%)"

    def __post_init__(self) -> None:
        check_options(
            self, metric=one_of("l1", "l2", "taylor"), method=one_of("lcp", "naive", "uniform", "greedy"),
            constraint=one_of("macs", "params"), budget=between(0, 1, optional=True), passes=whole(1),
            floor=between(0, 1, optional=True), pool=whole(1), iterations=whole(0), tournament=whole(1),
            fitness_images=whole(1),
            greedy_share=between(0, 1), greedy_steps=whole(0), tune_steps=whole(0), finetune_steps=whole(0),
            lr=at_least(0, optional=True), batch_size=whole(2), weight_decay=at_least(0, optional=True),
        )  # fmt: skip

    def prune(
        self, base: Base, data: Data, *, keep: float, seed: int = 0, device: str | None = None, progress: bool = True
    ) -> SubNetwork:
        """See `Producer.prune`. Beside those, the metrics are "pruned_accuracy" (before the last tuning) and of a
        search "candidates", "search_seconds", "candidates_per_second", "fitness" (the best), "fitness_naive" (beta = 0)
        and "fitness_rank_correlation".

        Raises:
            OptionError: The budget cannot be met, or nothing in the base can be pruned.
            DataError: Too few images.
        """
        return self._run(base, data, [keep], seed, device, progress)[0]

    def sweep(
        self, base: Base, data: Data, *, keeps: Sequence[float], seed: int = 0, device: str | None = None,
        progress: bool = True,
    ) -> list[SubNetwork]:  # fmt: skip
        """A Pareto front: one sub-network for each keep ratio, all from one network tuned once.

        Each search starts from the pool of the one before; the records' options list the ratios so far as "sweep".

        Args:
            base: See `prune`.
            data: See `prune`.
            keeps: Keep ratios in the order of the searches; from large to small is the natural one.
            seed: See `prune`.
            device: See `prune`.
            progress: See `prune`.

        Raises:
            OptionError: As `prune`; no keep ratio, or the option `budget` is set, with which all would be alike.
        """
        if not keeps or self.budget is not None:
            got = "no keep ratio" if not keeps else f"budget={self.budget}"
            raise OptionError("lcp: a sweep", got=got, expected="at least one keep ratio, and no option `budget`")
        return self._run(base, data, list(keeps), seed, device, progress, sweep=True)

    def _run(
        self, base: Base, data: Data, keeps: list[float], seed: int, device: str | None, progress: bool,
        sweep: bool = False,
    ) -> list[SubNetwork]:  # fmt: skip
        for keep in keeps:
            check_keep(keep)
        check_data(data, base)
        sizes = {axis: len(kept) for axis, kept in full_channels(base.plan).items()}
        if not sizes:
            raise OptionError(f"lcp: {base.name} has nothing to prune", hint="All its axes are unsupported.")
        budgets = [
            Budget.of(base, len(data.labels), keep=k, constraint=self.constraint, share=self.budget) for k in keeps
        ]
        for keep, budget in zip(keeps, budgets, strict=True):  # before any training
            budget.fill({axis: np.zeros(n) for axis, n in sizes.items()}, **self.floors(keep))
        run = Run(self, base, data, seed, pick_device(device), progress)
        started = time.perf_counter()
        tuned = run.tuned()
        tuning = time.perf_counter() - started
        subs, pool = list[SubNetwork](), list[np.ndarray]()
        for i, (keep, budget) in enumerate(zip(keeps, budgets, strict=True)):
            started = time.perf_counter()
            work = Work(base, tuned, run.where, self.floors(keep))
            metrics, pool = run.prune(work, budget, pool)
            metrics["accuracy"] = run.accuracy(work.slim)
            metrics["seconds"] = tuning + time.perf_counter() - started
            more = {"sweep": keeps[: i + 1]} if sweep else {}
            sub = export(
                work.slim, base, data.task, work.sets, producer=self.name, keep=keep, seed=seed,
                options=recorded(self) | more, metrics={k: v for k, v in metrics.items() if math.isfinite(v)},
            )  # fmt: skip
            subs.append(sub)
        return subs

    def limits(self, budget: Budget) -> list[Budget]:
        """The constraint of each pass, from just below the whole network's cost to the budget, in equal parts."""
        extra = budget.cost({}) - budget.limit
        parts = [extra * (self.passes - i) // self.passes for i in range(1, self.passes + 1)]
        return [dataclasses.replace(budget, limit=budget.limit + part) for part in parts]

    def floors(self, keep: float) -> dict[str, Any]:
        """What must stay of an axis, as `Budget.fill` takes it."""
        floor = min(0.1, keep / 2) if self.floor is None else self.floor
        return {"floor": floor, "least": 2 if floor else 1}
