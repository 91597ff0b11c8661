"""Posteriors that a network reads off: Gaussian processes of force and outputs, and their training.

    f | y ~ GP(m_f(x; y), k_f(x, x'; y)),    h_j | y ~ GP(m_j(x; y), k_j(x, x'; y))

How means, deviations and correlations come from the observations is what models differ in.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dklfm.config import LinearisedConfig, OperatorConfig
from dklfm.model.base import ForceModel, Moments
from dklfm.model.batch import Batch
from dklfm.model.gaussian import LogDensities, cholesky

_DIAGONAL = 1e-3
"""Share of the residual's variance that is not smooth: keeps its covariance invertible."""


def _log_density(values: Tensor, mean: Tensor, log_sd: Tensor) -> Tensor:
    """Of independent Gaussians."""
    square = ((values - mean) * (-log_sd).exp()).square()
    return -0.5 * square - log_sd - 0.5 * math.log(2 * math.pi)


@dataclass(frozen=True)
class Law(ABC):
    """Gaussian processes at points: means, standard deviations and how the residuals go together.

    ``mean`` and ``log_sd`` are ``task x function x query``.
    """

    mean: Tensor
    log_sd: Tensor

    @abstractmethod
    def smooth(self) -> Tensor:
        """``task x function x query x query`` correlations of what is smooth, in float64."""

    def correlation(self) -> Tensor:
        """``task x function x query x query`` correlations, in float64."""
        smooth = self.smooth()
        return (1 - _DIAGONAL) * smooth + _DIAGONAL * torch.eye(smooth.shape[-1]).to(smooth)

    def covariance(self) -> Tensor:
        """``task x function x query x query`` covariance s s' ρ of the residuals, in float64."""
        sd = self.log_sd.double().exp()
        return sd[..., :, None] * sd[..., None, :] * self.correlation()


@dataclass(frozen=True)
class KernelLaw(Law):
    """A squared-exponential kernel of ``task x function x query x size`` coordinates."""

    coordinates: Tensor

    def smooth(self) -> Tensor:
        coordinates = self.coordinates.double()
        squares = coordinates.square().sum(-1)
        apart = squares[..., :, None] + squares[..., None, :] - 2 * coordinates @ coordinates.mT
        return (-0.5 * apart.clamp_min(0)).exp()


@dataclass(frozen=True)
class FactorLaw(Law):
    """Few features: ``task x function x query x latent`` loads, whose products correlate."""

    loads: Tensor

    def smooth(self) -> Tensor:
        unit = nn.functional.normalize(self.loads.double(), dim=-1)
        return unit @ unit.mT


class Laws(NamedTuple):
    """Of the force and of the outputs, and a summary of what was seen."""

    force: Law
    outputs: Law
    embedding: Float[Tensor, "task size"]


def _moments(laws: Laws, covariance: bool = False) -> Moments:
    force, outputs, embedding = laws
    return Moments(
        force.mean[:, 0].double(),
        (2 * force.log_sd[:, 0].double()).exp(),
        outputs.mean.double(),
        (2 * outputs.log_sd.double()).exp(),
        force.covariance()[:, 0] if covariance else None,
        embedding,
    )


class AmortisedLFM(ForceModel):
    """See the module."""

    method = "dklfm_stream"
    joint = True

    @abstractmethod
    def laws(self, context: Batch, x: Tensor) -> Laws:
        """Of the force and of the outputs at ``task x query x axis`` points, given observations.

        Raises:
            DataError: if the tasks have another number of outputs than the model tells apart.
        """

    def answer(self, context: Batch, x: Tensor) -> Laws:
        """As :meth:`laws`, by all that a trained model has to infer with."""
        return self.laws(context, x)

    def log_densities(self, batch: Batch, context: Batch | None = None) -> LogDensities:
        """Marginal densities of the true force and outputs at their points, given observations.

        Args:
            batch: truth, free of noise, at points to be judged by.
            context: observations of the same tasks.

        Raises:
            ValueError: if the batch has no force, or there is no context.
        """
        if batch.f is None or context is None:
            raise ValueError("training needs a force, and observations apart from the truth")
        force, outputs, _ = self.laws(context, batch.x)
        real = batch.mask.any(1)
        of_force = _log_density(batch.f, force.mean[:, 0], force.log_sd[:, 0]) * real
        of_outputs = _log_density(batch.y, outputs.mean, outputs.log_sd) * batch.mask
        return LogDensities(
            of_outputs.sum((-1, -2)), of_force.sum(-1), batch.mask.sum((-1, -2)), real.sum(-1)
        )

    @torch.no_grad()
    def posterior(self, batch: Batch, x_query: Tensor, covariance: bool = False) -> Moments:
        return _moments(self.answer(batch, x_query), covariance)

    @torch.no_grad()
    def begun(self, batch: Batch, x_query: Tensor) -> Moments:
        return _moments(self.laws(batch, x_query))


class JudgedLFM(AmortisedLFM):
    """Trained by the truth at query points."""

    config: OperatorConfig | LinearisedConfig

    @property
    @abstractmethod
    def mesh(self) -> int | None:
        """Points an axis of the even grid that :meth:`learn` needs, if there is a use for it."""

    @abstractmethod
    def learn(self, outputs: Tensor, force: Tensor) -> None:
        """Take what does not depend on training from simulated tasks.

        Args:
            outputs: free of noise, ``task x output x point`` on the grid, on the model's scale.
            force: ``task x point``, likewise.
        """

    def loss(self, batch: Batch, context: Batch, conditional_weight: float = 0.0) -> Tensor:
        """Marginal densities train means and deviations, the joint one correlations alone.

        A joint density of a force without noise judges its mean by the directions in which it
        hardly varies; errors are to be small at every point instead. Each point's density is
        weighted by its standard deviation (Seitzer et al. 2022), or what is hard to infer would
        not be learnt; by that of the prior at most, or one that is vast would drive itself. The
        weights of the joint density and of the outputs are constants here, ``conditional_weight``
        is not looked at.
        """
        return self._judged(self.laws(context, batch.x), batch)

    def _judged(self, laws: Laws, batch: Batch) -> Tensor:
        """The loss; outputs may be of the first tasks only."""
        assert batch.f is not None
        force, outputs, _ = laws
        loss = self._force_loss(force, batch)
        of_outputs = _log_density(batch.y[: len(outputs.mean)], outputs.mean, outputs.log_sd)
        loss = loss - self.config.output_weight * of_outputs.mean()
        if not self.config.joint_weight:
            return loss
        correlation = force.correlation()[:, 0]
        white = ((batch.f - force.mean[:, 0]) / force.log_sd[:, 0].exp()).detach().double()
        factor = cholesky(correlation)
        solved = torch.linalg.solve_triangular(factor, white[..., None], upper=False)[..., 0]
        joint = 0.5 * solved.square() + factor.diagonal(dim1=-2, dim2=-1).log()
        return loss + self.config.joint_weight * joint.mean()

    def _force_loss(self, force: Law, batch: Batch) -> Tensor:
        """Of marginal densities of the true force."""
        assert batch.f is not None
        log_sd = force.log_sd[:, 0]
        marginal = -_log_density(batch.f, force.mean[:, 0], log_sd)
        return (marginal * log_sd.detach().clamp_max(0).exp()).mean()
