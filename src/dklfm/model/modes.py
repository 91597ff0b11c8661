"""Modes of force and outputs, and what observations say of their weights.

Over the tasks of a system, force and outputs are combinations of few principal components. An
output's observations enter by sums of the size of its modes, ψᵀN⁻¹ψ and ψᵀN⁻¹y, whatever the mesh,
the missing values and the noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dklfm.config import LinearisedConfig
from dklfm.model.batch import Batch
from dklfm.model.encoders import masked_mean
from dklfm.model.gaussian import cholesky
from dklfm.model.interpolation import spline_weights
from dklfm.model.smoothing import LEAST_NOISE, even_grid, standardise

_LEAST_DEVIATION = 0.05
"""Of an input over tasks: what hardly varies is not made larger than that."""
LARGEST = 10.0
"""Of a standardised input: unlike observations do not drive a network out of its range."""
_VAGUE = 0.1
"""Prior precision of level and size of an output in units of what was observed of it."""


class Seen(NamedTuple):
    """What the observations of each output say of the weights c of its modes.

    Their log likelihood is −½ cᵀ ``precision`` c + ``pull``·c and a constant, outputs being
    ``location`` + ``scale`` (m + ψ·c).
    """

    precision: Float[Tensor, "task output mode mode"]
    pull: Float[Tensor, "task output mode"]
    location: Float[Tensor, "task output 1"]
    scale: Float[Tensor, "task output 1"]
    described: Float[Tensor, "task output size"]
    alone: Float[Tensor, "task output mode"]  # c by this output alone, and how sure that is
    spread: Float[Tensor, "task output mode"]


class Modes(nn.Module):
    """Means and modes of force and outputs on an even grid, learnt from simulated tasks.

    Outputs that are alike share theirs, each in units of its own observed deviation about its own
    observed level; those that are told apart have their own, on the model's scale.
    """

    def __init__(self, config: LinearisedConfig, axes: int, outputs: int) -> None:
        super().__init__()
        self.nodes, self.alike = (config.nodes,) * axes, config.exchangeable
        grid, kinds = even_grid(self.nodes).float(), 1 if config.exchangeable else outputs
        # Nothing learnt: waves, the slow ones first.
        self.register_buffer("mean", torch.zeros(kinds, len(grid)))
        self.register_buffer("basis", _waves(grid, config.modes).repeat(kinds, 1, 1))
        self.register_buffer("prior", torch.ones(config.modes))
        self.force_mean = nn.Parameter(torch.zeros(len(grid)))
        self.force_basis = nn.Parameter(_waves(grid, config.force_modes))
        described = 4 * config.modes + 6
        self.register_buffer("usual", torch.zeros(kinds, described))
        self.register_buffer("deviation", torch.ones(kinds, described))

    mean: Tensor  # kind node
    basis: Tensor  # kind node mode
    prior: Tensor  # mode, precision of the weights when nothing else is known
    usual: Tensor  # kind size
    deviation: Tensor  # kind size

    @torch.no_grad()
    def learn(self, outputs: Tensor, force: Tensor) -> Tensor:
        """Take means and modes from simulated tasks.

        Args:
            outputs: free of noise, ``task x output x node``, on the model's scale.
            force: ``task x node``, likewise.

        Returns:
            ``kind x mode x force mode`` regression of the weights of outputs on those of the force.
        """
        h, f = outputs.double(), force.double()
        mean, basis, drive = principal(f, self.force_basis.shape[1])
        self.force_mean.copy_(mean)
        self.force_basis.copy_(basis)
        slopes = []
        if self.alike:
            level = h.mean(-1, keepdim=True)
            spread = h.std(-1, keepdim=True).clamp_min(LEAST_NOISE)
            flat = ((h - level) / spread).flatten(0, 1)
            # Level and size are units of what was observed: those of the function are near them.
            count = self.basis.shape[-1] - 2
            mean, basis, weights = principal(flat, count)
            self.basis[0] = torch.cat([basis, torch.ones_like(basis[:, :1]), mean[:, None]], -1)
            self.prior[-2:] = _VAGUE
            both = weights.unflatten(0, h.shape[:2]).mean(1).mT @ drive / len(h)
            slopes.append(torch.cat([both, both.new_zeros(2, both.shape[1])]))
        else:
            for i in range(h.shape[1]):
                mean, basis, weights = principal(h[:, i], self.basis.shape[-1])
                self.mean[i], self.basis[i] = mean, basis
                slopes.append(weights.mT @ drive / len(h))
        return torch.stack(slopes).float()

    @torch.no_grad()
    def standardise(self, contexts: Sequence[Batch]) -> None:
        """Learn the usual mean and deviation of every input from observed tasks."""
        found = [self._read(context) for context in contexts]
        if self.alike:
            every = [s.described[c.mask.any(-1)] for s, c in zip(found, contexts, strict=True)]
            described = torch.cat(every)[:, None]
        else:
            described = torch.cat([each.described for each in found])
        self.usual.copy_(described.mean(0))
        self.deviation.copy_(described.std(0).clamp_min(_LEAST_DEVIATION))

    @torch.no_grad()
    def forward(self, context: Batch) -> Seen:
        """Sums over the observations of a batch on the model's scale."""
        seen = self._read(context)
        standard = (seen.described - self.usual) / self.deviation
        return seen._replace(described=standard.clamp(-LARGEST, LARGEST))

    def outputs(self, at: Tensor) -> tuple[Tensor, Tensor]:
        """Means, ``task x kind x point``, and modes, ``task x kind x point x mode``.

        Args:
            at: ``task x point x node`` weights of the nodes.
        """
        kinds, _, size = self.basis.shape
        # One product for all kinds, without a copy of the weights for each.
        design = (at @ self.basis.transpose(0, 1).flatten(1)).unflatten(-1, (kinds, size))
        return (at @ self.mean.mT).mT, design.transpose(1, 2)

    def _read(self, context: Batch) -> Seen:
        mask = context.mask
        relative, own, level, noise = standardise(context)
        mean, design = self.outputs(spline_weights(self.nodes, context.x))
        design = design.double()
        if self.alike:
            location, scale, residual = level, own, relative - mean
        else:
            location, scale = torch.zeros_like(level), torch.ones_like(own)
            residual, noise = context.y - mean, noise * own.square()
        weight = torch.where(mask, 1 / noise.double(), 0.0)
        precision = (weight[..., None] * design).mT @ design
        pull = ((weight * residual)[..., None, :] @ design)[..., 0, :]
        # By itself, so that the network sees numbers of the order of one.
        factor = cholesky(precision + torch.diag(self.prior.double()))
        alone = torch.cholesky_solve(pull[..., None], factor)[..., 0].float()
        spread = torch.cholesky_inverse(factor).diagonal(dim1=-2, dim2=-1).sqrt()
        share = masked_mean((context.y_sd / own).clamp_min(LEAST_NOISE).log(), mask, -1)[..., None]
        count = (1 + mask.sum(-1, keepdim=True)).float().log()
        # In units of the model, of the output and of the task, whichever the system cares for.
        shared = masked_mean(own.log(), mask.any(-1)[..., None], 1)[:, None].exp()
        raw = alone * own if self.alike else alone
        parts = [raw, raw / own, raw / shared, spread.float().log()]
        parts += [own, own.log(), level / own, level]
        described = torch.cat([*parts, share, count], -1)
        return Seen(precision, pull, location, scale, described, alone, spread.float())


def _waves(grid: Tensor, count: int) -> Tensor:
    """``node x count`` products of cosines, the slow ones first, smaller the faster they are."""
    axes = grid.shape[1]
    order = sorted(product(range(math.ceil(count ** (1 / axes)) + 1), repeat=axes), key=sum)
    rates = torch.tensor(order[:count], dtype=grid.dtype)
    return (torch.pi * grid[:, None] * rates).cos().prod(-1) / (1 + rates.sum(-1))


def principal(values: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, modes with unit variance of their weights, and weights, of ``task x node`` functions.

    Returns:
        ``node``, ``node x count`` and ``task x count``; zeros where there are fewer modes.
    """
    mean = values.mean(0)
    left, size, right = torch.linalg.svd((values - mean) / len(values) ** 0.5, full_matrices=False)
    kept = min(count, len(size))
    basis, weights = values.new_zeros(len(mean), count), values.new_zeros(len(values), count)
    basis[:, :kept] = right[:kept].mT * size[:kept]
    weights[:, :kept] = left[:, :kept] * len(values) ** 0.5
    return mean, basis, weights
