"""The joint Gaussian law of a transcription force and its outputs, in closed form.

With G = identity, gene j answers the force linearly, starting from its basal steady state:

    y_j(t) = b_j/d_j + s_j ∫₀ᵗ e^{−d_j (t−τ)} f(τ) dτ,    f ~ GP(0, exp(−(t − t')²/2ℓ²)),

the single-input motif of Lawrence, Sanguinetti & Rattray (NIPS 2006). In terms of
h_j(t, s) = ∫₀ᵗ e^{−d_j (t−τ)} k(τ, s) dτ, which is :func:`dklfm.systems.greens.relaxation`,

    cov(y_j(t), f(s)) = s_j h_j(t, s)
    cov(y_j(t), y_k(t')) = s_j s_k H_jk(t, t')
    (d_j + d_k) H_jk = h_j(t, t') + h_k(t', t) − e^{−d_k t'} h_j(t, 0) − e^{−d_j t} h_k(t', 0).

The last line integrates (∂/∂t + ∂/∂t')(e^{d_j t + d_k t'} H_jk), k being stationary. It needs one
h for each gene and not for each pair, and multiplies nothing by a growing exponential: errors stay
near rounding times ℓ/(d_j + d_k), for any d ℓ.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np

from dklfm.systems import greens
from dklfm.systems.base import Array


@dataclass(frozen=True)
class LinearTranscription:
    """The law of one task's force and outputs, given its parameters.

    Times are non-negative. Covariances have one pair of axes (gene, time) for each output.

    Attributes:
        basal: ``gene`` basal rates b.
        sensitivity: ``gene`` sensitivities s.
        decay: ``gene`` decay rates d > 0.
        lengthscale: ℓ of the force.
    """

    basal: Array
    sensitivity: Array
    decay: Array
    lengthscale: float

    @classmethod
    def of(cls, parameters: Mapping[str, Array]) -> Self:
        """From one task's parameters; other keys of a draw are ignored."""
        basal, sensitivity, decay = (parameters[k] for k in ("basal", "sensitivity", "decay"))
        return cls(basal, sensitivity, decay, float(parameters["lengthscale"]))

    @property
    def mean(self) -> Array:
        """E[y_j(t)] = b_j/d_j at all times, ``gene``; the force has mean zero."""
        return self.basal / self.decay

    def ff(self, a: Array, b: Array) -> Array:
        """cov(f(a), f(b)), ``time x time'``."""
        return greens.kernel(a[:, None], b, self._theta)

    def yf(self, a: Array, b: Array) -> Array:
        """cov(y_j(a), f(b)), ``gene x time x time'``."""
        return self.sensitivity[:, None, None] * self._response(a[:, None], b)

    def yy(self, a: Array, b: Array) -> Array:
        """cov(y_j(a), y_k(b)), ``gene x time x gene' x time'``."""
        answers_b = self._response(a[:, None], b)  # gene x time x time'
        answers_a = self._response(b, a[:, None])  # gene' x time x time'
        total = answers_b[:, :, None] + answers_a.swapaxes(0, 1)
        # What the force before t = 0 would have contributed: the outputs start from rest.
        earlier = np.multiply.outer(self._response(a, 0.0), self._fading(b))
        earlier += np.multiply.outer(self._fading(a), self._response(b, 0.0))
        gain = np.outer(self.sensitivity, self.sensitivity) / np.add.outer(self.decay, self.decay)
        return gain[:, None, :, None] * (total - earlier)

    def output_variance(self, t: Array) -> Array:
        """var(y_j(t)), ``gene x time``: the diagonal of :meth:`yy`."""
        grown = self._response(t, t) - self._fading(t) * self._response(t, 0.0)
        return np.square(self.sensitivity[:, None]) * grown / self.decay[:, None]

    @property
    def _theta(self) -> float:
        return np.sqrt(2) * self.lengthscale

    def _response(self, t: Array, s: Array | float) -> Array:
        """h_j(t, s), ``gene x ...``."""
        shape = np.broadcast_shapes(np.shape(t), np.shape(s))
        rate = self.decay.reshape(-1, *(1 for _ in shape))
        return greens.relaxation(t, s, rate, self._theta)

    def _fading(self, t: Array) -> Array:
        """e^{−d_j t}, ``gene x time``."""
        return np.exp(-np.multiply.outer(self.decay, t))
