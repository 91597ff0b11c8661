"""Posteriors by a Green's operator: the marginal likelihood of parameters, and averages over it.

With P = U Uᵀ the precision that observations have of the outputs' weights c, and y = U⁺ p what they
pull them to, in few directions

    y = M v + Uᵀ b + Uᵀ e + n,    M = s Uᵀ A Λ^½,    (v, n) ~ N(0, I),

so that given (θ, ℓ) all that is needed is one Cholesky factor of C = I + M Mᵀ + Uᵀ R U.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from functools import lru_cache
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dklfm.model.gaussian import cholesky
from dklfm.model.green_operator import REACH, GreenOperator, Linear

_INFORMATION = 0.03
"""Of a direction of the weights, of prior variance one, below which it counts as not observed."""
_DAMPING, _EASED, _RAISED = 0.1, 0.2, 8.0
"""Share of the curvature at first, and its factors after a good step and a bad one."""
_LONGEST = 1.5
"""Step, in prior deviations."""
_CONVERGED = 1e-2
"""Squared step, in posterior deviations."""
_CANDIDATES = 8
"""Draws of what a network says, the best of which iteration begins from."""
_WIDENED = 1.3
"""Deviation of the proposals, relative to Laplace's."""
_FARTHEST = REACH + 1
"""Draw, beyond the table of a parameter: its prior still counts."""
_LEAST_SPREAD = 0.1
"""Of what few draws tell of a covariance: where one has all weight they tell nothing."""
_KEPT = 0.2
"""Share of Laplace's covariance in that of the second proposals."""


class Integrated(NamedTuple):
    """Moments of the posterior with the parameters integrated out, and what was found of them."""

    force_weights: Float[Tensor, "task force_mode"]
    force_root: Float[Tensor, "task force_mode number"]
    weights: Float[Tensor, "task mode"]
    loads: Float[Tensor, "task mode number"]
    z: Float[Tensor, "task parameter"]
    spread: Float[Tensor, "task parameter"]
    misfit: Float[Tensor, " task"]  # yᵀ C⁻¹ y, a direction


class _At(NamedTuple):
    """The law of what was observed, under some parameters."""

    linear: Linear
    operator: Tensor  # task force_mode direction, s Aᵀ U
    design: Tensor  # the root of Λ times the same, Mᵀ
    factor: Tensor  # of C
    residual: Tensor  # task direction, y − Uᵀ b
    lost: Tensor  # task, −log density of y and parameters, without constants

    def force(self) -> Tensor:
        """Posterior mean of w."""
        solved = torch.cholesky_solve(self.residual[..., None], self.factor)
        return self.linear.root.times(self.design @ solved)[..., 0]


class _Proposal(NamedTuple):
    """A Gaussian that parameters are drawn from, with the covariance ``root`` ``root``ᵀ."""

    centre: Float[Tensor, "task parameter"]
    root: Float[Tensor, "task parameter parameter"]

    def draw(self, count: int, seed: int) -> Tensor:
        """``task x draw x parameter``."""
        white = _normal(count, self.centre.shape[-1], seed).to(self.centre)
        return (self.centre[:, None] + white @ self.root.mT).clamp(-_FARTHEST, _FARTHEST)

    def log_density(self, z: Tensor) -> Tensor:
        """Of ``task x draw x parameter`` numbers, without constants."""
        away = (z - self.centre[:, None]).mT
        white = torch.linalg.solve_triangular(self.root, away, upper=False)
        log_det = self.root.diagonal(dim1=-2, dim2=-1).log().sum(-1, keepdim=True)
        return -0.5 * white.square().sum(1) - log_det


class _Tried(NamedTuple):
    """Draws of parameters, what is lost there, and means of w under each."""

    z: Float[Tensor, "task draw parameter"]
    lost: Float[Tensor, "task draw"]
    forces: Float[Tensor, "task draw force_mode"]


class Evidence:
    """Of tasks, what was observed of which is given by sums over their observations."""

    def __init__(
        self,
        green: GreenOperator,
        precision: Float[Tensor, "task mode mode"],
        pull: Float[Tensor, "task mode"],
    ) -> None:
        self.green = green
        values, vectors = torch.linalg.eigh(precision)
        rank = max(1, int((values > _INFORMATION).sum(-1).max()))
        values, vectors = values[:, -rank:].clamp_min(1e-12), vectors[..., -rank:]
        directions = vectors * values.sqrt()[:, None]
        self.whole = green.operator.double()
        self.y = (pull[:, None] @ vectors)[:, 0] / values.sqrt()
        transposed = self.whole.mT.flatten(0, 1)  # (term force_mode) mode
        # task term (force_mode direction)
        self.operator = (transposed @ directions).view(len(pull), len(self.whole), -1)
        self.offset = green.offset @ directions  # task term direction
        noise = directions.mT @ torch.block_diag(*green.rest) @ directions
        self.noise = noise + torch.eye(rank).to(noise)  # of n and e

    def take(self, tasks: Tensor | slice) -> Evidence:
        """Of some of the tasks."""
        some = copy(self)
        for name in ("y", "operator", "offset", "noise"):
            setattr(some, name, getattr(self, name)[tasks])
        return some

    def each(self) -> Iterator[Evidence]:
        """Of each task, for any number of parameters: its operator is read once for all."""
        return (self.take(slice(i, i + 1)) for i in range(len(self.y)))

    def integrated(
        self, start: Tensor, spread: Tensor, samples: int, iterations: int
    ) -> Integrated:
        """The posterior, from where a network says that the parameters are, within what spread."""
        z = self._begun(start, spread)
        z, fisher = self._descended(z, iterations)
        laplace = torch.cholesky_inverse(cholesky(fisher))
        first = _Proposal(z, _WIDENED * cholesky(laplace))
        tried = self._tried(first.draw(samples, 1))
        z, covariance = _moments(tried.z, (-tried.lost - first.log_density(tried.z)).softmax(1))
        second = _Proposal(z, _WIDENED * cholesky(covariance + _KEPT * laplace))
        again = self._tried(second.draw(samples, 2))
        every = _Tried(*(torch.cat(pair, 1) for pair in zip(tried, again, strict=True)))
        # All draws are of the mixture of both proposals (Veach and Guibas 1995).
        drawn_from = torch.logaddexp(first.log_density(every.z), second.log_density(every.z))
        return self._averaged(every, (-every.lost - drawn_from).softmax(1))

    def at(self, z: Tensor) -> _At:
        """The law under ``task x parameter`` standard normal numbers."""
        linear = self.green.at(z)
        operator = linear.factor[:, None, None] * self._product(linear.terms)
        design = linear.root.transposed_times(operator)
        residual = self.y - (linear.terms[:, None] @ self.offset)[:, 0]
        factor = cholesky(self.noise + design.mT @ design)
        white = torch.linalg.solve_triangular(factor, residual[..., None], upper=False)
        log_det = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        lost = 0.5 * (white.square().sum((-1, -2)) + z.square().sum(-1)) + log_det
        return _At(linear, operator, design, factor, residual, lost)

    def fisher(self, z: Tensor, at: _At) -> tuple[Tensor, Tensor]:
        """Gradient of what is lost, and its expected curvature; ``at`` is the law there."""
        linear, slopes = self.green.along(z)
        inverse = torch.cholesky_inverse(at.factor)
        solved = inverse @ at.residual[..., None]
        changes = []
        for i in range(slopes.terms.shape[-1]):
            share = (slopes.factor[:, i] / linear.factor)[:, None, None]
            change = share * at.design
            if i not in self.green.only_factor:
                moved = linear.factor[:, None, None] * self._product(slopes.terms[..., i])
                change = change + linear.root.transposed_times(moved)
            changes.append(change)
        changes += [root.transposed_times(at.operator) for root in slopes.roots]
        pull = nn.functional.pad((self.offset.mT @ slopes.terms).mT, (0, 0, 0, len(slopes.roots)))
        shapes = []
        for change in changes:
            crossed = change.mT @ at.design
            shapes.append(inverse @ (crossed + crossed.mT))
        shape = torch.stack(shapes, 1)
        trace = shape.diagonal(dim1=-2, dim2=-1).sum(-1)
        square = (at.residual[:, None, None] @ shape @ solved[:, None])[..., 0, 0]
        gradient = 0.5 * (trace - square) - (pull @ solved)[..., 0] + z
        curvature = 0.5 * torch.einsum("tiab,tjba->tij", shape, shape)
        curvature = curvature + pull @ inverse @ pull.mT + torch.eye(z.shape[-1]).to(z)
        return gradient, curvature

    def _product(self, terms: Tensor) -> Tensor:
        """Σ φ_k A_kᵀ U, ``task x force_mode x direction``."""
        if len(self.operator) == 1:
            found = terms @ self.operator[0]
        else:
            found = (terms[:, None] @ self.operator)[:, 0]
        return found.view(len(terms), -1, self.y.shape[-1])

    def _begun(self, start: Tensor, spread: Tensor) -> Tensor:
        draws = start[:, None] + spread[:, None] * _normal(_CANDIDATES, start.shape[-1], 0).to(
            start
        )
        draws[:, 0] = start
        draws = draws.clamp(-REACH, REACH)
        lost = torch.stack([one.at(z).lost for one, z in zip(self.each(), draws, strict=True)])
        return draws[torch.arange(len(draws)), lost.argmin(1)]

    def _descended(self, z: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
        """Damped Fisher scoring: where it leads, and the curvature there."""
        some, left, at = self, torch.arange(len(z), device=z.device), self.at(z)
        lost = at.lost
        damping = torch.full_like(lost, _DAMPING)
        gradient, fisher = self.fisher(z, at)
        for _ in range(iterations):
            curvature = fisher[left]
            scale = damping[left, None] * curvature.diagonal(dim1=-2, dim2=-1)
            step = torch.linalg.solve(curvature + torch.diag_embed(scale), gradient[left, :, None])[
                ..., 0
            ]
            moving = (step * gradient[left]).sum(-1) > _CONVERGED
            if not moving.all():
                some, left, step = some.take(moving), left[moving], step[moving]
            if not len(left):
                break
            there = (z[left] - step.clamp(-_LONGEST, _LONGEST)).clamp(-REACH, REACH)
            at = some.at(there)
            better = at.lost < lost[left]
            damping[left] *= torch.where(better, _EASED, _RAISED)
            moved = left[better]
            z[moved], lost[moved] = there[better], at.lost[better]
            slope, curvature = some.fisher(there, at)
            gradient[moved], fisher[moved] = slope[better], curvature[better]
        return z, fisher

    def _tried(self, drawn: Tensor) -> _Tried:
        each = [one.at(z) for one, z in zip(self.each(), drawn, strict=True)]
        lost, forces = [at.lost for at in each], [at.force() for at in each]
        return _Tried(drawn, torch.stack(lost), torch.stack(forces))

    def _averaged(self, tried: _Tried, shares: Tensor) -> Integrated:
        """What parameters leave unknown changes little with them: it is that under their mean."""
        forces = tried.forces
        z, covariance = _moments(tried.z, shares)
        at = self.at(z)
        mean = (shares[..., None] * forces).sum(1)
        each = zip(tried.z.unbind(1), forces.unbind(1), strict=True)
        outputs = torch.stack([self._outputs(zs, w) for zs, w in each], 1)
        output_mean = (shares[..., None] * outputs).sum(1)
        root = self._left(at)
        among = (shares / _unbiased(shares)).sqrt()[..., None]
        white = torch.linalg.solve_triangular(at.factor, at.residual[..., None], upper=False)
        return Integrated(
            mean,
            torch.cat([root, (among * (forces - mean[:, None])).mT], -1),
            output_mean,
            torch.cat([self._map(z)[0] @ root, (among * (outputs - output_mean[:, None])).mT], -1),
            z,
            covariance.diagonal(dim1=-2, dim2=-1).sqrt(),
            white.square().mean((-1, -2)),
        )

    def _left(self, at: _At) -> Tensor:
        """A root of the posterior covariance of w under some parameters."""
        white = torch.linalg.solve_triangular(cholesky(self.noise), at.design.mT, upper=False)
        eye = torch.eye(white.shape[-1]).to(white)
        factor = cholesky(eye + white.mT @ white)
        inverse = torch.linalg.solve_triangular(factor, eye, upper=False)
        return at.linear.root.times(inverse.mT)

    def _map(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """How outputs' modes follow from the force's: ``task x mode x force_mode``, and b."""
        terms, factor = self.green.terms(z)
        found = (terms @ self.whole.flatten(1)).view(-1, *self.whole.shape[1:])
        return factor[:, None, None] * found, terms @ self.green.offset

    def _outputs(self, z: Tensor, force: Tensor) -> Tensor:
        operator, offset = self._map(z)
        return (operator @ force[..., None])[..., 0] + offset


def _moments(drawn: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and covariance of ``task x sample x parameter`` draws."""
    mean = (shares[..., None] * drawn).sum(1)
    away = (shares / _unbiased(shares)).sqrt()[..., None] * (drawn - mean[:, None])
    return mean, away.mT @ away


def _unbiased(shares: Tensor) -> Tensor:
    """What a covariance about the mean of few draws lacks, ``task x 1``."""
    return (1 - shares.square().sum(1, keepdim=True)).clamp_min(_LEAST_SPREAD)


@lru_cache(maxsize=16)
def _normal(count: int, size: int, seed: int) -> Tensor:
    """Standard normal numbers of low discrepancy, ``count x size``."""
    sobol = torch.quasirandom.SobolEngine(size, scramble=True, seed=seed)
    uniform = sobol.draw(count, dtype=torch.float64)
    # A draw may be zero.
    return torch.special.ndtri(uniform.clamp(0.5 / (count + 1), 1 - 0.5 / (count + 1)))
