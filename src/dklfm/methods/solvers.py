"""Differentiable solvers: from white coefficients of a force to outputs, through an equation."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from dklfm.methods.variational import GaussianPosterior, InducingForce, Observations, eye
from dklfm.systems import System
from dklfm.systems.ode import hermite

Rates = Mapping[str, Tensor]
"""An equation's parameters by their names."""
_DIFFERENCE = 1e-4
"""Step of forward differences by v."""
_ODE_STEPS = 40
_PDE_MODES, _PDE_NODES = 160, 288

RESPONSES: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda f: f,
    "softplus": nn.functional.softplus,
    "exponential": torch.exp,
    "sigmoid": torch.sigmoid,
}


class Solver(ABC):
    """Maps samples of v to outputs at the points that it was made for."""

    @abstractmethod
    def __call__(self, v: Tensor, force: InducingForce, rates: Rates) -> Tensor:
        """``sample x output x point`` outputs of ``sample x coefficient`` draws."""

    def linearise(self, v: Tensor, force: InducingForce, rates: Rates) -> tuple[Tensor, Tensor]:
        """Outputs, and their derivatives by v, ``sample x coefficient x output x point``."""
        moved = torch.cat([v[:, None], v[:, None] + _DIFFERENCE * eye(v.shape[1])], 1)
        outputs = self(moved.flatten(0, 1), force, rates).unflatten(0, moved.shape[:2])
        return outputs[:, 0], (outputs[:, 1:] - outputs[:, :1]) / _DIFFERENCE

    def misfit(
        self,
        q: GaussianPosterior,
        v: Tensor,
        data: Observations,
        force: InducingForce,
        rates: Rates,
    ) -> Tensor:
        """E_q[½ Σ ((h − y)/σ)²], estimated from samples v of q."""
        return 0.5 * data.residual(self(v, force, rates)).square().sum(-1).mean()


class OrdinarySolver(Solver):
    """Runge–Kutta on a uniform grid, for any system that gives a right-hand side.

    Cubic Hermite interpolation takes states and slopes on the grid to ``point x 1`` times; it gives
    NaN at times before the domain, where the initial state does not lead.
    """

    def __init__(self, system: System, points: Tensor) -> None:
        self.system = system
        self.response = RESPONSES[getattr(system, "response", "identity")]
        low, high = system.axes[0].low, system.axes[0].high
        self.step = (high - low) / _ODE_STEPS
        position = (points - low) / self.step
        position[position < 0] = torch.nan
        steps = max(_ODE_STEPS, math.ceil(position.nan_to_num().max()))
        self.grid = low + self.step / 2 * torch.arange(2 * steps + 1, dtype=torch.float64)
        left = position.nan_to_num().long().clamp(max=steps - 1)
        s, nodes = position - left, eye(steps + 1)
        at, after = nodes[left[:, 0]], nodes[left[:, 0] + 1]
        by_y0, by_m0, by_y1, by_m1 = hermite(s)
        self.by_state = by_y0 * at + by_y1 * after
        self.by_slope = self.step * (by_m0 * at + by_m1 * after)

    def __call__(self, v: Tensor, force: InducingForce, rates: Rates) -> Tensor:
        h, rate, shape = self.step, self.system.rate, (len(v), len(self.system.outputs))
        y = torch.as_tensor(self.system.initial(rates)).expand(shape)
        activity = self.response(force.factor(0, self.grid) @ v.mT)[..., None]  # time sample 1
        early, middle, late = activity[:-1:2], activity[1::2], activity[2::2]
        states, slopes = [], []
        for start, half, end in zip(early, middle, late, strict=True):
            k1 = rate(y, start, rates)
            k2 = rate(y + h / 2 * k1, half, rates)
            k3 = rate(y + h / 2 * k2, half, rates)
            k4 = rate(y + h * k3, end, rates)
            states.append(y)
            slopes.append(k1)
            y = y + h / 6 * (k1 + 2 * (k2 + k3) + k4)
        states.append(y)
        slopes.append(rate(y, activity[-1], rates))
        path = self.by_state @ torch.stack(states, 1) + self.by_slope @ torch.stack(slopes, 1)
        return path.mT


class ReactionDiffusionSolver(Solver):
    """Sine modes in space, each relaxing under the force in closed form."""

    def __init__(self, points: Tensor) -> None:
        nodes, weights = np.polynomial.legendre.leggauss(_PDE_NODES)
        self.nodes = torch.as_tensor((nodes + 1) / 2)
        self.mode = torch.arange(1, _PDE_MODES + 1).double()
        # ∫ 2 sin(nπx) · dx over [0, 1]
        self.project = torch.sin(math.pi * self.mode[:, None] * self.nodes)
        self.project *= torch.as_tensor(weights)
        self.sines = torch.sin(math.pi * points[:, :1] * self.mode)
        self.times, self.at_time = torch.unique(points[:, 1], return_inverse=True)

    def __call__(self, v: Tensor, force: InducingForce, rates: Rates) -> Tensor:
        return (v @ self._gradient(force, rates))[:, None]

    def linearise(self, v: Tensor, force: InducingForce, rates: Rates) -> tuple[Tensor, Tensor]:
        """The derivatives are those of any one sample."""
        gradient = self._gradient(force, rates)
        return (v @ gradient)[:, None], gradient[None, :, None]

    def misfit(
        self,
        q: GaussianPosterior,
        v: Tensor,
        data: Observations,
        force: InducingForce,
        rates: Rates,
    ) -> Tensor:
        """Exact: with little noise, that of a few samples hides how it depends on parameters."""
        gradient = data.scale(self._gradient(force, rates)[:, None])
        residual = q.mean @ gradient - data.y / data.sd
        return 0.5 * (residual.square() + q.variance(gradient)).sum()

    def _gradient(self, force: InducingForce, rates: Rates) -> Tensor:
        """The derivatives of the output by v, ``coefficient x point``."""
        rate = rates["decay"] + rates["diffusion"] * (math.pi * self.mode) ** 2
        theta = math.sqrt(2) * force.lengthscale(1)
        relaxed = _relaxation(self.times[:, None, None], force.inducing[1], rate[:, None], theta)
        over_t = force.whiten(1, relaxed)[self.at_time]  # point mode j
        over_x = self.sines[..., None] * (self.project @ force.factor(0, self.nodes))
        return rates["production"] * (over_x.mT @ over_t).flatten(1).mT


def _relaxation(t: Tensor, s: Tensor, rate: Tensor, theta: Tensor) -> Tensor:
    """∫₀ᵗ exp(−β(t − τ)) exp(−(τ − s)²/θ²) dτ, as :func:`dklfm.systems.greens.relaxation`."""
    v, d, start = theta * rate / 2, (t - s) / theta, s / theta
    gap = v - d
    reflected = 2 * torch.exp(torch.where(gap < 0, v * (v - 2 * d), -torch.inf))
    sign = torch.where(gap < 0, -1.0, 1.0)
    head = sign * torch.special.erfcx(gap.abs()) * torch.exp(-(d**2)) + reflected
    tail = torch.special.erfcx(v + start) * torch.exp(-(start**2) - rate * t)
    return theta * math.sqrt(math.pi) / 2 * (head - tail)
