"""Iterative pruning by accumulated norms: Algorithms 1 to 3 of the meta-pruning proposal."""

import time
from dataclasses import dataclass
from typing import ClassVar

from mvp.data import Data
from mvp.finetune import check_data, seeded_noise
from mvp.options import check_options, whole
from mvp.producers import check_keep, recorded
from mvp.producers.narrowing import (
    RULES,
    Counts,
    Narrowing,
    NormOptions,
    one_pass,
    passes_needed,
    smallest_share,
    targets,
)
from mvp.progress import track
from mvp.subnetwork import export
from mvp.train import accuracy, derive_seed, pick_device
from zoo.errors import OptionError
from zoo.records import Base, SubNetwork


@dataclass(frozen=True)
class NormPruning(NormOptions):
    """Trains, and every N_i epochs removes from every layer p of its current units, those with the smallest norms.

    Source: the meta-pruning proposal (Salcedo and Sharma), section 2.1.3, Algorithms 1, 2 and 3, with its p = 5% and
    N_i = 7. The norms of every training step are added up over the epochs before a pass and then start from zero. A
    pass comes before each epoch i with i % N_i == 0 (the algorithm's i is read as an epoch, as in the text), except
    the first and the last epoch, and removes floor(p n) of a layer's current n filters: that is what takes VGG16 from
    4,224 filters to the paper's 3,136 in its 50 epochs. Equation 1 (a rounded share of the whole network's parameters)
    does not.

    The paper has no target: here a layer never falls below max(1, round(keep n)), and a layer above that loses at least
    one unit a pass, where the floor would stick below 20 filters. Where it is silent: layers that share a channel set
    (a residual stream) have their norms summed; activations are read behind norm and ReLU, in training mode; every pass
    restarts the optimiser, which is fine-tuning's (`mvp.finetune.make_optimizer`) at a constant learning rate; heads
    and MLP nodes of a ViT are units like filters.

    Attributes:
        norm: See `NormOptions`, as for all but `epochs`.
        epochs: Epochs in all; when None as many as the passes down to `keep` take, and every_epochs more (at least 2).
            The paper's 50 end at 74% of the filters.
    """

    epochs: int | None = None

    name: ClassVar[str] = "norm"
    paper: ClassVar[str] = "Meta-pruning (Salcedo and Sharma), Alg. 1-3"
    kind: ClassVar[str] = "filter+node+head"
    needs: ClassVar[str] = "task data"
    widths: ClassVar[str] = "equal"
    claim: ClassVar[str] = "validation accuracy 3 to 5 points lower at 74% of the filters (VGG-16, 10% of CIFAR-10)"

    def __post_init__(self) -> None:
        check_options(self, **RULES, epochs=whole(1, optional=True))

    def prune(
        self, base: Base, data: Data, *, keep: float, seed: int = 0, device: str | None = None, progress: bool = True
    ) -> SubNetwork:
        """See `Producer.prune`.

        Raises:
            OptionError: The epochs end before the passes reach `keep`, or the base has no unit to remove.
            DataError: Too few images.
        """
        check_keep(keep)
        check_data(data, base)
        started, where = time.perf_counter(), pick_device(device)
        sizes, target = targets(base, keep, self.name)
        epochs = self._epochs(sizes, target)
        due = pass_epochs(epochs, self.every_epochs)
        run = Narrowing(base, self, len(data.labels), where=where, seed=seed)
        with seeded_noise(seed, where):
            for epoch in track(range(epochs), self.name, progress=progress):
                if epoch in due:
                    sizes = self._narrow(run, sizes, target)
                left = sizes != target
                run.train(data, 1, seed=derive_seed(seed, "batches"), start=epoch, measure=left)
        seconds = time.perf_counter() - started
        top1 = accuracy(run.model, data.test_images, data.test_labels, run.spec, device=where)
        return export(
            run.model, base, data.task, run.sets, producer=self.name, keep=keep, seed=seed, options=recorded(self),
            metrics={"accuracy": top1, "seconds": seconds, "steps": run.steps, "epochs": epochs},
        )  # fmt: skip

    def _narrow(self, run: Narrowing, sizes: dict[str, int], target: Counts) -> dict[str, int]:
        smaller = one_pass(sizes, target, self.prune_share)
        if smaller != sizes:
            run.narrow(smaller)
        return smaller

    def _epochs(self, sizes: Counts, target: Counts) -> int:
        """Epochs in all, which must hold the passes that the target takes."""
        need = passes_needed(sizes, target, self.prune_share)
        enough = need * self.every_epochs + 2
        if self.epochs is None:
            return need * self.every_epochs + max(2, self.every_epochs)
        passes = len(pass_epochs(self.epochs, self.every_epochs))
        if passes < need:
            share = smallest_share(sizes, target, passes)
            raise OptionError(
                f"norm cannot reach its target in {self.epochs} epochs", got=f"{passes} passes", expected=f"{need}",
                hint=f"Give epochs >= {enough}" + (f" or prune_share >= {share:g}" if share else "")
                + ", or leave epochs out.",
            )  # fmt: skip
        return self.epochs


def pass_epochs(epochs: int, every: int) -> range:
    """The epochs (0, 1, ...) that begin with a pass: multiples of `every`, the first and the last epoch excepted."""
    return range(every, epochs - 1, every)
