"""Importance sampling with few draws: where these are taken, and how they are weighted."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

_HALVINGS = 30
"""Of where the power of weights is sought."""


def directions(count: int, size: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Of random orthonormal bases, ``count x size``."""
    bases = rng.standard_normal((-(-count // size), size, size))
    return np.asarray(np.linalg.qr(bases)[0].reshape(-1, size)[:count], dtype=np.float64)


def cubature(count: int, size: int) -> Float[Tensor, "draw size"]:
    """Points by which a standard Gaussian is integrated to third order.

    Opposite pairs of orthogonal directions, all at one distance (Arasaratnam and Haykin 2009): of
    few draws that are at random ones most would have no weight. Turned at random, always the same.
    """
    half = size**0.5 * torch.from_numpy(directions(count // 2, size, np.random.default_rng(0)))
    return torch.stack([half, -half], 1).flatten(0, 1)


def flattened(logs: Float[Tensor, "task draw"], least: float) -> Float[Tensor, "task draw"]:
    """Weights to the highest power up to one that leaves them even enough.

    Few draws with uneven weights are noise; flatter weights trade it for some of the proposal's
    bias (Koblents and Miguez, Statistics and Computing 2015).

    Args:
        logs: logarithms of weights.
        least: effective size to keep, as a share of the number of draws.
    """
    low, high = torch.zeros_like(logs[:, :1]), torch.ones_like(logs[:, :1])
    power = high
    for _ in range(_HALVINGS):
        even = 1 / (power * logs).softmax(1).square().sum(1, keepdim=True)
        enough = even >= least * logs.shape[1]
        low, high = torch.where(enough, power, low), torch.where(enough, high, power)
        power = (low + high) / 2
    return (low * logs).softmax(1)
