"""The deep kernel: a network of embedding ⊕ input under a base kernel (Eq. 7)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import gpytorch
import torch
from torch import Tensor, nn

from dklfm.model.differential import Operator, covariance_factor, variance_factor

_OPERATOR_WEIGHT = 0.01
"""Deviation of the weights that operators begin with: close to the identity."""


class LatentPoints(NamedTuple):
    """Where the base kernel sees points: ``task x point x size`` coordinates and amplitudes.

    With an operator, what is observed is that of the process.
    """

    coordinates: Tensor
    amplitudes: Tensor | None
    operator: Operator | None = None

    def take(self, chosen: Tensor) -> LatentPoints:
        """Some of the points, the same for every task."""
        return self._each(lambda values: values[:, chosen])

    def double(self) -> LatentPoints:
        return self._each(Tensor.double)

    def _each(self, change: Callable[[Tensor], Tensor]) -> LatentPoints:
        coordinates, amplitudes, operator = self
        return LatentPoints(
            change(coordinates),
            None if amplitudes is None else change(amplitudes),
            None if operator is None else Operator(*map(change, operator)),
        )


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
    """NN_f, NN_h and the common NN_c, ending in coordinates and amplitudes of the kernel.

    With ``axes``, the force also has an operator on so many coordinates; the outputs' is 1.
    """

    def __init__(
        self, inputs: int, width: int, blocks: int, size: int, amplitudes: int, axes: int = 0
    ) -> None:
        super().__init__()
        self.force = ResidualMLP(inputs, width, blocks)
        self.outputs = ResidualMLP(inputs, width, blocks)
        # Equal at first: from unrelated maps training tends to settle where f ⊥ h.
        self.outputs.load_state_dict(self.force.state_dict())
        self.common = ResidualMLP(width, width, blocks)
        self.coordinates = nn.Linear(width, size)
        self.amplitude = nn.Linear(width, amplitudes) if amplitudes else None
        self.operator = nn.Linear(width, 1 + 2 * axes) if axes else None
        if self.operator is not None:
            nn.init.normal_(self.operator.weight, std=_OPERATOR_WEIGHT)
            nn.init.zeros_(self.operator.bias)

    def forward(self, z: Tensor, kind: Literal["force", "outputs"]) -> LatentPoints:
        """Map ``... x inputs`` of one kind to latent points."""
        branch = self.force if kind == "force" else self.outputs
        hidden = self.common(branch(z))
        amplitudes = None if self.amplitude is None else self.amplitude(hidden)
        operator = None if self.operator is None else self._operator(hidden, kind)
        return LatentPoints(self.coordinates(hidden), amplitudes, operator)

    def _operator(self, hidden: Tensor, kind: Literal["force", "outputs"]) -> Operator:
        assert self.operator is not None
        size = self.operator.out_features
        change = (
            self.operator(hidden)
            if kind == "force"
            else hidden.new_zeros((*hidden.shape[:-1], size))
        )
        value, slope, curvature = change.split([1, size // 2, size // 2], dim=-1)
        return Operator(1 + value, slope, curvature)


class DeepKernel(nn.Module):
    """κ(φ, φ'), or signed: (a·a'/q) κ(φ, φ'), or with operators: (a·a'/q) L L' κ(φ, φ').

    A stationary base kernel alone cannot make the force fall where an output rises; amplitudes
    a of either sign, also read from the network, let it. In a latent force model the force is a
    differential operator of an output; learnt operators L let it be one of the outputs' process.
    """

    def __init__(self, base: str) -> None:
        super().__init__()
        kernels = {"rbf": gpytorch.kernels.RBFKernel, "periodic": gpytorch.kernels.PeriodicKernel}
        self.base = gpytorch.kernels.ScaleKernel(kernels[base]())

    def forward(self, left: LatentPoints, right: LatentPoints) -> Tensor:
        """Covariance ``task x n x m`` between ``task x n`` and ``task x m`` latent points."""
        covariance = self.base(left.coordinates, right.coordinates).to_dense()
        if left.operator is not None and right.operator is not None:
            x, y = (self._in_lengthscales(points) for points in (left, right))
            covariance = covariance * covariance_factor(left.operator, x, right.operator, y)
        if left.amplitudes is None or right.amplitudes is None:
            return covariance
        return covariance * (left.amplitudes @ right.amplitudes.mT) / left.amplitudes.shape[-1]

    def variance(self, points: LatentPoints) -> Tensor:
        """The diagonal of ``forward(points, points)``, ``task x point``."""
        variance = self.base(points.coordinates, diag=True)
        if points.operator is not None:
            variance = variance * variance_factor(points.operator)
        if points.amplitudes is None:
            return variance
        return variance * points.amplitudes.square().mean(-1)

    def _in_lengthscales(self, points: LatentPoints) -> Tensor:
        return points.coordinates / self.base.base_kernel.lengthscale


def join(first: LatentPoints, second: LatentPoints) -> LatentPoints:
    """Concatenate latent points along the point dimension."""
    amplitudes = operator = None
    if first.amplitudes is not None and second.amplitudes is not None:
        amplitudes = torch.cat([first.amplitudes, second.amplitudes], dim=-2)
    if first.operator is not None and second.operator is not None:
        pairs = zip(first.operator, second.operator, strict=True)
        operator = Operator(*(torch.cat(pair, dim=-2) for pair in pairs))
    coordinates = torch.cat([first.coordinates, second.coordinates], dim=-2)
    return LatentPoints(coordinates, amplitudes, operator)
