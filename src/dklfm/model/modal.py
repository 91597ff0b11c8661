"""The amortised posterior from few numbers: a network of the weights of a task's modes.

Over the tasks of a system, outputs that are told apart are combinations of few Karhunen–Loève
modes (:mod:`dklfm.model.linear`). Observations at any points, with any noise, give a Gaussian
posterior of the weights of these. Its means and deviations are what a network sees, with no grid in
between, and it gives the functions that the posterior of force and outputs is read from: a network
from the principal components of one function to another (Bhattacharya et al. 2021,
https://arxiv.org/abs/2005.03180), whose input may be observed anywhere.

A task costs little, so that training sees a hundred times as many as an operator's.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from dklfm.config import ModalConfig
from dklfm.model.amortised import AmortisedLFM, Law, Laws
from dklfm.model.batch import Batch
from dklfm.model.encoders import masked_mean
from dklfm.model.interpolation import spline_weights
from dklfm.model.linear import LinearLaw, Weights

_LEAST_DEVIATION = 1e-3
"""Of an input over tasks: what hardly varies is not made larger than that."""

_FAINT = 0.01
"""Deviation of weights that are to matter little at first."""


class ModalLFM(AmortisedLFM):
    """The model; see the module's docstring."""

    exchangeable = False
    linear: LinearLaw
    location: Tensor
    deviation: Tensor

    def __init__(self, config: ModalConfig, axes: int, outputs: int) -> None:
        super().__init__()
        self.config, self.outputs, width = config, outputs, config.width
        self.nodes = (config.nodes,) * axes
        self.linear = LinearLaw(self.nodes, outputs, config.modes)
        inputs = 2 * config.modes + 1 + outputs
        self.register_buffer("location", torch.zeros(inputs))
        self.register_buffer("deviation", torch.ones(inputs))
        self.lift = nn.Linear(inputs, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, width)
            )
            for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(width)
        self.of_force, self.of_outputs = 2 + config.coordinates, 2
        size = len(self.linear.grid) * (self.of_force + self.of_outputs * outputs)
        self.read = nn.Linear(width, size)
        # What is linear in the inputs is learnt beside the network, and first. Small, not zero:
        # kernel coordinates that are all alike have no gradient.
        nn.init.zeros_(self.read.weight)
        self.direct = nn.Linear(inputs, size, bias=False)
        nn.init.normal_(self.direct.weight, std=_FAINT)
        self.log_input_rate = nn.Parameter(torch.full((axes,), math.log(4.0)))

    def _inputs(self, context: Batch, found: Weights) -> Tensor:
        """``task x input``: weights, their log deviations, amplitude and the outputs' noise."""
        level = masked_mean(found.noise.log(), context.mask, -1)
        parts = [found.mean, found.sd().log(), found.amplitude.log()[:, None], level]
        return torch.cat([part.float() for part in parts], -1)

    @torch.no_grad()
    def standardise(self, context: Batch) -> None:
        """Learn the usual mean and deviation of every input from observed tasks."""
        found = self._inputs(context, self.linear.weights(context))
        self.location.copy_(found.mean(0))
        self.deviation.copy_(found.std(0).clamp_min(_LEAST_DEVIATION))

    def laws(self, context: Batch, x: Tensor) -> Laws:
        self.require_outputs(context)
        found = self.linear.weights(context)
        estimate = self.linear.estimate(found)
        inputs = (self._inputs(context, found) - self.location) / self.deviation
        values = self.lift(inputs)
        for block in self.blocks:
            values = values + block(values)
        embedding = self.norm(values)
        read = (self.read(embedding) + self.direct(inputs)).unflatten(
            1, (len(self.linear.grid), -1)
        )
        smoothed = estimate.outputs
        estimated = torch.cat(
            [smoothed.mean, smoothed.sd.log(), estimate.force_sd.log()[:, None]], 1
        )
        weights = spline_weights(self.nodes, x)  # task query node
        at_points = weights @ torch.cat([read, estimated.float().mT], -1)  # task query channel
        sizes = [1, 1, self.config.coordinates, *(4 * [self.outputs]), 1]
        mean, log_factor, coordinates, *outputs, linear_log_sd = at_points.split(sizes, -1)
        shift, log_ratio, smooth, smooth_log_sd = (each.mT for each in outputs)
        # The linear law knows how noise and gaps widen what can be said; less is the network's.
        log_sd = linear_log_sd + log_factor
        rated = x * self.log_input_rate.exp()
        force = Law(mean.mT, log_sd.mT, torch.cat([rated, coordinates], -1)[:, None])
        scale = estimate.scale
        of_outputs = Law(
            scale * (smooth + smooth_log_sd.exp() * shift),
            scale.log() + smooth_log_sd + log_ratio,
            rated[:, None].expand(-1, self.outputs, -1, -1),
        )
        return Laws(force, of_outputs, embedding)
