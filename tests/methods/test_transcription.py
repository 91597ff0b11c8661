"""Exact posteriors of the linear transcription model against dense algebra on simulated roots."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import xarray as xr
from numpy.typing import NDArray
from scipy.stats import multivariate_normal

from dklfm import simulate
from dklfm.config import TasksConfig, validate
from dklfm.errors import DataError
from dklfm.methods.transcription import ExactTranscription, log_marginal_likelihood
from dklfm.systems import ReactionDiffusion, System, Transcription
from dklfm.tasks import Tasks

Array = NDArray[np.float64]
SYSTEM = Transcription(response="identity", genes=3, steps=2000)
POINTS, QUERIES = 9, 7


def tasks_of(count: int, system: Transcription = SYSTEM, spacing: str = "irregular") -> Tasks:
    settings = {
        "counts": {"train": 0, "validation": 0, "test": count},
        "mesh": {"spacing": spacing, "points": POINTS},
        "query": QUERIES,
        "noise": 0.05,
    }
    config: TasksConfig = validate(TasksConfig, settings, "test")
    codes = np.full(count, 2, dtype=np.int8)
    return simulate.assemble(
        system, codes, simulate.simulate(system, config, codes, np.arange(count))
    )


def parameters_of(task: Tasks) -> dict[str, Array]:
    return {key: task[f"parameter_{key}"][0] for key in SYSTEM.parameters}


def steady_state(task: Tasks) -> Array:
    """``gene x 1`` values of b/d."""
    return (task["parameter_basal"] / task["parameter_decay"])[0, :, None]


class Roots(NamedTuple):
    """Responses of force and outputs to each white coefficient: square roots of their joint law."""

    force: Array
    output: Array

    @classmethod
    def of(cls, task: Tasks) -> Roots:
        """Roots ``query x coefficient`` and ``gene x (point, query) x coefficient``."""
        units = np.eye(len(SYSTEM.draw(np.random.default_rng(0))["coefficients"]))
        x = np.concatenate([task["x"][0], task["x_query"][0]])
        draws = {k: np.stack([v] * len(units)) for k, v in parameters_of(task).items()}
        solution = SYSTEM.solve(
            draws | {"coefficients": units}, np.broadcast_to(x, (len(units), *x.shape))
        )
        outputs = solution.outputs - steady_state(task)
        return cls(solution.force[:, POINTS:].T, np.moveaxis(outputs, 0, -1))


@pytest.fixture(scope="module")
def tasks() -> Tasks:
    return tasks_of(200)


@pytest.fixture(scope="module")
def task(tasks: Tasks) -> Tasks:
    return tasks.take([0])


def without(task: Tasks, missing: NDArray[np.bool_]) -> Tasks:
    return Tasks(task.data.assign(y=task.data["y"].where(~missing)))


@pytest.mark.parametrize("share", [0.0, 0.4])
def test_posterior_is_dense_conditioning_on_the_outputs_observed(task: Tasks, share: float) -> None:
    missing = np.random.default_rng(1).random(task["y"].shape) < share
    posterior = ExactTranscription(SYSTEM).fit(without(task, missing))

    roots, seen = Roots.of(task), ~missing[0]
    observed = roots.output[:, :POINTS][seen]
    noise = np.diag(np.square(task["y_sd"][0][seen]))
    inverse = np.linalg.inv(observed @ observed.T + noise)
    prior = steady_state(task)
    residual = (task["y"][0] - prior)[seen]
    white_mean = observed.T @ inverse @ residual
    white_covariance = np.eye(len(white_mean)) - observed.T @ inverse @ observed

    def variance(root: Array) -> Array:
        return np.einsum("...i,ij,...j->...", root, white_covariance, root)

    for actual, expected in (
        (posterior.force_mean, roots.force @ white_mean),
        (posterior.force_variance, variance(roots.force)),
        (posterior.output_mean, prior + roots.output @ white_mean),
        (posterior.output_variance, variance(roots.output)),
    ):
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-8)


def test_a_point_whose_outputs_are_all_missing_is_as_if_it_were_not_there(task: Tasks) -> None:
    method, kept = ExactTranscription(SYSTEM), [0, 1, 2, 4, 5, 7]
    dropped = ~np.isin(np.arange(POINTS), kept)
    masked = method.fit(without(task, np.broadcast_to(dropped, task["y"].shape)))
    shorter = method.fit(Tasks(task.data.isel(point=kept)))
    still = np.concatenate([kept, POINTS + np.arange(QUERIES)])
    for actual, expected in (
        (masked.force_mean, shorter.force_mean),
        (masked.force_variance, shorter.force_variance),
        (masked.output_mean[:, still], shorter.output_mean),
        (masked.output_variance[:, still], shorter.output_variance),
    ):
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-12)


def test_padding_changes_no_moment_but_its_own(task: Tasks) -> None:
    method = ExactTranscription(SYSTEM)
    padded = method.fit(Tasks(task.data.pad(point=(0, 2))))  # with NaN
    plain = method.fit(task)
    real = np.delete(np.arange(POINTS + 2 + QUERIES), [POINTS, POINTS + 1])
    np.testing.assert_array_equal(padded.force_mean, plain.force_mean)
    np.testing.assert_allclose(padded.output_mean[:, real], plain.output_mean, rtol=1e-12)
    np.testing.assert_allclose(padded.output_variance[:, real], plain.output_variance, rtol=1e-9)
    assert np.isnan(padded.output_mean[:, POINTS : POINTS + 2]).all()


def test_outputs_are_known_at_time_zero() -> None:
    task = tasks_of(1, spacing="regular")
    posterior = ExactTranscription(SYSTEM).fit(task)
    start = [0, POINTS]  # the first observed point and the first query
    np.testing.assert_array_equal(task["x"][0, 0], task["x_query"][0, 0])
    known = np.repeat(steady_state(task), 2, axis=1)
    np.testing.assert_allclose(posterior.output_mean[:, start], known, rtol=1e-14)
    np.testing.assert_array_equal(posterior.output_variance[:, start], 1e-12)


def test_posterior_is_calibrated_on_simulated_tasks(tasks: Tasks) -> None:
    """Squared z-scores at one query a task are independent χ²₁, whose variance is 2."""
    method = ExactTranscription(SYSTEM)
    fits = [method.fit(tasks.take([i])) for i in range(len(tasks))]
    middle = QUERIES // 2
    force = [fit.force_mean[middle] for fit in fits] - tasks["f"][:, middle]
    output = [fit.output_mean[1, POINTS + middle] for fit in fits] - tasks["h_query"][:, 1, middle]
    for error, variance in (
        (force, [fit.force_variance[middle] for fit in fits]),
        (output, [fit.output_variance[1, POINTS + middle] for fit in fits]),
    ):
        ratio = np.mean(np.square(error) / variance)
        assert abs(ratio - 1) < 3.5 * np.sqrt(2 / len(tasks))


@pytest.mark.parametrize("share", [0.0, 0.4])
def test_marginal_likelihood_is_the_density_of_the_outputs_observed(
    task: Tasks, share: float
) -> None:
    missing = np.random.default_rng(1).random(task["y"].shape) < share
    seen = ~missing[0]
    observed = Roots.of(task).output[:, :POINTS][seen]
    prior = steady_state(task)
    covariance = observed @ observed.T + np.diag(np.square(task["y_sd"][0][seen]))
    expected = multivariate_normal.logpdf((task["y"][0] - prior)[seen], cov=covariance)
    actual = log_marginal_likelihood(without(task, missing), parameters_of(task))
    assert actual == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize(
    ("system", "given"),
    [
        (ReactionDiffusion(), "not reaction_diffusion$"),
        (Transcription(response="softplus"), "not transcription with response softplus$"),
    ],
)
def test_other_systems_are_refused(system: System, given: str) -> None:
    with pytest.raises(DataError, match=f"response identity, {given}"):
        ExactTranscription(system)


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        ("parameter_lengthscale", "do not state their true lengthscale"),
        ("y_sd", "needs the standard deviation of the noise, y_sd"),
    ],
)
def test_tasks_that_state_too_little_are_refused(task: Tasks, lost: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        ExactTranscription(SYSTEM).fit(Tasks(task.data.drop_vars(lost)))


def test_noise_too_small_to_invert_the_covariance_is_refused() -> None:
    task = tasks_of(1, spacing="regular")
    noiseless = Tasks(task.data.assign(y_sd=xr.zeros_like(task.data["y_sd"])))
    with pytest.raises(DataError, match="task 0: y_sd is too small"):
        ExactTranscription(SYSTEM).fit(noiseless)
