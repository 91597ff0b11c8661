"""Algebra of the joint Gaussian over outputs and force, with padding.

Every matrix is ordered (h, f): observed outputs first, force second. One Cholesky factor of
that order then yields both log p(y) and log p(f | y), whose sum is Eq. 4 of the paper.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from linear_operator.utils.cholesky import psd_safe_cholesky
from linear_operator.utils.errors import NanError, NotPSDError
from torch import Tensor

from dklfm.errors import NumericalError

_RANK = 1e-13
"""Eigenvalues below this share of the largest are rounding."""
_JITTER_STEPS = 5
"""Tenfold steps of the jitter ladder, from 1e-8 in float64."""


class LogDensities(NamedTuple):
    """Log densities in nats and the number of points that they cover, each ``task``."""

    outputs: Tensor  # log p(y)
    force_given_outputs: Tensor  # log p(f | y)
    output_points: Tensor
    force_points: Tensor


class Conditional(NamedTuple):
    """What observations say of queried values, whose prior is Gaussian too.

    The posterior mean is the prior mean plus ``shift``; the posterior covariance is the prior
    covariance less Wᵀ W, with ``whitened`` = W.
    """

    shift: Tensor  # task query
    whitened: Tensor  # task observation query

    def variance(self, prior: Tensor) -> Tensor:
        """Posterior variances from ``task x query`` prior variances."""
        return (prior - self.whitened.square().sum(-2)).clamp_min(0.0)

    def covariance(self, prior: Tensor) -> Tensor:
        """Posterior covariance from the ``task x query x query`` prior covariance."""
        return prior - self.whitened.mT @ self.whitened


def cholesky(matrix: Tensor) -> Tensor:
    """Lower factor; a matrix that rounding made indefinite gets jitter, with a warning.

    Raises:
        NumericalError: if jitter of 1e-4 does not mend it.
    """
    try:
        return psd_safe_cholesky(matrix, max_tries=_JITTER_STEPS)
    except (NotPSDError, NanError) as error:
        raise NumericalError(
            f"a covariance has no Cholesky factor ({error}); if this is in training, lower "
            "training.learning_rate"
        ) from None


def isolate_padding(covariance: Tensor, mask: Tensor) -> Tensor:
    """Give padded points unit variance and no covariance, so that they change nothing.

    Args:
        covariance: ``task x n x n``.
        mask: ``task x n``, True where a point is real.
    """
    both = mask[:, :, None] & mask[:, None, :]
    return torch.where(both, covariance, 0.0) + torch.diag_embed((~mask).to(covariance))


def joint_log_densities(
    covariance: Tensor, residual: Tensor, mask: Tensor, outputs: int
) -> LogDensities:
    """Densities of the observed outputs and of the force given them (Eqs. 4-6).

    Args:
        covariance: ``task x n x n`` covariance of (y, f), noise included.
        residual: ``task x n`` values of (y − μ_h, f − μ_f).
        mask: ``task x n``, True where a point is real.
        outputs: how many of the n points are outputs; they come first.

    Raises:
        NumericalError: if the matrix has no Cholesky factor.
    """
    factor = cholesky(isolate_padding(covariance, mask))
    white = torch.linalg.solve_triangular(
        factor, torch.where(mask, residual, 0.0)[..., None], upper=False
    )[..., 0]
    log_scale = factor.diagonal(dim1=-2, dim2=-1).log()
    terms = -0.5 * white.square() - log_scale - 0.5 * math.log(2 * math.pi) * mask
    return LogDensities(
        terms[:, :outputs].sum(-1),
        terms[:, outputs:].sum(-1),
        mask[:, :outputs].sum(-1),
        mask[:, outputs:].sum(-1),
    )


def condition_inducing(
    inducing: Tensor, observed: Tensor, cross: Tensor, noise: Tensor, residual: Tensor, mask: Tensor
) -> Conditional:
    """Condition on observations through values at a few inducing points, O(n m²) and O(n m) memory.

    The optimal Gaussian law of these values (Titsias 2009): exact if they determine the rest, and
    never surer than exact conditioning would be if they do not.

    Args:
        inducing: ``task x m x m`` covariance at the inducing points.
        observed: ``task x m x n`` covariance between these and noise-free observations.
        cross: ``task x q x m`` covariance between queries and inducing points.
        noise: ``task x n`` variances of the observations' noise.
        residual: ``task x n`` observations less their mean.
        mask: ``task x n``, True where an observation is real.

    """
    scale = torch.where(mask, noise.rsqrt(), 0.0)[:, None]
    # A force may hang on differences of outputs far below their size: jitter would drown them.
    values, vectors = torch.linalg.eigh(inducing)
    kept = values > _RANK * values[:, -1:]
    root = vectors * torch.where(kept, values, torch.inf).rsqrt()[:, None]
    design = root.mT @ (observed * scale)
    target = (design @ (residual[:, None] * scale).mT)[..., 0]
    values, vectors = torch.linalg.eigh(design @ design.mT)
    values = values.clamp_min(0.0)
    rotated = vectors.mT @ (root.mT @ cross.mT)
    weights = (vectors.mT @ target[..., None])[..., 0] / (1 + values)
    shift = (rotated * weights[..., None]).sum(-2)
    return Conditional(shift, rotated * (values / (1 + values)).sqrt()[..., None])


def condition(observed: Tensor, cross: Tensor, residual: Tensor, mask: Tensor) -> Conditional:
    """Condition a joint Gaussian on observations, exactly.

    Args:
        observed: ``task x n x n`` covariance of the observations, noise included.
        cross: ``task x m x n`` covariance between queries and observations.
        residual: ``task x n`` observations less their mean.
        mask: ``task x n``, True where an observation is real.

    Raises:
        NumericalError: if the matrix has no Cholesky factor.
    """
    factor = cholesky(isolate_padding(observed, mask))
    right = torch.cat([cross.mT, residual[..., None]], dim=-1)
    white = torch.linalg.solve_triangular(
        factor, torch.where(mask[..., None], right, 0.0), upper=False
    )
    whitened, residual = white[..., :-1], white[..., -1:]
    return Conditional((whitened.mT @ residual)[..., 0], whitened)
