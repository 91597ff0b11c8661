"""Student's t at every point: Gaussian bands whose tails calibration may have made heavier."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import beta, gammaln, stdtr, stdtrit

Array = NDArray[np.float64]
LEAST_DF = 2.5
"""Below two the variance would be infinite."""
_MOST_DF = 1e3


@dataclass(frozen=True)
class Marginals:
    """Laws of scalars with given means and standard deviations, all arrays of one shape.

    Attributes:
        mean: of each.
        sd: standard deviation of each, whatever the tails.
        df: degrees of freedom, which broadcast against the others; infinite for Gaussians.
    """

    mean: Array
    sd: Array
    df: float | Array = np.inf

    @property
    def scale(self) -> Array:
        """What a Student variable is multiplied by, so that its standard deviation is ``sd``."""
        return self.sd / unit_scale(self.df)

    def interval(self, level: float) -> tuple[Array, Array]:
        """Ends of the central interval of the given probability."""
        half = stdtrit(self.df, 0.5 + level / 2) * self.scale
        return self.mean - half, self.mean + half

    def curves(self, level: float = 0.95) -> tuple[Array, Array, Array]:
        """Means, and both ends of their central intervals."""
        return self.mean, *self.interval(level)

    def contains(self, truth: Array, level: float) -> NDArray[np.bool_]:
        """Whether the truth lies in the central interval of the given probability."""
        low, high = self.interval(level)
        return (low <= truth) & (truth <= high)

    def rank(self, truth: Array) -> Array:
        """The probability of less than the truth."""
        return np.asarray(stdtr(self.df, (truth - self.mean) / self.scale), dtype=np.float64)

    def nll(self, truth: Array) -> Array:
        """Minus the logarithm of the density at the truth, nats."""
        z = (truth - self.mean) / self.scale
        df = np.minimum(self.df, 1e12)  # the same in double precision as without end
        heavy = gammaln(df / 2) - gammaln((df + 1) / 2) + 0.5 * np.log(np.pi * df)
        heavy = heavy + (df + 1) / 2 * np.log1p(z**2 / df)
        light = 0.5 * z**2 + 0.5 * np.log(2 * np.pi)
        return np.where(np.isinf(self.df), light, heavy) + np.log(self.scale)

    def crps(self, truth: Array) -> Array:
        """Continuous ranked probability score (Jordan, Krüger & Lerch 2019, appendix A)."""
        z = (truth - self.mean) / self.scale
        centred = z * (2 * stdtr(self.df, z) - 1)
        light = 2 * np.exp(-0.5 * z**2) / np.sqrt(2 * np.pi) - 1 / np.sqrt(np.pi)
        df = np.minimum(self.df, 1e6)
        density = np.exp(-Marginals(np.zeros_like(z), unit_scale(df) + 0 * z, df).nll(z))
        heavy = 2 * density * (df + z**2) / (df - 1)
        heavy -= 2 * np.sqrt(df) / (df - 1) * beta(0.5, df - 0.5) / beta(0.5, df / 2) ** 2
        return self.scale * (centred + np.where(np.isinf(self.df), light, heavy))


def unit_scale(df: float | Array) -> Array:
    """Standard deviation of Student's t with more than two degrees of freedom."""
    excess = 2 / np.asarray(df, dtype=float)
    return 1 / np.sqrt(1 - excess)


def fit_tails(errors: Array) -> tuple[float, float]:
    """A law whose central 50 and 95 % intervals hold that share of standardised errors.

    Args:
        errors: truths minus means over standard deviations, any shape.

    Returns:
        The factor that variances must be scaled by, and degrees of freedom; these are infinite
        where the errors' tails are no heavier than a Gaussian's, and then 95 % alone is matched.
    """
    middle, outer = np.quantile(np.abs(errors), [0.5, 0.95])

    def ratio(df: float) -> float:
        return float(stdtrit(df, 0.975) / stdtrit(df, 0.75))

    if outer <= middle * ratio(_MOST_DF):
        df = np.inf
    elif outer >= middle * ratio(LEAST_DF):
        df = LEAST_DF
    else:
        df = brentq(lambda df: ratio(df) - outer / middle, LEAST_DF, _MOST_DF)
    half = float(stdtrit(df, 0.975) / unit_scale(df))
    return float(outer / half) ** 2, float(df)
