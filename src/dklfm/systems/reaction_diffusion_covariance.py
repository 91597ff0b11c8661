"""The joint Gaussian law of a reaction–diffusion force and output, in closed form.

With w_n = nπ, β_n = λ + D w_n² and the integrals C, h, H of :mod:`dklfm.systems.greens`,

    K_uu = k_x(x, x') k_t(t, t')
    K_uy = S Σ_n 2 sin(w_n x') C_n(x) h_n(t', t)
    K_yy = S² Σ_nm 4 sin(w_n x) sin(w_m x') C_nm H_nm(t, t')

(López-Lopera, Durrande & Álvarez 2019, section 3), where, k_t being stationary,

    (β_n + β_m) H_nm = h_m(t', t) + h_n(t, t') − e^{−β_n t} h_m(t', 0) − e^{−β_m t'} h_n(t, 0).

Each term is a product of a factor in n and one in m, so the double sum is two single sums and
two products with the matrix 4 C_nm/(β_n + β_m), and costs little more than the number of modes.

The sums stop after the same number of modes everywhere, which makes them the exact law of the
truncated output: positive semidefinite whatever is left out. What is left out falls as
modes⁻³ inside (0, 1): see :data:`MODES`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import khatri_rao

from dklfm.systems import greens
from dklfm.systems.base import Array

MODES = 300
"""Sine modes by default. On a 21-point mesh of x they leave errors below 2e-5 in K_uy and K_yy
at D = 0.001, the worst of the paper's prior; twice as many leave an eighth of that."""
_CUTOFF = 1e-13
"""Eigenvalues below this share of the largest are rounding, not signal."""

Grid = tuple[Array, Array]
"""The x and t coordinates of a rectangular mesh."""


class Covariances(NamedTuple):
    """Blocks between points a (rows) and points b (columns).

    Attributes:
        uu: cov(u(a), u(b)).
        uy: cov(u(a), y(b)); swap a and b and transpose for cov(y(a), u(b)).
        yy: cov(y(a), y(b)).
    """

    uu: Array
    uy: Array
    yy: Array

    def joint(self) -> Array:
        """The covariance of (u, y) stacked, where a and b are the same points."""
        return np.block([[self.uu, self.uy], [self.uy.T, self.yy]])


def covariances(
    parameters: Mapping[str, Array], a: Array, b: Array, modes: int = MODES
) -> Covariances:
    """Closed-form covariances between any points of the unit square.

    Args:
        parameters: one task's production S, decay λ, diffusion D, lengthscale_x θ_x and
            lengthscale_t θ_t; other keys of a draw are ignored.
        a: ``point x axis`` rows (x, t).
        b: ``point' x axis`` columns (x, t).
        modes: the number of sine modes.

    Returns:
        ``point x point'`` blocks.

    Raises:
        ValueError: if a point lies outside the unit square.
    """
    times_a, index_a = np.unique(a[:, 1], return_inverse=True)
    times_b, index_b = np.unique(b[:, 1], return_inverse=True)
    layout = _Scattered(times_a, index_a, times_b, index_b)
    return _assemble(parameters, (a[:, 0], a[:, 1]), (b[:, 0], b[:, 1]), modes, layout)


def grid_covariances(
    parameters: Mapping[str, Array], a: Grid, b: Grid, modes: int = MODES
) -> Covariances:
    """Closed-form covariances between two grids.

    Args:
        parameters: as in :func:`covariances`.
        a: the ``x`` and ``t`` coordinates of the rows' grid.
        b: those of the columns' grid.
        modes: the number of sine modes.

    Returns:
        Blocks over the points of each grid in row-major order: x is slow and t is fast.

    Raises:
        ValueError: if a coordinate lies outside [0, 1].
    """
    return _assemble(parameters, a, b, modes, _Gridded(a[1], b[1]))


def sample_joint(covariance: Array, rng: np.random.Generator, size: int) -> Array:
    """Samples of N(0, covariance) by a dense eigendecomposition.

    The covariance of (u, y) is singular, so there is no Cholesky factor; eigenvalues below
    1e-13 of the largest, negative ones among them, count as zero. Cubic in the number of
    points: a reference for :class:`~dklfm.systems.reaction_diffusion.ReactionDiffusion`.

    Args:
        covariance: ``variable x variable``.
        rng: the source of the white numbers.
        size: the number of samples.

    Returns:
        ``sample x variable``.
    """
    values, vectors = np.linalg.eigh(covariance)
    scale = np.sqrt(np.where(values > _CUTOFF * values[-1], values, 0.0))
    return (rng.standard_normal((size, len(values))) * scale) @ vectors.T


_Response = Callable[[Array, Array, slice], Array]
"""Maps times of a, times of b and a slice of modes to ``mode x time x time'`` values."""
_Factors = Sequence[tuple[Array, Array]]


class _Layout(Protocol):
    """How factors over x and over t combine into values at points."""

    def product(self, over_x: Array, over_t: Array) -> Array:
        """``point x mode`` products of ``x x mode`` and ``t x mode`` factors."""

    def matrix(self, over_x: Array, over_t: Array) -> Array:
        """``point x point'`` products of ``x x x'`` and ``t x t'`` matrices."""

    def contract(self, response: _Response, factors: _Factors) -> list[Array]:
        """Σ_n left_n(x) right_n(x') response_n(t, t') for each pair, ``point x point'``."""


class _Gridded(NamedTuple):
    times_a: Array
    times_b: Array

    def product(self, over_x: Array, over_t: Array) -> Array:
        return khatri_rao(over_x, over_t)

    def matrix(self, over_x: Array, over_t: Array) -> Array:
        return np.kron(over_x, over_t)  # type: ignore[return-value]  # the stub widens the dtype

    def contract(self, response: _Response, factors: _Factors) -> list[Array]:
        table = response(self.times_a, self.times_b, slice(None))
        modes, rows, columns = table.shape
        sums = []
        for left, right in factors:
            over_x = (left[:, None] * right).reshape(-1, modes)
            blocks = (over_x @ table.reshape(modes, -1)).reshape(-1, len(right), rows, columns)
            sums.append(blocks.swapaxes(1, 2).reshape(len(left) * rows, -1))
        return sums


class _Scattered(NamedTuple):
    times_a: Array
    index_a: NDArray[np.intp]
    times_b: Array
    index_b: NDArray[np.intp]

    def product(self, over_x: Array, over_t: Array) -> Array:
        return over_x * over_t

    def matrix(self, over_x: Array, over_t: Array) -> Array:
        return over_x * over_t

    def contract(self, response: _Response, factors: _Factors) -> list[Array]:
        sums = [np.zeros((len(left), len(right))) for left, right in factors]
        # One mode at a time: a table of modes x point x point' would not fit in memory.
        for mode in range(factors[0][0].shape[1]):
            table = response(self.times_a, self.times_b, slice(mode, mode + 1))[0]
            at_points = table[self.index_a[:, None], self.index_b]
            for total, (left, right) in zip(sums, factors, strict=True):
                total += left[:, mode, None] * right[:, mode] * at_points
        return sums


def _assemble(
    parameters: Mapping[str, Array], a: Grid, b: Grid, modes: int, layout: _Layout
) -> Covariances:
    keys = ("production", "decay", "diffusion", "lengthscale_x", "lengthscale_t")
    production, decay, diffusion, theta_x, theta_t = (float(parameters[key]) for key in keys)
    if any(axis.min() < 0 or axis.max() > 1 for axis in (*a, *b)):
        raise ValueError("points (x, t) must lie in the unit square [0, 1] x [0, 1]")
    (x_a, t_a), (x_b, t_b) = a, b
    n = np.arange(1.0, modes + 1)
    rate = decay + diffusion * (np.pi * n) ** 2

    def forward(t: Array, s: Array, mode: slice) -> Array:
        """h_n(t, t'): the output at a's time answers the force at b's."""
        return greens.relaxation(t[:, None], s, rate[mode, None, None], theta_t)

    def backward(t: Array, s: Array, mode: slice) -> Array:
        """h_n(t', t): the output at b's time answers the force at a's."""
        return greens.relaxation(s, t[:, None], rate[mode, None, None], theta_t)

    sines_a, sines_b = (np.sin(np.pi * n * x[:, None]) for x in (x_a, x_b))
    transform_a = greens.sine_transform(n, x_a, theta_x).T
    coupling = 4 * greens.sine_overlap(n, theta_x) / (rate[:, None] + rate)

    uu = layout.matrix(
        greens.kernel(x_a[:, None], x_b, theta_x), greens.kernel(t_a[:, None], t_b, theta_t)
    )
    uy, yy = layout.contract(backward, [(transform_a, 2 * sines_b), (sines_a @ coupling, sines_b)])
    yy += layout.contract(forward, [(sines_a, sines_b @ coupling)])[0]

    # What the force before t = 0 would have contributed: the output starts from rest.
    decayed_a, decayed_b = (
        layout.product(sines, np.exp(-rate * t[:, None]))
        for sines, t in ((sines_a, t_a), (sines_b, t_b))
    )
    started_a, started_b = (
        layout.product(sines, greens.relaxation(t[:, None], 0.0, rate, theta_t))
        for sines, t in ((sines_a, t_a), (sines_b, t_b))
    )
    yy -= started_a @ coupling @ decayed_b.T + decayed_a @ coupling @ started_b.T
    return Covariances(uu, production * uy, production**2 * yy)
