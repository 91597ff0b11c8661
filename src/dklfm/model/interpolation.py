"""Cubic splines through the nodes of even grids, as weights of the nodes."""

from __future__ import annotations

from functools import lru_cache, reduce

import numpy as np
import torch
from scipy.interpolate import CubicSpline
from torch import Tensor


@lru_cache(maxsize=64)
def _coefficients(nodes: int) -> Tensor:
    """Of splines through unit vectors on 0 … n − 1: ``power cell node``, from the cubes down."""
    return torch.from_numpy(CubicSpline(np.arange(nodes), np.eye(nodes)).c.copy())


def spline_weights(
    shape: tuple[int, ...],
    x: Tensor,
    low: Tensor | None = None,
    high: Tensor | None = None,
    orders: tuple[int, ...] | None = None,
) -> Tensor:
    """What each node of an even grid adds to the cubic spline through its values at ``x``.

    The spline is a product of one an axis, with not-a-knot ends; beyond the grid its last pieces
    go on.

    Args:
        shape: nodes along each axis.
        x: ``... x axis`` inputs.
        low: ``axis`` coordinates of the first node; zeros by default.
        high: ``axis`` coordinates of the last node; ones by default.
        orders: of the derivative along each axis whose weights are wanted, of ``low`` and ``high``
            at their defaults; 0 by default.

    Returns:
        ``... x node`` weights, nodes in row-major order.
    """
    unit = x.double()
    if low is not None and high is not None:
        unit = (unit - low) / (high - low)
    per_axis = []
    for axis, n in enumerate(shape):
        position = unit[..., axis] * (n - 1)
        cell = position.floor().clamp(0, n - 2)
        order = 0 if orders is None else orders[axis]
        powers = _powers(position - cell, order) * (n - 1) ** order
        pieces = _coefficients(n).to(x.device)[:, cell.long()]  # power ... node
        per_axis.append(torch.einsum("...p,p...n->...n", powers, pieces))
    weights = reduce(lambda a, b: (a[..., :, None] * b[..., None, :]).flatten(-2), per_axis)
    return weights.to(x)


def _powers(offset: Tensor, order: int) -> Tensor:
    """The derivatives of cube, square, value and one: ``... power``."""
    exponents = torch.arange(3, -1, -1, device=offset.device)
    factors = torch.ones_like(exponents)
    for _ in range(order):
        factors, exponents = factors * exponents, (exponents - 1).clamp_min(0)
    return factors * offset[..., None] ** exponents
