"""The closed-form law of the linear transcription model against quadrature and the simulator."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.integrate import quad
from scipy.special import roots_legendre

from dklfm.systems import Transcription
from dklfm.systems.transcription_covariance import LinearTranscription

Array = NDArray[np.float64]
LENGTHSCALE = 1.3
TIMES = np.array([0.0, 1e-3, 0.05, 0.7, 3.0, 5.5, 11.9, 12.0])
SLOW_TO_FAST = np.array([0.01, 0.3, 3.0, 50.0]) / LENGTHSCALE


def law(decay: Array, lengthscale: float = LENGTHSCALE) -> LinearTranscription:
    """Each gene with a sensitivity of its own and a steady-state gain of about one."""
    sensitivity = decay * (1 + 0.1 * np.arange(len(decay)))
    return LinearTranscription(0.2 * decay, sensitivity, decay, lengthscale)


def rbf(a: Array, b: Array) -> Array:
    return np.exp(-((a - b) ** 2) / (2 * LENGTHSCALE**2))


def joint(given: LinearTranscription, force: Array, output: Array) -> Array:
    """The covariance of (f at some times, y at others), outputs in (gene, time) order."""
    size = len(given.decay) * len(output)
    cross = given.yf(output, force).reshape(size, -1)
    yy = given.yy(output, output).reshape(size, size)
    return np.block([[given.ff(force, force), cross.T], [cross, yy]])


def test_output_and_force_covariance_equals_adaptive_quadrature() -> None:
    given = law(SLOW_TO_FAST)
    actual = given.yf(TIMES, TIMES)
    for j, (s, d) in enumerate(zip(given.sensitivity, given.decay, strict=True)):
        for i, t in enumerate(TIMES):
            for k, at in enumerate(TIMES):
                start = max(0.0, t - 50 / d)  # what lies before has decayed below e^{−50}
                expected, _ = quad(
                    lambda tau, t=t, at=at, d=d: np.exp(-d * (t - tau)) * rbf(tau, at),
                    start, t, epsabs=1e-14, epsrel=1e-13, limit=200,
                )  # fmt: skip
                assert actual[j, i, k] == pytest.approx(s * expected, abs=1e-12)


def test_covariance_of_every_pair_of_genes_equals_quadrature() -> None:
    """∫∫ e^{−d_j(t−τ)} k(τ, τ') e^{−d_k(t'−τ')} by Gauss–Legendre, with no closed form at all."""
    given = law(SLOW_TO_FAST)
    unit, weights = roots_legendre(100)
    span = np.minimum(TIMES, 40 / given.decay[:, None])  # gene x time: e^{−40} lies before
    lag = span[..., None] * (1 - unit) / 2  # gene x time x node
    green = given.sensitivity[:, None, None] * np.exp(-given.decay[:, None, None] * lag)
    green *= span[..., None] / 2 * weights
    tau = TIMES[:, None] - lag
    actual = given.yy(TIMES, TIMES)
    for j, i in np.ndindex(tau.shape[:2]):
        kernel = rbf(tau[j, i][:, None, None, None], tau)  # node x gene' x time' x node'
        expected = np.einsum("m,mktn,ktn->kt", green[j, i], kernel, green)
        np.testing.assert_allclose(actual[j, i], expected, rtol=0, atol=1e-12)


def test_law_is_that_of_the_simulated_paths() -> None:
    """The response to each white coefficient is a column of a square root of the joint."""
    system = Transcription(response="identity", steps=2000)
    draw = dict(system.draw(np.random.default_rng(4)))
    units = np.eye(len(draw["coefficients"]))
    draws = {key: np.stack([value] * len(units)) for key, value in draw.items()}
    draws["coefficients"] = units
    times = np.array([0.0, 0.02, 0.4, 1.0, 4.4, 7.0, 12.0])
    solution = system.solve(draws, np.broadcast_to(times[:, None], (len(units), len(times), 1)))

    given = LinearTranscription.of(draw)
    outputs = (solution.outputs - given.mean[:, None]).reshape(len(units), -1)
    roots = np.hstack([solution.force, outputs])
    np.testing.assert_allclose(roots.T @ roots, joint(given, times, times), rtol=0, atol=1e-9)


def test_genes_and_times_can_be_exchanged() -> None:
    given, a, b = law(SLOW_TO_FAST), TIMES, np.linspace(0, 12, 5)
    exchanged = given.yy(b, a).transpose(2, 3, 0, 1)
    np.testing.assert_array_equal(given.yy(a, b), exchanged)


def test_variance_is_the_diagonal_of_the_covariance() -> None:
    given = law(SLOW_TO_FAST)
    diagonal = np.einsum("jtjt->jt", given.yy(TIMES, TIMES))
    np.testing.assert_allclose(given.output_variance(TIMES), diagonal, rtol=0, atol=1e-14)


def test_outputs_start_without_variance() -> None:
    given, start = law(SLOW_TO_FAST), np.zeros(1)
    assert not given.yf(start, TIMES).any()
    assert not given.yy(start, TIMES).any()
    assert not given.output_variance(start).any()


@pytest.mark.parametrize("lengthscale", [0.3, 1.2, 3.6, 30.0])
def test_joint_law_of_force_and_outputs_is_positive_semidefinite(lengthscale: float) -> None:
    given = law(np.array([0.01, 0.02, 0.3, 3.0, 3.1, 50.0]) / lengthscale, lengthscale)
    times = np.linspace(0, 12, 41)
    values = np.linalg.eigvalsh(joint(given, times, times))
    assert values[0] > -1e-13 * values[-1]


@pytest.mark.parametrize("product", [50.0, 1e3, 1e5])
def test_fast_genes_settle_at_the_variance_of_the_force_they_follow(product: float) -> None:
    """∫ S(ω)/(1 + ω²/d²) dω as Σ (−1)ⁿ E[ω²ⁿ]/d²ⁿ, where ωℓ is standard normal under S."""
    given = law(np.array([product / LENGTHSCALE]))
    double_factorials = np.array([1, 1, 3, 15, 105, 945])
    expected = double_factorials @ (-1.0 / product**2) ** np.arange(6)
    actual = given.output_variance(np.array([3.0, 12.0, 1e4]))[0]
    np.testing.assert_allclose(actual, expected, rtol=1e-13)


def test_slow_genes_integrate_the_force() -> None:
    """As d → 0, var(∫₀ᵗ f) = 2 ∫₀ᵗ (t − τ) k(τ, 0) dτ; the error is of the order of d t."""
    t, decay = 4.0, 1e-7
    integrated, _ = quad(lambda tau: 2 * (t - tau) * rbf(tau, 0.0), 0, t, epsabs=1e-13)
    actual = law(np.array([decay])).output_variance(np.array([t]))[0, 0] / decay**2
    assert actual == pytest.approx(integrated, rel=1e-6)
