"""Reaction–diffusion: gene expression along an embryo, driven by an unobserved force."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Annotated, ClassVar, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, Field
from scipy.special import ndtr

from dklfm.settings import Distribution, Uniform, positive
from dklfm.systems import greens
from dklfm.systems.base import Array, Axis, Draw, Solution, System

_PARAMETERS = ("production", "decay", "diffusion", "lengthscale_x", "lengthscale_t")
_PAIRS_PER_LENGTHSCALE = 1.6
_EXTRA_PAIRS = 5
_CUTOFF = 1e-13
"""Eigenvalues below this share of the largest are rounding, not signal."""


class ReactionDiffusion(System):
    """∂y/∂t = S u − λ y + D ∂²y/∂x² with y = 0 at x = 0, x = 1 and t = 0, on [0, 1]².

    Eq. 10 of the DKLFM paper, after López-Lopera et al. (2019), with
    u ~ GP(0, exp(−(Δx/θ_x)² − (Δt/θ_t)²)); a "lengthscale" here is such a θ, which is √2
    times the ℓ of exp(−Δ²/2ℓ²). Space and time are scaled to [0, 1].

    A force is a white matrix between square roots of its two one-dimensional kernels, and its
    output is the Green's operator applied to that very force: no joint covariance is formed,
    so none can come out indefinite and no draw is ever refused.
    """

    force_name: ClassVar[str] = "mRNA"

    name: Literal["reaction_diffusion"] = "reaction_diffusion"
    production: Distribution = Uniform(low=0.2, high=1.0)
    decay: Annotated[Distribution, AfterValidator(positive)] = Uniform(low=0.01, high=0.4)
    diffusion: Annotated[Distribution, AfterValidator(positive)] = Uniform(low=0.001, high=0.1)
    lengthscale_x: Annotated[Distribution, AfterValidator(positive)] = Uniform(low=0.1, high=0.4)
    lengthscale_t: Annotated[Distribution, AfterValidator(positive)] = Uniform(low=0.1, high=0.4)
    fastest_rate: Annotated[float, Field(gt=0)] = 4000.0
    """Sine modes that decay faster than this follow the force without delay."""

    @property
    def axes(self) -> tuple[Axis, ...]:
        return (Axis("x", "", 0.0, 1.0), Axis("t", "", 0.0, 1.0))

    @property
    def scale_note(self) -> str:
        return (
            "the force is in standard deviations of its prior; its scale trades with the rate of "
            "production, which the data do not tell"
        )

    @property
    def outputs(self) -> tuple[str, ...]:
        return ("protein",)

    @property
    def parameters(self) -> tuple[str, ...]:
        return _PARAMETERS

    def draw(self, rng: np.random.Generator) -> Draw:
        parameters = {key: np.asarray(getattr(self, key).sample(rng)) for key in _PARAMETERS}
        shape = self.white_shapes()["coefficients"]
        return {**parameters, "coefficients": rng.standard_normal(shape)}

    def white_shapes(self) -> dict[str, tuple[int, ...]]:
        lengthscales = self.lengthscale_x, self.lengthscale_t
        nodes = tuple(_node_count(prior.bounds[0]) for prior in lengthscales)
        return {**dict.fromkeys(_PARAMETERS, ()), "coefficients": nodes}

    def from_white(self, white: Draw) -> Draw:
        parameters = {key: getattr(self, key).quantile(ndtr(white[key])) for key in _PARAMETERS}
        return {**parameters, "coefficients": white["coefficients"]}

    def force_covariances(
        self, parameters: Mapping[str, Array], points: Sequence[Array]
    ) -> list[Array]:
        thetas = parameters["lengthscale_x"], parameters["lengthscale_t"]
        return [
            np.stack([greens.kernel(each[:, None], each, theta) for theta in values])
            for each, values in zip(points, thetas, strict=True)
        ]

    def solve(self, draws: Draw, x: Array) -> Solution:
        """Evaluate forces and outputs at any points of [0, 1]².

        The outputs solve the equation for these very forces. Modes with Dn²π² above
        ``fastest_rate`` are summed in closed form as if in their quasi-steady state, which by
        default leaves a relative L2 error below 5e-7 over the prior (it falls as
        fastest_rate^−2.25; points with t below 1/fastest_rate may be off by 1e-5 of the
        output's scale).

        Args:
            draws: the fields of :meth:`draw`, stacked along a leading task dimension.
            x: ``task x point x axis`` inputs (x, t).

        Raises:
            ValueError: if a point lies outside the unit square.
        """
        if x.min() < 0 or x.max() > 1:
            raise ValueError("points (x, t) must lie in the unit square [0, 1] x [0, 1]")
        force, outputs = np.empty(x.shape[:2]), np.empty((len(x), 1, x.shape[1]))
        for task, points in enumerate(x):
            if task == 0 or not np.array_equal(points, x[task - 1]):
                mesh = _Mesh.of(points)
            draw = {key: values[task] for key, values in draws.items()}
            force[task], outputs[task, 0] = self._solve_task(draw, mesh)
        return Solution(force, outputs)

    def _solve_task(self, draw: Draw, mesh: _Mesh) -> tuple[Array, Array]:
        """``point`` values of one task's force and output."""
        factors = self._factors(draw, mesh)
        white = draw["coefficients"][: factors.force_x.shape[1], : factors.force_t.shape[1]]
        force = mesh.evaluate(factors.force_x @ white, factors.force_t)
        lag = factors.lag((factors.amplitude @ white)[..., None])[..., 0].T
        output = mesh.evaluate(factors.steady @ white, factors.settled_t)
        output += mesh.evaluate(factors.sines, lag)
        return force, np.where(mesh.fixed, 0.0, factors.production * output)

    def roots(self, draw: Draw, points: Array) -> tuple[Array, Array]:
        """Square roots of the joint law of force and output, given the parameters.

        With white z, u = R_u z and y = R_y z, so that K_uu = R_u R_uᵀ, K_uy = R_u R_yᵀ and
        K_yy = R_y R_yᵀ, free of the truncation of a closed form at some number of modes.

        Args:
            draw: one task's parameters; its coefficients are not looked at.
            points: ``point x axis`` inputs (x, t).

        Returns:
            R_u and R_y, each ``point x coefficient``.
        """
        mesh = _Mesh.of(points)
        factors = self._factors(draw, mesh)
        at_x, at_t = mesh.index_x, mesh.index_t
        size = len(points), -1
        force = factors.force_x[at_x, :, None] * factors.force_t[at_t, None, :]
        output = factors.steady[at_x, :, None] * factors.settled_t[at_t, None, :]
        # Σ_n sin(nπx) a_n(i) lag_n(t, j) as one product of matrices over the modes.
        over_x = factors.sines[:, None, :] * factors.amplitude.T  # x i n
        lag = factors.lag(np.eye(factors.force_t.shape[1])[None])
        if mesh.is_grid:
            table = over_x.reshape(-1, over_x.shape[-1]) @ lag.reshape(len(lag), -1)
            table = table.reshape(*over_x.shape[:2], *lag.shape[1:])  # x i t j
            output += table[at_x, :, at_t]
        else:
            output += over_x[at_x] @ lag.transpose(1, 0, 2)[at_t]
        output[mesh.fixed] = 0.0
        return force.reshape(size), factors.production * output.reshape(size)

    def _factors(self, draw: Draw, mesh: _Mesh) -> _Factors:
        """The factors over x and over t of the maps from white coefficients to u and y."""
        production, decay, diffusion, theta_x, theta_t = (float(draw[key]) for key in _PARAMETERS)
        nodes_x, nodes_t = (
            _nodes(theta, _node_count(prior.bounds[0]))
            for theta, prior in ((theta_x, self.lengthscale_x), (theta_t, self.lengthscale_t))
        )
        root_x, root_t = _root(nodes_x, theta_x), _root(nodes_t, theta_t)
        force_x = _apply(greens.kernel(mesh.x[:, None], nodes_x, theta_x), root_x)
        force_t = _apply(greens.kernel(mesh.t[:, None], nodes_t, theta_t), root_t)

        # Where u does not vanish at the ends, the sine series of y falls only as n⁻³. That of
        # y − A⁻¹u, A = λ − D ∂²/∂x², falls as n⁻⁵, and A⁻¹u is known in closed form; its share
        # grows from zero as the last mode relaxes, so that y starts from rest.
        mode = np.arange(1.0, np.ceil(np.sqrt(self.fastest_rate / diffusion) / np.pi) + 1)
        rate = decay + diffusion * (np.pi * mode) ** 2
        resting = np.exp(-rate[-1] * mesh.t)[:, None]
        # The nodes are symmetric about 1/2, and so are the sines up to a sign.
        half = greens.sine_transform(mode, nodes_x[: len(nodes_x) // 2], theta_x)
        mirrored = ((-1.0) ** (mode + 1))[:, None] * half[:, ::-1]
        return _Factors(
            production=production,
            force_x=force_x,
            force_t=force_t,
            steady=_apply(greens.steady_state(mesh.x, nodes_x, decay, diffusion, theta_x), root_x),
            settled_t=(1 - resting) * force_t,
            sines=2 * np.sin(np.pi * np.outer(mesh.x, mode)),
            amplitude=np.hstack([half, mirrored]) @ root_x,
            lag=partial(_lag, rate, mesh.t, nodes_t, root_t, theta_t),
        )


class _Factors(NamedTuple):
    """Maps from white coefficients ``i x j`` to u and y, one factor over x and one over t.

    Attributes:
        production: S.
        force_x, force_t: ``x x i`` and ``t x j`` factors of u.
        steady, settled_t: ``x x i`` and ``t x j`` factors of the quasi-steady part of y/S.
        sines: ``x x mode``, 2 sin(nπx).
        amplitude: ``mode x i``, the sine transform of u.
        lag: what each mode adds to its quasi-steady part, by :func:`_lag`.
    """

    production: float
    force_x: Array
    force_t: Array
    steady: Array
    settled_t: Array
    sines: Array
    amplitude: Array
    lag: Callable[[Array], Array]


class _Mesh(NamedTuple):
    """Points of one task, by their distinct coordinates.

    Attributes:
        x, t: the distinct coordinates.
        index_x, index_t: ``point`` positions of each point's coordinates among them.
        fixed: ``point``, true where the boundary or initial condition holds.
    """

    x: Array
    t: Array
    index_x: NDArray[np.intp]
    index_t: NDArray[np.intp]
    fixed: NDArray[np.bool_]

    @classmethod
    def of(cls, points: Array) -> _Mesh:
        (x, index_x), (t, index_t) = (np.unique(column, return_inverse=True) for column in points.T)
        fixed = (points[:, 0] == 0) | (points[:, 0] == 1) | (points[:, 1] == 0)
        return cls(x, t, index_x, index_t, fixed)

    @property
    def is_grid(self) -> bool:
        """Whether a table of all pairs of coordinates is little more than the points."""
        return len(self.x) * len(self.t) <= 4 * len(self.index_x)

    def evaluate(self, factor_x: Array, factor_t: Array) -> Array:
        """Σ_k factor_x[x, k] factor_t[t, k] at each point.

        On a grid the table of all pairs is the answer and one matrix product makes it; among
        scattered points nearly all pairs are unwanted.
        """
        if self.is_grid:
            return (factor_x @ factor_t.T)[self.index_x, self.index_t]
        return np.einsum("pk,pk->p", factor_x[self.index_x], factor_t[self.index_t])


def _node_count(theta: float) -> int:
    """An even number of nodes; the residual prior variance is below 1e-9 from θ = 0.05 on."""
    return 2 * int(np.ceil(_PAIRS_PER_LENGTHSCALE / theta) + _EXTRA_PAIRS)


def _nodes(theta: float, at_most: int) -> Array:
    """Nodes on [0, 1], halfway between uniform and Chebyshev points.

    Uniform nodes miss the path near the ends, where it is pinned from one side only, and
    Chebyshev's miss it in the middle. A prior with tails can undercut its own lower bound,
    for which the nodes were counted: ``at_most`` is the number of white coefficients.
    """
    uniform = np.linspace(0.0, 1.0, min(_node_count(theta), at_most))
    return (uniform + (1 - np.cos(np.pi * uniform)) / 2) / 2


def _root(nodes: Array, theta: float) -> Array:
    """K^{-1/2} over the nodes: u = k(·, nodes) K^{-1/2} z has the Nyström law for white z.

    The symmetric root does not depend on the signs that LAPACK gives to eigenvectors, so a
    seed means the same force on every machine.
    """
    values, vectors = np.linalg.eigh(greens.kernel(nodes[:, None], nodes, theta))
    keep = values > _CUTOFF * values[-1]
    return (vectors[:, keep] / np.sqrt(values[keep])) @ vectors[:, keep].T


def _apply(rows: Array, root: Array) -> Array:
    """``rows @ root``, each row summed in the same order however many there are.

    The root amplifies rounding a million times. BLAS orders its sums by the number of rows, and a
    point's value would depend on which other points are asked for.
    """
    return np.einsum("...n,ni->...i", rows, root)


def _lag(rate: Array, t: Array, nodes: Array, root: Array, theta: float, white: Array) -> Array:
    """∫₀ᵗ e^{−β(t−τ)} u(τ) dτ − (1 − e^{−β_N t}) u(t)/β, how far a mode lags its resting state.

    Modes with θ_t β/2 from ``greens.ASYMPTOTIC`` on take J = ``greens.ORDER`` integrations by
    parts, Σ_{j=1}^{J−1} (−1)ʲ u⁽ʲ⁾(t)/βʲ⁺¹ − e^{−βt} Σ_{j=0}^{J−1} (−1)ʲ u⁽ʲ⁾(0)/βʲ⁺¹: far
    cheaper than erfcx, and without its cancellation against u/β. A sampled path is rougher
    than k, so the remainder is 1e-8 of the mode.

    Args:
        rate: ``mode`` decay rates β, increasing; the last is β_N.
        t: ``time`` values.
        nodes: ``node`` times.
        root: ``node x node`` from :func:`_root`.
        theta: θ_t.
        white: ``mode x node x column`` coefficients z of u(t) = k(t, nodes) root z, or
            ``1 x node x column`` where they are the same for every mode.

    Returns:
        ``mode x time x column``.
    """
    slow = int(np.searchsorted(theta * rate / 2, greens.ASYMPTOTIC))
    own = len(white) > 1
    beta = rate[:slow, None, None]
    response = greens.relaxation(t[:, None], nodes, beta, theta)
    response -= greens.kernel(t[:, None], nodes, theta) / beta
    exact = _apply(response, root) @ (white[:slow] if own else white)

    times = np.append(t, 0.0)[:, None]
    derivatives = _apply(greens.scaled_derivatives(times, nodes, theta, greens.ORDER), root)
    columns = np.moveaxis(white, 1, 0)  # node mode column
    paths = np.tensordot(derivatives, columns, axes=1)  # j time mode column
    beta = rate[slow:, None]
    powers = np.vander(-1 / (theta * beta[:, 0]), greens.ORDER, increasing=True) / beta
    late = paths[:, :, slow:] if own else paths
    settled = np.einsum("nj,jtnc->ntc", powers[:, 1:], late[1:, :-1])
    initial = np.einsum("nj,jnc->nc", powers, late[:, -1])
    decayed = np.exp(-beta * t)[..., None] * initial[:, None]
    resting = (np.exp(-rate[-1] * t)[:, None, None] * paths[0, :-1]).swapaxes(0, 1)
    return np.concatenate([exact, settled - decayed]) + resting / rate[:, None, None]
