"""Observations at any points as functions on one grid: a reduced-rank GP smoother for each output.

A squared-exponential kernel on an axis is φ(x)·φ(x') with few features φ, its Nyström features on a
fine grid; on several axes the features multiply. The posterior of an output is then a Bayesian
linear regression: N points cost O(N R²) for R features and no more memory than R² beside the data,
and any mesh, missing values and unequal noise are taken as they come.
"""

from __future__ import annotations

from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dklfm.model.batch import Batch
from dklfm.model.encoders import masked_mean
from dklfm.model.gaussian import cholesky

_KEPT = 1e-7
"""Eigenvalues below this share of the largest add nothing that noise would not hide."""
_NODES_PER_LENGTHSCALE = 4
_POINTS_AT_ONCE = 4096
_LEAST_SCALE = 1e-3
"""Of an output's deviation: constant outputs stay finite."""
LEAST_NOISE = 1e-3
"""Of the noise as a share of its output's deviation: no smaller one is learnt from."""


class Smoothed(NamedTuple):
    """Posterior of every output on the grid, each ``task output node``; gradients with an axis."""

    mean: Tensor
    sd: Tensor
    slopes: Tensor  # task output node axis
    curvatures: Tensor  # task output node axis


def even_grid(nodes: tuple[int, ...]) -> Tensor:
    """``node x axis`` points of [0, 1], so many an axis, in row-major order; float64."""
    lines = [torch.linspace(0, 1, n, dtype=torch.float64) for n in nodes]
    return torch.stack(torch.meshgrid(*lines, indexing="ij"), -1).flatten(0, -2)


class AxisFeatures(nn.Module):
    """Nyström features of exp(−(x − x')²/2ℓ²) on [0, 1], with derivatives."""

    nodes: Tensor
    projection: Tensor
    share: Tensor

    def __init__(self, lengthscale: float) -> None:
        super().__init__()
        self.lengthscale = lengthscale
        count = max(16, round(_NODES_PER_LENGTHSCALE / lengthscale) + 1)
        nodes = torch.linspace(0, 1, count, dtype=torch.float64)
        values, vectors = torch.linalg.eigh(self._kernel(nodes, nodes))
        kept = values > _KEPT * values[-1]
        self.register_buffer("nodes", nodes, persistent=False)
        self.register_buffer("projection", vectors[:, kept] / values[kept].sqrt(), persistent=False)
        self.register_buffer("share", values[kept] / values[-1], persistent=False)

    def _kernel(self, x: Tensor, nodes: Tensor) -> Tensor:
        return (-0.5 * ((x[..., None] - nodes) / self.lengthscale).square()).exp()

    def forward(self, x: Tensor, order: int = 0) -> Tensor:
        """Features of ``...`` inputs, ``... x size``, or their first or second derivatives."""
        kernel = self._kernel(x.double(), self.nodes)
        away = (self.nodes - x.double()[..., None]) / self.lengthscale
        factor = (1.0, away / self.lengthscale, (away.square() - 1) / self.lengthscale**2)[order]
        return (kernel * factor) @ self.projection


class Smoother(nn.Module):
    """Posteriors on a regular grid with ``nodes`` an axis, given noise; see the module."""

    def __init__(self, nodes: tuple[int, ...], lengthscale: float) -> None:
        super().__init__()
        features = [AxisFeatures(lengthscale) for _ in nodes]
        self.axes = nn.ModuleList(features)
        shares = reduce(lambda a, b: (a[:, None] * b).flatten(), (f.share for f in features))
        # Products of weak features are weaker than what an axis leaves out.
        self.register_buffer("kept", torch.nonzero(shares > _KEPT)[:, 0], persistent=False)
        self.register_buffer("grid", even_grid(nodes), persistent=False)
        self.register_buffer("designs", self._all_designs(self.grid), persistent=False)

    kept: Tensor
    grid: Tensor
    designs: Tensor  # (value, slope by axis, curvature by axis) node feature

    def _design(self, x: Tensor, axis: int | None = None, order: int = 0) -> Tensor:
        """Products of the axes' features at ``... x axis`` inputs, ``... x feature``."""
        parts = [
            features(x[..., i], order if i == axis else 0) for i, features in enumerate(self.axes)
        ]
        every = reduce(lambda a, b: (a[..., :, None] * b[..., None, :]).flatten(-2), parts)
        return every[..., self.kept]

    def _all_designs(self, x: Tensor) -> Tensor:
        designs = [self._design(x)]
        for order in (1, 2):
            designs += [self._design(x, axis, order) for axis in range(len(self.axes))]
        return torch.stack(designs)

    def forward(
        self, x: Tensor, y: Tensor, variance: Tensor, mask: Tensor, at: Tensor | None = None
    ) -> Smoothed:
        """Condition a GP with zero mean and unit variance.

        Args:
            x: ``task x point x axis`` inputs in [0, 1].
            y: ``task x output x point`` values of order one.
            variance: of their noise, alike.
            mask: alike, True where there is an observation.
            at: ``task x node x axis`` points to look at in place of the grid.
        """
        tasks, outputs, points = y.shape
        weight = torch.where(mask, 1 / variance.double(), 0.0)
        size = self.designs.shape[-1]
        precision = torch.eye(size, dtype=torch.float64, device=y.device).repeat(
            tasks, outputs, 1, 1
        )
        pull = y.new_zeros((tasks, outputs, size), dtype=torch.float64)
        for i in range(0, points, _POINTS_AT_ONCE):
            part = slice(i, i + _POINTS_AT_ONCE)
            design = self._design(x[:, part])[:, None]  # task 1 point feature
            weighted = design * weight[..., part, None]
            precision = precision + weighted.mT @ design
            pull = pull + torch.einsum("topr,top->tor", weighted, y[..., part].double())
        factor = cholesky(precision)
        mean = torch.cholesky_solve(pull[..., None], factor)  # task output feature 1
        designs = self.designs[:, None] if at is None else self._all_designs(at)
        values = (designs[:, :, None] @ mean[None])[..., 0]  # design task output node
        spread = torch.linalg.solve_triangular(factor, designs[0, :, None].mT, upper=False)
        axes = len(self.axes)
        return Smoothed(
            values[0],
            spread.square().sum(-2).sqrt(),
            values[1 : 1 + axes].movedim(0, -1),
            values[1 + axes :].movedim(0, -1),
        )


def standardise(batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Each output by its own mean and deviation over the observed points.

    Returns:
        Values ``task x output x point``, zero where missing; deviation and mean of each output,
        ``task x output x 1``; and the variance of the values' noise.
    """
    mask = batch.mask
    location = masked_mean(batch.y, mask, -1)[..., None]
    centred = torch.where(mask, batch.y - location, 0.0)
    scale = (masked_mean(centred.square(), mask, -1)[..., None] + _LEAST_SCALE**2).sqrt()
    return centred / scale, scale, location, (batch.y_sd / scale).square() + LEAST_NOISE**2
