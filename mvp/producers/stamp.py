"""STAMP: gates made from a set of the task's images, meta-trained to be right after a few steps."""

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from mvp.budget import Budget
from mvp.data import Data
from mvp.finetune import check_data, make_optimizer, run_steps, seeded_noise
from mvp.options import at_least, check_options, flag, one_of, whole
from mvp.producers import check_keep, recorded
from mvp.producers.bbdropout import chosen_units, falls
from mvp.producers.gating import fold
from mvp.producers.stamp_file import generator_base as generator_base
from mvp.producers.stamp_file import load_generator, task_vector
from mvp.producers.stamp_meta import Masked, filters
from mvp.progress import track
from mvp.reinit import reinitialised
from mvp.subnetwork import export, task_model
from mvp.surgery import shrink
from mvp.train import InputSpec, accuracy, batches, derive_seed, pick_device, place
from zoo.errors import OptionError
from zoo.records import Base, SubNetwork

Sets = dict[str, np.ndarray]
_MOST_KL = 1e5  # the search gives up beyond it
_HALVINGS = 4


@dataclass(frozen=True)
class Stamp:
    """Adapts a meta-trained mask generator to the task for K steps, removes what it masks, fine-tunes.

    Source: STAMP, Algorithm 1, lines 12 and 13, with Eq. 2, 3 and 5 to 14; meta-training, lines 1 to 11, is
    `mvp.producers.stamp_train.meta_train` (`mvp meta-train`), whose file `generator` is. `base` must be what that file
    was made with: the meta-trained network (`generator_base(path)`; W is part of what is meta-trained), or the base
    given to a run with frozen weights. In the K steps W, pi and theta are all trained with Adam on cross-entropy + kl /
    N sum of KL, each image under its own draw of the set's mask; the rates fall to a tenth at 50% and at 80%. Then a
    filter's gate is its expectation (Eq. 14), which is multiplied into the weights when the filters go.

    The paper bounds the cost (|C| <= kappa, Eq. 1) but lets kl decide the size. Here `size` says how filters go:
    "keep": ranked by expected gate over all axes they fill the MACs that `keep` stands for, half of this share of every
    axis at least (after few steps whole layers differ more than their filters do, and would be left with one);
    "threshold": those below 1e-3 go;
    "search": kl is searched, each try from the same start, until those below 1e-3 leave at most these MACs: tenfold
    steps up from `kl`, then bisection of its logarithm; the largest sub-network that met the target is taken.
    An axis keeps its best filter at least. The set that is encoded is one balanced sample for all K steps. The layers
    of a residual group share one gate a filter, made from the first of them.

    Attributes:
        generator: The file that `mvp meta-train` wrote. Recorded by its SHA-256.
        prune_steps: K; one epoch (the paper's most) when None.
        finetune_steps: Steps of the slim network afterwards, SGD at this project's rates.
        size: "keep", "threshold" or "search".
        kl: Weight of the KL term, 15 in the paper; where the search starts.
        structure_only: STAMP-Structure: the architecture alone is kept, its weights start at random.
        set_images: Images in the set that is encoded, equally many of each class.
        batch_size: Images a step.
        lr: Learning rate of W (Adam, K steps).
        gate_lr: Of the gates; the paper takes 0.5 for its ResNet-18.
        encoder_lr: Of the set encoder.
    """

    generator: Path | None = None
    prune_steps: int | None = None
    finetune_steps: int = 100
    size: Literal["keep", "threshold", "search"] = "keep"
    kl: float = 15.0
    structure_only: bool = False
    set_images: int = 640
    batch_size: int = 128
    lr: float = 1e-3
    gate_lr: float = 1e-2
    encoder_lr: float = 1e-3

    name: ClassVar[str] = "stamp"
    paper: ClassVar[str] = "STAMP (ICLR 2021 submission), Alg. 1"
    kind: ClassVar[str] = "filter"
    needs: ClassVar[str] = "task data, a mask generator (mvp meta-train, for which a GPU is sensible)"
    widths: ClassVar[str] = "budget"
    claim: ClassVar[str] = "93.6% at 23% of MACs and 9% of params (ResNet-18, CIFAR-10; whole 94.4%, random 92.0%)"

    def __post_init__(self) -> None:
        if self.generator is not None:
            object.__setattr__(self, "generator", Path(self.generator))
        check_options(
            self, prune_steps=whole(1, optional=True), finetune_steps=whole(0), kl=at_least(0), structure_only=flag(),
            size=one_of("keep", "threshold", "search"), set_images=whole(2), batch_size=whole(2), lr=at_least(0),
            gate_lr=at_least(0), encoder_lr=at_least(0),
        )  # fmt: skip

    def prune(
        self, base: Base, data: Data, *, keep: float, seed: int = 0, device: str | None = None, progress: bool = True
    ) -> SubNetwork:
        """See `Producer.prune`; `metrics["kl"]` is the weight that the search took, `embeddings["stamp"]` the task's.

        Raises:
            OptionError: No generator is given, the base has no filters, or no kl up to 1e5 meets the target.
            BaseMismatchError: The generator belongs to another base.
            DataError: The file is no generator, or there are too few images.
        """
        check_keep(keep)
        check_data(data, base)
        if not filters(base.plan):
            raise OptionError(f"{self.name}: {base.name} has no filters that can be pruned")
        if self.generator is None:
            raise OptionError(
                f"{self.name}: no mask generator is given", expected="generator=PATH of a file of `mvp meta-train`"
            )
        where, started = pick_device(device), time.perf_counter()
        trained, meta = load_generator(self.generator, base)
        vector = task_vector(trained, base, data, images=meta.images, device=str(where))
        budget = Budget.of(base, len(data.labels), keep=keep)
        kl = self.kl
        if self.size == "search":
            kl, model, expected, sets = self._search(self.generator, base, data, budget, seed, where, progress)
        else:
            model, expected = self._adapt(self.generator, base, data, kl, seed, where, progress)
            sets = chosen_units(expected, budget if self.size == "keep" else None, keep / 2)
        if self.structure_only:
            model = task_model(reinitialised(base, seed=seed), len(data.labels), channels=sets, seed=seed)
        else:
            fold(model, base.plan, expected)
            model, _ = shrink(model, base.plan, sets)
        place(model, where)
        spec = InputSpec.of(dict(base.input))
        run_steps(
            model, make_optimizer(model, base), data, spec, steps=self.finetune_steps, batch_size=self.batch_size,
            seed=derive_seed(seed, "slim"), device=where, progress=progress,
        )  # fmt: skip
        seconds = time.perf_counter() - started
        top1 = accuracy(model, data.test_images, data.test_labels, spec, device=where)
        return export(
            model, base, data.task, sets, producer=self.name, keep=keep, seed=seed, options=recorded(self),
            init="reinit" if self.structure_only else "pretrained", embeddings={"stamp": vector.numpy()},
            metrics={"accuracy": top1, "seconds": seconds, "steps": self._steps(data) + self.finetune_steps, "kl": kl},
        )  # fmt: skip

    def _steps(self, data: Data) -> int:
        return self.prune_steps or math.ceil(len(data.train_images) / self.batch_size)

    def _adapt(
        self, path: Path, base: Base, data: Data, kl: float, seed: int, where: torch.device, progress: bool
    ) -> tuple[nn.Module, dict[str, Tensor]]:
        """K steps on the task from the meta-trained start: the trained network, and E[m] of every filter."""
        generator, _ = load_generator(path, base)
        spec, steps = InputSpec.of(dict(base.input)), self._steps(data)
        network = place(task_model(base, len(data.labels), seed=seed), where)
        masked = Masked(network, base.plan, generator.to(where))
        chosen = data.sample(self.set_images, seed=derive_seed(seed, "set"))
        images = spec(chosen.train_images.to(where))
        optimizer = torch.optim.Adam(masked.groups(self.lr, self.gate_lr, self.encoder_lr))
        falling = torch.optim.lr_scheduler.MultiStepLR(optimizer, falls(steps))
        stream = batches(
            data.train_images, data.train_labels, spec, batch_size=self.batch_size, seed=derive_seed(seed, "batches"),
            device=where,
        )  # fmt: skip
        masked.train()
        with seeded_noise(seed, where):
            for _ in track(range(steps), f"{self.name}, kl {kl:g}", progress=progress):
                loss, _ = masked.loss(*next(stream), images, kl / len(data.train_images))
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                falling.step()
        with torch.no_grad():
            return network, masked.expected(images)

    def _search(
        self, path: Path, base: Base, data: Data, budget: Budget, seed: int, where: torch.device, progress: bool
    ) -> tuple[float, nn.Module, dict[str, Tensor], Sets]:
        """The kl with the largest sub-network, of those tried, that the budget allows.

        Returns:
            (kl, its trained network, E[m], kept filters).
        """
        fits: list[tuple[int, float, nn.Module, dict[str, Tensor], Sets]] = []

        def met(kl: float) -> bool:
            model, expected = self._adapt(path, base, data, kl, seed, where, progress)
            sets = chosen_units(expected, None)
            cost = budget.cost({axis: len(kept) for axis, kept in sets.items()})
            if cost <= budget.limit:
                fits.append((cost, kl, model, expected, sets))
            return cost <= budget.limit

        low, high = 0.0, max(self.kl, 1e-2)
        while not met(high):
            low, high = high, high * 10
            if high > _MOST_KL:
                raise OptionError(
                    f"{self.name}: no kl up to {_MOST_KL:g} leaves at most {budget.limit:,} MACs",
                    hint="Give more prune_steps or a larger gate_lr, or use size='keep'.",
                )  # fmt: skip
        low = low or high / 100
        for _ in range(_HALVINGS):
            middle = math.sqrt(low * high)
            low, high = (low, middle) if met(middle) else (middle, high)
        return max(fits, key=lambda fit: fit[0])[1:]
