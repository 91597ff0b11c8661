"""Sampling a density over a few standard normal variables, from a Gaussian near its mode.

The density is costly and comes in batches. Variables behind a bounded prior are moved in straighter
coordinates φ, elementwise and increasing: where the prior of a rate is uniform, log rates rather
than normal quantiles, as what trades one rate for another is close to linear in these.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import logsumexp, softmax

from dklfm.errors import DklfmError
from dklfm.model.importance import directions, flattened

Array = NDArray[np.float64]
Density = Callable[[Array], tuple[Array, Array]]
"""``sample x size`` θ to what else belongs to each, ``sample x ...``, and its log density.

A density is not asked for θ that its coordinates refuse.
"""

_MOST_ROUNDS, _LEAST_ROUND = 4, 32
"""As many rounds of adaptation as leave each so many draws."""
_DEGREES_OF_FREEDOM = 15
_TEMPER = 0.6
"""Power on the weights that the proposal adapts to: fewer samples dominate it."""
_REACH = 6.0
"""Standard normal variables beyond this are not sampled."""
_NODES = 241
_GRID = np.linspace(-_REACH, _REACH, _NODES)
_LEAST_RISE = 1e-6
"""A smaller relative change of a parameter by its θ is rounding."""
_CHAIN_LENGTHS = 50
"""A chain is long enough after so many autocorrelation times, as emcee's authors advise."""
_LONGEST_CHAIN = 4000
_LOOK_EVERY = 250

log = logging.getLogger(__name__)


class Sample(NamedTuple):
    """Weighted draws.

    Attributes:
        theta: ``sample x size``.
        extra: ``sample x ...``, what the density gave beside its value.
        weights: ``sample``; they sum to 1.
        effective_size: how many independent draws these are worth.
    """

    theta: Array
    extra: Array
    weights: Array
    effective_size: float


def tempered(sample: Sample, least: float) -> Sample:
    """The sample with its weights flattened, if they are uneven (:mod:`dklfm.model.importance`).

    Args:
        sample: of importance sampling.
        least: effective size to keep, as a share of the number of draws.
    """
    if sample.effective_size >= least * len(sample.weights):
        return sample
    logs = np.log(np.maximum(sample.weights, np.finfo(float).tiny))
    weights = flattened(torch.from_numpy(logs[None]), least)[0].numpy()
    return sample._replace(weights=weights, effective_size=1 / float(np.square(weights).sum()))


@dataclass(frozen=True)
class Coordinates:
    """φ(θ), one increasing piecewise linear function a variable, with an exact inverse.

    Attributes:
        tables: ``size x node`` values of φ at even nodes over ±6.
    """

    tables: Array

    @classmethod
    def of(cls, parameter: Callable[[Array], Array], size: int) -> Coordinates:
        """Logarithms of parameters, in units of θ at its median; θ where none, or none that rises.

        Args:
            parameter: ``sample x size`` θ to the parameter behind each variable, alike.
            size: number of variables.
        """
        theta = np.zeros((size, _NODES, size))
        every = np.arange(size)
        theta[every, :, every] = _GRID
        values = parameter(theta.reshape(-1, size)).reshape(theta.shape)[every, :, every]
        logs = np.log(np.where(values > 0, values, 1.0))
        middle = _NODES // 2
        rise = (logs[:, middle + 1] - logs[:, middle - 1]) / (_GRID[middle + 1] - _GRID[middle - 1])
        known = np.isfinite(logs).all(1) & (rise > _LEAST_RISE)
        scaled = (logs - logs[:, middle, None]) / np.where(known, rise, 1.0)[:, None]
        straight = known & np.all(values > 0, axis=1) & np.all(np.diff(scaled) > 0, axis=1)
        return cls(np.where(straight[:, None], scaled, _GRID))

    def of_theta(self, theta: Array) -> Array:
        columns = zip(theta.T, self.tables, strict=True)
        return np.stack([np.interp(t, _GRID, table) for t, table in columns], axis=1)

    def theta(self, phi: Array) -> Array:
        """The inverse; NaN where a variable has no such value."""
        columns = zip(phi.T, self.tables, strict=True)
        ends = {"left": np.nan, "right": np.nan}
        return np.stack([np.interp(p, table, _GRID, **ends) for p, table in columns], axis=1)

    def slopes(self, theta: Array) -> Array:
        """dφ/dθ, ``sample x size``."""
        width = 2 * _REACH / (_NODES - 1)
        cell = np.clip(((theta + _REACH) / width).astype(int), 0, _NODES - 2)
        return np.take_along_axis(np.diff(self.tables).T / width, cell, axis=0)


def importance(
    density: Density,
    coordinates: Coordinates,
    mean: Array,
    covariance: NDArray[np.floating],
    count: int,
    rng: np.random.Generator,
) -> Sample:
    """Adaptive importance sampling (Cappé et al. 2004) with multivariate t proposals in φ.

    Args:
        density: unnormalised.
        coordinates: where the proposals live.
        mean: ``size``, where to begin.
        covariance: ``size x size``, likewise.
        count: draws in all.
        rng: the source of randomness.
    """
    from scipy.stats import multivariate_t  # slow to import, and not needed by trained models

    size = len(mean)
    slope = coordinates.slopes(mean[None])[0]
    centre = coordinates.of_theta(mean[None])[0]
    first = scale = slope[:, None] * covariance * slope
    proposals = []
    phi, theta, extra, values = [], [], [], []
    rounds = min(_MOST_ROUNDS, max(1, count // _LEAST_ROUND))
    for _ in range(rounds):
        proposal = multivariate_t(centre, (scale + scale.T) / 2, df=_DEGREES_OF_FREEDOM, seed=rng)
        proposals.append(proposal)
        drawn = proposal.rvs(count // rounds).reshape(-1, size)
        found = coordinates.theta(drawn)
        inside = np.isfinite(found).all(1)
        phi.append(drawn[inside])
        theta.append(found[inside])
        more, value = density(found[inside])
        extra.append(more)
        values.append(value - np.log(coordinates.slopes(found[inside])).sum(1))
        # All rounds together are one sample of the mixture of their proposals.
        everywhere = np.vstack(phi)
        densities = [np.atleast_1d(p.logpdf(everywhere)) for p in proposals]
        log_weights = np.concatenate(values) - logsumexp(densities, axis=0)
        tempered = softmax(_TEMPER * log_weights)
        centre = tempered @ everywhere
        spread = (everywhere - centre).T @ (tempered[:, None] * (everywhere - centre))
        trust = 1 / (1 + size * np.square(tempered).sum())
        scale = (1 - trust) * first + trust * spread
    weights = softmax(log_weights)
    return Sample(
        np.vstack(theta), np.concatenate(extra), weights, 1 / float(np.square(weights).sum())
    )


def paired(
    density: Density,
    coordinates: Coordinates,
    mean: Array,
    covariance: NDArray[np.floating],
    count: int,
    rng: np.random.Generator,
) -> Sample:
    """Importance sampling with few draws: t proposals in φ, in orthogonal and opposite pairs.

    Directions come from random orthonormal bases, each with its opposite, so that what is linear
    in φ has no sampling error before weighting. Arguments as for :func:`importance`, with ``count``
    rounded down to pairs.
    """
    size, pairs = len(mean), count // 2
    ways = directions(pairs, size, rng)
    radii = np.sqrt(rng.chisquare(size, pairs) / rng.chisquare(_DEGREES_OF_FREEDOM, pairs))
    half = np.sqrt(_DEGREES_OF_FREEDOM) * radii[:, None] * ways
    white = np.vstack([half, -half])
    slope = coordinates.slopes(mean[None])[0]
    root = np.linalg.cholesky(slope[:, None] * covariance * slope)
    theta = coordinates.theta(coordinates.of_theta(mean[None]) + white @ root.T)
    inside = np.isfinite(theta).all(1)
    theta, white = theta[inside], white[inside]
    extra, values = density(theta)
    power = (_DEGREES_OF_FREEDOM + size) / 2
    proposed = -power * np.log1p(np.square(white).sum(1) / _DEGREES_OF_FREEDOM)
    weights = softmax(values - np.log(coordinates.slopes(theta)).sum(1) - proposed)
    return Sample(theta, extra, weights, 1 / float(np.square(weights).sum()))


def markov_chain(
    density: Density, coordinates: Coordinates, start: Sample, count: int, seed: int
) -> Sample:
    """``count`` draws by emcee (Foreman-Mackey et al. 2013), differential evolution moves.

    Args:
        density: unnormalised.
        coordinates: where the walkers move.
        start: where the walkers begin: drawn from these, by weight.
        count: draws to keep, evenly along the chain after its burn-in.
        seed: of the walkers' moves.

    Raises:
        DklfmError: if emcee is not installed.
    """
    try:
        import emcee
    except ImportError:
        raise DklfmError(
            "sampler: emcee needs the package emcee; install dklfm with the extra 'sampling'"
        ) from None
    size = start.theta.shape[1]
    walkers = 2 * (size + 4)
    rng = np.random.default_rng(seed)
    chosen = rng.choice(len(start.theta), size=walkers, p=start.weights)
    # Walkers that start at one place would never leave the plane that they span.
    spread = np.sqrt(start.weights @ np.square(start.theta - start.weights @ start.theta))
    moved = start.theta[chosen] + 0.1 * spread * rng.standard_normal((walkers, size))
    begin = coordinates.of_theta(moved)

    def log_density(phi: Array) -> Array:
        values, theta = np.full(len(phi), -np.inf), coordinates.theta(phi)
        inside = np.isfinite(theta).all(1)
        if inside.any():
            slopes = coordinates.slopes(theta[inside])
            values[inside] = density(theta[inside])[1] - np.log(slopes).sum(1)
        return np.where(np.isnan(values), -np.inf, values)

    moves = [(emcee.moves.DEMove(), 0.8), (emcee.moves.DESnookerMove(), 0.2)]
    sampler = emcee.EnsembleSampler(walkers, size, log_density, moves=moves, vectorize=True)
    sampler.random_state = np.random.RandomState(seed).get_state()
    for step, _ in enumerate(sampler.sample(begin, iterations=_LONGEST_CHAIN), start=1):
        if step % _LOOK_EVERY == 0:
            length = float(np.max(sampler.get_autocorr_time(tol=0)))
            if step > _CHAIN_LENGTHS * length:
                break
    else:
        log.warning(
            "%d steps are only %.0f autocorrelation times; the posterior may be too narrow",
            _LONGEST_CHAIN,
            _LONGEST_CHAIN / length,
        )
    chain = sampler.get_chain(discard=int(5 * length), flat=True)
    kept = coordinates.theta(chain[np.linspace(0, len(chain) - 1, count).astype(int)])
    return Sample(
        kept, density(kept)[0], np.full(count, 1 / count), min(count, len(chain) / length)
    )
