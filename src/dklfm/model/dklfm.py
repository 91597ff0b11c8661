"""The deep kernel latent force model: one joint Gaussian over force and outputs.

With r an embedding of a task's noisy outputs and z = r ⊕ x, a deep kernel κ and mean networks
give (Eqs. 4-7 of the paper)

    f, h ~ N([μ_f, μ_h], [[K_ff, K_fh], [K_hf, K_hh]]),    y = h + ε,

trained on simulated tasks by log p(f) + log p(y | f); a new task's force is p(f | y).

Networks run in float32. Kernels and their algebra run in float64: it costs a sixth more time and
frees the learnt noise from any jitter.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dklfm.config import FourierConfig, KernelConfig, ModelConfig, PeriodFeaturesConfig
from dklfm.model.base import ForceModel, Moments
from dklfm.model.batch import Batch
from dklfm.model.encoders import FourierEncoder, TransformerEncoder, masked_mean
from dklfm.model.features import FourierFeatures, PeriodFeatures
from dklfm.model.gaussian import (
    Conditional,
    LogDensities,
    condition,
    condition_inducing,
    joint_log_densities,
)
from dklfm.model.kernel import DeepKernel, Latent, LatentPoints, ResidualMLP, join

FORCE_JITTER = 1e-6
"""Added to the variance of an observed force, standardised."""
OUTPUT_JITTER = 1e-8
"""Added to the variances of outputs, standardised: below any noise that matters."""
MOST_EXACT = 5000
"""Observations of a task that are conditioned on one by one: a gigabyte for their covariance."""
INDUCING = 1024
_NAME = 0.1
"""Size of what tells outputs apart, at first."""


class Embedding(NamedTuple):
    """What the encoder makes of a batch: one vector an output, and their mean for the force."""

    outputs: Float[Tensor, "task output size"]
    force: Float[Tensor, "task size"]


class MeanNetwork(nn.Module):
    """A network of z that starts at zero."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.body = ResidualMLP(inputs, width, blocks=1)
        self.head = nn.Linear(width, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, z: Tensor) -> Tensor:
        return self.head(self.body(z))[..., 0]


class DKLFM(ForceModel):
    """The model; see the module's docstring."""

    method = "dklfm"
    judged_where_seen = True
    joint = True

    def __init__(self, config: ModelConfig, axes: int, outputs: int = 1) -> None:
        super().__init__()
        self.config = config
        self.outputs, self.exchangeable = outputs, config.exchangeable
        self.features = _features(config, axes)
        self.encoder = _encoder(config, axes)
        inputs = config.embedding + self.features.size
        kernel: KernelConfig = config.kernel
        operated = kernel.coordinates + (axes if kernel.concatenate_inputs else 0)
        self.latent = Latent(
            inputs,
            kernel.width,
            kernel.blocks,
            kernel.coordinates,
            kernel.amplitudes,
            operated if kernel.differential else 0,
        )
        self.kernel = DeepKernel(kernel.base)
        self.force_mean = MeanNetwork(inputs, kernel.width)
        self.output_mean = (
            MeanNetwork(inputs, kernel.width) if config.output_mean == "network" else None
        )
        self.log_input_rate = nn.Parameter(torch.zeros(axes)) if kernel.concatenate_inputs else None
        self.log_noise = nn.Parameter(torch.tensor(math.log(0.05)))
        self.log_force_noise = nn.Parameter(torch.tensor(math.log(0.05)))
        size = (outputs, config.embedding)
        self.names = None if config.exchangeable else nn.Parameter(_NAME * torch.randn(size))

    def embed(self, batch: Batch) -> Embedding:
        """Encode every output function by itself (Section 3.2).

        Raises:
            DataError: if the tasks have another number of outputs than the model tells apart.
        """
        self.require_outputs(batch)
        tasks, outputs, points = batch.y.shape
        x = batch.x[:, None].expand(-1, outputs, -1, -1).reshape(tasks * outputs, points, -1)
        r = self.encoder(x, batch.y.flatten(0, 1), batch.mask.flatten(0, 1))
        r = r.unflatten(0, (tasks, outputs))  # task output size
        if self.names is not None:
            r = r + self.names
        observed = batch.mask.any(-1)[..., None]
        return Embedding(r, masked_mean(r, observed, dim=1))

    def outputs_at(self, r: Embedding, x: Tensor) -> tuple[LatentPoints, Tensor]:
        """Latent points and means of all outputs at ``task x point`` inputs, output-major."""
        features = self.features(x, r.force)  # task point feature
        shape = (*r.outputs.shape[:2], x.shape[1], -1)
        z = torch.cat(
            [r.outputs[:, :, None].expand(shape), features[:, None].expand(shape)], dim=-1
        ).flatten(1, 2)  # task (output point) inputs
        mean = torch.zeros_like(z[..., 0]) if self.output_mean is None else self.output_mean(z)
        inputs = x.repeat(1, r.outputs.shape[1], 1)
        return self._with_inputs(self.latent(z, "outputs"), inputs), mean.double()

    def force_at(self, r: Embedding, x: Tensor) -> tuple[LatentPoints, Tensor]:
        """Latent points and mean of the force at ``task x point`` inputs."""
        features = self.features(x, r.force)
        z = torch.cat([r.force[:, None].expand(*x.shape[:2], -1), features], dim=-1)
        return self._with_inputs(self.latent(z, "force"), x), self.force_mean(z).double()

    def _with_inputs(self, latent: LatentPoints, x: Tensor) -> LatentPoints:
        if self.log_input_rate is not None:
            coordinates = torch.cat([x * self.log_input_rate.exp(), latent.coordinates], dim=-1)
            latent = latent._replace(coordinates=coordinates)
        return latent.double()

    def noise_variance(self, batch: Batch) -> Float[Tensor, "task output point"]:
        """σ² of every observation, under the likelihood that the config names."""
        learned = (2 * self.log_noise).exp()
        if self.config.noise == "given":
            return batch.y_sd.square() + learned
        if self.config.noise == "homoscedastic":
            return learned.expand(batch.y.shape)
        mean = masked_mean(batch.y, batch.mask, dim=-1)[..., None]
        variance = masked_mean((batch.y - mean).square(), batch.mask, dim=-1)[..., None]
        return (learned * variance).expand(batch.y.shape)

    def log_densities(self, batch: Batch, context: Batch | None = None) -> LogDensities:
        """Densities log p(y) and log p(f | y) of training tasks; their sum is Eq. 4.

        Args:
            batch: training tasks.
            context: what the encoder sees of them; the whole batch by default.

        Raises:
            ValueError: if the batch has no force.
        """
        if batch.f is None:
            raise ValueError("training needs tasks with an observed force")
        r = self.embed(batch if context is None else context)
        latent_h, mean_h = self.outputs_at(r, batch.x)
        latent_f, mean_f = self.force_at(r, batch.x)
        both = join(latent_h, latent_f)
        force_noise = (2 * self.log_force_noise).exp() + FORCE_JITTER
        noise = torch.cat(
            [
                self.noise_variance(batch).flatten(1) + OUTPUT_JITTER,
                force_noise.expand(batch.f.shape),
            ],
            dim=1,
        )
        residual = torch.cat([batch.y.flatten(1) - mean_h, batch.f - mean_f], dim=1)
        mask = torch.cat([batch.mask.flatten(1), batch.mask.any(1)], dim=1)
        covariance = self.kernel(both, both) + torch.diag_embed(noise)
        return joint_log_densities(covariance, residual, mask, mean_h.shape[1])

    @torch.no_grad()
    def posterior(self, batch: Batch, x_query: Tensor, covariance: bool = False) -> Moments:
        """p(f, h | y) at any inputs by exact conditioning, in float64.

        Beyond MOST_EXACT observations a task, they are condensed into the values at INDUCING of
        them, evenly spread: the inducing points that the paper proposes for large inputs.

        Args:
            batch: observations; a force in it is not looked at.
            x_query: ``task x query x axis`` inputs in [0, 1].
            covariance: also give the force's joint covariance over the query points.
        """
        r = self.embed(batch)
        latent_h, mean_h = self.outputs_at(r, batch.x)
        latent_f, mean_f = self.force_at(r, x_query)
        latent_q, mean_q = self.outputs_at(r, x_query)
        both = join(latent_f, latent_q)
        noise = (self.noise_variance(batch).flatten(1) + OUTPUT_JITTER).double()
        about = {"residual": batch.y.flatten(1) - mean_h, "mask": batch.mask.flatten(1)}
        if noise.shape[1] <= MOST_EXACT:
            conditional = condition(
                observed=self.kernel(latent_h, latent_h) + torch.diag_embed(noise),
                cross=self.kernel(both, latent_h),
                **about,
            )
        else:
            chosen = torch.arange(INDUCING, device=noise.device) * noise.shape[1] // INDUCING
            inducing = latent_h.take(chosen)
            conditional = condition_inducing(
                inducing=self.kernel(inducing, inducing),
                observed=self.kernel(inducing, latent_h),
                cross=self.kernel(both, inducing),
                noise=noise,
                **about,
            )
        mean = torch.cat([mean_f, mean_q], dim=1) + conditional.shift
        variance = conditional.variance(self.kernel.variance(both))
        n, outputs = x_query.shape[1], (len(batch), -1, x_query.shape[1])
        of_force = Conditional(conditional.shift[:, :n], conditional.whitened[..., :n])
        return Moments(
            mean[:, :n],
            variance[:, :n],
            mean[:, n:].reshape(outputs),
            variance[:, n:].reshape(outputs),
            of_force.covariance(self.kernel(latent_f, latent_f)) if covariance else None,
            torch.cat([r.force, masked_mean(r.outputs, batch.mask.any(-1)[..., None], 1)], -1),
        )

    @torch.no_grad()
    def coupling(self, batch: Batch) -> float:
        """Root-mean-square correlation between force and outputs under the prior.

        Near zero the kernel has settled where observations say nothing about the force, which
        the loss curve does not show.
        """
        r = self.embed(batch)
        latent_h, _ = self.outputs_at(r, batch.x)
        latent_f, _ = self.force_at(r, batch.x)
        cross = self.kernel(latent_f, latent_h)
        variance_f, variance_h = self.kernel.variance(latent_f), self.kernel.variance(latent_h)
        scale = (variance_f[:, :, None] * variance_h[:, None, :]).clamp_min(1e-12)
        return float((cross.square() / scale).mean().sqrt())


def _features(config: ModelConfig, axes: int) -> FourierFeatures | PeriodFeatures:
    features = config.features
    if isinstance(features, PeriodFeaturesConfig):
        bounds = (features.shortest, features.longest)
        return PeriodFeatures(axes, config.embedding, features.harmonics, *bounds)
    return FourierFeatures(axes, features.frequencies, features.lowest, features.highest)


def _encoder(config: ModelConfig, axes: int) -> nn.Module:
    encoder = config.encoder
    if isinstance(encoder, FourierConfig):
        return FourierEncoder(axes, config.embedding, encoder.width, encoder.layers, encoder.modes)
    return TransformerEncoder(
        axes, config.embedding, encoder.width, encoder.layers, encoder.heads, encoder.frequencies
    )
