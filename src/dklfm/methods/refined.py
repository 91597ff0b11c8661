"""A trained model proposes, the mechanistic law judges.

From the amortised force a few damped Gauss–Newton steps lead to the mode of the equation's own
posterior, around which a few sets of parameters are weighted by that posterior. Begun where the
model points, and at no force at all where that ends in a mode that fits worse than chance would
have it, it needs no search among many starts; with few samples the weights are flattened: most of
what weights would still change is not worth their noise.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import chdtri

from dklfm.config import RefinementConfig
from dklfm.errors import DataError
from dklfm.methods.base import Posterior
from dklfm.methods.descent import Mode, descend
from dklfm.methods.mechanistic import Anchors, Problem
from dklfm.methods.sampling import Coordinates, paired, tempered
from dklfm.methods.single import TaskPosterior, gathered, mixed
from dklfm.methods.trained import TrainedModel
from dklfm.progress import progress
from dklfm.systems import System
from dklfm.tasks import Tasks

Array = NDArray[np.float64]
_TASKS_AT_ONCE = 32
_CONDITIONALS = 16
_INDEPENDENT = 0.2
"""Share of the query points that count as independent estimates of the force."""
_SUSPECT = 0.02
"""Share of tasks whose mode is worse than that by chance."""
_TOLERANCE = 0.1
"""Nats; modes need only be as exact as a proposal's centre."""
_WIDER = 1.5
"""Variance of the proposals over that of Laplace's approximation, which is too narrow."""
_LEAST = 0.4
"""Effective share of the samples that flattened weights keep."""


class Found(NamedTuple):
    """One task's problem, the mode of its posterior, and what led there."""

    problem: Problem
    mode: Mode
    cpu_seconds: float


class Refined:
    """The posterior of the equation's parameters and force, begun at a trained model's."""

    name = "dklfm_refined"

    def __init__(
        self, model: TrainedModel, system: System, config: RefinementConfig | None = None
    ) -> None:
        self.model, self.system = model, system
        self.samples = (config or RefinementConfig()).samples

    def infer(self, tasks: Tasks, anchors: Sequence[Anchors] | None = None) -> Posterior:
        """The posterior of every task.

        Args:
            tasks: to be inferred.
            anchors: known parameters of each, if any are.

        Raises:
            DataError: if the tasks state no noise, or the system's force is no Gaussian process
                in a finite basis.
        """
        fits, seconds = [], []
        coordinates: Coordinates | None = None
        for found in progress(self.modes(tasks, anchors), self.name, len(tasks)):
            started = time.process_time()
            coordinates = coordinates or found.problem.coordinates()
            fits.append(_sampled(found.problem, found.mode, coordinates, self.samples))
            seconds.append(found.cpu_seconds + time.process_time() - started)
        return gathered(tasks, fits, seconds)

    def modes(self, tasks: Tasks, anchors: Sequence[Anchors] | None = None) -> Iterator[Found]:
        """The mode of each task's posterior; arguments and errors as for :meth:`infer`."""
        system = self.system.with_outputs(len(tasks.outputs))
        amortised = self.model.infer(tasks, iterate=False)  # iterating is what follows
        for first in range(0, len(tasks), _TASKS_AT_ONCE):
            started = time.process_time()
            part = slice(first, first + _TASKS_AT_ONCE)
            some = tasks.take(range(len(tasks))[part])
            known = anchors[part] if anchors is not None else None
            problem = Problem(system, some, {}, _TOLERANCE, known)
            if not (problem.coefficients and problem.parameters):
                raise DataError(f"refinement is not made for {system.name}; use mechanistic")
            z = _coefficients(problem, amortised["force_mean"][part], amortised["force_sd"][part])
            modes = _sought(problem, z)
            spent = (time.process_time() - started) / len(z)
            for i, mode in enumerate(modes):
                seconds = spent + float(amortised["cpu_seconds"][first + i])
                yield Found(problem.of_task(i), mode, seconds)


def _sought(problem: Problem, z: Array) -> list[Mode]:
    """From a model's force, and from none at all where that ends in a mode that chance is not."""
    theta, tasks = np.zeros((len(z), problem.parameters)), np.arange(len(z))
    found = descend(problem, theta, z, tasks)
    # Twice the energy of a linear equation's mode is chi-squared, of as many degrees as it fits.
    usual = chdtri(problem.observed.sum((1, 2)), _SUSPECT)
    suspect = tasks[2 * np.array([mode.energy for mode in found]) > usual]
    if len(suspect):
        again = descend(problem, theta[suspect], np.zeros_like(z[suspect]), suspect)
        for i, other in zip(suspect, again, strict=True):
            found[i] = min(found[i], other, key=lambda mode: mode.energy)
    return found


def _sampled(problem: Problem, mode: Mode, coordinates: Coordinates, count: int) -> TaskPosterior:
    """The posterior around a mode, from ``count`` sets of parameters.

    Means are those of all of them. How much the force may vary given the parameters differs little
    between sets and costs more, and is the mean over a few that are drawn by weight.
    """
    rng = np.random.default_rng(0)  # the same for every task

    def density(theta: Array) -> tuple[Array, Array]:
        return problem.near_force(theta, mode)

    covariance = _WIDER * mode.theta_covariance()
    sample = tempered(paired(density, coordinates, mode.theta, covariance, count, rng), _LEAST)
    solved = problem.solve(sample.theta, sample.extra)
    marks = (np.arange(_CONDITIONALS) + 0.5) / _CONDITIONALS
    chosen = np.minimum(np.cumsum(sample.weights).searchsorted(marks), len(sample.weights) - 1)
    variances = problem.variances(sample.theta[chosen], sample.extra[chosen])
    force, outputs = (
        mixed(sample.weights, means, within.mean(0))
        for means, within in zip(solved, variances, strict=True)
    )
    return TaskPosterior(*force, *outputs, effective_sample_size=sample.effective_size)


def _coefficients(problem: Problem, mean: Array, sd: Array) -> Array:
    """The most probable coefficients of forces with given moments, by the median prior."""
    of = np.arange(len(mean))
    at_rest = np.zeros((len(of), problem.parameters)), np.zeros((len(of), problem.coefficients))
    gradient = problem.linearise(*at_rest, of, queries=True).force_gradient
    weighted = gradient.mT * (_INDEPENDENT / np.square(sd))[:, None]
    precision = np.eye(problem.coefficients) + weighted @ gradient
    solved = np.linalg.solve(precision, weighted @ mean[..., None])
    return np.asarray(solved[..., 0], dtype=np.float64)
