"""The deep kernel is a covariance, whatever network feeds it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.func import grad, hessian

from dklfm.model.differential import Operator
from dklfm.model.kernel import DeepKernel, Latent, LatentPoints, ResidualMLP, join

KERNELS = (("rbf", False), ("rbf", True), ("periodic", False))
"""Base, and whether operators act on it."""


def latent_points(
    seed: int, points: int = 12, amplitudes: int = 3, tasks: int = 2, operated: bool = False
) -> LatentPoints:
    generator = torch.Generator().manual_seed(seed)

    def normal(size: int) -> torch.Tensor:
        return torch.randn(tasks, points, size, generator=generator, dtype=torch.float64)

    coordinates, signed = normal(4), normal(amplitudes)
    operator = Operator(normal(1), normal(4), normal(4)) if operated else None
    return LatentPoints(2 * coordinates, signed if amplitudes else None, operator)


@pytest.mark.parametrize(("base", "operated"), KERNELS)
@given(seed=st.integers(0, 10_000), amplitudes=st.sampled_from([0, 1, 4]))
def test_covariance_is_positive_semidefinite(
    base: str, seed: int, amplitudes: int, operated: bool
) -> None:
    points = latent_points(seed, amplitudes=amplitudes, operated=operated)
    covariance = DeepKernel(base).double()(points, points)
    eigenvalues = torch.linalg.eigvalsh(covariance)
    torch.testing.assert_close(covariance, covariance.mT)
    assert (eigenvalues > -1e-12 * eigenvalues[:, -1:]).all()


@pytest.mark.parametrize(("base", "operated"), KERNELS)
@pytest.mark.parametrize("amplitudes", [0, 3])
def test_variance_is_the_diagonal(base: str, amplitudes: int, operated: bool) -> None:
    points = latent_points(0, amplitudes=amplitudes, operated=operated)
    kernel = DeepKernel(base).double()
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


def test_operators_act_as_derivatives_of_the_kernel() -> None:
    """Beside automatic differentiation, with another lengthscale than 1."""
    kernel = DeepKernel("rbf").double()
    kernel.base.base_kernel.lengthscale = 1.7
    left, right = (latent_points(s, 3, 0, 1, operated=True) for s in (0, 1))

    def plain(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return kernel.base.outputscale * (-0.5 * (x - y).square().sum() / 1.7**2).exp()

    def applied(
        function: Callable[[torch.Tensor], torch.Tensor], points: LatentPoints, i: int
    ) -> torch.Tensor:
        assert points.operator is not None
        value, slope, curvature = (part[0, i] for part in points.operator)
        at, unit = points.coordinates[0, i], 1.7
        first, second = grad(function)(at), hessian(function)(at).diagonal()
        return value[0] * function(at) + unit * slope @ first + unit**2 * curvature @ second

    found = kernel(left, right)[0]
    for i in range(3):
        for j in range(3):

            def of_left(x: torch.Tensor, j: int = j) -> torch.Tensor:
                return applied(lambda y: plain(x, y), right, j)

            torch.testing.assert_close(found[i, j], applied(of_left, left, i))


def test_the_force_alone_is_operated_on() -> None:
    latent, z = Latent(3, 8, 1, 4, 2, axes=4), torch.randn(1, 5, 3)
    force, outputs = latent(z, "force").operator, latent(z, "outputs").operator
    assert force is not None
    assert outputs is not None
    assert force.curvature.abs().min() > 0
    assert (outputs.value == 1).all()
    assert not outputs.slope.any()
    assert not outputs.curvature.any()


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
