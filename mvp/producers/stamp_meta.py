"""STAMP's mask generator: a set encoder turns a task's images into one pseudo-image, gates turn it into a mask.

Source: "Rapid Neural Pruning for Novel Datasets with Set-based Task-Adaptive Meta-Pruning" (ICLR 2021 submission),
section 3.2 and appendix B; equation numbers are those of this paper. Meta-training is in `stamp_train.py`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mvp.gates import Gates
from mvp.plan import Plan, prunable, units
from mvp.producers.gating import BetaGate, relaxed, uniform

EPSILON = 1e-10  # of the clamping function of Eq. 12
SHIFT_VARIANCE = 5.0  # b of Eq. 13


class AttentionBlock(nn.Module):
    """AE of Eq. 7 and 8: Norm(H + rF(H)) with H = Norm(x + MH(x, keys, keys)), rF a linear layer with a ReLU."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.linear = nn.Linear(width, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: Tensor, keys: Tensor | None = None) -> Tensor:
        """Queries (1, m, width) and keys (1, n, width), the queries themselves when None, to (1, m, width)."""
        keys = x if keys is None else keys
        h = self.norm1(x + self.attention(x, keys, keys, need_weights=False)[0])
        return self.norm2(h + F.relu(self.linear(h)))


class SetEncoder(nn.Module):
    """e(X; theta) of Eq. 5 to 10 with r = 1: a set of images to one pseudo-image; the order of the images is nothing.

    The paper's blocks are as wide as an image has values (3 x 32 x 32 = 3072), 38 million weights a block and more than
    the network it prunes; here the pixels are projected to `width` first. The last linear layer leads back.

    Args:
        shape: Of one image, (3, H, W).
        width: Width of the blocks; None for the paper's.
        heads: Heads of each block.
    """

    def __init__(self, shape: Sequence[int], width: int | None = 128, heads: int = 4) -> None:
        super().__init__()
        self.shape = tuple(shape)
        values = self.shape[0] * self.shape[1] * self.shape[2]
        wide = width or values
        self.project: nn.Module = nn.Linear(values, wide) if width else nn.Identity()
        self.encode = nn.ModuleList([AttentionBlock(wide, heads), AttentionBlock(wide, heads)])
        self.seed = nn.Parameter(torch.randn(1, 1, wide) / wide**0.5)
        self.before_pool = nn.Linear(wide, wide)
        self.pool, self.decode = AttentionBlock(wide, heads), AttentionBlock(wide, heads)
        self.back = nn.Linear(wide, values)

    def vector(self, images: Tensor) -> Tensor:
        """The task's embedding: AE(Pool(AE(AE(X)))), of which the pseudo-image is a linear map; shape (width,)."""
        x = self.project(images.flatten(1))[None]
        for block in self.encode:
            x = block(x)
        return self.decode(self.pool(self.seed, F.relu(self.before_pool(x))))[0, 0]

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (B, 3, H, W) to a pseudo-image (1, 3, H, W)."""
        return self.back(self.vector(images)).view(1, *self.shape)


class SetGate(BetaGate):
    """Gates of one axis as a function of what the pseudo-image gives there (Eq. 11 to 14).

    m_c ~ Bernoulli(pi_c psi(gamma_c o_c + beta_c)), psi(x) = min(1 - eps, max(eps, x)). The posterior of the shift beta
    is a Gaussian (mean, spread), its prior N(0, 5). Where they start is not in the paper: the mean of beta at 1, where
    psi is open, its spread at 0.1, and gamma at 0.1. With gamma at 1 half of the filters are shut at the first step
    (measured on a VGG), where psi has no gradient, since one pseudo-image's activations spread as widely as a norm
    lets them.
    """

    def __init__(self, n: int, start: float = 2.0) -> None:
        super().__init__(n, start)
        self.gamma = nn.Parameter(torch.full((n,), 0.1))
        self.shift = nn.Parameter(torch.ones(n))
        self.raw_spread = nn.Parameter(torch.full((n,), -2.2522))

    @property
    def spread(self) -> Tensor:
        """Standard deviation of the shift, shape (n,)."""
        return F.softplus(self.raw_spread)

    def log_probability(self, o: Tensor) -> Tensor:
        """log(pi psi(gamma o + beta)) at a draw of pi and one of the shift, shape (n,)."""
        shift = self.shift + self.spread * torch.randn_like(self.shift)
        return self.draw() + clamped(self.gamma * o + shift).log()

    def expected(self, o: Tensor) -> Tensor:
        """E[m] = E[pi] psi(gamma o + E[beta]) (Eq. 14), shape (n,)."""
        return self.mean() * clamped(self.gamma * o + self.shift)

    def kl(self, *args: float) -> Tensor:
        """Both terms of Eq. 13, summed over the units: of pi, and of the shift from N(0, 5)."""
        s = self.spread
        terms = (SHIFT_VARIANCE**0.5 / s).log() + (s**2 + self.shift**2) / (2 * SHIFT_VARIANCE) - 0.5
        return super().kl(*args) + terms.sum()


def clamped(x: Tensor) -> Tensor:
    """psi(x, eps) of Eq. 12; 1 - eps is 1 in float32."""
    return x.clamp(EPSILON, 1 - EPSILON)


class MaskGenerator(nn.Module):
    """theta and pi: a set encoder, and gates for every filter axis of a base.

    Args:
        plan: The base's plan.
        shape: Of one image, (3, H, W).
        width: See `SetEncoder`.
        heads: See `SetEncoder`.
        start: See `BetaGate`.
    """

    def __init__(
        self, plan: Plan, shape: Sequence[int], *, width: int | None = 128, heads: int = 4, start: float = 2.0
    ) -> None:
        super().__init__()
        self.encoder = SetEncoder(shape, width, heads)
        sizes = {axis: plan["axes"][axis]["n"] for axis in filters(plan)}
        self.gates = nn.ModuleDict({axis: SetGate(n, start) for axis, n in sizes.items()})

    def kl(self) -> Tensor:
        """Eq. 13 over all axes, shape ()."""
        return torch.stack([gate.kl() for gate in self.gates.values()]).sum()  # type: ignore[operator]


class Masked(nn.Module):
    """A network under the masks that a generator makes for a set of images.

    The pseudo-image runs through the network's own layers in eval mode (it is a batch of one), each axis masked before
    the next layer sees it; o_c is the mean over positions of what channel c passes on where its gate sits, behind the
    layer's norm. An axis that several layers write (a residual group) has one mask, made from the first of them.

    Args:
        network: A model with this plan.
        plan: The plan.
        generator: Gates for its filter axes.
    """

    def __init__(self, network: nn.Module, plan: Plan, generator: MaskGenerator) -> None:
        super().__init__()
        self.network, self.generator = network, generator
        self._hooks = Gates(network, plan, list(generator.gates), activations=False)
        self._keys = list(self._hooks.scales)
        self._first: dict[str, dict[str, Any]] = {}
        self._owner: dict[str, Tensor] = {}
        for axis in generator.gates:
            first = min(plan["axes"][axis]["writers"], key=lambda writer: writer["depth"])
            self._first[axis] = first
            self._owner[axis] = torch.from_numpy(units(plan, first["expr"], axis))

    def expected(self, images: Tensor) -> dict[str, Tensor]:
        """E[m] (Eq. 14) of every axis for a set of images.

        Args:
            images: Normalised images of the task, (B, 3, H, W).

        Returns:
            {axis: float (n,) in [0, 1]}.
        """
        return self._pass(images, sample=False)

    def _pass(self, images: Tensor, *, sample: bool) -> dict[str, Tensor]:
        """The pseudo-image's pass: log probabilities (n,) of every axis, at draws of pi and the shift; or E[m]."""
        found: dict[str, Tensor] = {}
        # Batch norm's statistics are copied: the images' own pass changes them before the gradients are taken.
        buffers = {name: value.clone() for name, value in self.network.named_buffers()}
        pseudo, training = self.generator.encoder(images), self.network.training
        handles = []
        modules = dict(self.network.named_modules())

        def observe(axis: str, x: Tensor) -> None:
            if axis not in found:
                gate: Any = self.generator.gates[axis]
                o = self._pooled(axis, x)
                found[axis] = gate.log_probability(o) if sample else gate.expected(o)
                self._set({axis: relaxed(found[axis], uniform(o, o.shape)) if sample else found[axis]})

        for axis, writer in self._first.items():
            module = modules[writer["gate"]]
            if writer["side"] == "input":
                handles.append(module.register_forward_pre_hook(lambda m, args, a=axis: observe(a, args[0])))
            else:
                handles.append(module.register_forward_hook(lambda m, args, out, a=axis: observe(a, out)))
        self._hooks.scales.clear()
        try:
            self.network.eval()
            with self._hooks:  # entered last, so that an axis is observed before it is masked
                torch.func.functional_call(self.network, buffers, (pseudo,))
        finally:
            for handle in handles:
                handle.remove()
            self.network.train(training)
        return found

    def forward(self, x: Tensor, images: Tensor) -> Tensor:
        """Logits of x, each image under its own mask, drawn from the probabilities that the set of images gives."""
        log_p = self._pass(images, sample=True)
        self._set({axis: relaxed(p, uniform(p, (len(x), len(p)))) for axis, p in log_p.items()})
        with self._hooks:
            return self.network(x)

    def loss(
        self, x: Tensor, y: Tensor, images: Tensor, kl_weight: float, rows: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Eq. 2: cross-entropy of the masked network plus the weighted KL of Eq. 13; and the cross-entropy alone.

        `rows` are the outputs that are the task's classes, in the order of its labels; all when None.
        """
        logits = self(x, images)
        error = F.cross_entropy(logits if rows is None else logits[:, rows], y)
        return error + kl_weight * self.generator.kl(), error.detach()

    def groups(self, lr: float, gate_lr: float, encoder_lr: float) -> list[dict[str, Any]]:
        """Parameter groups of an optimiser: W, pi and theta, in this order."""
        parts = (self.network, lr), (self.generator.gates, gate_lr), (self.generator.encoder, encoder_lr)
        return [{"params": list(module.parameters()), "lr": rate} for module, rate in parts]

    def _set(self, masks: Mapping[str, Tensor]) -> None:
        """The same mask for every layer that writes the axis."""
        self._hooks.scales.update({key: masks[key[0]] for key in self._keys if key[0] in masks})

    def _pooled(self, axis: str, x: Tensor) -> Tensor:
        """Mean of a unit's activation over positions (and its entries, where it has several), shape (n,)."""
        dim = self._first[axis]["dim"] % x.ndim
        values = x.mean([d for d in range(x.ndim) if d != dim])
        owner, gate = self._owner[axis].to(x.device), self.generator.gates[axis]
        n = len(gate.raw_a)  # type: ignore[arg-type]
        mine = owner >= 0
        total = values.new_zeros(n).index_add(0, owner[mine], values[mine])
        return total / torch.bincount(owner[mine], minlength=n)


def filters(plan: Plan) -> list[str]:
    """The prunable axes of kind filter."""
    return [axis for axis in prunable(plan) if plan["axes"][axis]["kind"] == "filter"]
