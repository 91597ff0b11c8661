"""The joint law of force and outputs to second order, learnt from simulated tasks.

Over the tasks of a system, outputs and force have means and covariances. In the Karhunen–Loève
modes of the outputs, scaled to unit variance,

    (h_j(x) − m_j(x)) / (σ_j s) = φ_j(x)·w,    f(x) = m_f(x) + c(x)·w + ε(x),    w ~ (0, I),

with one amplitude s for a task, so that tasks of any size are alike. Given noisy observations
anywhere, the mean of w is a Bayesian linear regression: N points cost O(N R²) for R modes, and what
is read off is the best linear estimate of every output, observed or not, and of the force. Unlike a
smoother of stationary kernel it knows what all tasks have in common: zero where a boundary holds
them, how fast they may change and where, and how outputs go together.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from dklfm.model.batch import Batch
from dklfm.model.encoders import masked_mean
from dklfm.model.gaussian import cholesky
from dklfm.model.interpolation import spline_weights
from dklfm.model.smoothing import LEAST_NOISE, Smoothed, even_grid

_POINTS_AT_ONCE = 4096
_LEAST_SCALE = 1e-3
"""Of the outputs' usual deviation: constant tasks stay finite."""
_LEAST_SPREAD = 0.2
"""Of a value's deviation over tasks, as a share of its usual one: what never varies stays small."""
_BETWEEN = {1: 4}
"""Steps of the modes' grid in one of the nodes, on one axis; on several the default is taken."""
_BETWEEN_DEFAULT = 2


class Estimate(NamedTuple):
    """What observations say by the linear law: on the grid, outputs in units of ``scale``."""

    outputs: Smoothed
    force: Tensor  # task node
    force_sd: Tensor  # task node
    scale: Tensor  # task output 1, σ_j s
    noise: Tensor  # task output point, variance of the observations in these units


class Weights(NamedTuple):
    """Gaussian posterior of the modes' weights: ``factor`` is the Cholesky factor of its precision.

    ``amplitude``, ``scale`` and ``noise`` are the task's units: s, σ_j s, and the variance of the
    observations in them.
    """

    mean: Tensor  # task mode
    factor: Tensor  # task mode mode
    amplitude: Tensor  # task
    scale: Tensor  # task output 1
    noise: Tensor  # task output point

    def sd(self) -> Tensor:
        """Standard deviation of every weight, ``task x mode``."""
        return torch.cholesky_inverse(self.factor).diagonal(dim1=-2, dim2=-1).sqrt()


class LinearLaw(nn.Module):
    """Best linear estimates on a regular grid with ``nodes`` an axis; see the module."""

    def __init__(self, nodes: tuple[int, ...], outputs: int, modes: int) -> None:
        super().__init__()
        between = _BETWEEN.get(len(nodes), _BETWEEN_DEFAULT)
        self.nodes, self.fine = nodes, tuple(between * (n - 1) + 1 for n in nodes)
        self.register_buffer("grid", even_grid(nodes), persistent=False)
        size, kinds = len(self.grid), 1 + 2 * len(nodes)
        fine = torch.Size(self.fine).numel()
        for name, shape in {
            "scale": (outputs,),
            "mean": (outputs, fine),
            "basis": (outputs, fine, modes),
            "mean_designs": (kinds, outputs, size),
            "designs": (kinds, outputs, size, modes),
            "rates": (outputs, size, kinds),
            "force_mean": (size,),
            "force_design": (size, modes),
            "force_rest": (size,),
        }.items():
            self.register_buffer(name, torch.zeros(shape))
        # Nothing learnt: the force is what the scale of the model says.
        nn.init.ones_(self.scale)
        nn.init.ones_(self.force_rest)
        nn.init.ones_(self.rates)

    grid: Tensor
    scale: Tensor
    mean: Tensor
    basis: Tensor
    mean_designs: Tensor
    designs: Tensor  # (value, slope by axis, curvature by axis) output node mode
    rates: Tensor  # what brings these to the order of one at every node
    force_mean: Tensor
    force_design: Tensor
    force_rest: Tensor  # variance of the force that the modes leave

    @torch.no_grad()
    def learn(self, outputs: Tensor, force: Tensor) -> None:
        """Take means and covariances from simulated tasks.

        Args:
            outputs: free of noise, ``task x output x point`` on the even grid with ``fine`` points
                an axis, on the model's scale.
            force: ``task x point``, likewise.
        """
        h, f = outputs.double(), force.double()
        tasks, count, points = h.shape
        mean = h.mean(0)
        about = h - mean
        inside = about - about.mean(-1, keepdim=True)
        scale = inside.square().mean((0, 2)).sqrt().clamp_min(_LEAST_SCALE)
        relative = about / (scale[:, None] * _amplitude(inside / scale[:, None])[:, None, None])
        flat = relative.flatten(1) / tasks**0.5
        left, values, right = torch.linalg.svd(flat, full_matrices=False)
        kept = min(self.basis.shape[-1], len(values))
        basis = torch.zeros(count, points, self.basis.shape[-1], dtype=h.dtype)
        basis[..., :kept] = (right[:kept].mT * values[:kept]).unflatten(0, (count, points))
        weights = torch.zeros(tasks, basis.shape[-1], dtype=h.dtype)
        weights[:, :kept] = left[:, :kept] * tasks**0.5
        force_mean = f.mean(0)
        design = (f - force_mean).mT @ weights / tasks
        rest = (f - force_mean - weights @ design.mT).square().mean(0)
        axes = len(self.nodes)
        orders = [(0,) * axes]
        for order in (1, 2):
            orders += [tuple(order * (i == axis) for i in range(axes)) for axis in range(axes)]
        at = [spline_weights(self.fine, self.grid.cpu(), orders=each) for each in orders]
        designs = torch.stack([w @ basis for w in at])
        # Curvatures at a node where tasks start from rest are ten times those elsewhere.
        spread = designs.square().sum(-1).movedim(0, -1)
        least = _LEAST_SPREAD**2 * spread.mean(1, keepdim=True)
        for name, found in {
            "scale": scale,
            "mean": mean,
            "basis": basis,
            "mean_designs": torch.stack([mean @ w.mT for w in at]),
            "designs": designs,
            "rates": (spread + least).clamp_min(_LEAST_SCALE**2).rsqrt(),
            "force_mean": at[0] @ force_mean,
            "force_design": at[0] @ design,
            "force_rest": (at[0] @ rest).clamp_min(0),
        }.items():
            getattr(self, name).copy_(found)

    def forward(self, batch: Batch) -> Estimate:
        """Condition on the observations of a batch on the model's scale."""
        return self.estimate(self.weights(batch))

    def weights(self, batch: Batch) -> Weights:
        """Of the modes, given the observations of a batch on the model's scale."""
        x, mask, size = batch.x, batch.mask, self.basis.shape[-1]
        # One mesh for all tasks is looked at once.
        meshes = x[:1] if (x[:1] == x).all() else x
        residual = batch.y - self._read(self.mean[..., None], meshes)[..., 0]
        own = masked_mean(residual, mask, -1)[..., None]
        inside = torch.where(mask, residual - own, 0.0) / self.scale[:, None]
        amplitude = _amplitude(inside, mask)
        scale = self.scale[:, None] * amplitude[:, None, None]
        noise = (batch.y_sd / scale).square() + LEAST_NOISE**2
        weight = torch.where(mask, 1 / noise.double(), 0.0)
        pulled = (weight * (residual / scale).double()).mT  # task point output
        weight = weight.mT
        precision = torch.eye(size, dtype=torch.float64, device=x.device)
        pull = precision.new_zeros(size)
        basis = self.basis.transpose(0, 1).flatten(1)  # fine (output mode)
        for i in range(0, x.shape[1], _POINTS_AT_ONCE):
            part = slice(i, i + _POINTS_AT_ONCE)
            design = spline_weights(self.fine, meshes[:, part]) @ basis
            design = design.double().reshape(len(design), -1, size)  # task (point output) mode
            weighted = design * weight[:, part].flatten(1)[..., None]
            precision = precision + weighted.mT @ design  # task mode mode
            pull = pull + (pulled[:, part].flatten(1)[:, None] @ design)[:, 0]
        factor = cholesky(precision)
        mean = torch.cholesky_solve(pull[..., None], factor)[..., 0]
        return Weights(mean, factor, amplitude, scale, noise)

    def estimate(self, found: Weights) -> Estimate:
        """Outputs and force on the grid."""
        mean, scale = found.mean[:, None, :, None], found.scale  # task 1 mode 1
        designs, force_design = self.designs.double(), self.force_design.double()
        values = (designs[:, None] @ mean[None])[..., 0]
        values = values + self.mean_designs.double()[:, None] / scale.double()
        both = torch.cat([designs[0].flatten(0, 1), force_design])
        spread = torch.linalg.solve_triangular(found.factor, both.mT, upper=False)
        spread = spread.square().sum(1)
        of_outputs, of_force = spread.split([len(both) - len(self.grid), len(self.grid)], -1)
        axes = len(self.nodes)
        smoothed = Smoothed(
            values[0],
            (of_outputs.unflatten(1, values.shape[2:]) + LEAST_NOISE**2).sqrt(),
            values[1 : 1 + axes].movedim(0, -1),
            values[1 + axes :].movedim(0, -1),
        )
        force = self.force_mean.double() + (force_design @ mean[:, 0])[..., 0]
        # Where every force is the same its logarithm stays finite.
        force_sd = (of_force + self.force_rest.double()).clamp_min(LEAST_NOISE**2).sqrt()
        return Estimate(smoothed, force, force_sd, scale, found.noise)

    def _read(self, values: Tensor, x: Tensor) -> Tensor:
        """``output fine size`` values at ``task point axis`` inputs: ``task output point size``."""
        return spline_weights(self.fine, x)[:, None] @ values


def _amplitude(inside: Tensor, mask: Tensor | None = None) -> Tensor:
    """Root-mean-square of the deviations in each task."""
    square = inside.square().flatten(1)
    mean = square.mean(1) if mask is None else masked_mean(square, mask.flatten(1), -1)
    return (mean + _LEAST_SCALE**2).sqrt()
