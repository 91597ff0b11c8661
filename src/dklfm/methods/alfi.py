"""A variational latent force model for one task, in the manner of Alfi (Moss et al. 2021).

The force is a Gaussian process with inducing points, f = Φ v with white v; a differentiable solver
takes it to outputs h(v), and the evidence lower bound

    E_q[log N(y | h(v), σ²)] − KL(q ‖ N(0, I))

is maximised over q = N(m, Λ⁻¹) and over point estimates of the equation's parameters and of the
force's lengthscales. Nothing tells it the parameters' prior but where it starts, the median.

q takes natural-gradient steps with the Gauss–Newton curvature, as in VOGN (Khan & Rue 2023, The
Bayesian learning rule, section 4), at rate 1: with J = ∂h/∂v

    Λ ← I + E_q[Jᵀ J / σ²],   m ← m − Λ⁻¹ E_q[Jᵀ (h − y) / σ² + v],

so that Λ is positive definite by construction, and one step is exact where h is linear. A lower
rate would average the noise of the samples, but then q lags behind the parameters, and with little
noise in the data a q that is stale by the smallest step of theirs drives them off. Adam's gradient
is therefore taken at the q just found.

Three faults of the original are not repeated: outputs keep their order between data and model, the
initial state is the equation's own (y(0) = b/d for transcription) and not zero, and times are
inputs of the solver, not indices into its grid.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import partial
from types import EllipsisType
from typing import NamedTuple

import gpytorch
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor, nn

from dklfm.config.references import AlfiConfig
from dklfm.errors import DataError
from dklfm.methods.single import TaskPosterior, require_noise, true_parameters
from dklfm.systems import ReactionDiffusion, System
from dklfm.systems.transcription import GENES
from dklfm.tasks import Tasks

Array = NDArray[np.float64]
Rates = Mapping[str, Tensor]
"""The equation's parameters by their names."""
_eye = partial(torch.eye, dtype=torch.float64)
_JITTER = 1e-8
_DIFFERENCE = 1e-4
"""Step of forward differences by v."""
_ODE_STEPS = 40
_PDE_MODES, _PDE_NODES = 160, 288
_START_LENGTHSCALE = 0.1
"""Of the domain's length, for a system that has none among its parameters."""
_FALL = 0.4
"""Share of the iterations, the last, over which Adam's rate falls to nothing."""
_CAUTIOUS_STEPS = 10
"""Of q alone, at first; equations that grow exponentially start far from the data."""
_KNOWN_STEPS = 20
"""Of q, cautious ones included, where there is nothing else to learn."""
_POSTERIOR_SAMPLES = 128
_ANCHORS: dict[str, dict[str, int | EllipsisType]] = {
    # CDKN1A, as Barenco et al. (2006) fix it.
    "transcription": dict.fromkeys(("sensitivity", "decay"), GENES.index("CDKN1A")),
    "reaction_diffusion": {"production": ..., "decay": ...},
    "lotka_volterra": {"beta": ...},
}
"""Parameters whose true value fixes the force's scale: which output's, or the only one."""

RESPONSES: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda f: f,
    "softplus": nn.functional.softplus,
    "exponential": torch.exp,
    "sigmoid": torch.sigmoid,
}


def _rbf(lengthscale: float) -> nn.Module:
    kernel = gpytorch.kernels.RBFKernel().double()
    kernel.lengthscale = lengthscale
    return kernel


class InducingForce(nn.Module):
    """f = k(·, Z) k(Z, Z)^{-1/2} v, so that N(0, I) over v is the prior.

    Z is a regular grid over the domain; the covariance is a product of RBF kernels, one an axis,
    whose lengthscales are learnt, and so Φ is a Kronecker product over points on a grid.
    """

    def __init__(
        self, axes: list[tuple[float, float]], lengthscales: list[float], count: int
    ) -> None:
        super().__init__()
        self.kernels = nn.ModuleList(map(_rbf, lengthscales))
        self.inducing = [torch.linspace(*ends, count, dtype=torch.float64) for ends in axes]
        self.size = count ** len(axes)

    def lengthscale(self, axis: int) -> Tensor:
        """ℓ of exp(−Δ²/2ℓ²), ``1 x 1``."""
        return torch.as_tensor(self.kernels[axis].lengthscale)

    def whiten(self, axis: int, cross: Tensor) -> Tensor:
        """``... x inducing`` linear maps of k(·, Z), as maps of white coefficients."""
        z = self.inducing[axis]
        covariance = self.kernels[axis](z, z).to_dense() + _JITTER * _eye(len(z))
        root = torch.linalg.cholesky(covariance)
        return torch.linalg.solve_triangular(root.mT, cross, upper=True, left=False)

    def factor(self, axis: int, x: Tensor) -> Tensor:
        """Φ along one axis, ``x x coefficient``."""
        return self.whiten(axis, self.kernels[axis](x, self.inducing[axis]).to_dense())

    def features(self, points: Tensor) -> Tensor:
        """Φ at ``point x axis`` inputs, ``point x coefficient``."""
        product, *others = (self.factor(axis, x) for axis, x in enumerate(points.mT))
        for other in others:
            product = (product[:, :, None] * other[:, None, :]).flatten(1)
        return product


class Observations(NamedTuple):
    """What was observed.

    Attributes:
        where: ``output x point``, true where there is an observation.
        y, sd: ``observation`` values and standard deviations of their noise.
    """

    where: Tensor
    y: Tensor
    sd: Tensor

    def scale(self, outputs: Tensor) -> Tensor:
        """``... x observation`` values, in units of the noise, of ``... x output x point`` ones."""
        return outputs[..., self.where] / self.sd

    def residual(self, outputs: Tensor) -> Tensor:
        """``sample x observation`` values of (h − y)/σ."""
        return self.scale(outputs) - self.y / self.sd


class GaussianPosterior:
    """q(v) = N(mean, Λ⁻¹), at first the prior; root is the Cholesky factor of Λ."""

    def __init__(self, size: int) -> None:
        self.mean = torch.zeros(size, dtype=torch.float64)
        self.root = _eye(size)

    def sample(self, count: int, generator: Generator) -> Tensor:
        """``sample x coefficient`` draws, in antithetic pairs."""
        size = len(self.mean), (count + 1) // 2
        noise = torch.randn(size, generator=generator, dtype=torch.float64)
        moves = torch.linalg.solve_triangular(self.root.mT, noise, upper=True).mT
        return self.mean + torch.cat([moves, -moves])[:count]

    def variance(self, maps: Tensor) -> Tensor:
        """Variances ``column`` of aᵀ v, for the columns a of ``coefficient x column`` maps."""
        return torch.linalg.solve_triangular(self.root, maps, upper=False).square().sum(0)

    def step(self, residual: Tensor, jacobian: Tensor) -> None:
        """Make one natural-gradient step.

        Args:
            residual: ``sample x observation`` values of (h − y)/σ at samples of q.
            jacobian: ``sample x coefficient x observation`` derivatives of them by v; of one
                sample, which stands for all, where h is linear.
            rate: ρ.
        """
        rows = jacobian.transpose(0, 1).flatten(1)
        curvature = _eye(len(rows)) + rows @ rows.mT / len(jacobian)
        self.root = torch.linalg.cholesky(curvature)
        gradient = (jacobian @ residual[..., None]).mean(0) + self.mean[:, None]
        self.mean = self.mean - torch.cholesky_solve(gradient, self.root)[:, 0]


class Solver(ABC):
    """Maps samples of v to outputs at the points that it was made for."""

    @abstractmethod
    def __call__(self, v: Tensor, force: InducingForce, rates: Rates) -> Tensor:
        """``sample x output x point`` outputs of ``sample x coefficient`` draws."""

    def linearise(self, v: Tensor, force: InducingForce, rates: Rates) -> tuple[Tensor, Tensor]:
        """Outputs, and their derivatives by v, ``sample x coefficient x output x point``."""
        moved = torch.cat([v[:, None], v[:, None] + _DIFFERENCE * _eye(v.shape[1])], 1)
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
        s, nodes = position - left, _eye(steps + 1)
        at, after = nodes[left[:, 0]], nodes[left[:, 0] + 1]
        self.by_state = (1 + 2 * s) * (1 - s) ** 2 * at + s**2 * (3 - 2 * s) * after
        self.by_slope = self.step * (s * (1 - s) ** 2 * at + s**2 * (s - 1) * after)

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


class Parameters(nn.Module):
    """Positive parameters by their logarithms; those that are not free stay where they are."""

    def __init__(self, values: Mapping[str, Array], free: Mapping[str, Array]) -> None:
        super().__init__()
        self.start = {name: torch.as_tensor(np.log(value)) for name, value in values.items()}
        self.free = {name: torch.as_tensor(mask) for name, mask in free.items()}
        self.moves = nn.ParameterDict(
            {name: nn.Parameter(torch.zeros_like(mask)) for name, mask in self.free.items()}
        )

    def forward(self) -> dict[str, Tensor]:
        """The parameters by their names."""
        moved = {name: mask * self.moves[name] for name, mask in self.free.items()}
        return {name: (start + moved.get(name, 0.0)).exp() for name, start in self.start.items()}


class Alfi:
    """The variational fit of one task."""

    def __init__(self, system: System, config: AlfiConfig) -> None:
        self.system, self.config, self.name = system, config, config.name

    def fit(self, task: Tasks) -> TaskPosterior:
        """The posterior of the only task given; outputs at padded points are NaN.

        Raises:
            DataError: if the task states no noise, or not the true parameters that it must; if the
                system gives no right-hand side, no prior to start from, or nothing to anchor; if
                the outputs grow out of all bounds on the way.
        """
        require_noise(task, self.name)
        try:
            return self._fit(task)
        except NotImplementedError as error:
            raise DataError(f"{self.name} cannot fit {self.system.name}: {error}") from None
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
            name = task.data["task"].values[0]
            raise DataError(
                f"task {name}: the fit of {self.name} diverges; state a larger y_sd, "
                "or observe a shorter range of the inputs"
            ) from None

    def _fit(self, task: Tasks) -> TaskPosterior:
        config, generator = self.config, Generator().manual_seed(0)
        x, query, y, sd = (torch.tensor(task[name][0]) for name in ("x", "x_query", "y", "y_sd"))
        seen = y.isfinite().any(0)
        where = y[:, seen].isfinite()
        data = Observations(where, y[:, seen][where], sd[:, seen][where])
        solver = self._solver(x[seen])
        force, parameters = self._start(task)
        q = GaussianPosterior(force.size)

        learnt = [p for part in (force, parameters) for p in part.parameters() if p.requires_grad]
        adam = torch.optim.Adam(learnt, lr=config.learning_rate) if learnt else None
        steps = _CAUTIOUS_STEPS + config.iterations if learnt else _KNOWN_STEPS
        for i in range(steps):
            with torch.no_grad():
                v = q.sample(config.samples, generator)
                outputs, jacobian = solver.linearise(v, force, parameters())
                residual, slopes = data.residual(outputs), data.scale(jacobian)
                if i < _CAUTIOUS_STEPS:  # what is far off counts less
                    weight = (1 + residual.square().mean(0)).rsqrt()
                    residual, slopes = residual * weight, slopes * weight
                q.step(residual, slopes)
            if adam is None or i < _CAUTIOUS_STEPS:
                continue
            adam.param_groups[0]["lr"] = config.learning_rate * min(1, (1 - i / steps) / _FALL)
            adam.zero_grad()
            v = q.sample(config.samples, generator)
            solver.misfit(q, v, data, force, parameters()).backward()
            adam.step()

        with torch.no_grad():
            v = q.sample(_POSTERIOR_SAMPLES, generator)
            outputs = self._solver(torch.cat([x, query]))(v, force, parameters())
            features = force.features(query)
            left_out = (1 - features.square().sum(-1)).clamp_min(0.0)
            variance = q.variance(features.mT) + left_out
        return TaskPosterior(
            (features @ q.mean).numpy(),
            variance.clamp_min(1e-12).numpy(),
            outputs.mean(0).numpy(),
            outputs.var(0).clamp_min(1e-12).numpy(),
        )

    def _solver(self, points: Tensor) -> Solver:
        if isinstance(self.system, ReactionDiffusion):
            return ReactionDiffusionSolver(points)
        return OrdinarySolver(self.system, points)

    def _start(self, task: Tasks) -> tuple[InducingForce, Parameters]:
        """Force and parameters as the search begins, with what is not learnt held."""
        system, known = self.system, self.name.endswith("_known")
        free: dict[str, Array] = {}
        if known:
            values = true_parameters(system, task)
        else:
            shapes = system.white_shapes()
            white = {name: np.zeros((1, *shape)) for name, shape in shapes.items()}
            values = {name: np.array(v[0]) for name, v in system.from_white(white).items()}
            varying = [name for name in system.parameters if name in shapes]
            free = {name: np.ones_like(values[name]) for name in varying}
        if self.name.endswith("_anchored"):
            if system.name not in _ANCHORS:
                raise NotImplementedError("no parameter is known to fix its force's scale")
            truth = true_parameters(system, task)
            for name, which in _ANCHORS[system.name].items():
                values[name][which] = truth[name][which]
                if name in free:
                    free[name][which] = 0.0
        scales = [name for name in system.parameters if name.startswith("lengthscale")]
        lengthscales = [float(values[name]) for name in scales]
        if isinstance(system, ReactionDiffusion):  # θ = √2 ℓ
            lengthscales = [value / math.sqrt(2) for value in lengthscales]
        axes = [(axis.low, axis.high) for axis in system.axes]
        force = InducingForce(
            axes,
            lengthscales or [_START_LENGTHSCALE * (high - low) for low, high in axes],
            self.config.inducing,
        )
        force.requires_grad_(not (known and scales))
        rates = [name for name in system.parameters if name not in scales]
        return force, Parameters(
            {name: values[name] for name in rates},
            {name: free[name] for name in rates if name in free},
        )
