"""Gaussian-process forces that can be evaluated anywhere after one finite draw."""

from __future__ import annotations

import numpy as np

from dklfm.systems.base import Array

_SPACING = 1 / 4
"""Node distance in lengthscales: leaves a residual prior variance below 1e-10."""
_TASKS_AT_ONCE = 8
"""Their kernels fit a cache: several times as fast as all at once."""
_CUTOFF = 1e-13
"""Eigenvalues below this share of the largest are rounding, not signal."""


def rbf(x1: Array, x2: Array, lengthscale: Array) -> Array:
    """exp(−(x − x')² / 2ℓ²), the squared-exponential covariance with unit variance.

    Args:
        x1: ``... x n`` inputs.
        x2: ``... x m`` inputs.
        lengthscale: ``...`` values of ℓ.

    Returns:
        ``... x n x m`` covariances.
    """
    scaled = (x1[..., :, None] - x2[..., None, :]) / lengthscale[..., None, None]
    return np.exp(-0.5 * scaled**2)


def node_count(low: float, high: float, shortest_lengthscale: float) -> int:
    """The number of nodes that represents paths on [low, high] to rounding error."""
    return max(24, int(np.ceil((high - low) / (_SPACING * shortest_lengthscale))) + 1)


def interpolation_weights(coefficients: Array, nodes: Array, lengthscale: Array) -> Array:
    """Weights w with f(x) = k(x, nodes) w, where f ~ GP(0, RBF) for white coefficients.

    With K the covariance over the nodes, w = K^{-1/2} z. The symmetric root does not depend on
    the signs that LAPACK gives to eigenvectors, so a seed means the same path everywhere. The law
    of f is the Nyström approximation k(x, G) K⁻¹ k(G, x'), whose defect is below rounding at the
    node distance of :func:`node_count`.

    Args:
        coefficients: ``task x node`` standard normal numbers z.
        nodes: ``node`` inputs.
        lengthscale: ``task`` lengthscales.

    Returns:
        ``task x node`` weights.
    """
    values, vectors = np.linalg.eigh(rbf(nodes, nodes, lengthscale))
    keep = values > _CUTOFF * values[:, -1:]
    scale = np.where(keep, 1 / np.sqrt(np.where(keep, values, 1.0)), 0.0)
    rotated = np.einsum("tij,ti->tj", vectors, coefficients)
    return np.einsum("tij,tj->ti", vectors, scale * rotated)


def evaluate(weights: Array, nodes: Array, lengthscale: Array, x: Array) -> Array:
    """f(x) = k(x, nodes) w for each task.

    Args:
        weights: ``task x node`` from :func:`interpolation_weights`.
        nodes: ``node`` inputs.
        lengthscale: ``task`` lengthscales.
        x: ``task x point`` inputs, or ``point`` inputs shared by all tasks.

    Returns:
        ``task x point`` values.
    """
    values = np.empty((len(weights), x.shape[-1]))
    for i in range(0, len(weights), _TASKS_AT_ONCE):
        part = slice(i, i + _TASKS_AT_ONCE)
        kernel = rbf(x if x.ndim == 1 else x[part], nodes, lengthscale[part])
        values[part] = np.einsum("tpn,tn->tp", kernel, weights[part])
    return values
