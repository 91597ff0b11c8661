"""The solution operator of an equation by least squares, and posteriors by iterating on it.

The weights c_j of an output's modes are linear in few products,

    c_j = B_j (φ(θ_j) ⊗ (1, v)),    f = m + Φ w,

of what is particular to output j and of the force: θ_j are its parameters as standard normal
numbers, φ all products of a few of these and of the parameters themselves, v the principal
components of what the force stands for, in which the equation is all but linear. B is a regression
on simulated tasks; what it leaves unexplained counts as noise.

Such an operator is solved and differentiated by a few products of small matrices. Damped steps of
Gauss-Newton lead from a network's answer to the mode of the posterior of force and parameters, and
the curvature there gives its covariance (Laplace's approximation). How rough forces are differs
between tasks: the law of their weights is a mixture of Gaussians, under each of which the mode is
sought, and which are weighted by their evidence. Where parameters are known less well they are
drawn about these modes, the force is conditioned anew under each draw, and draws are weighted.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations_with_replacement
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from scipy.interpolate import CubicSpline
from torch import Tensor, nn

from dklfm.config import SolutionConfig
from dklfm.errors import ConfigError
from dklfm.model.conditioning import Found, conditioned
from dklfm.model.gaussian import cholesky
from dklfm.model.importance import cubature, flattened
from dklfm.model.modes import Modes, Seen, principal

_RANGE, _CELLS = 8.0, 256
"""Standardised forces that the response is tabulated on, and pieces of the table."""
_ROWS = 16384
"""Outputs of simulated tasks that a regression is made on."""
_HELD_OUT = 8
"""One in so many of them tells what the regression leaves unexplained."""
_RIDGE = 1e-6
"""Of the regression, a row."""
_LEAST = 1e-6
"""Variance of weights, which are of the order of one."""
_ROUNDS = 60
"""Of expectation and maximisation."""
_START = 0.1
"""Deviation of a standardised force from where a network says that it is."""
_DAMPING, _EASED, _RAISED = 1.0, 0.2, 5.0
"""Precision of a step at first, and its factors after one that helps and one that does not."""
_LAST = 4
"""Steps under each law, from the mode under that of all forces together."""
_ANEW, _NEAR = 3, 0.1
"""Steps of the force under parameters that were drawn, and the first one's damping."""
_WIDER = 1.25
"""Variance of the proposals over that of Laplace's approximation, which is too narrow."""
_LEAST_EFFECTIVE = 0.8
"""Share of the draws that flattened weights keep."""
_TASKS_AT_ONCE = 64


class Linear(NamedTuple):
    """Weights of outputs' modes, and their derivatives by those of the force and by θ_j."""

    weights: Float[Tensor, "task output mode"]
    by_force: Float[Tensor, "task output mode force_mode"]
    by_own: Float[Tensor, "task output mode unknown"]


class Mixture(NamedTuple):
    """Moments of the posterior: of the force's weights and of those of the outputs' modes."""

    force_weights: Float[Tensor, "task force_mode"]
    force_root: Float[Tensor, "task force_mode number"]
    weights: Float[Tensor, "task output mode"]
    loads: Float[Tensor, "task output mode number"]


class SolutionOperator(nn.Module):
    """See the module's docstring; all of it is learnt at once, nothing by gradients."""

    def __init__(
        self, config: SolutionConfig, kinds: int, nodes: int, modes: int, force: int
    ) -> None:
        super().__init__()
        self.config = config
        size, response = config.parameters, config.response_modes
        terms = _terms(2 * size, config.degree)
        self.register_buffer("terms", terms, persistent=False)

        def buffer(name: str, value: Tensor) -> None:
            self.register_buffer(name, value.double())

        # Nothing learnt: outputs are all of their own, and forces of no size.
        buffer("force_mean", torch.zeros(nodes))
        buffer("force_basis", torch.zeros(nodes, force))
        buffer("response", torch.zeros(4, _CELLS))
        buffer("response_mean", torch.zeros(nodes))
        buffer("projection", torch.zeros(response, nodes))
        buffer("centre", torch.zeros(kinds, size))
        buffer("root", torch.eye(size).repeat(kinds, 1, 1))
        buffer("usual", torch.zeros(kinds, size))
        buffer("deviation", torch.ones(kinds, size))
        buffer("operator", torch.zeros(kinds, len(terms), (1 + response) * modes))
        buffer("rest", torch.eye(modes).repeat(kinds, 1, 1))
        buffer("laws", torch.eye(force).repeat(config.laws, 1, 1))
        buffer("shares", torch.full((config.laws,), 1 / config.laws))

    terms: Tensor  # term factor, places among (1, θ, parameters)
    force_mean: Tensor  # node
    force_basis: Tensor  # node force_mode
    response: Tensor  # power cell, of splines
    response_mean: Tensor  # node
    projection: Tensor  # response_mode node
    centre: Tensor  # kind parameter, of logarithms
    root: Tensor  # kind parameter unknown, of their covariance
    usual: Tensor  # kind parameter
    deviation: Tensor  # kind parameter
    operator: Tensor  # kind term (response_mode mode)
    rest: Tensor  # kind mode mode, root of the covariance of what is not explained
    laws: Tensor  # law force_mode force_mode, roots of covariances
    shares: Tensor  # law

    @torch.no_grad()
    def learn(
        self,
        modes: Modes,
        outputs: Tensor,
        force: Tensor,
        parameters: Tensor,
        activity: Callable[[Tensor], Tensor],
    ) -> None:
        """Regress simulated tasks.

        Args:
            modes: learnt from the same tasks.
            outputs: free of noise, ``task x output x node``, on the model's scale.
            force: ``task x node``, likewise.
            parameters: ``task x output x parameter``, positive.
            activity: of forces on the model's scale.

        Raises:
            ConfigError: if the outputs have another number of parameters than was said, or some
                that are not positive.
        """
        found, positive = parameters.shape[-1], bool((parameters > 0).all())
        if found != self.config.parameters or not positive:
            raise ConfigError(
                f"model.solution is of outputs with {self.config.parameters} positive parameters "
                f"each; these have {found}{'' if positive else ', not all of them positive'}: set "
                "model.solution.parameters to the number of those that the system draws for each "
                "output, or leave model.solution out"
            )
        h, f = outputs.double(), force.double()
        mean, basis, drive = principal(f, self.force_basis.shape[1])
        self.force_mean.copy_(mean)
        self.force_basis.copy_(basis)
        roots, shares = _laws(drive, self.config.laws)
        self.laws.copy_(roots)
        self.shares.copy_(shares)
        at = torch.linspace(-_RANGE, _RANGE, _CELLS + 1, dtype=torch.float64)
        spline = CubicSpline(at.numpy(), activity(at).double().numpy())
        self.response.copy_(torch.from_numpy(np.array(spline.c)))
        felt, _ = self._felt(f)
        mean, basis, driven = principal(felt, len(self.projection))
        self.response_mean.copy_(mean)
        size = basis.square().sum(0)
        self.projection.copy_((basis / torch.where(size > 0, size, torch.inf)).mT)
        self._standardise(parameters.double().log())
        columns = nn.functional.pad(driven, (1, 0), value=1)
        for kind in range(len(self.operator)):
            of = slice(None) if modes.alike else slice(kind, kind + 1)
            self._regress(kind, modes, h[:, of], self._white(parameters[:, of], kind), columns)

    def _standardise(self, logs: Tensor) -> None:
        alike = len(self.operator) < logs.shape[1]
        by_kind = logs.flatten(0, 1)[None] if alike else logs.transpose(0, 1)
        centre = by_kind.mean(1)
        self.centre.copy_(centre)
        apart = by_kind - centre[:, None]
        values, vectors = torch.linalg.eigh(apart.mT @ apart / by_kind.shape[1])
        self.root.copy_(vectors * values.clamp_min(0).sqrt()[:, None])
        self.usual.copy_(by_kind.exp().mean(1))
        self.deviation.copy_(by_kind.exp().std(1).clamp_min(_LEAST * self.usual))

    def _white(self, parameters: Tensor, kind: int) -> Tensor:
        """θ of parameters ``task x output x parameter`` of one kind; zero where nothing varies."""
        size = self.root[kind].square().sum(0)
        back = self.root[kind] / torch.where(size > _LEAST**2, size, torch.inf)
        return (parameters.double().log() - self.centre[kind]) @ back

    def _regress(
        self, kind: int, modes: Modes, outputs: Tensor, white: Tensor, columns: Tensor
    ) -> None:
        """Of ``task x output x node`` outputs of one kind."""
        tasks, count = outputs.shape[:2]
        rows = torch.arange(min(_ROWS, tasks * count), device=outputs.device)
        rows = rows * (tasks * count // len(rows))
        flat = outputs.flatten(0, 1)[rows]
        own = flat.std(-1, keepdim=True) if modes.alike else torch.ones_like(flat[:, :1])
        back = torch.linalg.pinv(modes.basis[kind].double())
        target = (flat - modes.mean[kind].double()) @ back.mT / own
        features = self._features(white.flatten(0, 1)[rows][:, None], slice(kind, kind + 1))[0]
        design = features[:, 0, :, None] * columns[rows // count][:, None]
        design = design.flatten(1) / own
        told = torch.arange(len(rows)) % _HELD_OUT > 0
        some = design[told]
        gram = some.mT @ some + _RIDGE * len(some) * torch.eye(some.shape[1]).to(some)
        solved = torch.cholesky_solve(some.mT @ target[told], cholesky(gram))
        missed = target[~told] - design[~told] @ solved
        eye = torch.eye(target.shape[1]).to(missed)
        self.operator[kind] = solved.unflatten(0, (-1, columns.shape[1])).flatten(1)
        self.rest[kind] = cholesky(missed.mT @ missed / len(missed) + _LEAST**2 * eye)

    @torch.no_grad()
    def forward(self, seen: Seen, force: Float[Tensor, "task node"]) -> Mixture:
        """The posterior from observations and a first guess of the standardised force."""
        each = zip(*(values.split(_TASKS_AT_ONCE) for values in (*seen, force)), strict=True)
        parts = [self._inferred(Seen(*some), guess) for *some, guess in each]
        return Mixture(*(torch.cat(each) for each in zip(*parts, strict=True)))

    def _inferred(self, seen: Seen, force: Tensor) -> Mixture:
        tasks, laws = len(force), len(self.laws)
        believed = self._believed(seen)
        v, theta = self._begun(believed, force)
        every = Seen(*(each.repeat_interleave(laws, 0) for each in believed))
        problem = _Problem(self, every, self.laws.repeat(tasks, 1, 1))
        start = self._start(self.force_mean + v @ self.force_basis.mT, self.laws)
        v, theta, at, lost = problem.descend(start, theta.repeat_interleave(laws, 0), _LAST)
        found = problem.laplace(v, theta, at)
        evidence = self.shares.log() - (lost + 0.5 * found.log_det).unflatten(0, (tasks, laws))
        shares = evidence.softmax(1)
        if not self.config.samples:
            return _mixed(found, shares)
        return self._sampled(problem, v, theta, at, shares)

    def _sampled(
        self, problem: _Problem, v: Tensor, theta: Tensor, at: Linear, shares: Tensor
    ) -> Mixture:
        """Parameters by importance, from Laplace's mixture; the force is Laplace's under each."""
        (tasks, laws), count = shares.shape, self.config.samples
        marks = (torch.arange(count).to(shares) + 0.5) / count
        law = torch.searchsorted(shares.cumsum(1), marks.expand(tasks, -1).contiguous())
        law = law.clamp_max(laws - 1)
        row = (law + laws * torch.arange(tasks).to(law)[:, None]).flatten()
        cross, root, factor = (each[row] for each in problem.curvature(at))
        white = cubature(count, theta[0].numel()).to(v).repeat(tasks, 1)[..., None]
        moved = _WIDER**0.5 * torch.linalg.solve_triangular(factor.mT, white, upper=True)
        pulled = torch.cholesky_solve(cross @ moved, root)[..., 0]
        drawn = theta[row] + moved[..., 0].unflatten(-1, theta.shape[1:])
        seen = Seen(*(each[row] for each in problem.seen))
        given = _Problem(self, seen, problem.prior[row], given=True)
        start, _, at, lost = given.descend(v[row] - pulled, drawn, _ANEW, _NEAR)
        found = given.laplace(start, drawn, at)
        proposed = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)  # all are as far from the mode
        logs = -(lost + 0.5 * found.log_det + proposed).unflatten(0, (tasks, count))
        logs = logs + self.shares.log()[law] - shares.gather(1, law).log()
        return _mixed(found, flattened(logs, _LEAST_EFFECTIVE))

    def _begun(self, seen: Seen, force: Tensor) -> tuple[Tensor, Tensor]:
        """The mode under the law of all forces together, which leaves little to do under each.

        It is sought from what a network says and from the mean of all forces, the better is taken.
        """
        whole = torch.eye(self.laws.shape[-1]).to(self.laws)[None]
        tasks, outputs = seen.pull.shape[:2]
        twice = Seen(*(torch.cat([each, each]) for each in seen))
        start = self._start(torch.cat([force, self.force_mean.expand(tasks, -1)]), whole)
        theta = start.new_zeros(2 * tasks, outputs, self.config.parameters)
        problem = _Problem(self, twice, whole.expand(2 * tasks, -1, -1))
        v, theta, _, lost = problem.descend(start, theta, self.config.iterations)
        other = lost[tasks:] < lost[:tasks]
        return _chosen(other, v[tasks:], v[:tasks]), _chosen(other, theta[tasks:], theta[:tasks])

    def _believed(self, seen: Seen) -> Seen:
        """Less sure by what the operator leaves unexplained of the outputs' weights."""
        both = torch.cat([seen.precision, seen.pull[..., None]], -1)
        carried = self.rest.mT @ both
        inner = torch.eye(carried.shape[-2]).to(both) + carried[..., :-1] @ self.rest
        white = torch.linalg.solve_triangular(cholesky(inner), carried, upper=False)
        left = both - white[..., :-1].mT @ white
        return seen._replace(precision=left[..., :-1], pull=left[..., -1])

    def _start(self, force: Tensor, laws: Tensor) -> Tensor:
        """The likeliest white weights near a force under each law, ``(task law) x latent``."""
        design = self.force_basis @ laws / _START  # law node latent
        precision = torch.eye(design.shape[-1]).to(design) + design.mT @ design
        pull = design.mT @ ((force.double() - self.force_mean) / _START).mT
        return torch.cholesky_solve(pull, cholesky(precision)).permute(2, 0, 1).flatten(0, 1)

    def solve(self, w: Tensor, theta: Tensor) -> Linear:
        """Of ``task x force_mode`` weights and ``task x output x unknown`` numbers."""
        felt, slope = self._felt(self.force_mean + w @ self.force_basis.mT)
        columns = nn.functional.pad(
            (felt - self.response_mean) @ self.projection.mT, (1, 0), value=1
        )
        by_w = self.projection @ (slope[..., None] * self.force_basis)  # task response force
        features, by_theta = self._features(theta, slice(None))
        kinds, (tasks, outputs) = len(self.operator), theta.shape[:2]
        size = 1 + len(self.projection)
        # One product for each kind, of all its outputs.
        apart = features.transpose(0, 1).reshape(kinds, -1, features.shape[-1])
        of_force = (apart @ self.operator).reshape(outputs, tasks, size, -1).transpose(0, 1)
        weights = (columns[:, None, None] @ of_force)[..., 0, :]
        by_force = of_force[:, :, 1:].mT @ by_w[:, None]
        operator = self.operator.unflatten(-1, (size, -1)).transpose(1, 2).flatten(2)
        of_own = (columns @ operator).unflatten(-1, (features.shape[-1], -1)).transpose(0, 1)
        return Linear(weights, by_force, of_own.mT @ by_theta)

    def _felt(self, force: Tensor) -> tuple[Tensor, Tensor]:
        """The response to a standardised force, and its slope."""
        position = (force + _RANGE) * (_CELLS / (2 * _RANGE))
        cell = position.long().clamp(0, _CELLS - 1)
        away = (position - cell) * (2 * _RANGE / _CELLS)
        a, b, c, d = self.response[:, cell]
        return ((a * away + b) * away + c) * away + d, (3 * a * away + 2 * b) * away + c

    def _features(self, theta: Tensor, kinds: slice) -> tuple[Tensor, Tensor]:
        """Products φ of ``task x output x unknown`` numbers, and their derivatives by these."""
        root, deviation = self.root[kinds], self.deviation[kinds]
        exact = (self.centre[kinds] + (theta[..., None, :] @ root.mT)[..., 0, :]).exp()
        values = torch.cat([theta, (exact - self.usual[kinds]) / deviation], -1)
        values = nn.functional.pad(values, (1, 0), value=1)
        eye = torch.eye(theta.shape[-1]).to(theta).expand(*theta.shape, -1)
        slopes = torch.cat(
            [torch.zeros_like(eye[..., :1, :]), eye, (exact / deviation)[..., None] * root], -2
        )
        factors = values[..., self.terms]  # task output term factor
        count = factors.shape[-1]
        others = [factors[..., [j for j in range(count) if j != i]].prod(-1) for i in range(count)]
        parts = [
            other[..., None] * slopes[..., self.terms[:, i], :] for i, other in enumerate(others)
        ]
        return factors.prod(-1), torch.stack(parts).sum(0)


class _Problem:
    """Tasks, each under one law of the force's weights."""

    def __init__(
        self, operator: SolutionOperator, seen: Seen, prior: Tensor, given: bool = False
    ) -> None:
        """With ``given`` θ is known."""
        self.operator, self.seen, self.prior, self.given = operator, seen, prior, given

    def laplace(self, v: Tensor, theta: Tensor, at: Linear) -> Found:
        """Laplace's approximation at a mode."""
        found = self._conditioned(at, v, theta, torch.zeros_like(v[:, 0]))
        return found._replace(mean=v)

    def curvature(self, at: Linear) -> tuple[Tensor, Tensor, Tensor]:
        """Precision between v and all θ; roots of v's, and of θ's with v integrated out."""
        size = at.by_own.shape[-1]
        read = self.seen.precision @ torch.cat([at.by_force, at.by_own], -1)
        read_force, read_own = read.tensor_split([at.by_force.shape[-1]], -1)
        cross = (at.by_force.mT @ read_own).transpose(1, 2).flatten(2)
        of_force = at.by_force.flatten(1, 2).mT @ read_force.flatten(1, 2)
        root = cholesky(torch.eye(len(of_force[0])).to(of_force) + of_force)
        white = torch.linalg.solve_triangular(root, cross, upper=False)
        blocks = torch.eye(size).to(root) + at.by_own.mT @ read_own
        own = torch.stack([torch.block_diag(*each) for each in blocks])
        return cross, root, cholesky(own - white.mT @ white)

    def descend(
        self, v: Tensor, theta: Tensor, iterations: int, damping_at_first: float = _DAMPING
    ) -> tuple[Tensor, Tensor, Linear, Tensor]:
        """Damped Gauss-Newton: (v, θ), the operator there, and −log density, without constants."""
        at = self._solved(v, theta)
        lost = self._lost(at, v, theta)
        damping = torch.full_like(lost, damping_at_first)
        for _ in range(iterations):
            found = self._conditioned(at, v, theta, damping)
            kept, moved = (damping / (1 + damping))[:, None], (1 + damping).rsqrt()[:, None]
            new_v = kept * v + moved * found.mean
            new_theta = theta
            if not self.given:
                own = found.unknown[..., : theta.shape[-1]]
                new_theta = kept[..., None] * theta + moved[..., None] * own
            there = self._solved(new_v, new_theta)
            worth = self._lost(there, new_v, new_theta)
            better = worth < lost
            v, theta, lost = (
                _chosen(better, new, old)
                for new, old in ((new_v, v), (new_theta, theta), (worth, lost))
            )
            at = Linear(*(_chosen(better, new, old) for new, old in zip(there, at, strict=True)))
            damping = damping * torch.where(better, _EASED, _RAISED)
        return v, theta, at, lost

    def _solved(self, v: Tensor, theta: Tensor) -> Linear:
        """In units of what was observed of an output, about its level; derivatives by v."""
        found = self.operator.solve((self.prior @ v[..., None])[..., 0], theta)
        seen = self.seen
        weights = found.weights.clone()
        weights[..., -2] -= seen.location[..., 0]  # the second last mode is a constant
        by_v = found.by_force @ self.prior[:, None]
        by_own = found.by_own[..., :0] if self.given else found.by_own
        scale = seen.scale[..., None]
        return Linear(weights / seen.scale, by_v / scale, by_own / scale)

    def _lost(self, at: Linear, v: Tensor, theta: Tensor) -> Tensor:
        c, seen = at.weights, self.seen
        fit = (0.5 * (seen.precision @ c[..., None])[..., 0] - seen.pull) * c
        return 0.5 * (v.square().sum(-1) + theta.square().sum((-1, -2))) + fit.sum((-1, -2))

    def _conditioned(self, at: Linear, v: Tensor, theta: Tensor, damping: Tensor) -> Found:
        """Of what is to be moved by, with so much precision beside the prior's."""
        share = (1 + damping).reciprocal()[:, None, None]
        moved = at.by_force @ v[:, None, :, None]
        if not self.given:
            moved = moved + at.by_own @ theta[..., None]
        root = share.sqrt()[..., None]
        return conditioned(
            self.seen,
            at.weights - share * moved[..., 0],
            root * at.by_force,
            root * at.by_own,
            self.prior,
        )


def _chosen(better: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return torch.where(better.view(-1, *[1] * (new.ndim - 1)), new, old)


def _terms(variables: int, degree: int) -> Tensor:
    """Products of up to so many of the variables, which follow a one: ``term x factor`` places."""
    return torch.tensor(list(combinations_with_replacement(range(variables + 1), degree)))


def _laws(weights: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """A mixture of Gaussians about zero by expectation and maximisation.

    Args:
        weights: ``task x mode``, the slow modes first.
        count: how many.

    Returns:
        Roots of their covariances, ``law x mode x mode``, and their shares.
    """
    size = weights.shape[1]
    rough = weights.square().clamp_min(_LEAST).log().mean(1)
    order = rough.argsort().argsort() * count // len(rough)
    belongs = nn.functional.one_hot(order, count).double()
    for _ in range(_ROUNDS):
        shares = belongs.mean(0)
        of_each = (weights.mT @ (belongs.mT[..., None] * weights)) / belongs.sum(0)[:, None, None]
        roots = cholesky(of_each + _LEAST * torch.eye(size).to(weights))
        white = torch.linalg.solve_triangular(roots, weights.mT, upper=False)
        log_det = roots.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        densities = shares.log() - log_det - 0.5 * white.square().sum(1).mT
        belongs = densities.softmax(1)
    return roots, shares


def _mixed(found: Found, shares: Float[Tensor, "task law"]) -> Mixture:
    """Moments of a mixture of Laplace's approximations."""
    tasks, laws = shares.shape

    def moments(means: Tensor, roots: Tensor) -> tuple[Tensor, Tensor]:
        """Of ``(task law) x ...`` means and roots with one dimension more."""
        means, roots = means.unflatten(0, (tasks, laws)), roots.unflatten(0, (tasks, laws))
        share = shares.view(tasks, laws, *[1] * (means.ndim - 2))
        mean = (share * means).sum(1)
        away = (means - mean[:, None])[..., None]
        both = share.sqrt()[..., None] * torch.cat([roots, away], -1)
        return mean, _fewer(both.movedim(1, -2).flatten(-2))

    force, root = found.force()
    return Mixture(*moments(force[..., 0], root), *moments(found.weights(), found.loads()))


def _fewer(root: Tensor) -> Tensor:
    """A root of the same covariance with no more columns than rows."""
    rows, columns = root.shape[-2:]
    if columns <= rows:
        return root
    return torch.linalg.qr(root.mT, mode="r").R.mT
