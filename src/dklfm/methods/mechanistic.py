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

import math
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dklfm.config import MechanisticConfig
from dklfm.errors import DataError
from dklfm.methods.descent import Mode, Rows, find_mode
from dklfm.methods.sampling import Coordinates, Density, Sample, importance, markov_chain
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
        mode = find_mode(problem, rng, self.config.starts)
        if not problem.parameters:
            (known_fit,) = problem.conditionals(mode.theta[None], mode.z[None])
            return known_fit
        sample = self._sample(problem, mode, rng)
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
        coordinates = problem.coordinates()

        def density(theta: Array) -> tuple[Array, Array]:
            return problem.maximise_force(theta, mode)

        count = self.config.samples
        found = importance(density, coordinates, mode.theta, mode.theta_covariance(), count, rng)
        if self.config.sampler == "importance":
            return found
        return markov_chain(density, coordinates, found, count, seed=0)


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


class Linear(NamedTuple):
    """Residuals, force and outputs at some θ and z, and their derivatives by z."""

    residual: Array  # set observation
    force: Array  # set query
    outputs: Array  # set output (point, query)
    residual_gradient: Array  # set observation coefficient
    force_gradient: Array
    output_gradient: Array


def _anchor_values(anchors: Sequence[Anchors]) -> dict[tuple[str, int], Array]:
    """Those of all tasks together, ``task x 1``; every task has the same ones."""
    return {of: np.array([[values[of]] for values in anchors]) for of in anchors[0]}


class Problem:
    """The observations of a task or of several alike, and what values of their unknowns imply.

    Where there are several tasks, ``of`` says which one each set of unknowns is of. An energy, in
    nats, is taken for minimal when a step lowers it by less than ``tolerance``.
    """

    def __init__(
        self,
        system: System,
        tasks: Tasks,
        known: Mapping[str, Array],
        tolerance: float = 1e-2,
        anchors: Sequence[Anchors] | None = None,
    ) -> None:
        self.tolerance = tolerance
        self.anchors = _anchor_values(anchors) if anchors else {}
        require_noise(tasks, "mechanistic inference")
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
        self.x = np.concatenate([tasks["x"], tasks["x_query"]], axis=1)
        self.points = tasks["x"].shape[1]
        self.y, self.sd = tasks["y"], tasks["y_sd"]
        self.observed = np.isfinite(self.y)
        self.seen = self.observed.any(0)
        self.missing = ~self.observed[:, self.seen]

    def of_task(self, i: int) -> Problem:
        """That of one of the tasks alone."""
        one, part = copy(self), slice(i, i + 1)
        one.x, one.y, one.sd, one.observed = (
            values[part] for values in (self.x, self.y, self.sd, self.observed)
        )
        one.seen, one.missing = self.observed[i], self.missing[:0]
        one.anchors = {name: values[part] for name, values in self.anchors.items()}
        return one

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

    def coordinates(self) -> Coordinates:
        """Where θ is sampled; the same for all tasks of a system."""
        return Coordinates.of(self._parameter_of_each, self.parameters)

    def _parameter_of_each(self, theta: Array) -> Array:
        """The parameter that each variable of θ stands behind, ``set x size``."""
        draws = self.draws(theta, np.zeros((len(theta), self.coefficients)))
        return np.hstack([draws[name].reshape(len(theta), -1) for name in self.shapes])

    def _per_set(self, values: Array, sets: int, of: Rows | None) -> Array:
        """What belongs to each set, of what belongs to each task."""
        return np.broadcast_to(values[0], (sets, *values.shape[1:])) if of is None else values[of]

    def _at_observations(self, values: Array, of: Rows | None) -> Array:
        """The observed of ``set x output x point x ...`` values, zero where a task has none."""
        found = values[:, self.seen]
        if self.missing.any():
            found[self._per_set(self.missing, len(values), of)] = 0.0
        return found

    def _residual(self, draws: Mapping[str, Array], outputs: Array, of: Rows | None) -> Array:
        """Of the observations and, as of observations too, of the anchors."""
        y, sd = (self._per_set(values, len(outputs), of) for values in (self.y, self.sd))
        seen = self._at_observations((outputs[..., : self.points] - y) / sd, of)
        apart = [
            np.log(draws[name][:, [j]] / self._per_set(values, len(outputs), of)) / _ANCHOR_SD
            for (name, j), values in self.anchors.items()
        ]
        return np.hstack([seen, *apart]) if apart else seen

    def residual(self, theta: Array, z: Array, of: Rows | None = None) -> Array:
        """(h − y)/σ at the observed points, ``set x observation``."""
        x = self._per_set(self.x[:, : self.points], len(theta), of)
        draws = self.draws(theta, z)
        return self._residual(draws, self.system.outputs_at(draws, x), of)

    def energy(self, theta: Array, z: Array, of: Rows | None = None) -> Array:
        """−log p(θ, z, y) up to a constant, ``set``."""
        with np.errstate(over="ignore"):  # far from the data a solution may overflow
            squares = (np.square(part).sum(-1) for part in (theta, z, self.residual(theta, z, of)))
            total = 0.5 * sum(squares)
        return np.where(np.isfinite(total), total, np.inf)

    def linearise(
        self, theta: Array, z: Array, of: Rows | None = None, queries: bool = False
    ) -> Linear:
        """Values and their derivatives by z; at the query points too, if asked for."""
        x = self._per_set(self.x if queries else self.x[:, : self.points], len(theta), of)
        draws = self.draws(theta, z)
        if not self.coefficients:
            found, empty = self.system.solve(draws, x), (0,)
            force_gradient = np.empty(found.force.shape + empty)
            output_gradient = np.empty(found.outputs.shape + empty)
        else:
            found = self.system.linearise(draws, x)
            force_gradient, output_gradient = found.force_gradient, found.output_gradient
        sd = self._per_set(self.sd, len(theta), of)[..., None]
        scaled = self._at_observations(output_gradient[..., : self.points, :] / sd, of)
        return Linear(
            self._residual(draws, found.outputs, of),
            found.force[:, self.points :],
            found.outputs,
            np.pad(scaled, ((0, 0), (0, len(self.anchors)), (0, 0))) if self.anchors else scaled,
            force_gradient[:, self.points :],
            output_gradient,
        )

    def gradient(self, theta: Array, z: Array, of: Rows | None = None) -> tuple[Array, Array]:
        """Residuals, and their derivatives by both, ``set x observation x (θ, z)``."""
        linear = self.linearise(theta, z, of)
        if not self.parameters:
            return linear.residual, linear.residual_gradient
        sets, size = theta.shape
        moved = (theta[:, None] + _DIFFERENCE * np.eye(size)).reshape(-1, size)
        each = None if of is None else np.repeat(of, size)
        found = self.residual(moved, np.repeat(z, size, axis=0), each).reshape(sets, size, -1)
        by_theta = (found - linear.residual[:, None]).mT / _DIFFERENCE
        return linear.residual, np.concatenate([by_theta, linear.residual_gradient], axis=-1)

    def derivatives(self, theta: Array, z: Array) -> tuple[Array, Array]:
        """Of force and outputs at the query points of the only task, by θ and z.

        Returns:
            ``query x unknown`` and ``output x query x unknown``.
        """
        linear = self.linearise(theta[None], z[None], queries=True)
        many = theta + _DIFFERENCE * np.eye(self.parameters)
        x = self._per_set(self.x, len(many), None)
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
        return _in_batches(partial(self._maximise_force, mode=mode), theta)

    def _maximise_force(self, theta: Array, mode: Mode) -> tuple[Array, Array]:
        z = mode.expected_z(theta)
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

    def near_force(self, theta: Array, mode: Mode) -> tuple[Array, Array]:
        """What :meth:`maximise_force` gives after one step from where the force is expected."""
        return _in_batches(partial(self._near_force, mode=mode), theta)

    def _near_force(self, theta: Array, mode: Mode) -> tuple[Array, Array]:
        z = mode.expected_z(theta)
        linear = self.linearise(theta, z)
        hessian = _hessian(linear.residual_gradient)
        moved = z - np.linalg.solve(hessian, _gradient(z, linear)[..., None])[..., 0]
        squares = (np.square(part).sum(-1) for part in (theta, z, linear.residual))
        before, after = 0.5 * sum(squares), self.energy(theta, moved)
        z = np.where((after < before)[:, None], moved, z)
        return z, -np.minimum(before, after) - 0.5 * np.linalg.slogdet(hessian)[1]

    def solve(self, theta: Array, z: Array) -> tuple[Array, Array]:
        """Force at the query points and outputs at all points of the only task."""
        x = self._per_set(self.x, len(theta), None)
        found = self.system.solve(self.draws(theta, z), x)
        return found.force[:, self.points :], found.outputs

    def variances(self, theta: Array, z: Array) -> tuple[Array, Array]:
        """Of the force at the query points and of the outputs at all points, given θ each.

        By Laplace's approximation of p(z | θ, y), whose modes are given.
        """
        return self._variances(self.linearise(theta, z, queries=True))

    def conditionals(self, theta: Array, z: Array) -> list[TaskPosterior]:
        """Laplace approximations of p(z | θ, y) at its modes, one a θ."""
        parts = zip(_batches(theta), _batches(z), strict=True)
        return [fit for part in parts for fit in self._conditionals(*part)]

    def _conditionals(self, theta: Array, z: Array) -> Iterator[TaskPosterior]:
        linear = self.linearise(theta, z, queries=True)
        force, outputs = self._variances(linear)
        moments = linear.force, force, linear.outputs, outputs
        return (TaskPosterior(*parts) for parts in zip(*moments, strict=True))

    def _variances(self, linear: Linear) -> tuple[Array, Array]:
        covariance = np.linalg.inv(_hessian(linear.residual_gradient))

        def variance(gradient: Array) -> Array:
            points = gradient.shape[1:-1]
            rows = gradient.reshape(len(gradient), math.prod(points), gradient.shape[-1])
            return ((rows @ covariance) * rows).sum(-1).reshape(gradient.shape[:-1])

        return variance(linear.force_gradient), variance(linear.output_gradient)


def _in_batches(density: Density, theta: Array) -> tuple[Array, Array]:
    z, values = zip(*map(density, _batches(theta)), strict=True)
    return np.concatenate(z), np.concatenate(values)


def _batches(rows: Array) -> list[Array]:
    return [rows[i : i + _BATCH] for i in range(0, max(len(rows), 1), _BATCH)]


def _hessian(residual_gradient: Array) -> Array:
    identity = np.eye(residual_gradient.shape[-1])
    return identity + residual_gradient.mT @ residual_gradient


def _gradient(z: Array, linear: Linear) -> Array:
    return z + np.einsum("son,so->sn", linear.residual_gradient, linear.residual)
