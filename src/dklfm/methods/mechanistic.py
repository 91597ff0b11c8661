"""The mechanistic reference: Bayesian inference in the equation itself, told the prior.

A task's unknowns are standard normal variables: θ, which the parameters are made from, and z,
the white coefficients of the force (:meth:`System.from_white`). With h the outputs at the observed
points,

    −log p(θ, z | y) = ½‖θ‖² + ½‖z‖² + ½ Σ ((y − h(θ, z)) / σ)² + const.

Given θ this is close to quadratic in z, so that a Laplace approximation gives p(z | θ, y) and the
evidence p(y | θ) almost exactly. Over θ it is curved: sensitivities trade with the force's scale.
θ is therefore sampled (:mod:`dklfm.methods.sampling`), by importance sampling that begins with
Laplace's approximation at the joint mode, or by a Markov chain; the posterior is the weighted
mixture of the conditional Gaussians. With the parameters integrated
out nothing that sees the outputs alone does better; with the parameters known, the error left is
that of the noise.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dklfm.config import MechanisticConfig
from dklfm.errors import DataError
from dklfm.methods.sampling import Coordinates, Sample, importance, markov_chain, tempered
from dklfm.methods.single import TaskPosterior, mixture, require_noise, true_parameters
from dklfm.systems import System
from dklfm.tasks import Tasks

Array = NDArray[np.float64]
Anchors = Mapping[tuple[str, int], float]
"""Parameters that are known, by their name and output."""
_FORCE = "coefficients"
_ANCHOR_SD = 0.01
"""Of the logarithm of an anchored parameter."""
_DIFFERENCE = 1e-4
"""Step of differences by θ, in prior standard deviations."""
_MODES = 2
_MODE_ITERATIONS = 40
_FORCE_ITERATIONS = 8
_BATCH = 32
"""Sets of unknowns at once: what these need fits a processor's cache."""
_NEGLIGIBLE = 1e-4
"""Share of the largest weight below which a sample's moments are not worth computing."""


class Mechanistic:
    """Sampling over the parameters, Laplace's approximation for the force."""

    def __init__(self, system: System, config: MechanisticConfig) -> None:
        self.system, self.config, self.name = system, config, config.name

    def fit(self, task: Tasks) -> TaskPosterior:
        """The posterior of the only task given.

        Raises:
            DataError: if the task states no noise, or not its true parameters where they are
                told, or the system's prior has no standard normal form.
        """
        known = true_parameters(self.system, task) if self.name.endswith("_known") else {}
        problem = Problem(self.system, task, known)
        rng = np.random.default_rng(0)  # the same for every task
        return self.around(problem, find_mode(problem, rng, self.config.starts), rng)

    def around(
        self, problem: Problem, mode: Mode, rng: np.random.Generator, least: float = 0.0
    ) -> TaskPosterior:
        """The posterior of a problem whose mode has been found.

        Args:
            problem: a task's.
            mode: of its posterior.
            rng: the source of randomness.
            least: share of the samples that the effective size must not fall below
                (:func:`dklfm.methods.sampling.tempered`).
        """
        if not problem.parameters:
            (known_fit,) = problem.conditionals(mode.theta[None], mode.z[None])
            return known_fit
        sample = tempered(self._sample(problem, mode, rng), least)
        heavy = sample.weights > _NEGLIGIBLE * sample.weights.max()
        fits = problem.conditionals(sample.theta[heavy], sample.extra[heavy])
        found = mixture(fits, sample.weights[heavy] / sample.weights[heavy].sum())
        return found._replace(effective_sample_size=sample.effective_size)

    def parameters(self, task: Tasks, count: int) -> dict[str, Array]:
        """``count`` draws of the parameters from the posterior of the only task given."""
        problem = Problem(self.system, task, {})
        rng = np.random.default_rng(0)
        sample = self._sample(problem, find_mode(problem, rng, self.config.starts), rng)
        chosen = rng.choice(len(sample.theta), size=count, p=sample.weights)
        draws = problem.draws(sample.theta[chosen], sample.extra[chosen])
        return {name: draws[name] for name in self.system.parameters}

    def _sample(self, problem: Problem, mode: Mode, rng: np.random.Generator) -> Sample:
        """Samples of θ with the most probable z of each."""
        size = problem.parameters
        coordinates = Coordinates.of(problem.parameter_of_each, size)

        def density(theta: Array) -> tuple[Array, Array]:
            return problem.maximise_force(theta, mode)

        covariance = np.linalg.inv(mode.hessian)[:size, :size]
        found = importance(density, coordinates, mode.theta, covariance, self.config.samples, rng)
        if self.config.sampler == "importance":
            return found
        return markov_chain(density, coordinates, found, self.config.samples, seed=0)


def fit_system(
    system: System, tasks: Tasks, config: MechanisticConfig, draws: int = 1000
) -> System:
    """The system with the posterior of its parameters for a prior: of all tasks in equal parts.

    Raises:
        DataError: if the tasks lack their noise, or the system cannot take such a prior.
    """
    method = Mechanistic(system, config)
    parts = [method.parameters(tasks.take([i]), draws) for i in range(len(tasks))]
    try:
        return system.fitted_to({k: np.concatenate([part[k] for part in parts]) for k in parts[0]})
    except NotImplementedError as error:
        raise DataError(str(error)) from None


class Mode(NamedTuple):
    """A minimum of the energy over θ and z, and its Gauss–Newton Hessian over both."""

    theta: Array
    z: Array
    hessian: Array
    energy: float


class Linear(NamedTuple):
    """Residuals, force and outputs at some θ and z, and their derivatives by z."""

    residual: Array  # set observation
    force: Array  # set query
    outputs: Array  # set output (point, query)
    residual_gradient: Array  # set observation coefficient
    force_gradient: Array
    output_gradient: Array


class Problem:
    """One task's observations, and what values of its unknowns imply.

    An energy, in nats, is taken for minimal when a step lowers it by less than ``tolerance``.
    """

    def __init__(
        self,
        system: System,
        task: Tasks,
        known: Mapping[str, Array],
        tolerance: float = 1e-2,
        anchors: Anchors | None = None,
    ) -> None:
        self.tolerance, self.anchors = tolerance, anchors or {}
        require_noise(task, "mechanistic inference")
        self.system, self.known = system.surrogate(), known
        try:
            self.all_shapes = self.system.white_shapes()
        except NotImplementedError as error:
            raise DataError(f"{system.name} has no mechanistic reference: {error}") from None
        self.force_shape = self.all_shapes.get(_FORCE, (0,))
        self.coefficients = int(np.prod(self.force_shape))
        self.shapes = {k: s for k, s in self.all_shapes.items() if k != _FORCE and k not in known}
        self.parameters = sum(int(np.prod(shape)) for shape in self.shapes.values())
        if not self.parameters + self.coefficients:
            raise DataError(f"{system.name}: with known parameters nothing is left to infer")
        self.x = np.concatenate([task["x"][0], task["x_query"][0]])
        self.points = task["x"].shape[1]
        self.y, self.sd = task["y"][0], task["y_sd"][0]
        self.observed = np.isfinite(self.y)

    def draws(self, theta: Array, z: Array) -> dict[str, Array]:
        """The system's draws for ``set x size`` unknowns."""
        count = len(theta)
        white = {name: np.zeros((count, *shape)) for name, shape in self.all_shapes.items()}
        start = 0
        for name, shape in self.shapes.items():
            stop = start + int(np.prod(shape))
            white[name] = theta[:, start:stop].reshape(count, *shape)
            start = stop
        if self.coefficients:
            white[_FORCE] = z.reshape(count, *self.force_shape)
        known = {k: np.broadcast_to(v, (count, *np.shape(v))) for k, v in self.known.items()}
        return {**self.system.from_white(white), **known}

    def parameter_of_each(self, theta: Array) -> Array:
        """The parameter that each variable of θ stands behind, ``set x size``."""
        draws = self.draws(theta, np.zeros((len(theta), self.coefficients)))
        return np.hstack([draws[name].reshape(len(theta), -1) for name in self.shapes])

    def _residual(self, draws: Mapping[str, Array], outputs: Array) -> Array:
        """Of the observations and, as of observations too, of the anchors."""
        seen = ((outputs[..., : self.points] - self.y) / self.sd)[:, self.observed]
        apart = [
            np.log(draws[name][:, [j]] / value) / _ANCHOR_SD
            for (name, j), value in self.anchors.items()
        ]
        return np.hstack([seen, *apart]) if apart else seen

    def residual(self, theta: Array, z: Array) -> Array:
        """(h − y)/σ at the observed points, ``set x observation``."""
        x = np.broadcast_to(self.x[: self.points], (len(theta), self.points, self.x.shape[1]))
        draws = self.draws(theta, z)
        return self._residual(draws, self.system.solve(draws, x).outputs)

    def energy(self, theta: Array, z: Array) -> Array:
        """−log p(θ, z, y) up to a constant, ``set``."""
        with np.errstate(over="ignore"):  # far from the data a solution may overflow
            squares = (np.square(part).sum(-1) for part in (theta, z, self.residual(theta, z)))
            total = 0.5 * sum(squares)
        return np.where(np.isfinite(total), total, np.inf)

    def linearise(self, theta: Array, z: Array, queries: bool = False) -> Linear:
        """Values and their derivatives by z; at the query points too, if asked for."""
        x = self.x if queries else self.x[: self.points]
        x = np.broadcast_to(x, (len(theta), *x.shape))
        draws = self.draws(theta, z)
        if not self.coefficients:
            found, empty = self.system.solve(draws, x), (0,)
            force_gradient = np.empty(found.force.shape + empty)
            output_gradient = np.empty(found.outputs.shape + empty)
        else:
            found = self.system.linearise(draws, x)
            force_gradient, output_gradient = found.force_gradient, found.output_gradient
        scaled = (output_gradient[..., : self.points, :] / self.sd[..., None])[:, self.observed]
        return Linear(
            self._residual(draws, found.outputs),
            found.force[:, self.points :],
            found.outputs,
            np.pad(scaled, ((0, 0), (0, len(self.anchors)), (0, 0))) if self.anchors else scaled,
            force_gradient[:, self.points :],
            output_gradient,
        )

    def gradient(self, theta: Array, z: Array) -> tuple[Array, Array]:
        """Residual of one θ, z, and its derivatives by both, ``observation x (θ, z)``."""
        linear = self.linearise(theta[None], z[None])
        if not self.parameters:
            return linear.residual[0], linear.residual_gradient[0]
        moved = theta + _DIFFERENCE * np.eye(self.parameters)
        found = self.residual(moved, np.tile(z, (self.parameters, 1)))
        by_theta = (found - linear.residual).T / _DIFFERENCE
        return linear.residual[0], np.hstack([by_theta, linear.residual_gradient[0]])

    def derivatives(self, theta: Array, z: Array) -> tuple[Array, Array]:
        """Of force and outputs at the query points, by θ and z.

        Returns:
            ``query x unknown`` and ``output x query x unknown``.
        """
        linear = self.linearise(theta[None], z[None], queries=True)
        many = theta + _DIFFERENCE * np.eye(self.parameters)
        x = np.broadcast_to(self.x, (len(many), *self.x.shape))
        moved = self.system.solve(self.draws(many, np.tile(z, (len(many), 1))), x)

        def both(moved: Array, at: Array, by_z: Array) -> Array:
            by_theta = np.moveaxis((moved - at) / _DIFFERENCE, 0, -1)
            return np.concatenate([by_theta, by_z[0]], -1)[..., -len(linear.force[0]) :, :]

        return (
            both(moved.force[:, self.points :], linear.force, linear.force_gradient),
            both(moved.outputs, linear.outputs, linear.output_gradient),
        )

    def maximise_force(self, theta: Array, mode: Mode) -> tuple[Array, Array]:
        """The most probable z of each θ, and log p(θ, y) by Laplace's approximation there."""
        parts = [self._maximise_force(batch, mode) for batch in _batches(theta)]
        z, values = zip(*parts, strict=True)
        return np.concatenate(z), np.concatenate(values)

    def _maximise_force(self, theta: Array, mode: Mode) -> tuple[Array, Array]:
        n = self.parameters
        # Where the joint Laplace approximation expects the force, given θ.
        slope = np.linalg.solve(mode.hessian[n:, n:], mode.hessian[n:, :n])
        z = mode.z - (theta - mode.theta) @ slope.T
        energy = self.energy(theta, z)
        rest = self.energy(theta, np.broadcast_to(mode.z, z.shape))
        z = np.where((energy < rest)[:, None], z, mode.z)
        energy = np.minimum(energy, rest)
        hessian = np.empty((*z.shape, z.shape[1]))
        active = np.arange(len(theta))
        for _ in range(_FORCE_ITERATIONS if self.coefficients else 0):
            linear = self.linearise(theta[active], z[active])
            hessian[active] = _hessian(linear.residual_gradient)
            gradient = _gradient(z[active], linear)
            step = np.linalg.solve(hessian[active], gradient[..., None])[..., 0]
            expected = 0.5 * np.einsum("sn,sn->s", gradient, step)
            gain = np.zeros(len(active))
            for share in (1.0, 0.3, 0.1):
                left = np.flatnonzero(gain <= 0)
                if not len(left):
                    break
                chosen = active[left]
                candidate = z[chosen] - share * step[left]
                new = self.energy(theta[chosen], candidate)
                gain[left] = energy[chosen] - new
                better = gain[left] > 0
                z[chosen[better]], energy[chosen[better]] = candidate[better], new[better]
            # Where the energy falls as its quadratic model says, the step has led to the minimum.
            active = active[(gain > 0) & (np.abs(gain - expected) > self.tolerance)]
            if not len(active):
                break
        return z, -energy - 0.5 * np.linalg.slogdet(hessian)[1]

    def conditionals(self, theta: Array, z: Array) -> list[TaskPosterior]:
        """Laplace approximations of p(z | θ, y) at its modes, one a θ."""
        parts = zip(_batches(theta), _batches(z), strict=True)
        return [fit for part in parts for fit in self._conditionals(*part)]

    def _conditionals(self, theta: Array, z: Array) -> Iterator[TaskPosterior]:
        linear = self.linearise(theta, z, queries=True)
        covariance = np.linalg.inv(_hessian(linear.residual_gradient))

        def variance(gradient: Array) -> Array:
            between = gradient @ np.expand_dims(covariance, tuple(range(1, gradient.ndim - 2)))
            return np.einsum("...i,...i->...", between, gradient)

        moments = (
            linear.force,
            variance(linear.force_gradient),
            linear.outputs,
            variance(linear.output_gradient),
        )
        return (TaskPosterior(*parts) for parts in zip(*moments, strict=True))


def _batches(rows: Array) -> list[Array]:
    return [rows[i : i + _BATCH] for i in range(0, max(len(rows), 1), _BATCH)]


def _hessian(residual_gradient: Array) -> Array:
    identity = np.eye(residual_gradient.shape[-1])
    return identity + residual_gradient.mT @ residual_gradient


def _gradient(z: Array, linear: Linear) -> Array:
    return z + np.einsum("son,so->sn", linear.residual_gradient, linear.residual)


def find_mode(problem: Problem, rng: np.random.Generator, starts: int) -> Mode:
    """The posterior's mode, sought from the prior's and from the best of its draws."""
    sizes = problem.parameters, problem.coefficients
    theta, z = (np.vstack([np.zeros(size), rng.standard_normal((starts, size))]) for size in sizes)
    best = np.argsort(problem.energy(theta, z))[:_MODES]
    return min((descend(problem, theta[i], z[i]) for i in best), key=lambda mode: mode.energy)


def descend(problem: Problem, theta: Array, z: Array) -> Mode:
    """Levenberg–Marquardt over θ and z; several dampings are tried at once."""
    n = problem.parameters
    v, damping = np.concatenate([theta, z]), 1.0
    for _ in range(_MODE_ITERATIONS):
        residual, jacobian = problem.gradient(v[:n], v[n:])
        hessian = np.eye(len(v)) + jacobian.T @ jacobian
        energy = 0.5 * float(v @ v + residual @ residual)
        gradient = v + jacobian.T @ residual
        trials = damping * np.array([0.0, 0.1, 1.0, 10.0, 100.0])
        damped = hessian + trials[:, None, None] * np.diag(hessian.diagonal())
        candidates = (
            v - np.linalg.solve(damped, np.tile(gradient, (len(trials), 1))[..., None])[..., 0]
        )
        energies = problem.energy(candidates[:, :n], candidates[:, n:])
        best = int(np.argmin(energies))
        gain = energy - float(energies[best])
        if gain <= 0:
            damping *= 100
        else:
            v = candidates[best]
            damping = max(1e-6, trials[best] if best > 1 else 0.3 * damping)
        if abs(gain) < problem.tolerance or damping > 1e12:
            break
    return Mode(v[:n], v[n:], hessian, min(energy, float(energies[best])))
