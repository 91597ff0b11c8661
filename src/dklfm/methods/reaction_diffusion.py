"""Exact posteriors of the linear reaction–diffusion model: the floors that others are held to.

The model is Gaussian given its parameters, so conditioning is exact. With the true parameters
nothing can do better; with the parameters integrated over their prior nothing that sees the
outputs alone can, up to the error of the importance weights.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve, solve_triangular
from scipy.special import ndtr

from dklfm.config import MechanisticConfig
from dklfm.errors import DataError
from dklfm.methods.single import TaskPosterior, mixture, require_noise, true_parameters
from dklfm.systems import ReactionDiffusion, System
from dklfm.tasks import Tasks

Array = NDArray[np.float64]
_NEWTON_STEPS = 3
_DEGREES_OF_FREEDOM = 5


class ExactReactionDiffusion:
    """GP conditioning on the outputs of a task whose true parameters are given."""

    name = "exact"

    def __init__(self, system: System) -> None:
        if not isinstance(system, ReactionDiffusion):
            raise DataError(f"{self.name} is for reaction_diffusion, not {system.name}")
        self.system = system

    def fit(self, task: Tasks) -> TaskPosterior:
        """The posterior of the only task given.

        Raises:
            DataError: if the task states no noise, or not its true parameters where they are told.
        """
        require_noise(task, self.name)
        return self._fit(_Problem(self.system, task))

    def _fit(self, problem: _Problem) -> TaskPosterior:
        return problem.condition(true_parameters(self.system, problem.task))


class MechanisticReactionDiffusion(ExactReactionDiffusion):
    """The same with the parameters integrated over their prior.

    The parameters are mapped to standard normal variables by their prior's quantile function.
    A Laplace approximation at the posterior mode, widened to a multivariate t, proposes; importance
    weights correct it, and their effective sample size says how well.
    """

    name = "mechanistic"

    def __init__(self, system: System, config: MechanisticConfig) -> None:
        super().__init__(system)
        self.config = config

    def _fit(self, problem: _Problem) -> TaskPosterior:
        from scipy.stats import multivariate_t  # slow to import, and needed here alone

        rng = np.random.default_rng(0)  # the proposals' only; the same for every task
        free = len(problem.priors)

        def negative_log_posterior(v: Array) -> float:
            return 0.5 * float(v @ v) - problem.log_likelihood(problem.parameters(v))

        starts = rng.standard_normal((self.config.starts, free))
        start = min(starts, key=negative_log_posterior)
        mode, hessian = _laplace(negative_log_posterior, start)
        scale = np.linalg.inv(hessian)
        proposal = multivariate_t(mode, (scale + scale.T) / 2, df=_DEGREES_OF_FREEDOM, seed=rng)
        candidates = np.atleast_2d(proposal.rvs(self.config.samples))
        log_weights = np.array([-negative_log_posterior(v) for v in candidates])
        log_weights -= proposal.logpdf(candidates)
        weights = np.exp(log_weights - log_weights.max())
        weights /= weights.sum()

        kept = weights > 1e-6
        fits = [problem.condition(problem.parameters(v)) for v in candidates[kept]]
        return mixture(fits, weights[kept] / weights[kept].sum())


class _Problem:
    """One task: its observations, and the joint law under any parameters."""

    def __init__(self, system: ReactionDiffusion, task: Tasks) -> None:
        self.system, self.task = system, task
        observed = np.isfinite(self.task["y"][0, 0])
        self.y = self.task["y"][0, 0, observed]
        self.noise = np.square(self.task["y_sd"][0, 0, observed])
        points = self.task["x"][0]
        self.count = len(points)
        self.observed = np.flatnonzero(observed)
        # Queries on the observed mesh are common: their roots are then those of the points.
        same = np.array_equal(points, self.task["x_query"][0])
        self.everywhere = points if same else np.vstack([points, self.task["x_query"][0]])
        self.queries = np.arange(len(self.everywhere))[-len(self.task["x_query"][0]) :]
        self.priors = {key: getattr(system, key) for key in system.parameters}

    def parameters(self, v: Array) -> dict[str, Array]:
        """Parameters from standard normal variables."""
        return {
            key: prior.quantile(ndtr(white))
            for (key, prior), white in zip(self.priors.items(), v, strict=True)
        }

    def log_likelihood(self, parameters: dict[str, Array]) -> float:
        """Log N(y | 0, K_yy + diag σ²)."""
        _, root = self.system.roots(parameters, self.task["x"][0])
        factor, _ = self._factor(root[self.observed])
        white = solve_triangular(factor, self.y, lower=True, check_finite=False)
        normaliser = np.log(factor.diagonal()).sum() + 0.5 * len(white) * np.log(2 * np.pi)
        return float(-0.5 * white @ white - normaliser)

    def condition(self, parameters: dict[str, Array]) -> TaskPosterior:
        """Posterior moments given the parameters."""
        force_root, output_root = self.system.roots(parameters, self.everywhere)
        observed = output_root[self.observed]
        factor = self._factor(observed)
        weights = observed.T @ cho_solve(factor, self.y, check_finite=False)
        # Var = R (I − R_oᵀ K⁻¹ R_o) Rᵀ, by the factor that whitens the observations.
        whitened = solve_triangular(factor[0], observed, lower=True, check_finite=False)
        force_root = force_root[self.queries]
        points = np.arange(self.count)
        both = output_root[np.concatenate([points, self.queries])]

        def variance(root: Array) -> Array:
            explained = np.square(root @ whitened.T).sum(1)
            return np.clip(np.square(root).sum(1) - explained, 1e-12, None)

        return TaskPosterior(
            force_root @ weights,
            variance(force_root),
            (both @ weights)[None],
            variance(both)[None],
        )

    def _factor(self, root: Array) -> tuple[Array, bool]:
        factor, lower = cho_factor(root @ root.T + np.diag(self.noise), lower=True)
        return np.tril(factor), lower


def _laplace(objective: Callable[[Array], float], start: Array) -> tuple[Array, Array]:
    """A minimum and its Hessian, by BFGS and then Newton steps from finite differences.

    The posterior of a long, nearly noise-free task is thousands of times narrower than the prior:
    differences are taken over half a conditional standard deviation, found on the way.
    """
    from scipy.optimize import minimize

    mode = minimize(objective, start, method="BFGS", options={"eps": 1e-4, "gtol": 1e-2}).x
    steps = np.full(len(mode), 1e-2)
    for _ in range(_NEWTON_STEPS):
        gradient, hessian = _differences(objective, mode, steps)
        values, vectors = np.linalg.eigh(hessian)
        hessian = (vectors * np.maximum(values, 1.0)) @ vectors.T  # the prior's own curvature is 1
        descent = np.linalg.solve(hessian, gradient)
        mode = min((mode - share * descent for share in (0.0, 0.1, 0.3, 1.0)), key=objective)
        steps = 0.5 / np.sqrt(hessian.diagonal())
    return mode, hessian


def _differences(
    objective: Callable[[Array], float], at: Array, steps: Array
) -> tuple[Array, Array]:
    """Gradient and Hessian by central differences."""
    size, moves = len(at), np.diag(steps)
    centre = objective(at)
    up = np.array([objective(at + move) for move in moves])
    down = np.array([objective(at - move) for move in moves])
    hessian = np.diag(up + down - 2 * centre)
    for i in range(size):
        for j in range(i):
            corner = objective(at + moves[i] + moves[j]) + objective(at - moves[i] - moves[j])
            hessian[i, j] = hessian[j, i] = (
                corner - up[i] - up[j] - down[i] - down[j] + 2 * centre
            ) / 2
    return (up - down) / (2 * steps), hessian / np.outer(steps, steps)
