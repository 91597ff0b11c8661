"""The amortised posterior: an operator from observations to a Gaussian process of the force.

    f | y ~ GP(m_f(x; y), k_f(x, x'; y)),    h_j | y ~ GP(m_j(x; y), k_j(x, x'; y))

Mean and kernel are read from functions on one grid. The observations of each output come onto it
by GP smoothing, with ``modes`` also by the best linear estimate in the system's own law, so that
any mesh, missing values and noise levels are taken; the force is one more function there. Blocks of
a network mix nodes along each axis, and functions at each node. Between nodes everything is
interpolated; there a deep kernel of what was read gives the covariance. The mean is what a network
makes of the force's function, plus values and derivatives of the smoothed outputs with coefficients
that depend on all: an equation is close to linear in these.

Unlike the DKLFM of the paper, whose force mean sees a pooled embedding and whose kernel must carry
what is particular to a task, the mean here sees the observations themselves, and the kernel is that
of what they leave unknown.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from dklfm.config import OperatorConfig
from dklfm.model.amortised import JudgedLFM, KernelLaw, Laws
from dklfm.model.batch import Batch
from dklfm.model.encoders import masked_mean
from dklfm.model.features import FourierFeatures
from dklfm.model.interpolation import spline_weights
from dklfm.model.linear import LinearLaw
from dklfm.model.smoothing import LEAST_NOISE, Smoothed, Smoother, even_grid, standardise

_SLOPE_RATE = 0.1
"""About the inverse slope of a smoothed output of deviation one over a domain of length one."""


class Mixing(nn.Module):
    """Learned linear maps among the nodes of one axis, several in parallel, between channels."""

    def __init__(self, nodes: int, width: int, heads: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.inner = nn.Linear(width, 2 * width)
        self.maps = nn.Parameter(torch.randn(heads, nodes, nodes) / math.sqrt(nodes))
        self.outer = nn.Linear(width, width)

    def forward(self, values: Tensor) -> Tensor:
        """``... x node x width`` to the same."""
        inner, gate = self.inner(self.norm(values)).chunk(2, -1)
        # Heads first and functions last: one matrix product a head, without a copy for each.
        shape, heads = inner.shape, len(self.maps)
        parts = inner.reshape(-1, shape[-2], heads, shape[-1] // heads).permute(2, 1, 0, 3)
        mixed = torch.bmm(self.maps, parts.flatten(2)).unflatten(2, parts.shape[2:])
        mixed = mixed.permute(2, 1, 0, 3).reshape(shape)
        return values + self.outer(mixed * torch.sigmoid(gate))


class Block(nn.Module):
    """Mixing along each axis, attention among the functions at a node, a network of each value.

    Means over functions and over nodes carry what is one for a task.
    """

    def __init__(self, nodes: tuple[int, ...], width: int, heads: int) -> None:
        super().__init__()
        self.mixing = nn.ModuleList(Mixing(n, width, heads) for n in nodes)
        self.norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.summary, self.overall = nn.Linear(width, width), nn.Linear(width, width)
        self.network = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, values: Tensor, unseen: Tensor) -> Tensor:
        """``task x function x node... x width`` to the same; unseen functions are not attended to.

        Args:
            values: functions on the grid.
            unseen: ``task x function``.
        """
        for axis, mixing in enumerate(self.mixing, start=2):
            values = mixing(values.movedim(axis, -2)).movedim(-2, axis)
        shape = values.shape
        flat = values.flatten(2, -2).transpose(1, 2)  # task node function width
        nodes = flat.shape[1]
        normed = self.norm(flat).flatten(0, 1)
        hidden = unseen.repeat_interleave(nodes, 0)
        # Sequences of a few functions: the blocked kernels cost more than they save.
        with sdpa_kernel(SDPBackend.MATH):
            attended, _ = self.attention(
                normed, normed, normed, key_padding_mask=hidden, need_weights=False
            )
        mean = masked_mean(flat, ~unseen[:, None, :, None], 2)[:, :, None]
        flat = flat + attended.unflatten(0, (-1, nodes)) + self.summary(mean)
        flat = flat + self.overall(flat.mean(1, keepdim=True))
        flat = flat + self.network(flat)
        return flat.transpose(1, 2).reshape(shape)


class Head(nn.Module):
    """Mean, standard deviation and kernel coordinates of functions at points."""

    def __init__(self, inputs: int, width: int, coordinates: int, axes: int) -> None:
        super().__init__()
        self.network = nn.Sequential(
            nn.Linear(inputs, width), nn.GELU(), nn.Linear(width, 2 + coordinates)
        )
        self.log_input_rate = nn.Parameter(torch.full((axes,), math.log(4.0)))

    def forward(self, inputs: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of ``task function query inputs`` at ``task query axis`` points."""
        found = self.network(inputs)
        scaled = (x * self.log_input_rate.exp())[:, None].expand(*found.shape[:3], -1)
        return found[..., 0], found[..., 1], torch.cat([scaled, found[..., 2:]], -1)


class Seen(NamedTuple):
    """Observations on the grid: outputs as ``location + scale · value``.

    ``noise`` is the variance of the observations in units of ``scale``. ``rates`` bring values,
    slopes and curvatures to the order of one.
    """

    outputs: Smoothed
    scale: Float[Tensor, "task output 1"]
    location: Float[Tensor, "task output 1"]
    noise: Float[Tensor, "task output point"]
    rates: Float[Tensor, "... size"]

    def terms(self) -> Float[Tensor, "task output node size"]:
        """Values, slopes and curvatures, of one order."""
        found = self.outputs
        parts = [found.mean[..., None], found.slopes, found.curvatures]
        return torch.cat(parts, -1).float() * self.rates

    def described(self, mask: Tensor) -> Float[Tensor, "task output node size"]:
        """What a network is shown, given where there are observations."""
        terms, scale, location = self.terms(), self.scale, self.location
        mean, log_sd = terms[..., 0], self.outputs.sd.float().log()
        level = (masked_mean(self.noise, mask, -1)[..., None] + LEAST_NOISE**2).log()
        count = (1 + mask.sum(-1, keepdim=True)).float().log()
        own = [level, count, scale, scale.log(), location]
        channels = [mean, location + scale * mean, log_sd, *(c.expand_as(mean) for c in own)]
        derivatives = terms[..., 1:]
        return torch.cat(
            [torch.stack(channels, -1), derivatives, scale[..., None] * derivatives], -1
        )


class OperatorLFM(JudgedLFM):
    """The model; see the module's docstring."""

    grid: Tensor
    rates: Tensor

    def __init__(self, config: OperatorConfig, axes: int, outputs: int) -> None:
        super().__init__()
        self.config, self.outputs, width = config, outputs, config.width
        self.exchangeable = config.exchangeable
        self.nodes = (config.nodes,) * axes
        self.smoother = Smoother(self.nodes, config.lengthscale)
        self.linear = LinearLaw(self.nodes, outputs, config.modes) if config.modes else None
        smoothings = 2 if self.linear else 1
        self.register_buffer("grid", even_grid(self.nodes).float(), persistent=False)
        rates = [1.0] + axes * [_SLOPE_RATE] + axes * [_SLOPE_RATE**2]
        self.register_buffer("rates", torch.tensor(rates), persistent=False)
        self.position = FourierFeatures(axes, config.frequencies, 0.5, 4.0)
        self.lift = nn.Linear(smoothings * (8 + 4 * axes) + self.position.size, width)
        self.force = nn.Linear(self.position.size + (2 if self.linear else 0), width)
        self.names = (
            None if config.exchangeable else nn.Parameter(0.1 * torch.randn(outputs, width))
        )
        self.blocks = nn.ModuleList(
            Block(self.nodes, width, config.heads) for _ in range(config.layers)
        )
        sizes = width + self.position.size, width, config.coordinates, axes
        self.head_force, self.head_outputs = Head(*sizes), Head(*sizes)
        self.coefficients = nn.Sequential(
            nn.Linear(sizes[0], width), nn.GELU(), nn.Linear(width, smoothings * (1 + 2 * axes))
        )

    @property
    def mesh(self) -> int | None:
        return self.linear.fine[0] if self.linear else None

    def learn(self, outputs: Tensor, force: Tensor) -> None:
        if self.linear is not None:
            self.linear.learn(outputs, force)

    def _seen(self, context: Batch) -> tuple[list[Seen], Tensor | None]:
        """By each way of smoothing, the best for outputs last; and a guess at the force."""
        relative, scale, location, noise = standardise(context)
        smoothed = self.smoother(context.x, relative, noise, context.mask)
        seen = [Seen(smoothed, scale, location, noise, self.rates)]
        if self.linear is None:
            return seen, None
        found, force, force_sd, scale, noise = self.linear(context)
        seen.append(Seen(found, scale, torch.zeros_like(scale), noise, self.linear.rates))
        return seen, torch.stack([force, force_sd.log()], -1).float()[:, None]

    def laws(self, context: Batch, x: Tensor) -> Laws:
        self.require_outputs(context)
        mask = context.mask
        seen, guess = self._seen(context)
        position = self.position(self.grid)
        described = torch.cat([each.described(mask) for each in seen], -1)
        at_nodes = position.expand(*described.shape[:2], -1, -1)
        lifted = self.lift(torch.cat([described, at_nodes], -1))
        if self.names is not None:
            lifted = lifted + self.names[:, None]
        of_force = position.expand(len(mask), 1, -1, -1)
        if guess is not None:
            of_force = torch.cat([of_force, guess], -1)
        values = torch.cat([self.force(of_force), lifted], 1).unflatten(2, self.nodes)
        unseen = nn.functional.pad(~mask.any(-1), (1, 0), value=False)
        for block in self.blocks:
            values = block(values, unseen)
        flat = values.flatten(2, -2)
        overall = masked_mean(flat[:, 1:].mean(2), mask.any(-1)[..., None], 1)
        embedding = torch.cat([flat[:, 0].mean(1), overall], -1)
        weights = spline_weights(self.nodes, x)[:, None]  # task 1 query node
        at_points = self.position(x)[:, None].expand(-1, values.shape[1], -1, -1)
        inputs = torch.cat([weights @ flat, at_points], -1)
        terms = weights @ torch.cat([each.terms() for each in seen], -1)
        read = (self.coefficients(inputs[:, 1:]) * terms).sum(-1)  # task output query
        free, *residual = self.head_force(inputs[:, :1], x)
        force = KernelLaw(free + masked_mean(read, ~unseen[:, 1:, None], 1)[:, None], *residual)
        found, scale, location, *_ = seen[-1]
        smooth = (weights @ torch.stack([found.mean, found.sd.log()], -1).float()).unbind(-1)
        shift, log_ratio, coordinates = self.head_outputs(inputs[:, 1:], x)
        of_outputs = KernelLaw(
            location + scale * (smooth[0] + smooth[1].exp() * shift),
            scale.log() + smooth[1] + log_ratio,
            coordinates,
        )
        return Laws(force, of_outputs, embedding)
