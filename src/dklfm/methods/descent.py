"""From starts to modes of a task's posterior: Levenberg–Marquardt along curved valleys.

What is descended is the energy of :class:`dklfm.methods.mechanistic.Problem`, for many starts, of
one task or of several, at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from dklfm.methods.mechanistic import Problem

Array = NDArray[np.float64]
Rows = NDArray[np.intp]
_MODES = 4
"""Starts that are followed, those of least energy: two once both went astray, on 1 of 256 tasks."""
_MODE_ITERATIONS = 400
"""Ten are usual; where sensitivities of many outputs trade with a force, a few tasks need 200."""
_DAMPINGS = np.array([0.0, 0.1, 1.0, 10.0, 100.0])
_MOST_DAMPING = 1e12
_PROBE, _MOST_BEND = 0.1, 0.75
"""Share of a step at which its curvature is taken, and the most that may bend it."""


class Mode(NamedTuple):
    """A minimum of the energy over θ and z, and its Gauss–Newton Hessian over both."""

    theta: Array
    z: Array
    hessian: Array
    energy: float

    def theta_covariance(self) -> Array:
        """Of θ alone, by Laplace's approximation."""
        size = len(self.theta)
        return np.asarray(np.linalg.inv(self.hessian)[:size, :size], dtype=np.float64)

    def expected_z(self, theta: Array) -> Array:
        """Where the same approximation expects the force, given ``set x size`` θ."""
        n = len(self.theta)
        slope = np.linalg.solve(self.hessian[n:, n:], self.hessian[n:, :n])
        return self.z - (theta - self.theta) @ slope.T


def find_mode(problem: Problem, rng: np.random.Generator, starts: int) -> Mode:
    """The posterior's mode, sought from the prior's and from the best of its draws."""
    sizes = problem.parameters, problem.coefficients
    theta, z = (np.vstack([np.zeros(size), rng.standard_normal((starts, size))]) for size in sizes)
    best = np.argsort(problem.energy(theta, z))[:_MODES]
    return min(descend(problem, theta[best], z[best]), key=lambda mode: mode.energy)


def descend(problem: Problem, theta: Array, z: Array, of: Rows | None = None) -> list[Mode]:
    """Levenberg–Marquardt from each θ and z; several dampings are tried at once.

    What trades with the force makes the valleys of the energy narrow and curved. Steps are bent to
    follow them (geodesic acceleration, Transtrum and Sethna 2012, arXiv:1201.5885).

    Args:
        problem: whose modes are sought.
        theta: ``start x size``.
        z: alike.
        of: the task of each start; the only one by default.

    Returns:
        What each start led to.
    """
    n = problem.parameters
    v = np.hstack([theta, z])
    starts, size = v.shape
    damping, energy = np.ones(starts), np.empty(starts)
    hessian = np.empty((starts, size, size))
    active = np.arange(starts)
    for _ in range(_MODE_ITERATIONS):
        at, task = v[active], None if of is None else of[active]
        each = None if task is None else np.repeat(task, len(_DAMPINGS))
        residual, jacobian = problem.gradient(at[:, :n], at[:, n:], task)
        hessian[active] = curved = np.eye(size) + jacobian.mT @ jacobian
        before = 0.5 * (np.square(at).sum(1) + np.square(residual).sum(1))
        gradient = at + (jacobian.mT @ residual[..., None])[..., 0]
        trials = damping[active, None] * _DAMPINGS
        diagonal = np.eye(size) * curved.diagonal(axis1=1, axis2=2)[:, None]
        damped = curved[:, None] + trials[..., None, None] * diagonal[:, None]
        steps = -np.linalg.solve(damped, gradient[:, None, :, None])[..., 0]
        second = _curvature(problem, at, steps, residual, jacobian, each)
        pull = jacobian.mT[:, None] @ second[..., None]
        bends = -np.linalg.solve(damped, pull)[..., 0]
        small = 2 * np.linalg.norm(bends, axis=-1) < _MOST_BEND * np.linalg.norm(steps, axis=-1)
        candidates = at[:, None] + steps + np.where(small[..., None], bends / 2, 0.0)
        flat = candidates.reshape(-1, size)
        energies = problem.energy(flat[:, :n], flat[:, n:], each).reshape(trials.shape)
        best, every = energies.argmin(1), np.arange(len(active))
        lowest = energies[every, best]
        better = lowest < before
        v[active[better]] = candidates[every, best][better]
        grown = np.maximum(1e-6, np.where(best > 1, trials[every, best], 0.3 * damping[active]))
        damping[active] = np.where(better, grown, 100 * damping[active])
        energy[active] = np.minimum(before, lowest)
        done = (np.abs(before - lowest) < problem.tolerance) | (damping[active] > _MOST_DAMPING)
        active = active[~done]
        if not len(active):
            break
    return [Mode(v[i, :n], v[i, n:], hessian[i], float(energy[i])) for i in range(starts)]


def _curvature(
    problem: Problem, at: Array, steps: Array, residual: Array, jacobian: Array, each: Rows | None
) -> Array:
    """Second derivatives of the residuals along steps, ``start x step x observation``.

    NaN where the steps lead to where there is no solution.
    """
    n, shape = problem.parameters, steps.shape[:-1]
    probes = (at[:, None] + _PROBE * steps).reshape(-1, at.shape[-1])
    slopes = (jacobian[:, None] @ steps[..., None])[..., 0]
    with np.errstate(over="ignore", invalid="ignore"):
        probed = problem.residual(probes[:, :n], probes[:, n:], each).reshape(*shape, -1)
        found = 2 / _PROBE * ((probed - residual[:, None]) / _PROBE - slopes)
    return np.where(np.isfinite(found), found, np.nan)
