"""Samplers against densities whose moments are known."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import ndtr

from dklfm.errors import DklfmError
from dklfm.methods.sampling import Coordinates, Sample, importance, markov_chain, paired

Array = NDArray[np.float64]
COVARIANCE = np.array([[1.0, 0.6], [0.6, 0.5]])
MEAN = np.array([0.3, -0.4])


def gaussian(theta: Array) -> tuple[Array, Array]:
    away = theta - MEAN
    return theta[:, :1], -0.5 * np.einsum("si,ij,sj->s", away, np.linalg.inv(COVARIANCE), away)


def uniform_product(theta: Array) -> tuple[Array, Array]:
    """Two factors U(0.5, 1.5), of which only the product was measured: a ridge with ends."""
    factors = 0.5 + ndtr(theta)
    misfit = (factors.prod(1) - 1.1) / 0.02
    return factors, -0.5 * (np.square(theta).sum(1) + np.square(misfit))


def moments(sample: Sample, values: Array) -> tuple[Array, Array]:
    mean = sample.weights @ values
    return mean, np.sqrt(sample.weights @ np.square(values - mean))


def plain(size: int) -> Coordinates:
    return Coordinates.of(lambda theta: -theta, size)  # never positive throughout: θ itself


def test_importance_weights_give_the_moments_of_a_gaussian_from_a_poor_start() -> None:
    rng = np.random.default_rng(0)
    sample = importance(gaussian, plain(2), np.zeros(2), np.eye(2), 4000, rng)
    mean, _ = moments(sample, sample.theta)
    np.testing.assert_allclose(mean, MEAN, atol=0.05)
    np.testing.assert_allclose(
        np.cov(sample.theta.T, aweights=sample.weights), COVARIANCE, atol=0.05
    )
    assert sample.effective_size > 2000
    np.testing.assert_array_equal(sample.extra[:, 0], sample.theta[:, 0])


def test_pairs_have_no_sampling_error_where_the_proposal_is_right() -> None:
    rng = np.random.default_rng(0)
    sample = paired(gaussian, plain(2), MEAN, COVARIANCE, 7, rng)
    assert sample.theta.shape == (6, 2)
    np.testing.assert_allclose(sample.theta.mean(0), MEAN, atol=1e-9)
    np.testing.assert_allclose(sample.theta[:3] + sample.theta[3:], np.tile(2 * MEAN, (3, 1)))


def test_pairs_are_weighted_draws_of_a_density_that_is_none_of_theirs() -> None:
    coordinates = Coordinates.of(lambda theta: 0.5 + ndtr(theta), 2)
    start, wide = np.full(2, 0.1), np.array([[0.5, -0.3], [-0.3, 0.5]])
    sample = paired(uniform_product, coordinates, start, wide, 60_000, np.random.default_rng(0))
    mean, sd = moments(sample, sample.extra)
    true_mean, true_sd = truth_of_the_ridge()
    np.testing.assert_allclose(mean[0], true_mean, atol=0.02)
    np.testing.assert_allclose(sd[0], true_sd, rtol=0.05)


def truth_of_the_ridge() -> tuple[float, float]:
    """Mean and deviation of the first factor, by quadrature."""
    first, second = np.meshgrid(np.linspace(0.5, 1.5, 2001), np.linspace(0.5, 1.5, 2001))
    weights = np.exp(-0.5 * np.square((first * second - 1.1) / 0.02))
    mean = np.average(first, weights=weights)
    return float(mean), float(np.sqrt(np.average(np.square(first - mean), weights=weights)))


def test_a_ridge_between_bounded_priors_is_sampled_whole() -> None:
    coordinates = Coordinates.of(lambda theta: 0.5 + ndtr(theta), 2)
    start = np.array([0.1, 0.1])
    narrow = np.array([[0.02, -0.019], [-0.019, 0.02]])
    rng = np.random.default_rng(0)
    sample = importance(uniform_product, coordinates, start, narrow, 4000, rng)
    mean, sd = moments(sample, sample.extra)
    true_mean, true_sd = truth_of_the_ridge()
    np.testing.assert_allclose(mean[0], true_mean, atol=0.02)
    np.testing.assert_allclose(sd[0], true_sd, rtol=0.05)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_markov_chain_agrees(seed: int) -> None:
    rng = np.random.default_rng(seed)
    coordinates = Coordinates.of(lambda theta: 0.5 + ndtr(theta), 2)
    first = importance(uniform_product, coordinates, np.full(2, 0.1), 0.05 * np.eye(2), 400, rng)
    sample = markov_chain(uniform_product, coordinates, first, 2000, seed)
    mean, sd = moments(sample, sample.extra)
    true_mean, true_sd = truth_of_the_ridge()
    np.testing.assert_allclose(mean[0], true_mean, atol=0.03)
    np.testing.assert_allclose(sd[0], true_sd, rtol=0.1)
    assert 100 < sample.effective_size <= 2000
    np.testing.assert_allclose(sample.extra, 0.5 + ndtr(sample.theta))


def test_a_chain_repeats_itself() -> None:
    rng = np.random.default_rng(0)
    first = importance(gaussian, plain(2), MEAN, COVARIANCE, 100, rng)
    again = [markov_chain(gaussian, plain(2), first, 50, 3).theta for _ in range(2)]
    np.testing.assert_array_equal(*again)


def test_the_extra_package_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    first = importance(gaussian, plain(2), MEAN, COVARIANCE, 100, np.random.default_rng(0))
    monkeypatch.setitem(sys.modules, "emcee", None)
    with pytest.raises(DklfmError, match="needs the package emcee; install dklfm with the extra"):
        markov_chain(gaussian, plain(2), first, 50, 0)


def test_coordinates_are_logarithms_with_an_exact_inverse() -> None:
    def parameter(theta: Array) -> Array:
        return np.stack([0.6 + 0.8 * ndtr(theta[:, 0]), np.exp(theta[:, 1]), theta[:, 2]], axis=1)

    coordinates = Coordinates.of(parameter, 3)
    theta = np.random.default_rng(0).standard_normal((50, 3))
    phi = coordinates.of_theta(theta)
    slope = 0.8 / np.sqrt(2 * np.pi)  # of 0.6 + 0.8 Φ(θ) at its median, 1
    np.testing.assert_allclose(slope * phi[:, 0], np.log(parameter(theta)[:, 0]), atol=2e-3)
    np.testing.assert_allclose(phi[:, 1], theta[:, 1], atol=1e-9)
    np.testing.assert_allclose(phi[:, 2], theta[:, 2], atol=1e-12)
    np.testing.assert_allclose(coordinates.theta(phi), theta, atol=1e-9)
    step = 1e-7
    numeric = (coordinates.of_theta(theta + step) - phi) / step
    np.testing.assert_allclose(coordinates.slopes(theta), numeric, rtol=1e-4)
    assert np.isnan(coordinates.theta(np.array([[np.log(1.5) / slope, 0.0, 0.0]]))).tolist() == [
        [True, False, False]
    ]


def test_a_parameter_that_hardly_varies_keeps_its_own_variable() -> None:
    coordinates = Coordinates.of(lambda theta: 0.8 * np.exp(1e-9 * theta), 2)
    theta = np.random.default_rng(0).standard_normal((20, 2))
    np.testing.assert_allclose(coordinates.of_theta(theta), theta, atol=1e-12)
