"""The search of layer-compensated pruning: filter metrics, fitness of a candidate, regularised evolution."""

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mvp.data import Data
from mvp.importance import Scores, weight_sums
from mvp.plan import Plan
from mvp.progress import track
from mvp.surgery import build
from mvp.train import InputSpec, place
from zoo.errors import OptionError

Array = np.ndarray
Sets = dict[str, Array]


class Images:
    """Training images, normalised once for all candidates, in batches that stay in a CPU's cache."""

    def __init__(self, data: Data, spec: InputSpec, where: torch.device) -> None:
        self.n = len(data.train_images)
        size = 128 if where.type == "cpu" else 1000
        self._batches = [
            (spec(data.train_images[i : i + size].to(where)), data.train_labels[i : i + size].to(where))
            for i in range(0, self.n, size)
        ]

    @torch.no_grad()
    def loss(self, model: nn.Module) -> float:
        """Mean cross-entropy over all images, eval mode; infinite when it is not a number."""
        model.eval()
        total = sum(F.cross_entropy(model(x), y, reduction="sum").double() for x, y in self._batches)
        mean = float(total) / self.n
        return mean if math.isfinite(mean) else math.inf

    def gradients(self, model: nn.Module, weights: Sequence[Tensor]) -> list[Tensor]:
        """Gradients of that mean loss with respect to `weights`."""
        model.eval()
        total = [torch.zeros_like(w) for w in weights]
        for x, y in self._batches:
            loss = F.cross_entropy(model(x), y, reduction="sum") / self.n
            for kept, new in zip(total, torch.autograd.grad(loss, weights), strict=True):
                kept += new
        return total


def layer_metrics(
    model: nn.Module, plan: Plan, axes: Sequence[str], metric: str, images: Images | None = None
) -> Scores:
    """M_j of every filter in every layer that writes it.

    Args:
        model: The model, in any state of pruning.
        plan: Its plan.
        axes: Axes to score.
        metric: "l1": sum of |w| over the filter's weights; "l2": sum of w^2; "taylor": |mean of w dL/dw| over the
            filter's weights, L being the mean loss over `images`.
        images: What "taylor" measures the loss on; the others need none.

    Raises:
        OptionError: "taylor" without images.
    """
    parameters = dict(model.named_parameters())
    names = list(dict.fromkeys(f"{w['layer']}.weight" for axis in axes for w in plan["axes"][axis]["writers"]))
    weights = {name: parameters[name] for name in names if name in parameters}
    if metric != "taylor":
        power = 1 if metric == "l1" else 2
        return weight_sums(plan, axes, {name: w.detach().abs() ** power for name, w in weights.items()})
    if images is None:
        raise OptionError("lcp: the metric 'taylor' needs images")
    gradients = images.gradients(model, list(weights.values()))
    products = {name: w.detach() * g for (name, w), g in zip(weights.items(), gradients, strict=True)}
    sums = weight_sums(plan, axes, products)
    sizes = weight_sums(plan, axes, {name: torch.ones_like(w) for name, w in weights.items()})
    return {axis: {layer: (v / sizes[axis][layer]).abs() for layer, v in of.items()} for axis, of in sums.items()}


@dataclass(frozen=True)
class Layers:
    """The metrics of all layers, and the scores they give under a compensation.

    Attributes:
        values: {axis: {layer: array (n,)}}.
    """

    values: Mapping[str, Mapping[str, Array]]

    @classmethod
    def of(cls, scores: Scores) -> "Layers":
        """From tensors."""
        return cls({axis: {layer: v.numpy() for layer, v in of.items()} for axis, of in scores.items()})

    @property
    def sigma(self) -> Array:
        """Standard deviation of the metric in each layer: the scale of that layer's beta; shape (L,)."""
        return np.array([v.std() for of in self.values.values() for v in of.values()])

    def scores(self, beta: Array | None = None) -> Sets:
        """Per axis the sum over its layers of M_j + beta_l; with no beta, naive pruning's ranking."""
        out, at = {}, 0
        for axis, of in self.values.items():
            total = np.zeros(len(next(iter(of.values()))))
            for value in of.values():
                total = total + (value + (0.0 if beta is None else beta[at]))
                at += 1
            out[axis] = total
        return out


class Fitness:
    """Loss of the slim sub-network of a candidate, without tuning; equal channel sets are measured once.

    A slim module is built for every candidate: it measured four times as fast as masks on the whole network.

    Args:
        model: The whole network on its device; only read.
        plan: Its plan.
        sets_of: Channel sets of a beta.
        images: What the loss is measured on.
        where: Device.
    """

    def __init__(
        self, model: nn.Module, plan: Plan, sets_of: Callable[[Array], Sets], images: Images, where: torch.device
    ) -> None:
        self._model, self._plan, self._sets_of, self._where = model, plan, sets_of, where
        self.images = images
        self._known: dict[bytes, float] = {}

    def __call__(self, beta: Array) -> float:
        """The loss of a candidate."""
        sets = self._sets_of(beta)
        key = b"/".join(kept.tobytes() for kept in sets.values())
        if key not in self._known:
            self._known[key] = self.measure(sets, self.images)
        return self._known[key]

    def measure(self, sets: Sets, images: Images) -> float:
        """The loss of a channel set over `images`."""
        return images.loss(place(build(self._model, self._plan, sets), self._where))

    def rank_correlation(self, pool: Sequence[Array], images: Images) -> float:
        """Spearman's correlation over a pool between this fitness and that over `images`; NaN where one is constant."""
        from scipy.stats import rankdata

        few = np.array([self(beta) for beta in pool])
        many = np.array([self.measure(self._sets_of(beta), images) for beta in pool])
        a, b = rankdata(few) - (len(pool) + 1) / 2, rankdata(many) - (len(pool) + 1) / 2
        spread = math.sqrt(float(a @ a) * float(b @ b))
        return float(a @ b) / spread if spread else math.nan


def start_pool(sigma: Array, size: int, rng: np.random.Generator, previous: Sequence[Array] = ()) -> list[Array]:
    """Identity (beta = 0) first, then the youngest of a previous pool, then draws of beta_l ~ N(0, sigma_l)."""
    pool = [np.zeros(len(sigma)), *(list(previous)[::-1][: size - 1])]
    return pool + [rng.normal(0.0, 1.0, len(sigma)) * sigma for _ in range(size - len(pool))]


@dataclass(frozen=True)
class Evolved:
    """What a search found.

    Attributes:
        beta: The fittest of all candidates seen, the earliest among equals.
        fitness: Its fitness.
        pool: The last pool, oldest first.
    """

    beta: Array
    fitness: float
    pool: list[Array]


def evolve(
    fitness: Callable[[Array], float],
    sigma: Array,
    pool: Sequence[Array],
    *,
    iterations: int,
    tournament: int,
    rng: np.random.Generator,
    progress: bool = False,
) -> Evolved:
    """Regularised evolution (Real et al. 2018; LcP section 4.1): minimises `fitness` over beta.

    Each iteration draws `tournament` members with replacement, copies the fittest, adds N(0, alpha sigma_l) to
    d = max(1, int(0.1 L)) different layers of it, and replaces the oldest member; alpha = 1 - cur/total falls.

    Args:
        fitness: Smaller is better.
        sigma: Scale of each layer's beta, shape (L,).
        pool: First members, oldest first.
        iterations: Mutations.
        tournament: Members drawn each time.
        rng: Source of everything random.
        progress: Show a bar.
    """
    alive = deque((beta, fitness(beta)) for beta in track(pool, "lcp: pool", progress=progress))
    best = min(alive, key=lambda member: member[1])
    mutated = max(1, int(0.1 * len(sigma)))
    for cur in track(range(iterations), "lcp: search", progress=progress):
        alpha = 1 - cur / iterations
        drawn = rng.integers(len(alive), size=tournament)
        parent = min((alive[i] for i in drawn), key=lambda member: member[1])[0]
        child, where = parent.copy(), rng.choice(len(sigma), mutated, replace=False)
        child[where] += rng.normal(0.0, 1.0, mutated) * alpha * sigma[where]
        alive.append((child, fitness(child)))
        alive.popleft()
        best = min(best, alive[-1], key=lambda member: member[1])
    return Evolved(best[0], best[1], [beta for beta, _ in alive])
