"""Features of the inputs x that stand beside a task's embedding in z = r ⊕ x."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class FourierFeatures(nn.Module):
    """x ↦ (x, sin 2πνx, cos 2πνx) for log-spaced frequencies ν in cycles per unit interval.

    A network of raw inputs is too smooth in x for the deep kernel to separate points: without
    these features training settles where force and outputs are independent.
    """

    angular: Tensor

    def __init__(self, axes: int, frequencies: int, lowest: float, highest: float) -> None:
        super().__init__()
        cycles = torch.logspace(math.log10(lowest), math.log10(highest), frequencies)
        self.register_buffer("angular", 2 * math.pi * cycles, persistent=False)
        self.size = axes * (1 + 2 * frequencies)

    def forward(self, x: Tensor, r: Tensor | None = None) -> Tensor:
        """``... x axis`` inputs in [0, 1] to ``... x size`` features, whatever the task."""
        angle = (x[..., None] * self.angular).flatten(-2)
        return torch.cat([x, angle.sin(), angle.cos()], dim=-1)


class PeriodFeatures(nn.Module):
    """x ↦ (sin 2πkx/p, cos 2πkx/p), k = 1 … K, with a period p(r) of the task's own.

    The period is a bounded function of the embedding. With one period for all tasks, or with x
    itself among the features, nothing learnt inside the training range holds beyond it.
    """

    harmonics: Tensor

    def __init__(
        self, axes: int, embedding: int, harmonics: int, shortest: float, longest: float
    ) -> None:
        super().__init__()
        self.register_buffer("harmonics", torch.arange(1.0, harmonics + 1), persistent=False)
        self.shortest, self.longest = shortest, longest
        self.logit = nn.Linear(embedding, axes)
        self.size = 2 * axes * harmonics

    def period(self, r: Tensor) -> Tensor:
        """``task x axis`` periods as a share of the domain, from ``task x size`` embeddings."""
        return self.shortest * (self.longest / self.shortest) ** torch.sigmoid(self.logit(r))

    def forward(self, x: Tensor, r: Tensor) -> Tensor:
        """``task x point x axis`` inputs in [0, 1] to ``task x point x size`` features."""
        cycles = x / self.period(r)[:, None]
        angle = (2 * math.pi * cycles[..., None] * self.harmonics).flatten(-2)
        return torch.cat([angle.sin(), angle.cos()], dim=-1)
