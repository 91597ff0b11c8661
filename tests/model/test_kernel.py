"""The deep kernel is a covariance, whatever network feeds it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dklfm.model.kernel import DeepKernel, Latent, LatentPoints, ResidualMLP, join

BASES = ("rbf", "periodic")


def latent_points(seed: int, points: int = 12, amplitudes: int = 3, tasks: int = 2) -> LatentPoints:
    generator = torch.Generator().manual_seed(seed)
    coordinates = torch.randn(tasks, points, 4, generator=generator, dtype=torch.float64)
    signed = torch.randn(tasks, points, amplitudes, generator=generator, dtype=torch.float64)
    return LatentPoints(2 * coordinates, signed if amplitudes else None)


@pytest.mark.parametrize("base", BASES)
@given(seed=st.integers(0, 10_000), amplitudes=st.sampled_from([0, 1, 4]))
def test_covariance_is_positive_semidefinite(base: str, seed: int, amplitudes: int) -> None:
    points = latent_points(seed, amplitudes=amplitudes)
    covariance = DeepKernel(base).double()(points, points)
    eigenvalues = torch.linalg.eigvalsh(covariance)
    torch.testing.assert_close(covariance, covariance.mT)
    assert (eigenvalues > -1e-12 * eigenvalues[:, -1:]).all()


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("amplitudes", [0, 3])
def test_variance_is_the_diagonal(base: str, amplitudes: int) -> None:
    points, kernel = latent_points(0, amplitudes=amplitudes), DeepKernel(base).double()
    diagonal = kernel(points, points).diagonal(dim1=-2, dim2=-1)
    torch.testing.assert_close(kernel.variance(points), diagonal)


def test_rbf_covariance_is_the_formula() -> None:
    points, kernel = latent_points(0), DeepKernel("rbf").double()
    assert points.amplitudes is not None
    square = torch.cdist(points.coordinates, points.coordinates).square()
    lengthscale = kernel.base.base_kernel.lengthscale.item()
    signs = points.amplitudes @ points.amplitudes.mT / 3
    expected = kernel.base.outputscale * torch.exp(-0.5 * square / lengthscale**2) * signs
    torch.testing.assert_close(kernel(points, points), expected)


def test_amplitudes_let_points_be_anticorrelated() -> None:
    same = torch.zeros(1, 2, 4)
    points = LatentPoints(same, torch.tensor([[[1.0], [-1.0]]]))
    covariance = DeepKernel("rbf")(points, points)
    assert covariance[0, 0, 1].item() == pytest.approx(-covariance[0, 0, 0].item())


def test_blocks_of_joined_points_are_the_covariances_of_the_parts() -> None:
    first, second = latent_points(0, points=5), latent_points(1, points=7)
    kernel, both = DeepKernel("rbf").double(), join(first, second)
    covariance = kernel(both, both)
    torch.testing.assert_close(covariance[:, :5, 5:], kernel(first, second))
    torch.testing.assert_close(covariance[:, 5:, 5:], kernel(second, second))


def test_tasks_have_their_own_covariances() -> None:
    points, kernel = latent_points(0), DeepKernel("rbf").double()
    assert points.amplitudes is not None
    second = LatentPoints(points.coordinates[1:], points.amplitudes[1:])
    torch.testing.assert_close(kernel(second, second)[0], kernel(points, points)[1])


def test_doubling_precision_keeps_values() -> None:
    points = LatentPoints(torch.ones(1, 2, 3), torch.ones(1, 2, 1)).double()
    assert points.amplitudes is not None
    assert points.coordinates.dtype == points.amplitudes.dtype == torch.float64


def test_force_and_outputs_start_from_one_map() -> None:
    latent, z = Latent(3, 8, 1, 4, 2), torch.randn(1, 5, 3)
    torch.testing.assert_close(latent(z, "force").coordinates, latent(z, "outputs").coordinates)


def test_force_and_outputs_learn_maps_of_their_own() -> None:
    latent, z = Latent(3, 8, 1, 4, 2), torch.randn(1, 5, 3)
    force, outputs = latent(z, "force").coordinates, latent(z, "outputs").coordinates
    with torch.no_grad():
        latent.force.input.bias.add_(1.0)
    assert not torch.allclose(latent(z, "force").coordinates, force)
    torch.testing.assert_close(latent(z, "outputs").coordinates, outputs)


def test_latent_points_without_amplitudes_have_none() -> None:
    assert Latent(3, 8, 1, 4, 0)(torch.ones(1, 1, 3), "force").amplitudes is None


def test_network_acts_on_each_point_alone() -> None:
    network, z = ResidualMLP(3, 8, 2), torch.randn(4, 5, 3)
    torch.testing.assert_close(network(z)[2, 3], network(z[2, 3]))
