"""The Green's operator of an equation that is linear in its force.

Given the equation's parameters θ, weights of the outputs' modes are linear in those of the force,

    c = s(θ) A(θ) w + b(θ) + e,    w ~ N(0, Λ(ℓ)),    e ~ N(0, R),

A and b are polynomials of θ, by least squares on simulated tasks, and e is what these leave; Λ is
the covariance that the prior gives the force, with the lengthscales ℓ. So (θ, ℓ) make force and
outputs one Gaussian: they are the embedding of a deep kernel. :mod:`dklfm.model.evidence` infers
by it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import product
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline
from torch import Tensor, nn

from dklfm.config import GreenConfig
from dklfm.errors import ConfigError
from dklfm.model.gaussian import cholesky
from dklfm.model.products import (
    KroneckerRoot,
    ProductModes,
    chebyshev,
    chebyshev_grid,
    chebyshev_nodes,
)

if TYPE_CHECKING:
    from dklfm.model.batch import Scale
    from dklfm.systems import System

Array = NDArray[np.float64]
REACH = 3.5
"""Standard normal numbers beyond which a parameter is what it is there."""
_CELLS = 128
"""Pieces of a parameter's table between these."""
_PER_AXIS = 21
"""Functions an axis that products are chosen from, where there are several axes."""
_ROOTS = 14
"""Chebyshev nodes that a lengthscale's covariances are interpolated between."""
_JITTER = 1e-8
"""Of covariances of weights, which are of the order of one."""
_POWER = 0.25
"""Of a rate, in which outputs are closer to a polynomial than in it or its logarithm."""
_HELD_OUT = 8
"""One in so many tasks tells what the regression leaves unexplained."""
_RIDGE = 1e-7
"""Of the regression, a row."""
_ROWS_AT_ONCE = 2048
_LESSONS = 20480
"""Tasks that the regression is made on."""
_LEAST_REST = 1e-12
"""Variance of what is left unexplained of weights, which are of the order of one."""


class Linear(NamedTuple):
    """What parameters make of an equation: polynomials φ(θ), s, and a root of Λ(ℓ)."""

    terms: Float[Tensor, "task term"]
    factor: Float[Tensor, " task"]
    root: KroneckerRoot


class Slopes(NamedTuple):
    """Derivatives of these by θ, and those of the root by each of ℓ."""

    terms: Float[Tensor, "task term parameter"]
    factor: Float[Tensor, "task parameter"]
    roots: list[KroneckerRoot]


class GreenOperator(nn.Module):
    """See the module's docstring; all of it is learnt at once, nothing by gradients.

    θ and ℓ are standard normal numbers z, in the order of ``names``.
    """

    def __init__(self, config: GreenConfig, axes: int, outputs: int) -> None:
        super().__init__()
        self.config, self.outputs = config, outputs
        self.names = config.parameters
        degrees, modes = tuple(config.degrees.values()), outputs * config.modes
        per_axis = config.force_modes if axes == 1 else min(config.nodes, _PER_AXIS)
        self.force_modes = ProductModes(axes, config.nodes, per_axis, config.force_modes)
        each = (
            ProductModes(axes, config.nodes, config.nodes, config.modes) for _ in range(outputs)
        )
        self.modes = nn.ModuleList(each)
        self.register_buffer("exponents", _exponents(degrees), persistent=False)
        size, terms = len(self.names), len(self.exponents)

        def buffer(name: str, *shape: int, dtype: torch.dtype = torch.float64) -> None:
            self.register_buffer(name, torch.zeros(shape, dtype=dtype))

        # Nothing learnt: outputs are what is left unexplained.
        buffer("values", size, 2 * _CELLS + 1)
        buffer("tables", size, 4, _CELLS)
        buffer("roots", axes, _ROOTS, per_axis, per_axis)
        buffer("operator", terms, modes, config.force_modes, dtype=torch.float32)
        buffer("offset", terms, modes)
        buffer("rest", outputs, config.modes, config.modes)
        self.rest += torch.eye(config.modes, dtype=torch.float64)
        buffer("zero", 1)
        buffer("force_zero", 1)
        buffer("force_rest", 1)

    exponents: Tensor  # term parameter
    values: Tensor  # parameter place, what each is at even steps of its standard normal number
    tables: Tensor  # parameter power cell, of splines: factors, and places in [−1, 1]
    roots: Tensor  # axis order function function, Chebyshev coefficients
    operator: Tensor  # term (output mode) force_mode, A
    offset: Tensor  # term (output mode), b
    rest: Tensor  # output mode mode, R
    zero: Tensor  # where physical outputs vanish on the model's scale
    force_zero: Tensor
    force_rest: Tensor  # variance that the force's modes leave

    @property
    def output_modes(self) -> list[ProductModes]:
        """Of each output."""
        return cast(list[ProductModes], list(self.modes))

    @property
    def rates(self) -> int:
        """How many parameters are of the equation; the others are lengthscales."""
        return len(self.names) - len(self.config.lengthscales)

    @property
    def only_factor(self) -> range:
        """Parameters of which only s depends."""
        return range(self.rates - len(self.config.degrees))

    @torch.no_grad()
    def learn(self, system: System, scale: Scale, seed: int) -> None:
        """Regress tasks that are simulated for it.

        Args:
            system: the equation, and the prior of its parameters and force.
            scale: of the model.
            seed: of the tasks.

        Raises:
            ConfigError: if ``model`` names other parameters than the system has, or if the system
                does not say how its force's covariance depends on them.
        """
        self._check(system)
        self.zero.fill_(-scale.mean / scale.sd)
        self.force_zero.fill_(-scale.force_mean / scale.force_sd)
        self._learn_tables(system)
        self._learn_force(system, scale.force_sd)
        z, outputs, force = self._simulated(system, np.random.default_rng([seed, _LESSONS]))
        h, f = outputs / scale.sd, force / scale.force_sd
        for i, modes in enumerate(self.output_modes):
            fields = h[:, i].unflatten(1, (self.config.nodes,) * len(system.axes))
            moments = [_second(fields, axis) for axis in range(len(system.axes))]
            modes.learn(torch.stack(moments), h[:, i])
        self._regress(h, f, z)

    def _simulated(self, system: System, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Parameters, ``task x output x node`` outputs and ``task x node`` forces, as they are."""
        white = {
            name: rng.standard_normal((_LESSONS, *shape))
            for name, shape in system.white_shapes().items()
        }
        z = np.stack([white[name] for name in self.names], -1)
        low = np.array([axis.low for axis in system.axes])
        high = np.array([axis.high for axis in system.axes])
        grid = low + (high - low) * chebyshev_grid(self.config.nodes, len(low)).numpy()
        x = np.broadcast_to(grid, (_LESSONS, *grid.shape))
        solved = system.solve(system.from_white(white), x)
        outputs, force = torch.from_numpy(solved.outputs), torch.from_numpy(solved.force)
        return torch.from_numpy(z), outputs, force

    def _check(self, system: System) -> None:
        free = [name for name in system.parameters if name in system.white_shapes()]
        shapes = system.white_shapes()
        if set(self.names) != set(free) or any(shapes[name] for name in free):
            raise ConfigError(
                f"model: green needs every parameter that {system.name} draws for a task named "
                "once, in proportional, degrees or lengthscales: "
                f"it draws {', '.join(free)}; named are {', '.join(self.names)}"
            )
        if len(self.config.lengthscales) != len(system.axes):
            raise ConfigError(
                f"model.lengthscales: {system.name} has {len(system.axes)} axes, named are "
                f"{len(self.config.lengthscales)} lengthscales; give one for each axis, in order"
            )

    def _learn_tables(self, system: System) -> None:
        z = np.linspace(-REACH, REACH, self.values.shape[1])
        white = {name: np.zeros((len(z), *shape)) for name, shape in system.white_shapes().items()}
        drawn = system.from_white(white | dict.fromkeys(self.names, z))
        at = np.linspace(-REACH, REACH, _CELLS + 1)
        for i, name in enumerate(self.names):
            values = drawn[name]
            if not (values > 0).all():
                raise ConfigError(
                    f"model: green is for positive parameters, and {name} is not; take another "
                    "model"
                )
            self.values[i] = torch.from_numpy(values)
            if name == self.config.proportional:
                read = values
            else:
                read = values**_POWER if name in self.config.degrees else np.log(values)
                read = 2 * (read - read[0]) / (read[-1] - read[0]) - 1
            self.tables[i] = torch.from_numpy(CubicSpline(at, read[::2]).c.copy())

    def _learn_force(self, system: System, scale: float) -> None:
        first = self.rates
        grid = chebyshev_nodes(self.config.nodes).numpy()
        points = [axis.low + (axis.high - axis.low) * grid for axis in system.axes]

        def covariances(values: Tensor) -> list[Tensor]:
            """Of each axis, for ``lengthscale x place`` values."""
            named = dict(zip(self.config.lengthscales, values.numpy(), strict=True))
            try:
                found = system.force_covariances(named, points)
            except NotImplementedError as error:
                raise ConfigError(f"model: green cannot be used here: {error}") from None
            # The size of a force is one axis's.
            sizes = [scale**-2 if axis == 0 else 1.0 for axis in range(len(found))]
            return [size * torch.from_numpy(each) for size, each in zip(sizes, found, strict=True)]

        weight = torch.exp(-0.5 * torch.linspace(-REACH, REACH, self.values.shape[1]) ** 2).double()
        usual = [
            torch.einsum("n,nij->ij", weight / weight.sum(), each)
            for each in covariances(self.values[first:])
        ]
        self.force_modes.learn(torch.stack(usual))
        variance = math.prod(float(self.force_modes.measure @ each.diagonal()) for each in usual)
        kept = self.force_modes.energy().sum()
        self.force_rest.fill_(max(variance - float(kept), 0.0))
        nodes = torch.cos((torch.arange(_ROOTS).double() + 0.5) * torch.pi / _ROOTS)
        ends = self.values[first:][:, [0, -1]].log()
        middle, half = ends.mean(1, keepdim=True), ends.diff(dim=1) / 2
        modes = self.force_modes
        back = modes.back().mT
        waves = chebyshev(nodes, _ROOTS)[0]
        for axis, each in enumerate(covariances((middle + half * nodes).exp())):
            eye = torch.eye(len(back[axis])).to(back)
            factors = cholesky(back[axis] @ each @ back[axis].mT + _JITTER * eye)
            self.roots[axis] = torch.linalg.solve(waves, factors.flatten(1)).view_as(factors)

    def _regress(self, outputs: Tensor, force: Tensor, z: Tensor) -> None:
        each = zip(outputs.unbind(1), self.output_modes, strict=True)
        target = torch.cat([modes.weights(values) for values, modes in each], -1)
        columns = nn.functional.pad(self.force_modes.weights(force), (1, 0), value=1.0)
        terms, factor = self.terms(z)
        told = torch.arange(len(z)) % _HELD_OUT > 0

        def design(rows: Tensor) -> Tensor:
            seen = columns[rows].clone()
            seen[:, 1:] *= factor[rows, None]
            return (terms[rows, :, None] * seen[:, None]).flatten(1)

        count = terms.shape[1] * columns.shape[1]
        gram = _RIDGE * int(told.sum()) * torch.eye(count, dtype=torch.float64)
        both = torch.zeros(count, target.shape[1], dtype=torch.float64)
        for rows in told.nonzero()[:, 0].split(_ROWS_AT_ONCE):
            part = design(rows)
            gram.addmm_(part.mT, part)
            both.addmm_(part.mT, target[rows])
        solved = torch.cholesky_solve(both, cholesky(gram)).unflatten(0, (terms.shape[1], -1))
        self.offset.copy_(solved[:, 0])
        self.operator.copy_(solved[:, 1:].mT)
        held = (~told).nonzero()[:, 0]
        missed = target[held] - design(held) @ solved.flatten(0, 1)
        parts = missed.unflatten(1, (self.outputs, -1)).transpose(0, 1)
        eye = torch.eye(parts.shape[-1]).to(parts)
        self.rest.copy_(parts.mT @ parts / len(held) + _LEAST_REST * eye)

    def standard(self, parameters: Mapping[str, Array]) -> Tensor:
        """Standard normal numbers of ``task`` values by their names."""
        z = np.linspace(-REACH, REACH, self.values.shape[1])
        each = zip(self.names, self.values.cpu().numpy(), strict=True)
        return torch.from_numpy(
            np.stack([np.interp(parameters[name], values, z) for name, values in each], -1)
        )

    def terms(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Polynomials φ, ``task x term``, and s, ``task``."""
        return self._terms(z)[0], self.factor(z)[0]

    def at(self, z: Tensor) -> Linear:
        """What ``task x parameter`` standard normal numbers make of the equation."""
        return Linear(*self.terms(z), KroneckerRoot(self._roots(z)[0], self.force_modes.kept))

    def along(self, z: Tensor) -> tuple[Linear, Slopes]:
        """The same, and its derivatives."""
        terms, by_terms = self._terms(z)
        factor, by_factor = self.factor(z)
        (found, slopes), kept = self._roots(z), self.force_modes.kept
        roots = [
            KroneckerRoot([slopes[j] if i == j else root for j, root in enumerate(found)], kept)
            for i in range(len(found))
        ]
        return (
            Linear(terms, factor, KroneckerRoot(found, kept)),
            Slopes(by_terms, by_factor, roots),
        )

    def factor(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """s, ``task``, and its derivatives by the parameters of the equation."""
        slopes = z.new_zeros(len(z), self.rates)
        if self.config.proportional is None:
            return torch.ones_like(z[:, 0]), slopes
        value, slopes[:, 0] = _read(self.tables[0], z[:, 0])
        return value, slopes

    def _terms(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Products of Chebyshev polynomials, ``task x term``, and ``... x parameter`` slopes."""
        first = len(self.only_factor)
        each = [_read(self.tables[i], z[:, i]) for i in range(first, self.rates)]
        places, slopes = (torch.stack(parts, -1) for parts in zip(*each, strict=True))
        found, by_each = _products(places, slopes, self.exponents)
        return found, nn.functional.pad(by_each, (first, 0))

    def _roots(self, z: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Of each axis, ``task x function x function``, and their slopes."""
        found, slopes = [], []
        for axis, coefficients in enumerate(self.roots):
            i = self.rates + axis
            place, by_z = _read(self.tables[i], z[:, i])
            waves, by_place = chebyshev(place, _ROOTS)
            found.append(torch.tensordot(waves, coefficients, 1))
            slopes.append(torch.tensordot(by_z[:, None] * by_place, coefficients, 1))
        return found, slopes


def _exponents(degrees: tuple[int, ...]) -> Tensor:
    """``term x parameter`` orders, whose sum is at most one as shares of the degrees."""
    every = product(*(range(degree + 1) for degree in degrees))
    share = 1 + 1e-9
    return torch.tensor(
        [
            orders
            for orders in every
            if sum(o / d for o, d in zip(orders, degrees, strict=True) if d) <= share
        ]
    )


def _products(places: Tensor, slopes: Tensor, exponents: Tensor) -> tuple[Tensor, Tensor]:
    """Products of Chebyshev polynomials, and their derivatives.

    Args:
        places: ``task x parameter``, in [−1, 1].
        slopes: of these by what derivatives are by.
        exponents: ``term x parameter`` orders.

    Returns:
        ``task x term`` and ``task x term x parameter``.
    """
    waves, by_place = chebyshev(places, max(2, int(exponents.max()) + 1))
    which = torch.arange(exponents.shape[1])
    parts = waves[:, which, exponents]  # task term parameter
    by_each = slopes[:, None] * by_place[:, which, exponents]
    for i in range(len(which)):
        by_each[..., i] *= parts[..., which != i].prod(-1)
    return parts.prod(-1), by_each


def _read(table: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """A tabulated function and its slope; constant beyond the table."""
    inside = z.clamp(-REACH, REACH)
    position = (inside + REACH) * (_CELLS / (2 * REACH))
    cell = position.long().clamp(max=_CELLS - 1)
    away = (position - cell) * (2 * REACH / _CELLS)
    a, b, c, d = table[:, cell]
    slope = (3 * a * away + 2 * b) * away + c
    return ((a * away + b) * away + c) * away + d, torch.where(inside == z, slope, 0.0)


def _second(fields: Tensor, axis: int) -> Tensor:
    """Second moments along one axis of functions on a grid, ``task x`` a dimension an axis."""
    lines = fields.movedim(1 + axis, -1).flatten(0, -2)
    return lines.mT @ lines / len(lines)
