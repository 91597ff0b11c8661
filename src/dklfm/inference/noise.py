"""The noise of observations whose table does not state it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dklfm.tasks import DIMENSIONS, Tasks

Array = NDArray[np.float64]
_SHARES = np.array([0.01, 0.02, 0.05, 0.1, 0.2, 0.4])
"""Of an output's deviation that may be noise."""
_LENGTHSCALES = np.array([0.07, 0.1, 0.2, 0.4])
"""Of its change, as shares of the inputs' span."""
_MOST_POINTS = 100
_BATCH = 2000


def with_noise(tasks: Tasks) -> Tasks:
    """The tasks with the noise that is estimated as theirs."""
    return Tasks(tasks.data.assign(y_sd=(DIMENSIONS["y_sd"], estimated_noise(tasks))))


def estimated_noise(tasks: Tasks) -> Array:
    """Standard deviations by the evidence of a smooth Gaussian process, ``task x output x point``.

    Each output is standardised over its own points; one share of noise and one lengthscale serve
    all outputs of a task, so that a few points of each tell them together. NaN where nothing was
    observed.
    """
    x, y = tasks["x"], tasks["y"]
    keep = np.unique(np.linspace(0, y.shape[2] - 1, _MOST_POINTS).round().astype(int))
    span = np.nanmax(x, axis=1) - np.nanmin(x, axis=1)
    inputs = np.nan_to_num((x / np.where(span > 0, span, 1)[:, None])[:, keep])
    seen = np.isfinite(y)
    count = np.maximum(seen.sum(-1, keepdims=True), 1)
    mean = np.nansum(y, axis=-1, keepdims=True) / count
    deviation = np.sqrt(np.nansum(np.square(y - mean), axis=-1, keepdims=True) / count)
    white = np.where(seen, (y - mean) / np.where(deviation > 0, deviation, 1), 0.0)[..., keep]
    best = np.concatenate([
        _best_share(inputs[i : i + _BATCH], white[i : i + _BATCH], seen[i : i + _BATCH][..., keep])
        for i in range(0, len(y), _BATCH)
    ])  # fmt: skip
    # A constant output says nothing of its noise: that of the others is taken.
    scale = np.where(deviation > 0, deviation, np.median(deviation, axis=1, keepdims=True))
    return np.where(seen, best[:, None, None] * scale, np.nan)


def _best_share(x: Array, white: Array, seen: NDArray[np.bool_]) -> Array:
    """The share with the highest evidence over lengthscales, ``task``."""
    squares = np.square(x[:, :, None] - x[:, None]).sum(-1)
    both = seen[..., :, None] & seen[..., None, :]
    eye = np.eye(x.shape[1])
    evidence = np.full((len(x), len(_SHARES)), -np.inf)
    for lengthscale in _LENGTHSCALES:
        smooth = np.exp(-0.5 * squares / lengthscale**2)[:, None] * both
        for i, share in enumerate(_SHARES):
            # Unseen points stand apart with unit variance and value 0.
            noise = np.where(seen, share**2, 1.0)[..., None] * eye
            factor = np.linalg.cholesky((1 - share**2) * smooth + noise)
            solved = np.linalg.solve(factor, white[..., None])[..., 0]
            logs = np.log(np.diagonal(factor, axis1=-2, axis2=-1)).sum(-1)
            total = -(0.5 * np.square(solved).sum(-1) + logs).sum(-1)
            evidence[:, i] = np.maximum(evidence[:, i], total)
    return _SHARES[evidence.argmax(1)]
