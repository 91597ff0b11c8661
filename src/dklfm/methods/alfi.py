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
from collections.abc import Mapping
from types import EllipsisType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor, nn

from dklfm.config.references import AlfiConfig
from dklfm.errors import DataError
from dklfm.methods.single import TaskPosterior, require_noise, true_parameters
from dklfm.methods.solvers import OrdinarySolver, ReactionDiffusionSolver, Solver
from dklfm.methods.variational import GaussianPosterior, InducingForce, Observations
from dklfm.systems import ReactionDiffusion, System
from dklfm.systems.transcription import GENES
from dklfm.tasks import Tasks

Array = NDArray[np.float64]
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
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]  # torch does not declare it
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
