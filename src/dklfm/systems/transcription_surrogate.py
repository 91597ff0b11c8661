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
        weights = (self._spectrum(draws) * draws["coefficients"])[..., None]
        sines = self._basis().sines(self._runs(x))
        runs = weights.reshape(len(sines), -1, weights.shape[1])
        return Solution((runs @ sines.mT).reshape(len(x), -1), self.outputs_at(draws, x))

    def outputs_at(self, draws: Draw, x: Array) -> Array:
        weights = (self._spectrum(draws) * draws["coefficients"])[..., None]
        drive = self.activity(self._basis().at_nodes @ weights)
        return self._driven(draws, drive, self._runs(x))[..., 0] + self.initial(draws)[..., None]

    def linearise(self, draws: Draw, x: Array) -> Linearisation:
        times, basis = self._runs(x), self._basis()
        spectrum = self._spectrum(draws)
        weights = (spectrum * draws["coefficients"])[..., None]
        force = basis.at_nodes @ weights
        slope = self.activity(force + 0.5 * _DIFFERENCE) - self.activity(force - 0.5 * _DIFFERENCE)
        drives = np.concatenate(
            [slope / _DIFFERENCE * basis.at_nodes * spectrum[:, None], self.activity(force)], -1
        )
        driven = self._driven(draws, drives, times)
        sines = np.repeat(basis.sines(times), len(x) // len(times), axis=0)
        return Linearisation(
            (sines @ weights)[..., 0],
            driven[..., -1] + self.initial(draws)[..., None],
            sines * spectrum[:, None],
            driven[..., :-1],
        )

    def _runs(self, x: Array) -> Array:
        """Times of the first task of each run of equally many with the same, ``run x point``."""
        times = self._times(x[:1] if x.strides[0] == 0 else x)
        size = int(np.append((times != times[0]).any(-1), True).argmax())
        if len(times) % size:
            return times
        runs = times.reshape(-1, size, times.shape[1])
        return runs[:, 0] if (runs == runs[:, :1]).all() else times

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
            times: ``run x point``, each of equally many tasks.

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
        # States, then slopes; genes and columns side by side: one matrix product a task
        # interpolates. New memory is dear, so there is little of it.
        both = np.empty((len(drive), 2, basis.panels + 1, *gained.shape[1::2]))
        states, slopes = both[:, 0], both[:, 1]
        states[:, 0] = 0.0
        kept = np.exp(-rate)
        for i in range(basis.panels):
            np.multiply(kept, states[:, i], out=states[:, i + 1])
            states[:, i + 1] += gained[:, :, i]
        np.multiply(-rate[:, None], states, out=slopes)
        slopes += basis.width * drive[:, ::2, None]
        weights = _interpolation(times / basis.width, basis.panels)
        in_runs = both.reshape(len(times), -1, weights.shape[-1], both.shape[-2] * both.shape[-1])
        found = weights[:, None] @ in_runs
        found = np.moveaxis(found.reshape(len(both), -1, *both.shape[3:]), 1, 2)
        found *= draws["sensitivity"][..., None, None]
        return found


def _interpolation(position: Array, panels: int) -> Array:
    """Cubic Hermite weights of values, then of slopes, at the panels' ends.

    Args:
        position: ``... x point`` in panels.
        panels: how many.

    Returns:
        ``... x point x 2 (panel + 1)``.
    """
    left = np.clip(np.floor(position).astype(int), 0, panels - 1)
    at, after = (np.eye(panels + 1)[end] for end in (left, left + 1))
    by_y0, by_m0, by_y1, by_m1 = hermite((position - left)[..., None])
    return np.concatenate([by_y0 * at + by_y1 * after, by_m0 * at + by_m1 * after], -1)
