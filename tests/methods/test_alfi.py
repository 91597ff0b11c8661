"""Solvers against the library's own, fits against exact conditioning, and what Alfi refuses."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from dklfm import simulate
from dklfm.config import AlfiConfig, TasksConfig, validate
from dklfm.errors import DataError
from dklfm.methods.alfi import Alfi
from dklfm.methods.reaction_diffusion import ExactReactionDiffusion
from dklfm.methods.solvers import RESPONSES, OrdinarySolver, ReactionDiffusionSolver, Solver
from dklfm.methods.transcription import ExactTranscription
from dklfm.methods.variational import GaussianPosterior, InducingForce, Observations
from dklfm.systems import LotkaVolterra, ReactionDiffusion, System, Transcription
from dklfm.systems import transcription as transcription_system
from dklfm.systems.base import Draw
from dklfm.tasks import Tasks

Array = NDArray[np.float64]
Name = Literal["alfi", "alfi_anchored", "alfi_known"]
LINEAR = Transcription.model_validate(
    {
        "name": "transcription",
        "response": "identity",
        "prior": {"name": "lognormal", "spread": 0.3},
        "lengthscale": {"name": "uniform", "low": 1, "high": 3},
    }
)
FIELD = ReactionDiffusion()
ANCHOR = transcription_system.GENES.index("CDKN1A")


def task_of(system: System, points: int = 15, noise: float = 0.05) -> Tasks:
    settings = {
        "counts": {"train": 0, "validation": 0, "test": 1},
        "mesh": {"spacing": "regular", "points": points},
        "query": 11,
        "noise": noise,
    }
    config: TasksConfig = validate(TasksConfig, settings, "test")
    codes = np.full(1, 2, dtype=np.int8)
    return simulate.assemble(system, codes, simulate.simulate(system, config, codes, np.arange(1)))


def method(system: System, name: Name = "alfi_known", **options: Any) -> Alfi:
    return Alfi(system, AlfiConfig(name=name, **options))


def coefficients(force: InducingForce, x: Array, values: Array) -> Tensor:
    """The v of least squares with Φ v = values at ``point x axis`` inputs, which it must reach."""
    with torch.no_grad():
        features = force.features(torch.as_tensor(x))
    v = np.linalg.lstsq(features.numpy(), values, rcond=1e-12)[0]
    np.testing.assert_allclose(features.numpy() @ v, values, atol=2e-5)
    return torch.as_tensor(v)[None]


def drawn(system: System, seed: int) -> Draw:
    draw = system.draw(np.random.default_rng(seed))
    return {name: np.asarray(value)[None] for name, value in draw.items()}


def solved(solver: Solver, v: Tensor, force: InducingForce, draw: Draw) -> Array:
    rates = {name: torch.as_tensor(value[0]) for name, value in draw.items()}
    with torch.no_grad():
        found: Array = solver(v, force, rates).numpy()
    return found


@pytest.mark.parametrize("response", list(RESPONSES))
def test_transcription_solver_agrees_with_the_simulators(response: str) -> None:
    system = Transcription.model_validate({**LINEAR.model_dump(), "response": response})
    draw = drawn(system, 1)
    times = np.random.default_rng(0).uniform(0, system.duration, (1, 60, 1))
    dense = np.linspace(0, system.duration, 200)[None, :, None]
    force = InducingForce([(0, system.duration)], [float(draw["lengthscale"][0])], 40)
    v = coefficients(force, dense[0], system.solve(draw, dense).force[0])
    found = solved(OrdinarySolver(system, torch.as_tensor(times[0])), v, force, draw)
    truth = system.solve(draw, times).outputs
    np.testing.assert_allclose(found, truth, atol=2e-4 * truth.std())


def test_lotka_volterra_solver_agrees_with_the_simulators_beyond_the_domain_too() -> None:
    system = LotkaVolterra(duration=8)
    draw = drawn(system, 1)
    times = np.linspace(0, 10, 41)[None, :, None]
    force = InducingForce([(0, 10)], [0.8], 40)
    v = coefficients(force, times[0], system.solve(draw, times).force[0])
    found = solved(OrdinarySolver(system, torch.as_tensor(times[0])), v, force, draw)
    np.testing.assert_allclose(found, system.solve(draw, times).outputs, atol=1e-4)


def test_outputs_before_the_initial_state_are_not_made_up() -> None:
    system = LotkaVolterra()
    force = InducingForce([(0, 20)], [2.0], 8)
    solver = OrdinarySolver(system, torch.tensor([[-1.0], [0.0], [1.0]]).double())
    found = solved(solver, torch.zeros(1, 8).double(), force, drawn(system, 0))
    np.testing.assert_array_equal(np.isnan(found[0, 0]), [True, False, False])


@pytest.mark.parametrize("diffusion", [0.001, 0.1])
def test_reaction_diffusion_solver_errs_far_less_than_the_noise(diffusion: float) -> None:
    scales = {"lengthscale_x": np.array([0.3]), "lengthscale_t": np.array([0.25])}
    draw = {**drawn(FIELD, 2), **scales, "diffusion": np.array([diffusion])}
    axis = np.linspace(0, 1, 31)
    x = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(1, -1, 2)
    lengthscales = [float(scale[0]) / np.sqrt(2) for scale in scales.values()]
    force = InducingForce([(0, 1), (0, 1)], lengthscales, 20)
    truth = FIELD.solve(draw, x)
    v = coefficients(force, x[0], truth.force[0])
    found = solved(ReactionDiffusionSolver(torch.as_tensor(x[0])), v, force, draw)
    error = (found - truth.outputs) / truth.outputs.std()  # a task's noise is 1e-3 of this
    assert np.abs(error).max() < 5e-4  # beside the ends of x, where the sine series is worst
    assert np.sqrt(np.square(error).mean()) < 1e-4


def test_slopes_by_differences_are_those_of_automatic_differentiation() -> None:
    system, draw = Transcription(), drawn(Transcription(), 0)
    force = InducingForce([(0, 12)], [2.0], 8).requires_grad_(False)
    rates = {name: torch.as_tensor(value[0]) for name, value in draw.items()}
    solver = OrdinarySolver(system, torch.linspace(0, 12, 7).double()[:, None])
    v = torch.randn(3, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    outputs, slopes = solver.linearise(v, force, rates)
    np.testing.assert_allclose(outputs, solver(v, force, rates), rtol=1e-12)
    for one, slope in zip(v, slopes, strict=True):
        exact = torch.autograd.functional.jacobian(lambda u: solver(u[None], force, rates)[0], one)
        np.testing.assert_allclose(slope, exact.movedim(-1, 0), atol=1e-3 * exact.abs().max())


def test_one_step_finds_the_posterior_of_a_linear_model() -> None:
    rng = np.random.default_rng(0)
    matrix, y = rng.standard_normal((6, 9)), rng.standard_normal(9)
    q = GaussianPosterior(6)
    v = q.sample(8, torch.Generator().manual_seed(0))
    q.step(v @ torch.as_tensor(matrix) - torch.as_tensor(y), torch.as_tensor(matrix)[None])
    covariance = np.linalg.inv(np.eye(6) + matrix @ matrix.T)
    np.testing.assert_allclose(q.mean, covariance @ matrix @ y, rtol=1e-10)
    maps = rng.standard_normal((6, 4))
    expected = np.einsum("ic,ij,jc->c", maps, covariance, maps)
    np.testing.assert_allclose(q.variance(torch.as_tensor(maps)), expected, rtol=1e-10)
    many = q.sample(40_000, torch.Generator().manual_seed(1))
    np.testing.assert_allclose(np.cov(many.numpy().T), covariance, atol=0.02)


def test_exact_misfit_of_reaction_diffusion_is_the_mean_over_samples() -> None:
    x = torch.rand(12, 2, generator=torch.Generator().manual_seed(0)).double()
    force = InducingForce([(0, 1), (0, 1)], [0.2, 0.2], 5).requires_grad_(False)
    rates = {name: torch.as_tensor(value[0]) for name, value in drawn(FIELD, 0).items()}
    data = Observations(torch.ones(1, 12).bool(), torch.zeros(12), torch.full((12,), 0.1))
    solver, q = ReactionDiffusionSolver(x), GaussianPosterior(force.size)
    q.mean += 0.5
    v = q.sample(40_000, torch.Generator().manual_seed(0))
    exact = solver.misfit(q, v, data, force, rates)
    np.testing.assert_allclose(exact, Solver.misfit(solver, q, v, data, force, rates), rtol=0.02)


@pytest.mark.parametrize("system", [LINEAR, FIELD], ids=["transcription", "reaction_diffusion"])
def test_known_linear_equation_gives_the_exact_posterior(system: System) -> None:
    task = task_of(system, noise=0.05 if system is LINEAR else 0.01)
    exact = ExactTranscription if system is LINEAR else ExactReactionDiffusion
    truth, found = exact(system).fit(task), method(system).fit(task)
    assert truth.force_mean is not None
    assert truth.force_variance is not None
    assert found.force_mean is not None
    assert found.force_variance is not None
    sd = np.sqrt(truth.force_variance)
    assert (np.abs(found.force_mean - truth.force_mean) < 0.05 * sd).all()
    np.testing.assert_allclose(np.sqrt(found.force_variance), sd, rtol=0.03)
    output_sd = np.sqrt(truth.output_variance)
    assert (np.abs(found.output_mean - truth.output_mean) < 0.5 * output_sd + 1e-4).all()


@pytest.fixture(scope="module")
def task() -> Tasks:
    return task_of(Transcription())


def rates_tried(
    monkeypatch: pytest.MonkeyPatch, fitted: Alfi, task: Tasks
) -> list[dict[str, Array]]:
    tried, solve = [], OrdinarySolver.__call__

    def spy(solver: OrdinarySolver, v: Tensor, force: InducingForce, rates: Any) -> Tensor:
        tried.append({name: value.detach().numpy().copy() for name, value in rates.items()})
        return solve(solver, v, force, rates)

    monkeypatch.setattr(OrdinarySolver, "__call__", spy)
    fitted.fit(task)
    return tried


def test_anchored_holds_the_anchor_at_the_truth_and_moves_the_others(
    monkeypatch: pytest.MonkeyPatch, task: Tasks
) -> None:
    tried = rates_tried(monkeypatch, method(Transcription(), "alfi_anchored", iterations=5), task)
    for name in ("sensitivity", "decay"):
        truth = task[f"parameter_{name}"][0, ANCHOR]
        np.testing.assert_allclose([rates[name][ANCHOR] for rates in tried], truth, rtol=1e-12)
        assert (np.delete(tried[-1][name] != tried[0][name], ANCHOR)).all()
    assert (tried[-1]["basal"] != tried[0]["basal"]).all()


def test_a_free_fit_starts_at_the_priors_median_and_learns_all_that_varies(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    system = Transcription.model_validate(
        {"name": "transcription", "prior": {"name": "sensitivity"}}
    )
    tried = rates_tried(monkeypatch, method(system, "alfi", iterations=5), task_of(system))
    white = {name: np.zeros((1, *shape)) for name, shape in system.white_shapes().items()}
    for name in ("basal", "sensitivity", "decay"):
        np.testing.assert_allclose(tried[0][name], system.from_white(white)[name][0], rtol=1e-12)
        assert (tried[-1][name] != tried[0][name]).all() == (name == "sensitivity")


def test_fitting_improves_on_the_parameters_it_starts_from(task: Tasks) -> None:
    system = Transcription()
    few, many = (method(system, "alfi_anchored", iterations=n).fit(task) for n in (1, 150))
    errors = [
        np.square(np.asarray(fit.force_mean) - task["f"][0]).mean() / task["f"][0].var()
        for fit in (few, many)
    ]
    assert errors[1] < min(0.5 * errors[0], 0.2)


def test_fits_are_deterministic(task: Tasks) -> None:
    first, second = (method(Transcription(), "alfi", iterations=5).fit(task) for _ in range(2))
    for one, other in zip(first[:4], second[:4], strict=True):
        np.testing.assert_array_equal(one, other)


def test_missing_and_padded_observations_are_left_out(task: Tasks) -> None:
    hidden = task.data["y"].copy()
    hidden[0, 0, 3] = np.nan
    hidden[..., -2:] = np.nan
    x = task.data["x"].copy()
    x[:, -1] = np.nan
    fit = method(Transcription(), "alfi", iterations=5).fit
    found = fit(Tasks(task.data.assign(y=hidden, x=x)))
    shorter = fit(Tasks(task.data.assign(y=hidden).isel(point=slice(-2))))
    np.testing.assert_allclose(found.force_mean, shorter.force_mean, rtol=1e-8)
    points = task["x"].shape[1]
    assert np.isnan(found.output_mean[:, points - 1]).all()
    assert np.isfinite(np.delete(found.output_mean, points - 1, 1)).all()


def test_known_lotka_volterra_finds_the_predator() -> None:
    system = LotkaVolterra(duration=8)
    task = task_of(system, points=40, noise=0.02)
    found = method(system, iterations=30).fit(task)
    f = task["f"][0]
    assert np.square(found.force_mean - f).mean() < 0.1 * f.var()


def test_divergence_and_noise_that_is_zero_are_data_errors(task: Tasks) -> None:
    silent = Tasks(task.data.assign(y_sd=0 * task.data["y_sd"]))
    with pytest.raises(DataError, match="larger y_sd"):
        method(Transcription()).fit(silent)


@pytest.mark.parametrize("name", ["alfi_known", "alfi_anchored"])
def test_unknown_truth_is_a_data_error(name: Name, task: Tasks) -> None:
    untold = Tasks(task.data.drop_vars([v for v in task.data if str(v).startswith("parameter_")]))
    with pytest.raises(DataError, match="true basal"):
        method(Transcription(), name).fit(untold)
    method(Transcription(), "alfi", iterations=1).fit(untold)


def test_unstated_noise_is_a_data_error(task: Tasks) -> None:
    with pytest.raises(DataError, match="y_sd"):
        method(Transcription()).fit(Tasks(task.data.drop_vars("y_sd")))


def test_a_system_without_right_hand_side_is_a_data_error(
    monkeypatch: pytest.MonkeyPatch, task: Tasks
) -> None:
    monkeypatch.setattr(Transcription, "rate", System.rate)
    with pytest.raises(DataError, match="gives no right-hand side"):
        method(Transcription()).fit(task)
