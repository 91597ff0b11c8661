"""Transcription as inference solves it: fewer force coefficients, and integration in closed form.

The force is a sum of sines on an interval that reaches beyond the domain (Solin & Särkkä,
Statistics and Computing 2020), which leaves one basis for all lengthscales. Each output's response
to its production is y(t) = b/d + s ∫ exp(−d(t − u)) G(f(u)) du; with G ∘ f quadratic between
neighbouring nodes the integral is exact for any decay.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np

from dklfm.systems.base import Array, Draw, Linearisation, Solution
from dklfm.systems.ode import hermite
from dklfm.systems.transcription import Transcription

_REACH = 2.0
"""Of the interval beyond each end of the domain, in longest lengthscales."""
_HIGHEST = 4.0
"""Frequency of the last sine times the shortest lengthscale: 6e-5 of the variance lie above."""
_PANEL = 0.4
"""Width of a panel of three nodes, in shortest lengthscales."""
_DIFFERENCE = 1e-5
_POINTS, _WEIGHTS = (np.polynomial.legendre.leggauss(8) + np.array([[1.0], [0.0]])) / 2
_QUADRATIC = np.stack(
    [(1 - _POINTS) * (1 - 2 * _POINTS), 4 * _POINTS * (1 - _POINTS), _POINTS * (2 * _POINTS - 1)], 1
)
"""Lagrange polynomials of a panel's three nodes, at points of a quadrature over it."""


class _Basis(NamedTuple):
    """Sines over an interval and the panels of its domain.

    Attributes:
        frequencies: ``coefficient``.
        start: of the interval.
        length: of the interval.
        panels: how many.
        width: of a panel.
        at_nodes: ``node x coefficient``, at the ends and middles of the panels.
    """

    frequencies: Array
    start: float
    length: float
    panels: int
    width: float
    at_nodes: Array

    def sines(self, times: Array) -> Array:
        return np.sqrt(2 / self.length) * np.sin(self.frequencies * (times[..., None] - self.start))


@cache
def _basis(duration: float, shortest: float, longest: float) -> _Basis:
    length = duration + 2 * _REACH * longest
    count = int(np.ceil(_HIGHEST / shortest * length / np.pi))
    panels = int(np.ceil(duration / (_PANEL * shortest)))
    frequencies = np.arange(1.0, count + 1) * np.pi / length
    basis = _Basis(
        frequencies, -_REACH * longest, length, panels, duration / panels, np.empty((0, count))
    )
    return basis._replace(at_nodes=basis.sines(np.linspace(0.0, duration, 2 * panels + 1)))


class TranscriptionSurrogate(Transcription):
    """The same equation and prior; a draw's coefficients are those of another basis."""

    def _basis(self) -> _Basis:
        return _basis(self.duration, *self.lengthscale.bounds)

    def white_shapes(self) -> dict[str, tuple[int, ...]]:
        count = len(self._basis().frequencies)
        return super().white_shapes() | {"coefficients": (count,)}

    def draw(self, rng: np.random.Generator) -> Draw:
        coefficients = rng.standard_normal(len(self._basis().frequencies))
        return {**super().draw(rng), "coefficients": coefficients}

    def surrogate(self) -> TranscriptionSurrogate:
        return self

    def solve(self, draws: Draw, x: Array) -> Solution:
        times, basis = self._shared(x), self._basis()
        weights = (self._spectrum(draws) * draws["coefficients"])[..., None]
        drive = self.activity(basis.at_nodes @ weights)
        force = (basis.sines(times) @ weights)[..., 0]
        outputs = self._driven(draws, drive, times)[..., 0] + self.initial(draws)[..., None]
        return Solution(force, outputs)

    def linearise(self, draws: Draw, x: Array) -> Linearisation:
        times, basis = self._shared(x), self._basis()
        spectrum = self._spectrum(draws)
        weights = (spectrum * draws["coefficients"])[..., None]
        force = basis.at_nodes @ weights
        slope = self.activity(force + 0.5 * _DIFFERENCE) - self.activity(force - 0.5 * _DIFFERENCE)
        drives = np.concatenate(
            [slope / _DIFFERENCE * basis.at_nodes * spectrum[:, None], self.activity(force)], -1
        )
        driven = self._driven(draws, drives, times)
        sines = basis.sines(times)
        return Linearisation(
            (sines @ weights)[..., 0],
            driven[..., -1] + self.initial(draws)[..., None],
            sines * spectrum[:, None],
            driven[..., :-1],
        )

    def _shared(self, x: Array) -> Array:
        """Times, ``task x point``, or of one task alone where all have the same."""
        return self._times(x[:1] if x.strides[0] == 0 else x)

    def _spectrum(self, draws: Draw) -> Array:
        """Prior standard deviation of each sine's weight, ``task x coefficient``."""
        lengthscale = draws["lengthscale"][:, None]
        exponent = np.square(lengthscale * self._basis().frequencies)
        return np.sqrt(np.sqrt(2 * np.pi) * lengthscale * np.exp(-0.5 * exponent))

    def _driven(self, draws: Draw, drive: Array, times: Array) -> Array:
        """What production adds to outputs that started at rest.

        Args:
            draws: parameters ``sensitivity`` and ``decay``.
            drive: ``task x node x column`` values of G ∘ f, or of its derivatives.
            times: ``task x point``, or of one task for all.

        Returns:
            ``task x gene x point x column``.
        """
        basis = self._basis()
        rate = basis.width * draws["decay"][..., None]  # a panel
        share = basis.width * np.exp(-rate * (1 - _POINTS)) * _WEIGHTS @ _QUADRATIC
        nodes = np.stack([drive[:, :-1:2], drive[:, 1::2], drive[:, 2::2]], 1)
        gained = (share @ nodes.reshape(*nodes.shape[:2], -1)).reshape(
            *share.shape[:2], *nodes.shape[2:]
        )
        # Genes and columns side by side: the interpolation is one matrix product a task.
        states = np.zeros((len(drive), basis.panels + 1, *gained.shape[1::2]))
        kept = np.exp(-rate)
        for i in range(basis.panels):
            states[:, i + 1] = kept * states[:, i] + gained[:, :, i]
        slopes = basis.width * drive[:, ::2, None] - rate[:, None] * states
        by_state, by_slope = _interpolation(times / basis.width, basis.panels)
        found = by_state @ states.reshape(*states.shape[:2], -1)
        found += by_slope @ slopes.reshape(*slopes.shape[:2], -1)
        found = found.reshape(*found.shape[:2], *states.shape[2:])
        return draws["sensitivity"][..., None, None] * np.moveaxis(found, 1, 2)


def _interpolation(position: Array, panels: int) -> tuple[Array, Array]:
    """Cubic Hermite weights of values and slopes at the panels' ends.

    Args:
        position: ``... x point`` in panels.
        panels: how many.

    Returns:
        Twice ``... x point x (panel + 1)``.
    """
    left = np.clip(np.floor(position).astype(int), 0, panels - 1)
    at, after = (np.eye(panels + 1)[end] for end in (left, left + 1))
    by_y0, by_m0, by_y1, by_m1 = hermite((position - left)[..., None])
    return by_y0 * at + by_y1 * after, by_m0 * at + by_m1 * after
