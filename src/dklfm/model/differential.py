"""Linear differential operators on a squared-exponential process, in closed form.

Let g have the covariance κ(x, x') = exp(−|x − x'|²/2), and let L = a + Σᵢ bᵢ ∂ᵢ + Σᵢ cᵢ ∂ᵢ² with
coefficients that depend on the point. On an axis ∂ⁿ∂'ᵐ κ = (−1)ⁿ Heₙ₊ₘ(d) κ, with Hermite's
polynomials and d = x − x'; different axes multiply. So

    cov(L g(x), L' g(x')) = κ(x, x') (p p' + Σᵢ rᵢ),
    p = a − b·d + c·(d² − 1),    p' = a' + b'·d + c'·(d² − 1),
    rᵢ = bᵢ bᵢ' + 2 dᵢ (bᵢ cᵢ' − cᵢ bᵢ') − cᵢ cᵢ' (4 dᵢ² − 2),

where r is what Heₙ₊ₘ has beside Heₙ Heₘ. Expanded in x and x' each of the two is one product of
matrices.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class Operator(NamedTuple):
    """L at every point: a, b and c."""

    value: Float[Tensor, "task point 1"]
    slope: Float[Tensor, "task point axis"]
    curvature: Float[Tensor, "task point axis"]


def covariance_factor(
    left: Operator,
    x: Float[Tensor, "task n axis"],
    right: Operator,
    y: Float[Tensor, "task m axis"],
) -> Float[Tensor, "task n m"]:
    """What κ is multiplied by between L g at ``x`` and L' g at ``y``, in lengthscales."""
    (_, b, c), (_, b2, c2) = left, right
    polynomials = _polynomial(left, x, y) * _polynomial(right, y, x).mT
    # The sum of r over axes, by what depends on x alone: one product of matrices in place of nine.
    of_x = torch.cat([b, 2 * (b * x + c - 2 * c * x * x), c * x, c], dim=-1)
    of_y = torch.cat([b2 - 2 * c2 * y, c2, 8 * c2 * y - 2 * b2, (2 * b2 - 4 * c2 * y) * y], dim=-1)
    return polynomials + of_x @ of_y.mT


def variance_factor(operator: Operator) -> Float[Tensor, "task point"]:
    """The diagonal of :func:`covariance_factor` at equal points."""
    value, slope, curvature = operator
    plain = (value[..., 0] - curvature.sum(-1)).square()
    return plain + slope.square().sum(-1) + 2 * curvature.square().sum(-1)


def _polynomial(operator: Operator, x: Tensor, y: Tensor) -> Tensor:
    value, slope, curvature = operator
    constant = value + (curvature * (x * x - 1) - slope * x).sum(-1, keepdim=True)
    of_x = torch.cat([constant, slope - 2 * curvature * x, curvature], dim=-1)
    return of_x @ torch.cat([torch.ones_like(y[..., :1]), y, y * y], dim=-1).mT
