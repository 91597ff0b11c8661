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
