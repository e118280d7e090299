"""BBDropout: a gate for every unit with a sparse beta-Bernoulli prior, learned together with the weights."""

import time
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mvp.budget import Budget
from mvp.data import Data
from mvp.finetune import check_data, make_optimizer, run_steps, seeded_noise
from mvp.gates import Gates
from mvp.options import at_least, check_options, one_of, whole
from mvp.plan import prunable
from mvp.producers import check_keep, recorded
from mvp.producers.gating import ALPHA, THRESHOLD, BetaGate, fold, relaxed, uniform
from mvp.progress import track
from mvp.subnetwork import export, task_model
from mvp.surgery import shrink
from mvp.train import InputSpec, accuracy, batches, derive_seed, pick_device, place
from zoo.errors import OptionError
from zoo.records import Base, SubNetwork

Sets = dict[str, np.ndarray]


@dataclass(frozen=True)
class BBDropout:
    """Beta-Bernoulli dropout: trains weights and gates, removes the units whose expected gate is smallest, fine-tunes.

    Source: Lee et al. 2019, "Adaptive network sparsification with dependent variational beta-Bernoulli dropout", as
    STAMP (ICLR 2021 submission, sec. 4) compares with. Every unit has a gate m ~ Bernoulli(pi), with the prior
    Beta(alpha, 1) on pi, alpha = 1e-4, and a Kumaraswamy posterior. A step draws pi once and a relaxed m (temperature
    0.1) for every image; its loss is cross-entropy + kl / N sum of KL, N being the number of training images. Both
    learning rates fall to a tenth at 50% and at 80% of the steps. At test a gate is its expectation, which is
    multiplied into the weights when the units go: the slim network is the paper's test-time network exactly, and
    fine-tuning starts from it. The layers of a residual group share one gate a unit.

    The papers have no size target: units whose expected gate is below 1e-3 go, and kl decides how many they are
    (size="threshold"; an axis keeps its best unit at least). That takes epochs, so by default the units are ranked by
    their expected gate over all axes instead, and fill the MACs that `keep` stands for; every axis keeps half of this
    share at least, since after few steps whole layers differ more than their units do. Their schedule (200 epochs) is
    cut to `steps`, so gates start more open and move faster than the authors' (start 2, gate_lr 0.01, 20,000 steps and
    more): in some hundred steps theirs hardly tell units apart. The fine-tuning afterwards is STAMP's (Alg. 1, line
    13), at this project's rates.

    Attributes:
        steps: Steps with gates.
        finetune_steps: Steps of the slim network afterwards.
        kl: Weight of the KL term. STAMP's comparison takes 15 to 25 over 200 epochs, where it decides the size; in some
            hundred steps so much of it moves all gates alike and ranks worse (measured on a ResNet-20).
        size: "keep" or "threshold".
        batch_size: Images a step.
        lr: Learning rate of the weights (Adam).
        gate_lr: Learning rate of the gates (Adam).
        start: Where a = softplus(start) begins; 5 makes E[pi] 0.83, 2 makes it 0.68.
        weight_decay: L2 penalty of the weights while there are gates.
    """

    steps: int = 300
    finetune_steps: int = 100
    kl: float = 1.0
    size: Literal["keep", "threshold"] = "keep"
    batch_size: int = 100
    lr: float = 1e-3
    gate_lr: float = 0.1
    start: float = 5.0
    weight_decay: float = 1e-4

    name: ClassVar[str] = "bbdropout"
    paper: ClassVar[str] = "BBDropout (Lee et al. 2019); STAMP, sec. 4"
    kind: ClassVar[str] = "filter+node+head"
    needs: ClassVar[str] = "task data"
    widths: ClassVar[str] = "budget"
    claim: ClassVar[str] = "93.5% at 24% of MACs and 6% of params (ResNet-18, CIFAR-10; whole 94.4%)"

    def __post_init__(self) -> None:
        check_options(
            self, steps=whole(1), finetune_steps=whole(0), kl=at_least(0), size=one_of("keep", "threshold"),
            batch_size=whole(2), lr=at_least(0), gate_lr=at_least(0), start=at_least(-10), weight_decay=at_least(0),
        )  # fmt: skip

    def prune(
        self, base: Base, data: Data, *, keep: float, seed: int = 0, device: str | None = None, progress: bool = True
    ) -> SubNetwork:
        """See `Producer.prune`.

        Raises:
            OptionError: The base has no unit that could go.
            DataError: Too few images.
        """
        check_keep(keep)
        check_data(data, base)
        axes = prunable(base.plan)
        if not axes:
            raise OptionError(f"{self.name}: {base.name} has no filters, nodes or heads that can be pruned")
        where, started, spec = pick_device(device), time.perf_counter(), InputSpec.of(dict(base.input))
        model = place(task_model(base, len(data.labels), seed=seed), where)
        gates = self._learn(model, base, data, axes, spec, seed, where, progress)
        expected = {axis: gate.mean().detach() for axis, gate in gates.items()}
        budget = Budget.of(base, len(data.labels), keep=keep) if self.size == "keep" else None
        sets = chosen_units(expected, budget, keep / 2)
        fold(model, base.plan, expected)
        model, _ = shrink(model, base.plan, sets)
        place(model, where)
        run_steps(
            model, make_optimizer(model, base), data, spec, steps=self.finetune_steps, batch_size=self.batch_size,
            seed=derive_seed(seed, "slim"), device=where, progress=progress,
        )  # fmt: skip
        seconds = time.perf_counter() - started
        top1 = accuracy(model, data.test_images, data.test_labels, spec, device=where)
        return export(
            model, base, data.task, sets, producer=self.name, keep=keep, seed=seed, options=recorded(self),
            metrics={"accuracy": top1, "seconds": seconds, "steps": self.steps + self.finetune_steps},
        )  # fmt: skip

    def _learn(
        self, model: nn.Module, base: Base, data: Data, axes: list[str], spec: InputSpec, seed: int,
        where: torch.device, progress: bool,
    ) -> dict[str, BetaGate]:  # fmt: skip
        """Trains the model with gates on every axis, in place, and returns the gates."""
        posterior = {axis: BetaGate(base.plan["axes"][axis]["n"], self.start).to(where) for axis in axes}
        optimizer = torch.optim.Adam(
            [
                {"params": list(model.parameters()), "lr": self.lr, "weight_decay": self.weight_decay},
                {"params": [p for gate in posterior.values() for p in gate.parameters()], "lr": self.gate_lr},
            ]
        )
        falling = torch.optim.lr_scheduler.MultiStepLR(optimizer, falls(self.steps))
        stream = batches(
            data.train_images, data.train_labels, spec, batch_size=self.batch_size, seed=derive_seed(seed, "batches"),
            device=where,
        )  # fmt: skip
        model.train()
        with seeded_noise(seed, where), Gates(model, base.plan, axes, activations=False) as gates:
            for _ in track(range(self.steps), self.name, progress=progress):
                x, y = next(stream)
                drawn = {axis: draw_for_images(gate, len(x)) for axis, gate in posterior.items()}
                gates.scales.update({key: drawn[key[0]] for key in gates.scales})
                penalty = torch.stack([gate.kl(ALPHA) for gate in posterior.values()]).sum()
                loss = F.cross_entropy(model(x), y) + self.kl / len(data.train_images) * penalty
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                falling.step()
        return posterior


def draw_for_images(gate: BetaGate, images: int) -> Tensor:
    """Relaxed gates of one draw of pi and a draw of m for every image, shape (images, n)."""
    log_p = gate.draw()
    return relaxed(log_p, uniform(log_p, (images, len(log_p))))


def falls(steps: int) -> list[int]:
    """After how many steps the learning rate falls to a tenth: 50% and 80%."""
    return [max(1, steps // 2), max(1, steps * 4 // 5)]


def chosen_units(expected: dict[str, Tensor], budget: Budget | None, floor: float = 0.0) -> Sets:
    """Kept units of every axis: the largest expected gates that a budget allows, else those of at least 1e-3.

    Args:
        expected: {axis: E[m], float (n,)}.
        budget: What the sub-network may cost; None for the threshold.
        floor: Share of every axis that stays, under a budget.

    Raises:
        OptionError: The budget cannot be met.
    """
    scores: dict[str, Any] = {axis: gate.double().cpu().numpy() for axis, gate in expected.items()}
    if budget is not None:
        return budget.fill(scores, floor=floor)
    # An axis without any unit would be no network: its best one stays.
    return {axis: np.flatnonzero(s >= min(THRESHOLD, s.max())) for axis, s in scores.items()}
