"""Exact posteriors of the reaction–diffusion model against dense algebra."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dklfm import simulate
from dklfm.config import MechanisticConfig, TasksConfig, validate
from dklfm.errors import DataError
from dklfm.methods import ExactReactionDiffusion, MechanisticReactionDiffusion, fit_each
from dklfm.systems import ReactionDiffusion, Transcription
from dklfm.systems.reaction_diffusion_covariance import covariances
from dklfm.tasks import Tasks

FEW = MechanisticConfig(samples=64)
FIXED: dict[str, Any] = {
    "production": 0.7,
    "decay": 0.2,
    "diffusion": 0.03,
    "lengthscale_x": 0.3,
    "lengthscale_t": 0.35,
}


def tasks_of(system: ReactionDiffusion, count: int, points: int = 8, noise: float = 0.05) -> Tasks:
    settings = {
        "counts": {"train": 0, "validation": 0, "test": count},
        "mesh": {"spacing": "regular", "points": points},
        "query": points - 1,
        "noise": noise,
    }
    config: TasksConfig = validate(TasksConfig, settings, "test")
    codes = np.full(count, 2, dtype=np.int8)
    arrays = simulate.simulate(system, config, codes, np.arange(count))
    return simulate.assemble(system, codes, arrays)


@pytest.fixture(scope="module")
def task() -> Tasks:
    return tasks_of(ReactionDiffusion(**FIXED), 1)


def test_square_roots_give_the_closed_form_covariances() -> None:
    points = np.random.default_rng(0).uniform(0, 1, (12, 2))
    force, output = ReactionDiffusion(**FIXED).roots(
        {k: np.asarray(v) for k, v in FIXED.items()}, points
    )
    truth = covariances({k: np.asarray(v) for k, v in FIXED.items()}, points, points, modes=2000)
    np.testing.assert_allclose(force @ force.T, truth.uu, atol=1e-8)
    np.testing.assert_allclose(force @ output.T, truth.uy, atol=1e-7)
    np.testing.assert_allclose(output @ output.T, truth.yy, atol=1e-7)


def test_exact_posterior_is_dense_conditioning(task: Tasks) -> None:
    posterior = fit_each(ExactReactionDiffusion(ReactionDiffusion(**FIXED)), task)
    parameters = {k: np.asarray(v) for k, v in FIXED.items()}
    x, query = task["x"][0], task["x_query"][0]
    observed = covariances(parameters, x, x, modes=2000)
    cross = covariances(parameters, query, x, modes=2000)
    gain = cross.uy @ np.linalg.inv(observed.yy + np.diag(task["y_sd"][0, 0] ** 2))
    np.testing.assert_allclose(posterior["force_mean"][0], gain @ task["y"][0, 0], atol=1e-4)
    variance = 1 - np.einsum("ij,ij->i", gain, cross.uy)
    np.testing.assert_allclose(posterior["force_sd"][0] ** 2, variance, atol=1e-4)


def test_known_parameters_leave_nothing_to_integrate(task: Tasks) -> None:
    system = ReactionDiffusion(**FIXED)
    known = fit_each(ExactReactionDiffusion(system), task)
    integrated = fit_each(MechanisticReactionDiffusion(system, FEW), task)
    np.testing.assert_allclose(integrated["force_mean"], known["force_mean"], atol=1e-8)
    np.testing.assert_allclose(integrated["force_sd"], known["force_sd"], atol=1e-6)


def test_integrating_over_parameters_widens_the_posterior_and_weighs_many_samples() -> None:
    system = ReactionDiffusion()
    tasks = tasks_of(system, 2)
    known = fit_each(ExactReactionDiffusion(system), tasks)
    integrated = fit_each(MechanisticReactionDiffusion(system, FEW), tasks)
    assert integrated["force_sd"].mean() > known["force_sd"].mean()
    assert (integrated["effective_sample_size"] > 5).all()
    assert (integrated["effective_sample_size"] <= FEW.samples).all()


def test_missing_outputs_are_not_conditioned_on(task: Tasks) -> None:
    data = task.data.copy(deep=True)
    data["y"][0, 0, 20:] = np.nan
    method = ExactReactionDiffusion(ReactionDiffusion(**FIXED))
    fewer, all_seen = fit_each(method, Tasks(data)), fit_each(method, task)
    assert fewer["force_sd"].mean() > all_seen["force_sd"].mean()
    assert np.isfinite(fewer["force_mean"]).all()


def test_other_systems_are_refused() -> None:
    with pytest.raises(DataError, match="is for reaction_diffusion, not transcription"):
        ExactReactionDiffusion(Transcription())
