"""The deep kernel: a network of embedding ⊕ input under a base kernel (Eq. 7)."""

from __future__ import annotations

from typing import Literal, NamedTuple

import gpytorch
import torch
from torch import Tensor, nn


class LatentPoints(NamedTuple):
    """Where the base kernel sees points: ``task x point x size`` coordinates and amplitudes."""

    coordinates: Tensor
    amplitudes: Tensor | None

    def take(self, chosen: Tensor) -> LatentPoints:
        """Some of the points, the same for every task."""
        amplitudes = None if self.amplitudes is None else self.amplitudes[:, chosen]
        return LatentPoints(self.coordinates[:, chosen], amplitudes)

    def double(self) -> LatentPoints:
        amplitudes = None if self.amplitudes is None else self.amplitudes.double()
        return self._replace(coordinates=self.coordinates.double(), amplitudes=amplitudes)


class ResidualMLP(nn.Module):
    """Linear input layer, then width-preserving blocks with skip connections."""

    def __init__(self, inputs: int, width: int, blocks: int) -> None:
        super().__init__()
        self.input = nn.Linear(inputs, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
            for _ in range(blocks)
        )

    def forward(self, z: Tensor) -> Tensor:
        hidden = self.input(z)
        for block in self.blocks:
            hidden = hidden + block(hidden)
        return hidden


class Latent(nn.Module):
    """NN_f, NN_h and the common NN_c, ending in coordinates and amplitudes of the kernel."""

    def __init__(self, inputs: int, width: int, blocks: int, size: int, amplitudes: int) -> None:
        super().__init__()
        self.force = ResidualMLP(inputs, width, blocks)
        self.outputs = ResidualMLP(inputs, width, blocks)
        # Equal at first: from unrelated maps training tends to settle where f ⊥ h.
        self.outputs.load_state_dict(self.force.state_dict())
        self.common = ResidualMLP(width, width, blocks)
        self.coordinates = nn.Linear(width, size)
        self.amplitude = nn.Linear(width, amplitudes) if amplitudes else None

    def forward(self, z: Tensor, kind: Literal["force", "outputs"]) -> LatentPoints:
        """Map ``... x inputs`` of one kind to latent points."""
        branch = self.force if kind == "force" else self.outputs
        hidden = self.common(branch(z))
        amplitudes = None if self.amplitude is None else self.amplitude(hidden)
        return LatentPoints(self.coordinates(hidden), amplitudes)


class DeepKernel(nn.Module):
    """κ(φ, φ'), or signed: (a·a'/q) κ(φ, φ').

    A stationary base kernel alone cannot make the force fall where an output rises; amplitudes
    a of either sign, also read from the network, let it.
    """

    def __init__(self, base: str) -> None:
        super().__init__()
        kernels = {"rbf": gpytorch.kernels.RBFKernel, "periodic": gpytorch.kernels.PeriodicKernel}
        self.base = gpytorch.kernels.ScaleKernel(kernels[base]())

    def forward(self, left: LatentPoints, right: LatentPoints) -> Tensor:
        """Covariance ``task x n x m`` between ``task x n`` and ``task x m`` latent points."""
        covariance = self.base(left.coordinates, right.coordinates).to_dense()
        if left.amplitudes is None or right.amplitudes is None:
            return covariance
        return covariance * (left.amplitudes @ right.amplitudes.mT) / left.amplitudes.shape[-1]

    def variance(self, points: LatentPoints) -> Tensor:
        """The diagonal of ``forward(points, points)``, ``task x point``."""
        variance = self.base(points.coordinates, diag=True)
        if points.amplitudes is None:
            return variance
        return variance * points.amplitudes.square().mean(-1)


def join(first: LatentPoints, second: LatentPoints) -> LatentPoints:
    """Concatenate latent points along the point dimension."""
    coordinates = torch.cat([first.coordinates, second.coordinates], dim=-2)
    if first.amplitudes is None or second.amplitudes is None:
        return LatentPoints(coordinates, None)
    return LatentPoints(coordinates, torch.cat([first.amplitudes, second.amplitudes], dim=-2))
