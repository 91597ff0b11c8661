"""Exact inference of a transcription force that acts linearly.

Given the parameters, force and outputs are jointly Gaussian (Lawrence, Sanguinetti & Rattray,
NIPS 2006), so the posterior is plain conditioning: no other method that sees the same outputs can
have a lower expected squared error.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import LinAlgError, cholesky, solve_triangular

from dklfm.errors import DataError
from dklfm.methods.single import TaskPosterior, require_noise, true_parameters
from dklfm.systems import System, Transcription
from dklfm.systems.transcription_covariance import LinearTranscription
from dklfm.tasks import Tasks

Array = NDArray[np.float64]
_LEAST_VARIANCE = 1e-12
"""Outputs are known exactly at time zero, but a density needs a width."""


class ExactTranscription:
    """GP conditioning on the outputs of a task whose true parameters are given."""

    name = "exact"

    def __init__(self, system: System) -> None:
        if not isinstance(system, Transcription) or system.response != "identity":
            kind = getattr(system, "response", None)
            given = f"{system.name} with response {kind}" if kind else system.name
            raise DataError(f"{self.name} is for transcription with response identity, not {given}")
        self.system = system

    def fit(self, task: Tasks) -> TaskPosterior:
        """The posterior of the only task given; moments at padded points are NaN.

        Raises:
            DataError: if the task states no noise or not its true parameters, or if its noise is
                too small for the covariance of its outputs to be invertible.
        """
        require_noise(task, self.name)
        law = LinearTranscription.of(true_parameters(self.system, task))
        data = _observe(task, law)
        points, queries = task["x"][0, :, 0], task["x_query"][0, :, 0]
        everywhere = np.concatenate([points, queries])

        force_mean, explained = data.condition(law.yf(points, queries))
        output_mean, output_explained = data.condition(law.yy(points, everywhere))
        return TaskPosterior(
            force_mean,
            np.maximum(1 - explained, _LEAST_VARIANCE),
            law.mean[:, None] + output_mean,
            np.maximum(law.output_variance(everywhere) - output_explained, _LEAST_VARIANCE),
        )


def log_marginal_likelihood(task: Tasks, parameters: Mapping[str, Array]) -> float:
    """The evidence, log p(y | parameters) in nats, of the only task given.

    Args:
        task: its ``y`` that are NaN are left out.
        parameters: ``gene`` values of basal, sensitivity and decay, and a lengthscale.

    Raises:
        DataError: if the task states no noise, or noise too small for the covariance of its
            outputs to be invertible.
    """
    data = _observe(task, LinearTranscription.of(parameters))
    log_root = np.log(data.factor.diagonal()).sum()
    normaliser = log_root + 0.5 * len(data.white) * np.log(2 * np.pi)
    return float(-0.5 * data.white @ data.white - normaliser)


class _Observations(NamedTuple):
    """What was observed, through L with L Lᵀ = K_yy + diag σ².

    Attributes:
        where: ``gene x point``, true where an output was observed.
        factor: L, ``observation x observation``.
        white: L⁻¹ (y − E[y]), ``observation``.
    """

    where: NDArray[np.bool_]
    factor: Array
    white: Array

    def condition(self, covariance: Array) -> tuple[Array, Array]:
        """What the observations add to a mean and take from a variance.

        Args:
            covariance: of every output with the targets, ``gene x point x ...``.
        """
        cross = covariance[self.where]
        # A padded point has no time: its columns are NaN, and stay alone with that.
        gain = solve_triangular(
            self.factor, cross.reshape(len(cross), -1), lower=True, check_finite=False
        )
        targets = cross.shape[1:]
        return (self.white @ gain).reshape(targets), np.square(gain).sum(0).reshape(targets)


def _observe(task: Tasks, law: LinearTranscription) -> _Observations:
    if "y_sd" not in task:
        raise DataError("exact inference needs the standard deviation of the noise, y_sd")
    y, times = task["y"][0], task["x"][0, :, 0]
    where = np.isfinite(y)
    covariance = law.yy(times, times)[where][:, where]
    covariance[np.diag_indices_from(covariance)] += np.square(task["y_sd"][0, where])
    try:
        factor = cholesky(covariance, lower=True)
    except LinAlgError:
        name = task.data["task"].values[0]
        raise DataError(
            f"task {name}: y_sd is too small for exact inference; state the noise of its outputs"
        ) from None
    residual = (y - law.mean[:, None])[where]
    return _Observations(where, factor, solve_triangular(factor, residual, lower=True))
