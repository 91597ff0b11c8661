"""Modes of functions on a rectangle that are products of one function an axis.

A product is evaluated at a point for as little as its factors are, however many points there are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

_LEAST_SIZE = 1e-9
"""Share of the largest function of an axis below which there is none."""


def chebyshev(at: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """T_0 … T_{count − 1} and their derivatives, ``... x count``."""
    orders = torch.arange(count, device=at.device)
    values = torch.special.chebyshev_polynomial_t(at[..., None], orders)
    slopes = orders * torch.special.chebyshev_polynomial_u(at[..., None], orders - 1)
    return values, slopes


def chebyshev_nodes(count: int) -> Tensor:
    """Of [0, 1] with both ends, in float64."""
    return 0.5 - 0.5 * (torch.arange(count, dtype=torch.float64) * torch.pi / (count - 1)).cos()


def chebyshev_grid(count: int, axes: int) -> Tensor:
    """All products of these, ``node x axis``, the last axis the fastest."""
    return torch.cartesian_prod(*[chebyshev_nodes(count)] * axes).view(-1, axes)


class KroneckerRoot(NamedTuple):
    """A root of the covariance of the weights of products: of lower factors, one an axis.

    With each product all are kept whose factors are larger, so that the rows of the Kronecker
    product that are kept have no entries in columns that are not.
    """

    factors: Sequence[Float[Tensor, "task function function"]]
    kept: Int[Tensor, " mode"]  # which of all products, in row-major order

    def times(self, columns: Tensor) -> Tensor:
        """The root times ``task x mode x column`` numbers."""
        return self._applied(self.factors, columns)

    def transposed_times(self, columns: Tensor) -> Tensor:
        """Its transpose times them."""
        return self._applied([factor.mT for factor in self.factors], columns)

    def _applied(self, factors: Sequence[Tensor], columns: Tensor) -> Tensor:
        sizes = [factor.shape[-1] for factor in factors]
        every = columns.new_zeros(len(columns), math.prod(sizes), columns.shape[-1])
        every[:, self.kept] = columns
        for axis, factor in enumerate(factors):
            before, size = math.prod(sizes[:axis]), sizes[axis]
            lines = every.view(len(every), before, size, -1)
            every = (factor[:, None] @ lines).flatten(1)
        return every.view(len(every), -1, columns.shape[-1])[:, self.kept]


class ProductModes(nn.Module):
    """Φ_i(x) = Π_a u_a,p(i,a)(x_a), so scaled that their weights have unit mean square.

    The factors are polynomials through so many Chebyshev ``nodes`` an axis, which resolve layers at
    the ends of an axis too; of each axis there are ``per_axis`` to choose from, and ``count``
    products are kept.
    """

    def __init__(self, axes: int, nodes: int, per_axis: int, count: int) -> None:
        super().__init__()
        self.nodes, self.count = nodes, count
        self.register_buffer("factors", torch.zeros(axes, nodes, per_axis, dtype=torch.float64))
        self.register_buffer("places", torch.zeros(axes, count, dtype=torch.long))
        waves = chebyshev(2 * chebyshev_nodes(nodes) - 1, nodes)[0]
        self.register_buffer("series", torch.linalg.inv(waves), persistent=False)
        # Clenshaw and Curtis: the integral of the polynomial through values at the nodes.
        orders = torch.arange(nodes, dtype=torch.float64)
        integrals = torch.where(orders % 2 == 0, 1 / (1 - orders.square()), 0.0)
        self.register_buffer("measure", integrals @ self.series, persistent=False)
        self.register_buffer("size", torch.ones(count, dtype=torch.float64))

    series: Float[Tensor, "order node"]
    measure: Float[Tensor, " node"]
    factors: Float[Tensor, "axis node function"]
    places: Int[Tensor, "axis mode"]
    size: Float[Tensor, " mode"]

    def learn(self, covariances: Tensor, values: Tensor | None = None) -> None:
        """Take the functions of each axis from ``axis x node x node`` second moments.

        Args:
            covariances: means over tasks and over the other axes.
            values: ``task x node`` functions on the whole grid; the products in which these are
                largest are kept. Without, those of the largest functions, so that with a product
                all are kept whose factors are larger.
        """
        root = self.measure.sqrt()
        sizes, vectors = torch.linalg.eigh(root[:, None] * covariances * root)
        per_axis = self.factors.shape[-1]
        sizes, vectors = sizes.flip(-1)[:, :per_axis], vectors.flip(-1)[..., :per_axis]
        sizes, vectors = sizes.clamp_min(0), vectors / root[:, None]
        if values is None:
            roots = torch.where(sizes > _LEAST_SIZE * sizes[:, :1], sizes.sqrt(), 0.0)
            self.factors.copy_(vectors * roots[:, None])
            energy = _outer(sizes)
            self.size.fill_(1.0)
        else:
            self.factors.copy_(vectors)
            energy = self._read(values).square().mean(0)
        order = energy.argsort(descending=True, stable=True)[: self.count]
        shape = (per_axis,) * len(sizes)
        self.places.copy_(torch.stack(torch.unravel_index(order, shape)))
        if values is not None:
            self.size.copy_(energy[order].sqrt())

    @property
    def kept(self) -> Tensor:
        """Which of all products, in row-major order, are the modes."""
        axes, per_axis = len(self.factors), self.factors.shape[-1]
        strides = per_axis ** torch.arange(axes - 1, -1, -1, device=self.places.device)
        return (strides[:, None] * self.places).sum(0)

    def weights(self, values: Tensor) -> Tensor:
        """Of the modes, for ``... x node`` functions on the whole grid; zero where there is none.

        Factors are orthogonal over the axis, so that each is the best weight of its product.
        """
        found = self._read(values.flatten(0, -2))[:, self.kept]
        found = torch.where(self.size > 0, found / self.size, 0.0)
        return found.unflatten(0, values.shape[:-1])

    def forward(self, x: Tensor) -> Tensor:
        """``... x mode`` values at ``... x axis`` points, in float64."""
        found = self.size.expand(*x.shape[:-1], -1)
        for axis, (factors, places) in enumerate(zip(self.factors, self.places, strict=True)):
            waves = chebyshev(2 * x[..., axis].double() - 1, self.nodes)[0]
            found = found * (waves @ (self.series @ factors))[..., places]
        return found

    def back(self) -> Tensor:
        """What gives the weights of an axis's functions, ``axis x node x function``."""
        weighted = self.measure[:, None] * self.factors
        squares = (weighted * self.factors).sum(1)
        return weighted / torch.where(squares > 0, squares, torch.inf)[:, None]

    def energy(self) -> Tensor:
        """Mean squares of the products over the domain, ``mode``."""
        squares = (self.measure[:, None] * self.factors.square()).sum(1)
        each = zip(squares, self.places, strict=True)
        return torch.stack([axis[places] for axis, places in each]).prod(0) * self.size.square()

    def _read(self, values: Tensor) -> Tensor:
        """``task x product`` weights in all products of orthogonal factors."""
        axes = len(self.factors)
        read = values.double().unflatten(-1, (self.nodes,) * axes)
        for factors in self.back():
            # The axis at hand is always the first after the task; it goes to the end.
            read = torch.tensordot(read, factors, dims=([1], [0]))
        return read.flatten(1)


def _outer(sizes: Tensor) -> Tensor:
    """``axis x function`` sizes to those of all products, in row-major order."""
    found = sizes[0]
    for other in sizes[1:]:
        found = (found[:, None] * other).flatten()
    return found
