"""Random widths under a budget: STAMP's random pruning baseline."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from mvp.budget import Budget
from mvp.data import Data
from mvp.options import between, check_options, one_of
from mvp.plan import prunable
from mvp.producers import check_keep, recorded
from mvp.reinit import reinitialised
from mvp.subnetwork import export, task_model
from mvp.train import InputSpec, accuracy, derive_seed, pick_device, place
from zoo.records import Base, SubNetwork


@dataclass(frozen=True)
class RandomStructure:
    """Draws a random number of units for every axis under a MACs budget, and keeps the first so many of each.

    Source: STAMP (Song et al. 2021), section 4, "Random Pruning": "we sample the random structure (i.e. the number of
    channels for each layer) under the given FLOP constraints in the same manner as in MetaPruning", whose layers lose
    20% to 60% (appendix C). So each axis draws a share from a uniform distribution over [low, 1]; all shares are
    multiplied by one number, the largest with which the MACs stay within those of the equal-width sub-network of this
    `keep`; what still fits is filled up, the axis that is furthest below its share first, until one more unit anywhere
    would exceed the budget. Every axis keeps at least one unit. The paper is silent on the rescaling, which spares the
    rejection of nearly all draws. Only widths are random: the kept units are the first ones. It trains nothing;
    fine-tune the result. The draw depends on seed and task.

    Attributes:
        low: Smallest share drawn, relative to the largest possible; 0.5 gives the ratios of 0.4 to 0.8 kept.
        init: "pretrained": the base's weights of the kept units. "reinit": fresh ones, as in the paper; such a
            sub-network does not vote.
    """

    low: float = 0.5
    init: Literal["pretrained", "reinit"] = "pretrained"

    name: ClassVar[str] = "random_structure"
    paper: ClassVar[str] = "STAMP (Song et al. 2021), sec. 4, random pruning"
    kind: ClassVar[str] = "filter+node+head"
    needs: ClassVar[str] = "nothing"
    widths: ClassVar[str] = "budget"
    claim: ClassVar[str] = "92.0% at 27% of MACs (ResNet-18, CIFAR-10; whole 94.4%)"

    def __post_init__(self) -> None:
        check_options(self, low=between(0, 1), init=one_of("pretrained", "reinit"))

    def prune(
        self, base: Base, data: Data, *, keep: float, seed: int = 0, device: str | None = None, progress: bool = True
    ) -> SubNetwork:
        """See `Producer.prune`; the accuracy recorded is that of the untrained head."""
        check_keep(keep)
        budget = Budget.of(base, len(data.labels), keep=keep)
        channels = random_widths(budget, self.low, derive_seed(seed, data.task.id))
        start = base if self.init == "pretrained" else reinitialised(base, seed=seed)
        where = pick_device(device)
        model = place(task_model(start, len(data.labels), channels=channels, seed=seed), where)
        top1 = accuracy(model, data.test_images, data.test_labels, InputSpec.of(dict(base.input)), device=where)
        return export(
            model, base, data.task, channels, producer=self.name, keep=keep, seed=seed, init=self.init,
            options=recorded(self), metrics={"accuracy": top1, "steps": 0},
        )  # fmt: skip


def random_widths(budget: Budget, low: float, seed: int) -> dict[str, np.ndarray]:
    """The first k units of every prunable axis, k proportional to a share drawn from [low, 1], within the budget.

    Args:
        budget: What the sub-network may cost.
        low: Smallest share.
        seed: Seed of the draw; each axis has its own stream.
    """
    scores = {}
    for axis in prunable(budget.base.plan):
        n = budget.base.plan["axes"][axis]["n"]
        # random() may be 0 but not 1, and a share of 0 would have no multiple.
        share = 1 - (1 - low) * np.random.default_rng(derive_seed(seed, axis)).random()
        # Unit i of n fits once the common factor is (i + 1) / (share n): pruning the largest of these first, as `fill`
        # does, walks down the factor, and restoring the smallest first fills what the rounding left.
        scores[axis] = -np.arange(1, n + 1) / (share * n)
    return budget.fill(scores)
