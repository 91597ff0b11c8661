"""The smoother against dense Gaussian-process conditioning."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dklfm.model.smoothing import Smoother


def rbf(a: Tensor, b: Tensor, lengthscale: float) -> Tensor:
    return (-0.5 * (a[:, None] - b[None]).square().sum(-1) / lengthscale**2).exp()


@pytest.mark.parametrize(("axes", "nodes", "points"), [(1, 9, 14), (2, 5, 40)])
def test_moments_and_derivatives_are_those_of_a_dense_process(
    axes: int, nodes: int, points: int
) -> None:
    torch.manual_seed(0)
    lengthscale = 0.3
    smoother = Smoother((nodes,) * axes, lengthscale)
    x = torch.rand(2, points, axes)
    y = torch.randn(2, 3, points)
    variance = 0.01 + 0.1 * torch.rand(2, 3, points)
    mask = torch.rand(2, 3, points) < 0.8
    found = smoother(x, y, variance, mask)
    grid = smoother.grid
    for task in range(2):
        for output in range(3):
            seen = mask[task, output]
            at = x[task, seen].double()
            noise = variance[task, output, seen].double().diag()
            inverse = (rbf(at, at, lengthscale) + noise).inverse()
            cross = rbf(grid, at, lengthscale)
            weights = inverse @ y[task, output, seen].double()
            torch.testing.assert_close(
                found.mean[task, output], cross @ weights, atol=1e-4, rtol=1e-4
            )
            covariance = rbf(grid, grid, lengthscale) - cross @ inverse @ cross.mT
            torch.testing.assert_close(
                found.sd[task, output].square(), covariance.diagonal(), atol=1e-4, rtol=1e-3
            )
            for axis in range(axes):
                away = (at[None, :, axis] - grid[:, None, axis]) / lengthscale
                slope = (away / lengthscale * cross) @ weights
                curvature = ((away.square() - 1) / lengthscale**2 * cross) @ weights
                torch.testing.assert_close(
                    found.slopes[task, output, :, axis], slope, atol=3e-3, rtol=1e-3
                )
                torch.testing.assert_close(
                    found.curvatures[task, output, :, axis], curvature, atol=0.1, rtol=1e-2
                )


def test_nothing_observed_leaves_the_prior() -> None:
    smoother = Smoother((7,), 0.2)
    y = torch.ones(1, 1, 4)
    found = smoother(torch.rand(1, 4, 1), y, y, torch.zeros(1, 1, 4, dtype=torch.bool))
    torch.testing.assert_close(found.mean, torch.zeros(1, 1, 7, dtype=torch.float64))
    torch.testing.assert_close(
        found.sd, torch.ones(1, 1, 7, dtype=torch.float64), atol=1e-5, rtol=0
    )


def test_points_in_any_order_and_in_parts_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    smoother = Smoother((6, 6), 0.3)
    x, y = torch.rand(1, 50, 2), torch.randn(1, 1, 50)
    variance, mask = torch.full((1, 1, 50), 0.1), torch.ones(1, 1, 50, dtype=torch.bool)
    whole = smoother(x, y, variance, mask)
    monkeypatch.setattr("dklfm.model.smoothing._POINTS_AT_ONCE", 7)
    order = torch.randperm(50)
    parts = smoother(x[:, order], y[..., order], variance, mask)
    torch.testing.assert_close(parts.mean, whole.mean)
    torch.testing.assert_close(parts.sd, whole.sd)
