"""Transcriptional regulation: genes driven by one unobserved transcription factor."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from functools import cache
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import AfterValidator, Field

from dklfm.resources import resource_path
from dklfm.settings import Distribution, Section, Uniform, positive
from dklfm.systems import gaussian
from dklfm.systems.base import Array, Axis, Draw, Solution, System
from dklfm.systems.ode import rk4

GENES = ("DDB2", "BIK", "TNFRSF10B", "CDKN1A", "SESN1")
_PARAMETERS = ("basal", "sensitivity", "decay")
_ESTIMATES = "p53/parameters.csv"
_REFERENCE = "moss2021"

RESPONSES: dict[str, Callable[[Array], Array]] = {
    "identity": lambda f: f,
    "softplus": lambda f: np.logaddexp(0.0, f),
    "exponential": np.exp,
    "sigmoid": lambda f: 1 / (1 + np.exp(-f)),
}


@cache
def _estimates() -> dict[tuple[str, str], dict[str, float]]:
    """Published estimates as {(parameter, gene): {source: value}}."""
    table: dict[tuple[str, str], dict[str, float]] = {}
    for line in resource_path(_ESTIMATES).read_text().splitlines()[1:]:
        source, parameter, gene, value = line.split(",")
        table.setdefault((parameter, gene), {})[source] = float(value)
    return table


class _LogNormalPrior(Section):
    """Independent log-normals on basal rate, sensitivity and decay of each gene.

    With five genes, output j is the p53 target ``GENES[j]``; with another number, each
    output takes the law of a target drawn at random.
    """

    @abstractmethod
    def moments(self) -> tuple[Array, Array]:
        """Mean and standard deviation of the log, ``parameter x gene``."""

    def draw(self, rng: np.random.Generator, genes: int) -> dict[str, Array]:
        mean, sd = self.moments()
        noise = rng.standard_normal((len(_PARAMETERS), genes))
        gene = np.arange(genes) if genes == len(GENES) else rng.integers(len(GENES), size=genes)
        values = np.exp(mean[:, gene] + sd[:, gene] * noise)
        return dict(zip(_PARAMETERS, values, strict=True))


class LogNormalPrior(_LogNormalPrior):
    """The same relative spread around published p53 values for every parameter."""

    name: Literal["lognormal"] = "lognormal"
    spread: Annotated[float, Field(ge=0, le=3)] = 0.3

    @property
    def label(self) -> str:
        return f"lognormal({self.spread:g})"

    def moments(self) -> tuple[Array, Array]:
        table = _estimates()
        mean = np.log([[table[p, g][_REFERENCE] for g in GENES] for p in _PARAMETERS])
        return mean, np.full_like(mean, self.spread)


class P53EmpiricalPrior(_LogNormalPrior):
    """A log-normal fitted to the published estimates of each p53 target's parameters."""

    name: Literal["p53-empirical"] = "p53-empirical"

    @property
    def label(self) -> str:
        return self.name

    def moments(self) -> tuple[Array, Array]:
        table = _estimates()
        logs = [[np.log(list(table[p, g].values())) for g in GENES] for p in _PARAMETERS]
        mean = np.array([[values.mean() for values in row] for row in logs])
        sd = np.array([[values.std(ddof=1) for values in row] for row in logs])
        return mean, sd


class Transcription(System):
    """dy_j/dt = b_j + s_j G(f(t)) − d_j y_j with y_j(0) = b_j/d_j and f ~ GP(0, RBF).

    Eq. 8 of the DKLFM paper, after Barenco et al. (2006): basal rates b, sensitivities s
    and decays d per gene; time in hours, rates per hour.
    """

    force_name: ClassVar[str] = "transcription factor activity"
    resources: ClassVar[tuple[str, ...]] = (_ESTIMATES,)

    name: Literal["transcription"] = "transcription"
    genes: Annotated[int, Field(ge=1, le=200)] = 5
    response: Literal["identity", "softplus", "exponential", "sigmoid"] = "softplus"
    duration: Annotated[float, Field(gt=0)] = 12.0
    lengthscale: Annotated[Distribution, AfterValidator(positive)] = Uniform(low=1.2, high=3.6)
    prior: Annotated[LogNormalPrior | P53EmpiricalPrior, Field(discriminator="name")] = (
        P53EmpiricalPrior()
    )
    steps: Annotated[int, Field(ge=10)] = 480

    @property
    def axes(self) -> tuple[Axis, ...]:
        return (Axis("time", "h", 0.0, self.duration),)

    @property
    def outputs(self) -> tuple[str, ...]:
        if self.genes == len(GENES):
            return GENES
        return tuple(f"gene{j + 1}" for j in range(self.genes))

    @property
    def parameters(self) -> tuple[str, ...]:
        return (*_PARAMETERS, "lengthscale")

    @property
    def prior_label(self) -> str:
        return self.prior.label

    def activity(self, force: Array) -> Array:
        """G(f), the protein's abundance as the genes feel it."""
        return RESPONSES[self.response](force)

    def _nodes(self) -> Array:
        count = gaussian.node_count(0.0, self.duration, self.lengthscale.bounds[0])
        return np.linspace(0.0, self.duration, count)

    def draw(self, rng: np.random.Generator) -> Draw:
        parameters = self.prior.draw(rng, self.genes)
        lengthscale = np.asarray(self.lengthscale.sample(rng))
        coefficients = rng.standard_normal(len(self._nodes()))
        return {**parameters, "lengthscale": lengthscale, "coefficients": coefficients}

    def solve(self, draws: Draw, x: Array) -> Solution:
        """Integrate by Runge–Kutta on a uniform grid; times outside [0, duration] are refused.

        Raises:
            ValueError: if a time lies outside the domain.
        """
        times = x[..., 0]
        if not ((times >= 0) & (times <= self.duration)).all():
            raise ValueError(f"times must lie in [0, {self.duration:g}] {self.axes[0].unit}")
        nodes, lengthscale = self._nodes(), draws["lengthscale"]
        weights = gaussian.interpolation_weights(draws["coefficients"], nodes, lengthscale)
        basal, sensitivity, decay = (draws[name] for name in _PARAMETERS)

        # Runge–Kutta visits the grid points and their midpoints: the force is needed there only.
        half_step = self.duration / (2 * self.steps)
        grid = np.linspace(0.0, self.duration, 2 * self.steps + 1)
        drive = self.activity(gaussian.evaluate(weights, nodes, lengthscale, grid))

        def rhs(t: float, y: Array) -> Array:
            return basal + sensitivity * drive[:, round(t / half_step), None] - decay * y

        trajectory = rk4(rhs, basal / decay, 0.0, self.duration, self.steps)
        force = gaussian.evaluate(weights, nodes, lengthscale, times)
        return Solution(force, trajectory(times))
