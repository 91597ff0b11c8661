"""Amortised black boxes: networks from the observations of a task straight to its force.

They see the tasks that the DKLFM sees and are trained by log p(f | y) alone, an independent
Gaussian at every point. They have no joint law of force and outputs, and condition on nothing:
the difference in their scores is what the Gaussian process buys. Unlike the DKLFM they tell
outputs apart by their place, and take no other number of outputs than they were trained on.
"""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
from torch import Tensor, nn

from dklfm.config import FourierRegressorConfig, NeuralProcessConfig
from dklfm.errors import DataError
from dklfm.model.base import ForceModel, Moments
from dklfm.model.batch import Batch
from dklfm.model.encoders import SpectralConvolution, regular_shape
from dklfm.model.features import FourierFeatures
from dklfm.model.gaussian import LogDensities
from dklfm.model.interpolation import spline_weights

_LEAST_VARIANCE = 1e-6
"""Of a standardised force: lets no density run away at a point that was learnt by heart."""


class BlackBox(ForceModel):
    """A Gaussian of the force at every query point, independent of the others.

    Its variance includes the noise of the forces seen in training.
    """

    exchangeable = False

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.outputs = outputs

    @abstractmethod
    def forward(self, context: Batch, x: Tensor) -> Tensor:
        """Mean and raw log variance, ``task x query x 2``, at ``task x query x axis`` inputs."""

    def predict(self, context: Batch, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of the force, each ``task x query``.

        Raises:
            DataError: if the tasks have another number of outputs than those trained on.
        """
        self.require_outputs(context)
        mean, raw = self(context, x).unbind(-1)
        return mean, raw.logaddexp(raw.new_tensor(math.log(_LEAST_VARIANCE)))

    def log_densities(self, batch: Batch, context: Batch | None = None) -> LogDensities:
        if batch.f is None:
            raise ValueError("training needs tasks with an observed force")
        mean, log_variance = self.predict(batch if context is None else context, batch.x)
        real = batch.mask.any(1)
        square = torch.where(real, batch.f - mean, 0.0).square()
        terms = -0.5 * (square * (-log_variance).exp() + log_variance + math.log(2 * math.pi))
        force = (terms * real).sum(-1)
        nothing = torch.zeros_like(force)
        return LogDensities(nothing, force, nothing, real.sum(-1))

    @torch.no_grad()
    def posterior(self, batch: Batch, x_query: Tensor, covariance: bool = False) -> Moments:
        mean, log_variance = self.predict(batch, x_query)
        return Moments(mean.double(), log_variance.double().exp())


class AttentionBlock(nn.Module):
    """Pre-norm attention from queries to tokens, then a network of each query."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm_queries, self.norm_tokens = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.network = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, queries: Tensor, tokens: Tensor, padding: Tensor) -> Tensor:
        """``task x query x width`` to the same; ``task x token`` padding is not attended to."""
        keys = self.norm_tokens(tokens)
        attended, _ = self.attention(
            self.norm_queries(queries), keys, keys, key_padding_mask=padding, need_weights=False
        )
        queries = queries + attended
        return queries + self.network(queries)


class NeuralProcess(BlackBox):
    """A Transformer neural process (Nguyen & Grover, 2022, TNP-D); any mesh, missing values.

    One token an observation: its value, the standard deviation of its noise, where it was made and
    of which output. In each layer the tokens attend to one another and the queries to them.
    """

    method = "neural_process"

    def __init__(self, config: NeuralProcessConfig, axes: int, outputs: int) -> None:
        super().__init__(outputs)
        self.config, width = config, config.width
        self.position = FourierFeatures(axes, config.frequencies, 0.25, 8.0)
        self.lift = nn.Linear(2 + self.position.size, width)
        self.output = nn.Parameter(torch.randn(outputs, width))
        self.nothing = nn.Parameter(torch.zeros(width))
        self.query = nn.Linear(self.position.size, width)
        self.among, self.towards = (
            nn.ModuleList(AttentionBlock(width, config.heads) for _ in range(config.layers))
            for _ in range(2)
        )
        self.head = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, 2)
        )

    def forward(self, context: Batch, x: Tensor) -> Tensor:
        position = self.position(context.x)[:, None].expand(-1, self.outputs, -1, -1)
        observed = torch.stack([context.y, context.y_sd], dim=-1)
        lifted = self.lift(torch.cat([observed, position], dim=-1)) + self.output[:, None]
        # One token that is always there: attention over nothing is NaN.
        nothing = self.nothing.expand(len(lifted), 1, -1)
        tokens = torch.cat([nothing, lifted.flatten(1, 2)], dim=1)
        padding = nn.functional.pad(~context.mask.flatten(1), (1, 0), value=False)
        queries = self.query(self.position(x))
        for among, towards in zip(self.among, self.towards, strict=True):
            tokens = among(tokens, tokens, padding)
            queries = towards(queries, tokens, padding)
        return self.head(queries)


class FourierRegressor(BlackBox):
    """A Fourier neural operator (Li et al., 2021) from all outputs to the force, on a regular mesh.

    Between the nodes of the mesh mean and log variance are those of the interpolating cubic spline,
    a product of one spline an axis with not-a-knot ends. An output that was not observed at all is
    zero and marked as such. A mesh may run downwards along any axis, as one mirrored does.
    """

    method = "fno"

    def __init__(self, config: FourierRegressorConfig, axes: int, outputs: int) -> None:
        super().__init__(outputs)
        self.config, width = config, config.width
        self.lift = nn.Conv1d(2 * outputs + axes, width, kernel_size=1)
        self.spectral = nn.ModuleList(
            SpectralConvolution(axes, width, config.modes) for _ in range(config.layers)
        )
        self.pointwise = nn.ModuleList(
            nn.Conv1d(width, width, kernel_size=1) for _ in range(config.layers)
        )
        self.head = nn.Sequential(
            nn.Conv1d(width, width, kernel_size=1), nn.GELU(), nn.Conv1d(width, 2, kernel_size=1)
        )

    def forward(self, context: Batch, x: Tensor) -> Tensor:
        """As for every black box; the points must be a full regular mesh in row-major order.

        Raises:
            DataError: if some points of an output are missing, the mesh is irregular, or queries
                lie outside it.
        """
        seen = context.mask.any(-1, keepdim=True)  # task output 1
        first, last = context.x[:, :1], context.x[:, -1:]
        mesh = torch.where(first > last, first + last - context.x, context.x)
        shape = regular_shape(mesh, context.mask | ~seen)
        channels = torch.cat([context.y * seen, seen.expand_as(context.y)], dim=1)
        fields = channels.unflatten(-1, shape)
        for axis, downwards in enumerate((first > last).flatten(1).unbind(-1)):
            turned = downwards.reshape(-1, *[1] * (fields.ndim - 1))
            fields = torch.where(turned, fields.flip(2 + axis), fields)
        hidden = self.lift(torch.cat([fields.flatten(2), mesh.mT], dim=1))
        for spectral, pointwise in zip(self.spectral, self.pointwise, strict=True):
            mixed = spectral(hidden.unflatten(-1, shape)).flatten(2)
            hidden = nn.functional.gelu(mixed + pointwise(hidden))
        lowest, highest = mesh[0, 0], mesh[0, -1]
        if ((x < lowest - 1e-5) | (x > highest + 1e-5)).any():
            raise DataError(
                "fno knows the force on its mesh alone, and queries lie outside it; "
                "set tasks.extrapolate: 0, or use neural_process"
            )
        return spline_weights(shape, x, lowest, highest) @ self.head(hidden).mT
