"""A Gaussian force with inducing points, and its variational posterior given observations."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import gpytorch
import torch
from torch import Generator, Tensor, nn

eye = partial(torch.eye, dtype=torch.float64)
_JITTER = 1e-8


def _rbf(lengthscale: float) -> nn.Module:
    kernel = gpytorch.kernels.RBFKernel().double()
    kernel.lengthscale = lengthscale
    return kernel


class InducingForce(nn.Module):
    """f = k(·, Z) k(Z, Z)^{-1/2} v, so that N(0, I) over v is the prior.

    Z is a regular grid over the domain; the covariance is a product of RBF kernels, one an axis,
    whose lengthscales are learnt, and so Φ is a Kronecker product over points on a grid.
    """

    def __init__(
        self, axes: list[tuple[float, float]], lengthscales: list[float], count: int
    ) -> None:
        super().__init__()
        self.kernels = nn.ModuleList(map(_rbf, lengthscales))
        self.inducing = [torch.linspace(*ends, count, dtype=torch.float64) for ends in axes]
        self.size = count ** len(axes)

    def lengthscale(self, axis: int) -> Tensor:
        """ℓ of exp(−Δ²/2ℓ²), ``1 x 1``."""
        return torch.as_tensor(self.kernels[axis].lengthscale)

    def whiten(self, axis: int, cross: Tensor) -> Tensor:
        """``... x inducing`` linear maps of k(·, Z), as maps of white coefficients."""
        z = self.inducing[axis]
        covariance = self.kernels[axis](z, z).to_dense() + _JITTER * eye(len(z))
        root = torch.linalg.cholesky(covariance)
        return torch.linalg.solve_triangular(root.mT, cross, upper=True, left=False)

    def factor(self, axis: int, x: Tensor) -> Tensor:
        """Φ along one axis, ``x x coefficient``."""
        return self.whiten(axis, self.kernels[axis](x, self.inducing[axis]).to_dense())

    def features(self, points: Tensor) -> Tensor:
        """Φ at ``point x axis`` inputs, ``point x coefficient``."""
        product, *others = (self.factor(axis, x) for axis, x in enumerate(points.mT))
        for other in others:
            product = (product[:, :, None] * other[:, None, :]).flatten(1)
        return product


class Observations(NamedTuple):
    """What was observed.

    Attributes:
        where: ``output x point``, true where there is an observation.
        y, sd: ``observation`` values and standard deviations of their noise.
    """

    where: Tensor
    y: Tensor
    sd: Tensor

    def scale(self, outputs: Tensor) -> Tensor:
        """``... x observation`` values, in units of the noise, of ``... x output x point`` ones."""
        return outputs[..., self.where] / self.sd

    def residual(self, outputs: Tensor) -> Tensor:
        """``sample x observation`` values of (h − y)/σ."""
        return self.scale(outputs) - self.y / self.sd


class GaussianPosterior:
    """q(v) = N(mean, Λ⁻¹), at first the prior; root is the Cholesky factor of Λ."""

    def __init__(self, size: int) -> None:
        self.mean = torch.zeros(size, dtype=torch.float64)
        self.root = eye(size)

    def sample(self, count: int, generator: Generator) -> Tensor:
        """``sample x coefficient`` draws, in antithetic pairs."""
        size = len(self.mean), (count + 1) // 2
        noise = torch.randn(size, generator=generator, dtype=torch.float64)
        moves = torch.linalg.solve_triangular(self.root.mT, noise, upper=True).mT
        return self.mean + torch.cat([moves, -moves])[:count]

    def variance(self, maps: Tensor) -> Tensor:
        """Variances ``column`` of aᵀ v, for the columns a of ``coefficient x column`` maps."""
        return torch.linalg.solve_triangular(self.root, maps, upper=False).square().sum(0)

    def step(self, residual: Tensor, jacobian: Tensor) -> None:
        """Make one natural-gradient step.

        Args:
            residual: ``sample x observation`` values of (h − y)/σ at samples of q.
            jacobian: ``sample x coefficient x observation`` derivatives of them by v; of one
                sample, which stands for all, where h is linear.
        """
        rows = jacobian.transpose(0, 1).flatten(1)
        curvature = eye(len(rows)) + rows @ rows.mT / len(jacobian)
        self.root = torch.linalg.cholesky(curvature)
        gradient = (jacobian @ residual[..., None]).mean(0) + self.mean[:, None]
        self.mean = self.mean - torch.cholesky_solve(gradient, self.root)[:, 0]
