"""Masks on the weights of a classifier: by a threshold on their magnitude, or by learned hard-concrete gates."""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from mvp.data import Data
from mvp.finetune import check_data, is_transformer, make_optimizer, run_steps
from mvp.options import Rule, at_least, check_options, one_of, whole
from mvp.producers import check_keep, recorded
from mvp.producers.hard_concrete import HardConcrete
from mvp.subnetwork import export, task_model
from mvp.train import InputSpec, accuracy, derive_seed, pick_device, place
from zoo.errors import OptionError
from zoo.records import Base, SubNetwork

Masks = dict[str, Tensor]


@dataclass(frozen=True)
class MaskOptions:
    """How the masks are found, and how the network trains.

    Attributes:
        method: "threshold": train, then keep the weights of largest magnitude of each layer. "l0": train with a
            hard-concrete gate on every weight and an L0 penalty, then keep the weights whose gates are likeliest open.
        steps: Training steps while the masks are found.
        tune_steps: Steps after the cut, with the masks held.
        lr: Learning rate, cosine to 0; when None 0.01 (SGD, CNN) or 2e-4 (AdamW, ViT), and under gates, where both
            take AdamW, 1e-3 or 2e-4.
        gate_lr: Learning rate of the gates ("l0").
        penalty: Weight of the expected share of open gates in the loss ("l0"). Too small, and the cut
            takes what the network still used; too large, and it drowns what tells the gates apart. 10 was the best of
            1, 10 and 100 for 3% and 10% of a ResNet-20's head.
        batch_size: Images a step.
        weight_decay: Of the weights; 5e-4 (SGD) or 0.05 (AdamW) when None.
    """

    method: Literal["threshold", "l0"] = "threshold"
    steps: int = 100
    tune_steps: int = 50
    lr: float | None = None
    gate_lr: float = 0.1
    penalty: float = 10.0
    batch_size: int = 128
    weight_decay: float | None = None


RULES: dict[str, Rule] = {
    "method": one_of("threshold", "l0"), "steps": whole(1), "tune_steps": whole(0), "lr": at_least(0, optional=True),
    "gate_lr": at_least(0), "penalty": at_least(0), "batch_size": whole(2), "weight_decay": at_least(0, optional=True),
}  # fmt: skip


@dataclass(frozen=True)
class ClassifierMask(MaskOptions):
    """Trains the network on the task and masks single weights of its classifier; everything else stays whole.

    Source: the meta-pruning proposal (Salcedo and Sharma), sections 2.1.1 and 2.1.2, which are headings without text.
    Chosen here: the classifier is every linear layer behind the last convolution that sees one vector an image (VGG's
    fully connected layers; the head alone of a ResNet or a ViT), and always the head. Of each layer's weights
    max(1, round(keep n)) stay, biases all. "threshold" is magnitude pruning (Han et al. 2015) with the threshold that
    keeps so many. "l0" is Louizos et al. 2018: gates stretched to (-0.1, 1.1), temperature 2/3, the penalty the mean
    probability that a gate is open; gates start almost open, because the network is trained already, and a layer's
    penalty rests while no more of its gates are expected open than will stay, so that a strong one does not close them
    all. At the end the weights take their gates' test-time values, and all but the likeliest go. Then it is fine-tuned
    under the masks.

    The record is one of masks: `params` and `macs` are those of the whole network, and it does not vote.
    `classifier_mask_sources` finds the masks over several data sets.

    Attributes:
        method: See `MaskOptions`, as for all the others.
    """

    name: ClassVar[str] = "classifier_mask"
    paper: ClassVar[str] = "Meta-pruning (Salcedo and Sharma), sec. 2.1.1-2.1.2"
    kind: ClassVar[str] = "element"
    needs: ClassVar[str] = "task data"
    widths: ClassVar[str] = "full"
    claim: ClassVar[str] = "no figures reported"

    def __post_init__(self) -> None:
        check_options(self, **RULES)

    def prune(
        self, base: Base, data: Data, *, keep: float, seed: int = 0, device: str | None = None, progress: bool = True
    ) -> SubNetwork:
        """See `Producer.prune`.

        Raises:
            OptionError: The base has no head.
            DataError: Too few images.
        """
        check_keep(keep)
        check_data(data, base)
        started = time.perf_counter()
        run = Classifier(base, self, len(data.labels), where=pick_device(device), seed=seed, progress=progress)
        counts = run.counts(keep)
        masks = run.cut(run.learn(data, counts, seed=seed), counts)
        run.tune(data, masks, seed=seed)
        return run.record(self, data, masks, keep=keep, seed=seed, started=started, options=recorded(self))


class Classifier:
    """A network whose classifier is being masked, with what the producers of such masks do to it.

    Args:
        base: The base.
        options: The producer.
        n_classes: Outputs of the head.
        where: Device.
        seed: Seed of the head.
        progress: Show progress bars.

    Attributes:
        model: The network, full size.
        layers: Names of the weights that can be masked, in forward order.
        steps: Optimiser steps made.

    Raises:
        OptionError: The base has no head.
    """

    def __init__(
        self, base: Base, options: MaskOptions, n_classes: int, *, where: torch.device, seed: int, progress: bool
    ) -> None:
        self.base, self.options, self.where, self.progress = base, options, where, progress
        self.spec = InputSpec.of(dict(base.input))
        self.model = place(task_model(base, n_classes, seed=seed), where)
        self.layers = classifier_weights(self.model, base)
        self.steps = 0

    def counts(self, keep: float) -> dict[str, int]:
        """Weights of each layer that stay: max(1, round(keep n))."""
        return {name: max(1, round(keep * self.weight(name).numel())) for name in self.layers}

    def learn(
        self, data: Data, counts: Mapping[str, int], *, seed: int, alive: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Trains on a task and says how much each weight of the classifier matters.

        Args:
            data: Images of the task that the head is for.
            counts: Weights of each layer that will stay.
            seed: Seed of batches and gates.
            alive: Masks of the weights that are left, all when None; the others stay zero.

        Returns:
            {parameter: scores of its shape}: the magnitude of a weight, or how likely its gate is open ("l0", where
            the weights have taken on their gates' values); -inf for those not alive.
        """
        alive = alive or {name: torch.ones_like(self.weight(name), dtype=torch.bool) for name in self.layers}
        if self.options.method == "threshold":
            self._train(data, make_optimizer(self.model, self.base, **self._rates()), self.options.steps, seed, alive)
            scores = {name: self.weight(name).detach().abs() for name in self.layers}
        else:
            scores = self._learn_gates(data, counts, seed, alive)
        return {name: values.masked_fill(~alive[name], -math.inf) for name, values in scores.items()}

    def _learn_gates(
        self, data: Data, counts: Mapping[str, int], seed: int, alive: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        weights = list(self.model.parameters())
        share = self.options.penalty / sum(int(mask.sum()) for mask in alive.values())
        gates = {}
        for name in self.layers:
            module, own = self.model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]
            rng = torch.Generator().manual_seed(derive_seed(seed, "gates", name))
            # In eval mode, or registering it would draw from torch's own generator.
            gates[name] = HardConcrete(alive[name].cpu(), rng, share, counts[name]).to(self.where).eval()
            parametrize.register_parametrization(module, own, gates[name])
        decay = 0.05 if self.options.weight_decay is None else self.options.weight_decay
        usual = 2e-4 if is_transformer(self.base) else 1e-3
        optimizer = torch.optim.AdamW([
            {"params": weights, "lr": usual if self.options.lr is None else self.options.lr, "weight_decay": decay},
            {"params": [g.log_alpha for g in gates.values()], "lr": self.options.gate_lr, "weight_decay": 0.0},
        ])  # fmt: skip
        self._train(data, optimizer, self.options.steps, seed, {})
        for name, gate in gates.items():
            # In eval mode the parametrised weight is the weight times its gate's test-time value.
            module, own = self.model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]
            parametrize.remove_parametrizations(module, own, leave_parametrized=True)
            gate.log_alpha.requires_grad_(False)
        return {name: gate.open().double() for name, gate in gates.items()}

    def cut(self, scores: Mapping[str, Tensor], counts: Mapping[str, int]) -> Masks:
        """The masks that keep so many weights of each layer, those with the largest scores; of equals the first."""
        return {name: largest(values, counts[name]) for name, values in scores.items()}

    def tune(self, data: Data, masks: Mapping[str, Tensor], *, seed: int, steps: int | None = None) -> None:
        """Fine-tunes with the masks held from the start; `tune_steps` when None."""
        optimizer = make_optimizer(self.model, self.base, **self._rates())
        steps = self.options.tune_steps if steps is None else steps
        self._train(data, optimizer, steps, derive_seed(seed, "tune"), masks)

    def _rates(self) -> dict[str, Any]:
        return {"lr": self.options.lr, "weight_decay": self.options.weight_decay}

    def _train(
        self, data: Data, optimizer: torch.optim.Optimizer, steps: int, seed: int, masks: Mapping[str, Tensor]
    ) -> None:
        run_steps(
            self.model, optimizer, data, self.spec, steps=steps, batch_size=self.options.batch_size, seed=seed,
            device=self.where, progress=self.progress, elements=masks,
        )  # fmt: skip
        self.steps += steps

    def weight(self, name: str) -> Tensor:
        """A parameter by name."""
        return self.model.get_parameter(name)

    def record(
        self, producer: Any, data: Data, masks: Mapping[str, Tensor], *, keep: float, seed: int, started: float,
        options: dict[str, Any], more: Mapping[str, float] | None = None,
    ) -> SubNetwork:  # fmt: skip
        """The finished sub-network, its accuracy measured."""
        seconds = time.perf_counter() - started
        top1 = accuracy(self.model, data.test_images, data.test_labels, self.spec, device=self.where)
        removed = sum(int((~mask).sum()) for mask in masks.values())
        return export(
            self.model, self.base, data.task, {}, producer=producer.name, keep=keep, kind="element", seed=seed,
            options=options, element_masks={name: mask.cpu().numpy() for name, mask in masks.items()},
            metrics={
                "accuracy": top1, "seconds": seconds, "steps": self.steps, "weights_removed": removed, **(more or {}),
            },
        )  # fmt: skip


def classifier_weights(model: nn.Module, base: Base) -> list[str]:
    """Weights of the linear layers behind the last convolution that see one vector an image, and always the head's.

    Raises:
        OptionError: The base has no head.
    """
    head = [name for name in base.plan["head"] if len(base.weights[name].shape) > 1]
    if not head:
        raise OptionError(f"classifier_mask: {base.name} has no head whose weights could be masked")
    found: list[str] = []

    def seen(name: str, module: nn.Module, x: Tensor) -> None:
        if f"{name}.weight" in head:
            return
        if isinstance(module, nn.modules.conv._ConvNd):
            found.clear()
        elif x.ndim == 2:
            found.append(f"{name}.weight")

    kinds = (nn.Linear, nn.modules.conv._ConvNd)
    handles = [
        module.register_forward_pre_hook(lambda m, args, name=name: seen(name, m, args[0]))
        for name, module in model.named_modules()
        if isinstance(module, kinds)
    ]
    training = model.training
    with torch.no_grad():
        model.eval()(torch.zeros(1, *base.input["size"], device=next(model.parameters()).device))
    model.train(training)
    for handle in handles:
        handle.remove()
    return [*dict.fromkeys(found), *head]


def largest(scores: Tensor, n: int) -> Tensor:
    """A mask of the n largest scores, on their device; of equal ones the first."""
    flat = scores.detach().double().cpu().numpy().reshape(-1)
    mask = np.zeros(flat.size, dtype=bool)
    mask[np.lexsort((np.arange(flat.size), -flat))[:n]] = True
    return torch.from_numpy(mask).view(scores.shape).to(scores.device)
