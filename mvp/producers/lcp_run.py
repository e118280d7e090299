"""A run of layer-compensated pruning: the network while it is cut, and the phases of Algorithm 1."""

import copy
import time
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from mvp.budget import Budget
from mvp.data import Data
from mvp.finetune import is_transformer, make_optimizer, seeded_noise
from mvp.plan import full_channels
from mvp.producers.lcp_search import Fitness, Images, Layers, evolve, layer_metrics, start_pool
from mvp.progress import track
from mvp.subnetwork import task_model
from mvp.surgery import scatter, shrink
from mvp.train import InputSpec, accuracy, batches, derive_seed, place, step
from zoo.records import Base

if TYPE_CHECKING:
    from mvp.producers.lcp import LcP

Sets = dict[str, np.ndarray]


class Work:
    """A network while it is cut: whole, with what is pruned as it last was, and slim, as it trains.

    Attributes:
        base: Its base.
        whole: The module at full size; `settle` brings it up to date.
        slim: What is left of it, on the device.
        plan: The plan of `slim`.
        sets: Kept units by axis.
        floors: What must stay of an axis, as `Budget.fill` takes it.
    """

    def __init__(self, base: Base, model: nn.Module, where: torch.device, floors: dict[str, Any]) -> None:
        self.base, self.whole, self._where, self.floors = base, copy.deepcopy(model), where, floors
        self.sets: Sets = full_channels(base.plan)
        self._lost: list[tuple[str, int]] = []
        self._narrow()

    @property
    def gone(self) -> int:
        """How many units are removed."""
        return len(self._lost)

    def _narrow(self) -> None:
        slim, self.plan = shrink(self.whole, self.base.plan, self.sets)
        self.slim = place(slim, self._where)

    def settle(self) -> None:
        """Writes what the slim network has learned into the whole one."""
        state = scatter(self.slim.state_dict(), self.base.plan, self.sets, self.whole.state_dict())
        self.whole.load_state_dict(state)

    def whole_scores(self, scores: Mapping[str, np.ndarray]) -> Sets:
        """Scores of the units left -> scores of all; what is gone ranks below, the longest gone lowest."""
        lowest = min(float(v.min()) for v in scores.values())
        out = {axis: np.empty(self.base.plan["axes"][axis]["n"]) for axis in scores}
        for axis, values in scores.items():
            out[axis][self.sets[axis]] = values
        for rank, (axis, i) in enumerate(self._lost):
            out[axis][i] = lowest - len(self._lost) + rank
        return out

    def cut(self, sets: Sets, scores: Mapping[str, np.ndarray]) -> None:
        """Removes all but `sets`; `scores` (of all units) say in which order."""
        gone = [
            (float(values[i]), -place_, -int(i), axis)
            for place_, (axis, values) in enumerate(scores.items())
            for i in np.setdiff1d(np.arange(len(values)), sets[axis])
        ]
        self._lost = [(axis, -i) for *_, i, axis in sorted(gone)]
        self.sets = sets
        self._narrow()


class Run:
    """One call: its data on the device, and the phases."""

    def __init__(self, options: "LcP", base: Base, data: Data, seed: int, where: torch.device, progress: bool) -> None:
        self.options, self.base, self.data, self.seed = options, base, data, seed
        self.where, self.progress, self.spec = where, progress, InputSpec.of(dict(base.input))

    @cached_property
    def many(self) -> Images:
        """A balanced random subset of at most 3,000 training images."""
        return Images(self.data.sample(3000, seed=derive_seed(self.seed, "fitness")), self.spec, self.where)

    @cached_property
    def few(self) -> Images:
        """What fitness is measured on: the same, or a random part of it."""
        if self.options.fitness_images >= min(3000, len(self.data.train_images)):
            return self.many
        many = self.data.sample(3000, seed=derive_seed(self.seed, "fitness"))
        few = many.sample(self.options.fitness_images, seed=derive_seed(self.seed, "few"))
        return Images(few, self.spec, self.where)

    def accuracy(self, model: nn.Module) -> float:
        """Top-1 on the test split."""
        return accuracy(model, self.data.test_images, self.data.test_labels, self.spec, device=self.where)

    def tuned(self) -> nn.Module:
        """The whole network with a new head, fine-tuned on the task."""
        model = place(task_model(self.base, len(self.data.labels), seed=self.seed), self.where)
        self._train(model, self.options.tune_steps, "tune")
        return model

    def prune(self, work: Work, budget: Budget, pool: list[np.ndarray]) -> tuple[dict[str, float], list[np.ndarray]]:
        """Algorithm 1 on a tuned network; the metrics, and the last pool of the search."""
        o, rounds, metrics = self.options, 0, dict[str, float]()
        for i, target in enumerate(o.limits(budget), start=1):
            if o.method == "greedy":
                rounds += self._greedy(work, target)
            else:
                layers = self._layers(work)
                scores = layers.scores()
                if o.method == "uniform":
                    scores = {axis: _places(v) for axis, v in scores.items()}
                if o.method == "lcp":
                    found, beta, pool = self._search(work, target, layers, pool)
                    metrics, scores = _added(metrics, found), layers.scores(beta)
                self._cut(work, target, scores)
            if i == o.passes:
                metrics["pruned_accuracy"] = self.accuracy(work.slim)
            done = o.finetune_steps * (i - 1) // o.passes
            self._train(work.slim, o.finetune_steps * i // o.passes - done, f"tune after pass {i}")
        metrics["steps"] = o.tune_steps + o.finetune_steps + rounds * o.greedy_steps
        return metrics, pool

    def _layers(self, work: Work) -> Layers:
        work.settle()
        images = self.many if self.options.metric == "taylor" else None
        return Layers.of(layer_metrics(work.slim, work.plan, list(work.sets), self.options.metric, images))

    def _cut(self, work: Work, target: Budget, scores: Sets) -> None:
        whole = work.whole_scores(scores)
        work.cut(target.fill(whole, **work.floors), whole)

    def _search(
        self, work: Work, target: Budget, layers: Layers, pool: list[np.ndarray]
    ) -> tuple[dict[str, float], np.ndarray, list[np.ndarray]]:
        """Eq. 9: what is worth reporting, the best beta, the last pool."""
        o, rng = self.options, np.random.default_rng(derive_seed(self.seed, "search", target.limit))

        def sets_of(beta: np.ndarray) -> Sets:
            return target.fill(work.whole_scores(layers.scores(beta)), **work.floors)

        fitness = Fitness(work.whole, self.base.plan, sets_of, self.few, self.where)
        first, started = start_pool(layers.sigma, o.pool, rng, pool), time.perf_counter()
        found = evolve(
            fitness, layers.sigma, first, iterations=o.iterations, tournament=o.tournament, rng=rng,
            progress=self.progress,
        )  # fmt: skip
        seconds = time.perf_counter() - started
        metrics = {
            "candidates": float(o.pool + o.iterations), "search_seconds": seconds,
            "fitness": found.fitness, "fitness_naive": fitness(np.zeros_like(layers.sigma)),
        }  # fmt: skip
        if self.few is not self.many:
            metrics["fitness_rank_correlation"] = fitness.rank_correlation(first, self.many)
        return metrics, found.beta, found.pool

    def _greedy(self, work: Work, target: Budget) -> int:
        """Eq. 2-3 down to the target; how often it tuned on the way."""
        o, rounds = self.options, 0
        while True:
            scores = work.whole_scores(self._layers(work).scores())
            final = target.fill(scores, **work.floors)
            left = sum(len(kept) for kept in work.sets.values())
            going = sum(len(np.setdiff1d(kept, final[axis])) for axis, kept in work.sets.items())
            now = max(1, round(o.greedy_share * left))
            if going <= now:
                work.cut(final, scores)
                return rounds
            gone = target.order(scores, **work.floors)[: work.gone + now]
            work.cut(
                {axis: np.setdiff1d(np.arange(len(v)), [i for name, i in gone if name == axis])
                 for axis, v in scores.items()}, scores,
            )  # fmt: skip
            self._train(work.slim, o.greedy_steps, f"tune after removal {rounds}")
            rounds += 1

    def _train(self, model: nn.Module, steps: int, phase: str) -> None:
        optimizer = self._optimizer(model)
        rates = [group["lr"] for group in optimizer.param_groups]
        stream = batches(
            self.data.train_images, self.data.train_labels, self.spec, batch_size=self.options.batch_size,
            seed=derive_seed(self.seed, "batches", phase), device=self.where,
        )  # fmt: skip
        model.train()
        with seeded_noise(derive_seed(self.seed, phase), self.where):
            for i in track(range(steps), f"lcp: {phase}", progress=self.progress):
                drops = sum(i >= share * steps for share in (0.3, 0.6, 0.8))
                for group, rate in zip(optimizer.param_groups, rates, strict=True):
                    group["lr"] = rate * 0.1**drops
                step(model, optimizer, *next(stream))
        model.eval()

    def _optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        o = self.options
        optimizer = make_optimizer(model, self.base, lr=o.lr, weight_decay=o.weight_decay)
        if not is_transformer(self.base):
            for group in optimizer.param_groups:
                group["nesterov"] = True
        return optimizer


def _places(values: np.ndarray) -> np.ndarray:
    """The share of its axis that each unit leaves behind it; among equals the later one is behind."""
    out = np.empty(len(values))
    out[np.lexsort((-np.arange(len(values)), values))] = np.arange(len(values)) + 0.5
    return out / len(values)


def _added(before: dict[str, float], now: dict[str, float]) -> dict[str, float]:
    """Metrics of one more search: candidates and seconds add up, the rest is of the last."""
    both = before | now | {k: before.get(k, 0.0) + now[k] for k in ("candidates", "search_seconds")}
    return both | {"candidates_per_second": both["candidates"] / both["search_seconds"]}
