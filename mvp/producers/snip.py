"""SNIP: single weights removed at once by connection sensitivity, then trained under the mask."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mvp.data import Data
from mvp.finetune import check_data, make_optimizer, run_steps
from mvp.options import at_least, check_options, flag, one_of, whole
from mvp.plan import Plan
from mvp.producers import check_keep, recorded
from mvp.reinit import reinitialised
from mvp.subnetwork import export, task_model
from mvp.train import InputSpec, accuracy, derive_seed, pick_device, place
from zoo.errors import OptionError
from zoo.records import Base, SubNetwork

_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_CHUNK = 128  # images in one pass of the sensitivities
_TRUNCATED = 0.87962566  # standard deviation of a normal distribution cut off at two of its own


@dataclass(frozen=True)
class SNIP:
    """Keeps the weights whose removal would change the loss most, by its gradient at one mini-batch, in one shot.

    Source: Lee, Ajanthan, Torr 2019, eq. 5-6 and algorithm 1. With an indicator c_j of 1 on each weight, its
    sensitivity is |dL/dc_j| = |w_j dL/dw_j| over the sum of all of them; the top round(keep m) of all m weights
    together stay, of equal ones the earlier; then the network is trained under this mask, from the same start.
    m counts the weights of all convolution and linear layers but the head, which belongs to the task and stays whole.
    The published code scores biases too; here they stay, as in its ports. Like that code, sensitivities are measured in
    eval mode (running statistics, no dropout). The mini-batch holds equally many images of each class. It keeps its
    full size: params and MACs of the record are those of the whole network, and the metric "kept_weights" counts what
    is not masked. Such a sub-network does not vote.

    STAMP (Song et al. 2021) compares with it, from fresh weights ("SNIP") and from pre-trained ones ("SNIP (P)"), and
    leaves the 1x1 convolutions of ResNet-18, its shortcuts, unpruned.

    Attributes:
        images: Images in the mini-batch; 128 is the paper's batch on CIFAR. All there are when the task has fewer.
        init: "pretrained": SNIP (P). "reinit": the architecture's own start, with the scored weights drawn from a
            truncated normal distribution of variance 1 / fan-in (variance scaling, section 5.1).
        keep_1x1: Leave 1x1 convolutions whole and out of m.
        steps: Training steps under the mask, learning rate cosine to 0; 0 leaves them to `mvp.finetune`.
        lr: Peak learning rate; 0.01 (SGD, STAMP's choice for SNIP on ResNet-18) or 2e-4 (AdamW, ViTs) when None.
        batch_size: Images a step.
        weight_decay: See `mvp.finetune.make_optimizer`.
    """

    images: int = 128
    init: Literal["pretrained", "reinit"] = "pretrained"
    keep_1x1: bool = False
    steps: int = 1000
    lr: float | None = None
    batch_size: int = 128
    weight_decay: float | None = None

    name: ClassVar[str] = "snip"
    paper: ClassVar[str] = "SNIP (Lee et al. 2019)"
    kind: ClassVar[str] = "element"
    needs: ClassVar[str] = "task data"
    widths: ClassVar[str] = "full"
    claim: ClassVar[str] = "93.1% with 10% of the weights (ResNet-18, CIFAR-10, in STAMP; whole 94.4%)"

    def __post_init__(self) -> None:
        check_options(
            self, images=whole(1), init=one_of("pretrained", "reinit"), keep_1x1=flag(), steps=whole(0),
            lr=at_least(0, optional=True), batch_size=whole(2), weight_decay=at_least(0, optional=True),
        )  # fmt: skip

    def prune(
        self, base: Base, data: Data, *, keep: float, seed: int = 0, device: str | None = None, progress: bool = True
    ) -> SubNetwork:
        """See `Producer.prune`.

        Raises:
            OptionError: The base has no weights that could go.
            DataError: Too few images.
        """
        check_keep(keep)
        check_data(data, base)
        where, started = pick_device(device), time.perf_counter()
        spec = InputSpec.of(dict(base.input))
        fresh = self.init == "reinit"
        model = task_model(reinitialised(base, seed=seed) if fresh else base, len(data.labels), seed=seed)
        names = scored_weights(model, base.plan, keep_1x1=self.keep_1x1)
        if not names:
            raise OptionError(f"snip: {base.name} has no weights to remove besides its head")
        if fresh:
            variance_scaling(model, names, seed=derive_seed(seed, "reinit"))
        place(model, where)
        batch = data.sample(self.images, seed=derive_seed(seed, "snip", data.task.id))
        scores = sensitivity(model, names, spec(batch.train_images.to(where)), batch.train_labels.to(where))
        masks = top_weights(scores, keep)
        run_steps(
            model, make_optimizer(model, base, lr=self.lr, weight_decay=self.weight_decay), data, spec,
            steps=self.steps, batch_size=self.batch_size, seed=seed, device=where, progress=progress, elements=masks,
        )  # fmt: skip
        seconds = time.perf_counter() - started
        top1 = accuracy(model, data.test_images, data.test_labels, spec, device=where)
        gone = sum(int((~mask).sum()) for mask in masks.values())
        return export(
            model, base, data.task, {}, producer=self.name, keep=keep, kind="element", init=self.init, seed=seed,
            options=recorded(self), element_masks={k: v.cpu().numpy() for k, v in masks.items()},
            metrics={
                "accuracy": top1, "seconds": seconds, "steps": self.steps,
                "kept_weights": sum(p.numel() for p in model.parameters()) - gone,
            },
        )  # fmt: skip


def scored_weights(model: nn.Module, plan: Plan, *, keep_1x1: bool = False) -> list[str]:
    """Names of the weights that compete: of all convolution and linear layers but the head, in the model's order."""
    names = []
    for name, module in model.named_modules():
        pointwise = isinstance(module, _CONVS) and set(module.kernel_size) == {1}
        if isinstance(module, (*_CONVS, nn.Linear)) and not (keep_1x1 and pointwise):
            names.append(f"{name}.weight")
    return [name for name in names if name not in plan["head"]]


@torch.no_grad()
def variance_scaling(model: nn.Module, names: Sequence[str], *, seed: int) -> None:
    """Draws these weights anew, in place: truncated normal, mean 0, variance 1 / fan-in, cut at two deviations."""
    rng = torch.Generator().manual_seed(seed)
    for name in names:
        weight = model.get_parameter(name)
        deviation = (weight.numel() / weight.shape[0]) ** -0.5 / _TRUNCATED
        nn.init.trunc_normal_(weight, std=deviation, a=-2 * deviation, b=2 * deviation, generator=rng)


def sensitivity(model: nn.Module, names: Sequence[str], x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """|w dL/dw| of every weight, L the mean cross-entropy over all images, eval mode.

    Not divided by its sum as in eq. 6, which changes no order.

    Args:
        model: The unmasked model; left in eval mode.
        names: Parameters to score.
        x: Normalised images, float32 (n, 3, H, W), on the model's device.
        y: Labels, int64 (n,).

    Returns:
        {parameter: float32 tensor of its shape, on its device}.
    """
    model.eval()
    weights = [model.get_parameter(name) for name in names]
    total = [torch.zeros_like(w) for w in weights]
    for i in range(0, len(x), _CHUNK):
        loss = F.cross_entropy(model(x[i : i + _CHUNK]), y[i : i + _CHUNK], reduction="sum") / len(x)
        grads = torch.autograd.grad(loss, weights)
        total = [t + g for t, g in zip(total, grads, strict=True)]
    return {name: (w.detach() * g).abs() for name, w, g in zip(names, weights, total, strict=True)}


def top_weights(scores: Mapping[str, Tensor], keep: float) -> dict[str, Tensor]:
    """Masks (True = kept) of the max(1, round(keep m)) largest of all m scores together; the earlier of equal ones.

    Args:
        scores: {parameter: scores of its shape}.
        keep: Share of the weights that stay, in (0, 1].
    """
    flat = torch.cat([s.flatten() for s in scores.values()])
    order = torch.sort(flat, descending=True, stable=True).indices
    kept = torch.zeros(len(flat), dtype=torch.bool, device=flat.device)
    kept[order[: max(1, round(keep * len(flat)))]] = True
    parts = kept.split([s.numel() for s in scores.values()])
    return {name: part.view(s.shape).clone() for (name, s), part in zip(scores.items(), parts, strict=True)}
