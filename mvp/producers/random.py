"""Random channels: MVP's lower bound."""

from dataclasses import asdict, dataclass
from typing import ClassVar

import numpy as np

from mvp.data import Data
from mvp.plan import keep_counts
from mvp.producers import check_keep
from mvp.subnetwork import export, task_model
from mvp.train import InputSpec, accuracy, derive_seed, pick_device, place
from zoo.records import Base, SubNetwork


@dataclass(frozen=True)
class RandomChannels:
    """Keeps a uniformly random set of max(1, round(keep n)) channels of every axis, with the pre-trained weights.

    Source: MVP (Zhao et al.), section 5.2, "Random pruning": the same number of filters as MVP, sampled at random from
    the pre-trained model. It trains nothing; fine-tune the result. The draw depends on seed and task, so that the
    tasks of one zoo overlap by chance alone.
    """

    name: ClassVar[str] = "random"
    paper: ClassVar[str] = "MVP (Zhao et al.), sec. 5.2"
    kind: ClassVar[str] = "filter+node+head"
    needs: ClassVar[str] = "nothing"
    widths: ClassVar[str] = "equal"
    claim: ClassVar[str] = "33.1% (ResNet-18, 5 classes of CIFAR-100, keep 0.1, 100 steps; IFP 88.0%)"

    def prune(
        self, base: Base, data: Data, *, keep: float, seed: int = 0, device: str | None = None, progress: bool = True
    ) -> SubNetwork:
        """See `Producer.prune`; the accuracy recorded is that of the untrained head."""
        check_keep(keep)
        channels = random_channels(base, keep, derive_seed(seed, data.task.id))
        where = pick_device(device)
        model = place(task_model(base, len(data.labels), channels=channels, seed=seed), where)
        top1 = accuracy(model, data.test_images, data.test_labels, InputSpec.of(dict(base.input)), device=where)
        return export(
            model, base, data.task, channels, producer=self.name, keep=keep, seed=seed, options=asdict(self),
            metrics={"accuracy": top1, "steps": 0},
        )  # fmt: skip


def random_channels(base: Base, keep: float, seed: int) -> dict[str, np.ndarray]:
    """A uniformly random channel set of every prunable axis; each axis has its own stream of the seed."""
    return {
        axis: np.sort(
            np.random.default_rng(derive_seed(seed, axis)).choice(base.plan["axes"][axis]["n"], n, replace=False)
        )
        for axis, n in keep_counts(base.plan, keep).items()
    }
