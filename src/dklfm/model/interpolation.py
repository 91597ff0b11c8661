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
    shape: tuple[int, ...], x: Tensor, low: Tensor | None = None, high: Tensor | None = None
) -> Tensor:
    """What each node of an even grid adds to the cubic spline through its values at ``x``.

    The spline is a product of one an axis, with not-a-knot ends; beyond the grid its last pieces
    go on.

    Args:
        shape: nodes along each axis.
        x: ``... x axis`` inputs.
        low: ``axis`` coordinates of the first node; zeros by default.
        high: ``axis`` coordinates of the last node; ones by default.

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
        powers = (position - cell)[..., None] ** torch.arange(3, -1, -1, device=x.device)
        pieces = _coefficients(n).to(x.device)[:, cell.long()]  # power ... node
        per_axis.append(torch.einsum("...p,p...n->...n", powers, pieces))
    weights = reduce(lambda a, b: (a[..., :, None] * b[..., None, :]).flatten(-2), per_axis)
    return weights.to(x)
