"""Batched fixed-step integration of ordinary differential equations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from dklfm.systems.base import Array

RightHandSide = Callable[[float, Array], Array]
"""``rhs(t, state)`` with ``task x state`` arrays in and out."""


def hermite(s: Any) -> tuple[Any, Any, Any, Any]:
    """Cubic Hermite weights at a share s of a step; arithmetic only, for arrays of any library.

    Returns:
        Of the value and the slope a step at the start, and of both at the end.
    """
    return (1 + 2 * s) * (1 - s) ** 2, s * (1 - s) ** 2, s**2 * (3 - 2 * s), s**2 * (s - 1)


@dataclass(frozen=True)
class Trajectory:
    """States and slopes on a uniform grid, with cubic Hermite dense output.

    Attributes:
        start: time of the first grid point.
        step: grid spacing; negative for a backward integration.
        states: ``grid x task x state`` values.
        slopes: ``grid x task x state`` time derivatives.
    """

    start: float
    step: float
    states: Array
    slopes: Array

    def __call__(self, t: Array) -> Array:
        """Evaluate at ``task x point`` times inside the grid; ``task x state x point`` out.

        The interpolation error is h⁴/384 · max|y''''|, of the integrator's own order.
        """
        position = (t - self.start) / self.step
        left = np.clip(np.floor(position).astype(int), 0, len(self.states) - 2)
        s = (position - left)[..., None]
        task = np.arange(t.shape[0])[:, None]
        y0, y1 = self.states[left, task], self.states[left + 1, task]
        m0, m1 = self.slopes[left, task] * self.step, self.slopes[left + 1, task] * self.step
        by_y0, by_m0, by_y1, by_m1 = hermite(s)
        return np.moveaxis(by_y0 * y0 + by_m0 * m0 + by_y1 * y1 + by_m1 * m1, -1, 1)


def rk4(rhs: RightHandSide, initial: Array, start: float, stop: float, steps: int) -> Trajectory:
    """Integrate with the classical fourth-order Runge–Kutta method.

    Args:
        rhs: the right-hand side.
        initial: ``task x state`` values at ``start``.
        start: time of ``initial``.
        stop: last time; it may lie before ``start``.
        steps: number of equal steps.

    Returns:
        The trajectory; its global error is O(step⁴).
    """
    h = (stop - start) / steps
    states = np.empty((steps + 1, *initial.shape))
    slopes = np.empty_like(states)
    states[0] = initial
    for i in range(steps):
        t, y = start + i * h, states[i]
        k1 = slopes[i] = rhs(t, y)
        k2 = rhs(t + h / 2, y + h / 2 * k1)
        k3 = rhs(t + h / 2, y + h / 2 * k2)
        k4 = rhs(t + h, y + h * k3)
        states[i + 1] = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    slopes[steps] = rhs(stop, states[steps])
    return Trajectory(start, h, states, slopes)
