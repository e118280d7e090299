"""Hard-concrete gates on single weights: what `classifier_mask` learns with its method "l0"."""

import math

import torch
from torch import Tensor, nn

# Louizos et al. 2018: the stretched interval and the temperature of the concrete distribution.
LOW, HIGH, TEMPERATURE = -0.1, 1.1, 2 / 3
START = 2.0  # log alpha at the start: the classifier of a trained network begins almost whole


class HardConcrete(nn.Module):
    """A gate in [0, 1] on every weight of a tensor, as a parametrization of it (Louizos et al. 2018, Eq. 10 to 12).

    Training: s = sigmoid((log u - log(1 - u) + log_alpha) / temperature) with u uniform, stretched to (-0.1, 1.1) and
    clipped to [0, 1]. Eval: the same of s = sigmoid(log_alpha).

    Args:
        alive: bool; gates of the other weights are 0.
        rng: Draws the start, N(2, 0.01^2).
        penalty: Weight in the loss of the probability that a gate is open.
        least: The penalty rests while no more gates than this are expected to be open.
    """

    alive: Tensor

    def __init__(self, alive: Tensor, rng: torch.Generator, penalty: float, least: int = 0) -> None:
        super().__init__()
        self.penalty, self.least = penalty, least
        self.log_alpha = nn.Parameter(START + 0.01 * torch.randn(alive.shape, generator=rng))
        self.register_buffer("alive", alive)
        # The training step knows cross-entropy alone: the penalty joins where its gradient arrives.
        self.log_alpha.register_hook(self._penalise)

    def _penalise(self, gradient: Tensor) -> Tensor:
        likely = self.open() * self.alive
        return gradient + self.penalty * likely * (1 - likely) * (likely.sum() > self.least)

    def forward(self, weight: Tensor) -> Tensor:
        """The gated weight."""
        s = torch.sigmoid(self.log_alpha)
        if self.training:
            u = torch.rand_like(self.log_alpha).clamp(1e-6, 1 - 1e-6)
            s = torch.sigmoid((u.log() - (-u).log1p() + self.log_alpha) / TEMPERATURE)
        return weight * (s * (HIGH - LOW) + LOW).clamp(0, 1) * self.alive

    @torch.no_grad()
    def open(self) -> Tensor:
        """Probability that each gate is not 0."""
        return torch.sigmoid(self.log_alpha - TEMPERATURE * math.log(-LOW / HIGH))
