"""Refinement of a trained model's answer against the exact posterior, and what it refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chi2

from dklfm.config import RefinementConfig, TrainSpec, validate
from dklfm.errors import DataError
from dklfm.methods import ExactTranscription, Posterior, Refined, TrainedModel, fit_each
from dklfm.methods.descent import descend
from dklfm.methods.mechanistic import Problem
from dklfm.methods.refined import _sought
from dklfm.methods.sampling import Sample, tempered
from dklfm.model import Scale
from dklfm.model.build import build_model
from dklfm.systems import System
from dklfm.tasks import Tasks
from tests.methods.test_mechanistic import LOGNORMAL, tasks_of

SETTLED: dict[str, Any] = {
    "name": "transcription",
    "response": "identity",
    "prior": {"name": "lognormal", "spread": 0.001},
    "lengthscale": {"name": "uniform", "low": 1.999, "high": 2.001},
}


def untrained(system: System, tasks: Tasks) -> TrainedModel:
    """What it answers is noise; it knows the tasks' scale."""
    section = {"name": "operator", "nodes": 8, "width": 16, "layers": 1, "heads": 2}
    about = validate(TrainSpec, {"method": "dklfm_stream", "model": section}, "test")
    torch.manual_seed(0)
    model = build_model(about, axes=1, outputs=len(system.outputs)).eval()
    return TrainedModel(model, Scale.of(tasks))


def test_where_only_the_force_is_unknown_it_gives_the_exact_posterior_from_any_start() -> None:
    system, tasks = tasks_of(SETTLED, 2)
    exact = fit_each(ExactTranscription(system), tasks)
    start = untrained(system, tasks)
    found = Refined(start, system, RefinementConfig(samples=32)).infer(tasks)
    assert np.abs(start.infer(tasks)["force_mean"] - exact["force_mean"]).max() > 0.5
    for name in ("force_mean", "force_sd", "output_mean", "output_query_sd"):
        np.testing.assert_allclose(found[name], exact[name], atol=0.02)
    assert (found["cpu_seconds"] > 0).all()


def test_refinement_begins_before_a_model_iterates() -> None:
    class Asked(TrainedModel):
        def infer(self, tasks: Tasks, joint: bool = False, iterate: bool = True) -> Posterior:
            asked.append(iterate)
            return super().infer(tasks, joint, iterate)

    asked: list[bool] = []
    system, tasks = tasks_of(SETTLED, 1)
    start = untrained(system, tasks)
    Refined(Asked(start.model, start.scale), system, RefinementConfig(samples=16)).infer(tasks)
    assert asked == [False]


def test_another_number_of_genes_is_refined_if_their_law_is_known() -> None:
    system, tasks = tasks_of(LOGNORMAL | {"genes": 2}, 1)
    start = untrained(system, tasks)
    five, _ = tasks_of(LOGNORMAL, 1)
    found = Refined(start, five, RefinementConfig(samples=16)).infer(tasks)
    assert np.isfinite(found["force_sd"]).all()
    only_five, _ = tasks_of({"name": "transcription", "prior": {"name": "sensitivity"}}, 1)
    with pytest.raises(DataError, match="not of 2 genes"):
        Refined(start, only_five, RefinementConfig()).infer(tasks)


def test_a_mode_that_fits_worse_than_chance_gives_way_to_a_better_one() -> None:
    system, tasks = tasks_of(LOGNORMAL | {"prior": {"name": "p53-empirical"}}, 4, points=30)
    understated = tasks["y_sd"] * np.array([0.5, 0.5, 1.0, 1.0])[:, None, None]
    tasks = Tasks(tasks.data.assign(y_sd=(("task", "output", "point"), understated)))
    problem = Problem(system, tasks, {}, 0.1, None)
    wrong = np.tile(6.0 * (-1.0) ** np.arange(problem.coefficients), (4, 1))
    theta, of = np.zeros((4, problem.parameters)), np.arange(4)
    astray, from_rest = (descend(problem, theta, z, of) for z in (wrong, 0 * wrong))
    found = np.array([mode.energy for mode in _sought(problem, wrong)])
    energies = np.array([[mode.energy for mode in modes] for modes in (astray, from_rest)])
    unlikely = chi2.sf(2 * energies[0], tasks["y"][0].size) < 0.02
    assert unlikely.any()
    assert not unlikely.all()
    expected = np.where(unlikely, energies.min(0), energies[0])
    np.testing.assert_allclose(found, expected)
    assert (found < energies[0]).any()


def test_tasks_together_are_refined_as_each_alone() -> None:
    """Other times, missing values and all."""
    system, tasks = tasks_of(LOGNORMAL | {"genes": 2}, 3, points=9)
    holes = tasks["y"].copy()
    holes[1, 0, 2:5] = np.nan
    tasks = Tasks(tasks.data.assign(y=(("task", "output", "point"), holes)))
    start = untrained(system, tasks)
    refined = Refined(start, system, RefinementConfig(samples=16))
    together = refined.infer(tasks)
    for i in range(3):
        alone = refined.infer(tasks.take([i]))
        for name in ("force_mean", "force_sd", "output_mean", "output_query_sd"):
            np.testing.assert_allclose(together[name][i], alone[name][0], rtol=1e-5, atol=1e-6)


def test_a_force_without_coefficients_is_refused() -> None:
    system, tasks = tasks_of({"name": "lotka_volterra"}, 1)
    with pytest.raises(DataError, match="refinement is not made for lotka_volterra"):
        Refined(untrained(system, tasks), system, RefinementConfig()).infer(tasks)


def test_weights_are_flattened_as_little_as_needed() -> None:
    weights = np.array([0.9, 0.06, 0.03, 0.01])
    sample = Sample(np.zeros((4, 1)), np.zeros(4), weights, 1 / np.square(weights).sum())
    flat = tempered(sample, 0.5)
    assert flat.effective_size == pytest.approx(2.0)
    assert 1 / np.square(flat.weights).sum() == pytest.approx(2.0, rel=1e-6)
    powers = np.diff(np.log(flat.weights)) / np.diff(np.log(weights))
    np.testing.assert_allclose(powers, powers[0])
    assert tempered(sample, 0.25) is sample
