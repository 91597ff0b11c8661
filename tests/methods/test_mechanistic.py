"""The mechanistic reference against exact and brute-force posteriors."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pytest
from scipy.special import softmax
from scipy.stats import chi2

from dklfm import simulate
from dklfm.config import MechanisticConfig, TasksConfig, parse_system, validate
from dklfm.errors import DataError
from dklfm.methods import ExactTranscription, Mechanistic, fit_each, fit_system
from dklfm.methods.descent import descend
from dklfm.methods.mechanistic import Problem
from dklfm.methods.single import TaskPosterior, mixture
from dklfm.methods.transcription import log_marginal_likelihood
from dklfm.systems import System
from dklfm.tasks import Tasks

KNOWN = MechanisticConfig(name="mechanistic_known")
LOGNORMAL = {"name": "transcription", "prior": {"name": "lognormal", "spread": 0.3}}


def tasks_of(
    spec: dict[str, Any], count: int, points: int = 12, noise: float = 0.05
) -> tuple[System, Tasks]:
    system = parse_system(spec, "test")
    settings = {
        "seed": 3,
        "counts": {"train": 0, "validation": 0, "test": count},
        "mesh": {"points": points},
        "query": 15,
        "noise": noise,
    }
    config: TasksConfig = validate(TasksConfig, settings, "test")
    codes = np.full(count, 2, dtype=np.int8)
    arrays = simulate.simulate(system, config, codes, np.arange(count))
    return system, simulate.assemble(system, codes, arrays)


def test_known_parameters_of_a_linear_system_give_the_exact_posterior() -> None:
    system, tasks = tasks_of(LOGNORMAL | {"response": "identity"}, 3)
    exact = fit_each(ExactTranscription(system), tasks)
    found = fit_each(Mechanistic(system, KNOWN), tasks)
    for name in ("force_mean", "force_sd", "output_mean", "output_query_sd"):
        np.testing.assert_allclose(found[name], exact[name], atol=2e-3)


def test_unknown_parameters_of_a_linear_system_are_integrated_out() -> None:
    """Against exact posteriors averaged over draws of the prior, which broad noise allows."""
    prior = {"name": "sensitivity", "factor": {"name": "uniform", "low": 0.6, "high": 1.4}}
    system, task = tasks_of(
        {"name": "transcription", "response": "identity", "prior": prior, "lengthscale": 2.5},
        1,
        points=8,
        noise=1.0,
    )
    rng = np.random.default_rng(0)
    draws = [system.draw(rng) for _ in range(1500)]
    known = [{k: draw[k] for k in system.parameters} for draw in draws]
    weights = softmax([log_marginal_likelihood(task, parameters) for parameters in known])
    assert 1 / np.square(weights).sum() > 50
    exact = ExactTranscription(system)
    fits = []
    for parameters in known:
        variables = {f"parameter_{k}": v for k, v in parameters.items()}
        data = task.data.copy()
        for name, value in variables.items():
            data[name] = (task.data[name].dims, value[None])
        fits.append(exact.fit(Tasks(data)))
    truth = mixture(fits, weights)
    found = Mechanistic(system, MechanisticConfig()).fit(task)
    assert truth.force_mean is not None
    assert found.force_mean is not None
    np.testing.assert_allclose(found.force_mean, truth.force_mean, atol=0.05)
    np.testing.assert_allclose(
        np.sqrt(np.asarray(found.force_variance)),
        np.sqrt(np.asarray(truth.force_variance)),
        rtol=0.1,
    )


@pytest.mark.parametrize(("sampler", "step"), [("importance", 0.04), ("emcee", 0.1)])
def test_lotka_volterra_agrees_with_a_grid_over_its_two_parameters(
    sampler: Literal["importance", "emcee"], step: float
) -> None:
    system, task = tasks_of({"name": "lotka_volterra", "step": step}, 1, points=10, noise=0.2)
    side = np.linspace(0.5, 1.5, 70)
    alpha, beta = (grid.ravel() for grid in np.meshgrid(side, side))
    ones = np.ones_like(alpha)
    draws = {"alpha": alpha, "beta": beta, "gamma": ones, "delta": ones}
    x = np.concatenate([task["x"][0], task["x_query"][0]])
    solution = system.solve(
        {**draws, "prey0": ones, "predator0": ones}, np.broadcast_to(x, (len(alpha), *x.shape))
    )
    misfit = (solution.outputs[:, 0, :10] - task["y"][0, 0]) / task["y_sd"][0, 0]
    weights = softmax(-0.5 * np.square(misfit).sum(1))  # the prior is uniform over the grid
    force = solution.force[:, 10:]
    mean = weights @ force
    sd = np.sqrt(weights @ np.square(force - mean))
    found = Mechanistic(system, MechanisticConfig(sampler=sampler, samples=2048)).fit(task)
    assert found.force_variance is not None
    np.testing.assert_allclose(found.force_mean, mean, atol=0.15 * sd.max())
    np.testing.assert_allclose(np.sqrt(found.force_variance), sd, atol=0.15 * sd.max())


def test_known_parameters_leave_calibrated_intervals_under_a_nonlinear_response() -> None:
    system, tasks = tasks_of(LOGNORMAL, 24, points=20)
    found = fit_each(Mechanistic(system, KNOWN), tasks)
    error = np.abs(found["force_mean"] - tasks["f"])
    assert 0.88 < (error < 1.96 * found["force_sd"]).mean() < 0.99
    assert 0.4 < np.mean(error**2) / np.mean(found["force_sd"] ** 2) < 2.5


@pytest.mark.parametrize("genes", [1, 3])
def test_any_number_of_genes_can_be_fitted(genes: int) -> None:
    system, tasks = tasks_of(LOGNORMAL | {"genes": genes}, 8, points=20)
    found = fit_each(Mechanistic(system, MechanisticConfig(samples=128)), tasks)
    error = found["force_mean"] - tasks["f"]
    assert 0.25 < np.mean(error**2) / np.mean(found["force_sd"] ** 2) < 3
    assert np.mean(error**2) < 0.8


def test_a_narrow_curved_valley_is_followed_to_its_end() -> None:
    system, tasks = tasks_of(LOGNORMAL | {"genes": 20}, 4, points=30, noise=0.01)
    problem = Problem(system, tasks, {}, 0.1, None)
    theta, z = np.zeros((4, problem.parameters)), np.zeros((4, problem.coefficients))
    energies = [mode.energy for mode in descend(problem, theta, z, np.arange(4))]
    assert (chi2.sf(2 * np.array(energies), problem.observed.sum((1, 2))) > 1e-3).all()


def test_a_ridge_of_the_common_scale_is_covered_under_a_bounded_prior() -> None:
    spec = {
        "name": "transcription",
        "prior": {"name": "sensitivity"},
        "lengthscale": {"name": "uniform", "low": 1, "high": 3},
    }
    system, tasks = tasks_of(spec, 8, points=20)
    found = fit_each(Mechanistic(system, MechanisticConfig()), tasks)
    error = np.abs(found["force_mean"] - tasks["f"])
    assert (error < 1.96 * found["force_sd"]).mean() > 0.88
    assert np.median(found["effective_sample_size"]) > 60


def test_ignorance_of_the_parameters_widens_the_posterior() -> None:
    system, task = tasks_of(LOGNORMAL, 1)
    known = fit_each(Mechanistic(system, KNOWN), task)
    integrated = fit_each(Mechanistic(system, MechanisticConfig(samples=128)), task)
    assert integrated["force_sd"].mean() > 1.5 * known["force_sd"].mean()
    assert 1 < integrated["effective_sample_size"][0] <= 128
    assert "effective_sample_size" not in known.data  # nothing was sampled


def test_missing_outputs_are_not_conditioned_on() -> None:
    system, task = tasks_of(LOGNORMAL, 1)
    data = task.data.copy(deep=True)
    data["y"][0, :, 4:] = np.nan
    fewer = Mechanistic(system, KNOWN).fit(Tasks(data))
    every = Mechanistic(system, KNOWN).fit(task)
    assert fewer.force_variance is not None
    assert every.force_variance is not None
    assert fewer.force_variance.mean() > every.force_variance.mean()
    assert np.isfinite(fewer.output_mean).all()


def test_what_cannot_be_inferred_is_refused_in_words() -> None:
    system, task = tasks_of(LOGNORMAL, 1)
    with pytest.raises(DataError, match="standard deviation of the noise"):
        Mechanistic(system, KNOWN).fit(Tasks(task.data.drop_vars("y_sd")))
    with pytest.raises(DataError, match="do not state their true basal"):
        Mechanistic(system, KNOWN).fit(Tasks(task.data.drop_vars("parameter_basal")))
    prey, cycles = tasks_of({"name": "lotka_volterra", "step": 0.04}, 1)
    with pytest.raises(DataError, match="nothing is left to infer"):
        Mechanistic(prey, KNOWN).fit(cycles)


def test_a_fit_moves_the_prior_towards_the_parameters_behind_the_outputs() -> None:
    wide = LOGNORMAL | {"prior": {"name": "lognormal", "spread": 0.6}}
    system, task = tasks_of(wide, 1, points=30, noise=0.02)
    fitted = fit_system(system, task, MechanisticConfig(samples=256), draws=200)
    assert fitted.prior_label == "fitted"
    rng = np.random.default_rng(0)
    true = np.log(task["parameter_decay"][0])

    def error(of: System) -> float:
        decays = [np.log(of.draw(rng)["decay"]) for _ in range(200)]
        return float(np.square(np.array(decays) - true).mean())

    assert error(fitted) < 0.3 * error(system)


def test_systems_without_such_a_prior_cannot_be_fitted() -> None:
    system, task = tasks_of({"name": "lotka_volterra", "step": 0.04}, 1)
    with pytest.raises(DataError, match="no prior that a fit could give"):
        fit_system(system, task, MechanisticConfig(samples=64))


def test_mixture_has_the_moments_of_its_parts() -> None:
    means, variances = np.array([[0.0], [2.0]]), np.array([[1.0], [3.0]])
    fits = [TaskPosterior(m, v, m[None], v[None]) for m, v in zip(means, variances, strict=True)]
    many = mixture(fits * 500, np.full(1000, 1e-3))
    assert many.force_variance is not None
    np.testing.assert_allclose(many.force_mean, 1.0)
    np.testing.assert_allclose(many.force_variance, 2.0 + 1.0, rtol=2e-3)
    assert many.effective_sample_size == pytest.approx(1000)
