"""Transcriptional regulation: genes driven by one unobserved transcription factor."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import cache, cached_property
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

import numpy as np
from pydantic import AfterValidator, Field, model_validator
from scipy.special import ndtr

from dklfm.errors import DataError
from dklfm.resources import resource_path
from dklfm.settings import Distribution, Section, Uniform, positive
from dklfm.systems import gaussian
from dklfm.systems.base import Array, Axis, Draw, Solution, System
from dklfm.systems.ode import Trajectory, rk4

GENES = ("DDB2", "BIK", "TNFRSF10B", "CDKN1A", "SESN1")
_PARAMETERS = ("basal", "sensitivity", "decay")
Response = Literal["identity", "softplus", "exponential", "sigmoid"]
_ESTIMATES = "p53/parameters.csv"
_WIDE = 1.2
"""Spread of parameters of which most genes have one that no narrower prior gives."""
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


def _published() -> Array:
    """The reference estimates, ``parameter x gene``."""
    table = _estimates()
    return np.array([[table[p, g][_REFERENCE] for g in GENES] for p in _PARAMETERS])


@cache
def _spread_of_estimates() -> tuple[Array, Array]:
    """Mean and standard deviation of their logarithms, ``parameter x gene``."""
    table = _estimates()
    logs = [[np.log(list(table[p, g].values())) for g in GENES] for p in _PARAMETERS]
    mean = np.array([[values.mean() for values in row] for row in logs])
    sd = np.array([[values.std(ddof=1) for values in row] for row in logs])
    return mean, sd


class _Prior(Section, ABC):
    """A law of basal rate, sensitivity and decay of each gene.

    With five genes, output j is the p53 target ``GENES[j]``.
    """

    varying: ClassVar[tuple[str, ...]] = _PARAMETERS
    """The parameters that are not fixed."""
    any_genes: ClassVar[bool] = False
    """Whether the law is also one of other genes than the five targets."""

    @abstractmethod
    def of_white(self, white: Mapping[str, Array]) -> dict[str, Array]:
        """Parameters ``... x gene`` from as many standard normal variables each."""

    def draw(self, rng: np.random.Generator, genes: int) -> dict[str, Array]:
        noise = rng.standard_normal((len(self.varying), genes))
        return self.of_white(dict(zip(self.varying, noise, strict=True)))


class _LogNormalPrior(_Prior):
    """Independent log-normals of the five targets.

    Any other number of genes are drawn from one law, a joint log-normal of basal rate, sensitivity
    and decay with the moments of a target picked at random.
    """

    any_genes: ClassVar[bool] = True

    @abstractmethod
    def moments(self) -> tuple[Array, Array]:
        """Mean and standard deviation of the log, ``parameter x target``."""

    @cached_property
    def _of_any_gene(self) -> tuple[Array, Array]:
        """Mean of the log and a root of its covariance, for drawing thousands of tasks."""
        mean, sd = self.moments()
        covariance = np.diag(np.square(sd).mean(1)) + np.cov(mean, bias=True)
        root = np.asarray(np.linalg.cholesky(covariance), dtype=np.float64)
        return np.asarray(mean.mean(1), dtype=np.float64), root

    def of_white(self, white: Mapping[str, Array]) -> dict[str, Array]:
        stacked = np.stack([white[name] for name in _PARAMETERS])
        if stacked.shape[-1] == len(GENES):
            mean, sd = self.moments()
            shape = (len(mean), *(1,) * (stacked.ndim - 2), len(GENES))
            logs = mean.reshape(shape) + sd.reshape(shape) * stacked
        else:
            mean, root = self._of_any_gene
            centre = mean.reshape(-1, *(1,) * (stacked.ndim - 1))
            logs = centre + np.tensordot(root, stacked, 1)
        return dict(zip(_PARAMETERS, np.exp(logs), strict=True))


class LogNormalPrior(_LogNormalPrior):
    """The same relative spread around published p53 values for every parameter."""

    name: Literal["lognormal"] = "lognormal"
    spread: Annotated[float, Field(ge=0, le=3)] = 0.3

    @property
    def label(self) -> str:
        return f"lognormal({self.spread:g})"

    def moments(self) -> tuple[Array, Array]:
        mean = np.log(_published())
        return mean, np.full_like(mean, self.spread)


class P53EmpiricalPrior(_LogNormalPrior):
    """A log-normal fitted to the published estimates of each p53 target's parameters."""

    name: Literal["p53-empirical"] = "p53-empirical"

    @property
    def label(self) -> str:
        return self.name

    def moments(self) -> tuple[Array, Array]:
        return _spread_of_estimates()


class SensitivityPrior(_Prior):
    """Published p53 values of the five targets, each sensitivity times a factor of its own."""

    varying: ClassVar[tuple[str, ...]] = ("sensitivity",)

    name: Literal["sensitivity"] = "sensitivity"
    factor: Annotated[Distribution, AfterValidator(positive)] = Uniform(low=0.6, high=1.4)

    @property
    def label(self) -> str:
        low, high = self.factor.bounds
        return f"sensitivity x {low:g}-{high:g}"

    def of_white(self, white: Mapping[str, Array]) -> dict[str, Array]:
        factor = self.factor.quantile(ndtr(white["sensitivity"]))
        basal, sensitivity, decay = (np.broadcast_to(p, factor.shape) for p in _published())
        return {"basal": basal, "sensitivity": sensitivity * factor, "decay": decay}


class FittedPrior(_Prior):
    """A joint log-normal over all parameters of the five targets: a posterior, made by a fit.

    ``mean`` and ``covariance`` are of the logarithms, in the order of basal rates, sensitivities
    and decays.
    """

    name: Literal["fitted"] = "fitted"
    mean: tuple[float, ...]
    covariance: tuple[tuple[float, ...], ...]

    @model_validator(mode="after")
    def _shaped(self) -> Self:
        size = len(_PARAMETERS) * len(GENES)
        if len(self.mean) != size or [len(row) for row in self.covariance] != [size] * size:
            raise ValueError(f"mean and covariance must be of {size} logarithms")
        return self

    @property
    def label(self) -> str:
        return self.name

    def of_white(self, white: Mapping[str, Array]) -> dict[str, Array]:
        values, vectors = np.linalg.eigh(np.array(self.covariance))
        root = vectors * np.sqrt(np.clip(values, 0.0, None)) @ vectors.T
        stacked = np.concatenate([white[name] for name in _PARAMETERS], axis=-1)
        logs = np.array(self.mean) + stacked @ root
        return dict(zip(_PARAMETERS, np.split(np.exp(logs), len(_PARAMETERS), -1), strict=True))


class Transcription(System):
    """dy_j/dt = b_j + s_j G(f(t)) − d_j y_j with y_j(0) = b_j/d_j and f ~ GP(0, RBF).

    Eq. 8 of the DKLFM paper, after Barenco et al. (2006): basal rates b, sensitivities s
    and decays d per gene; time in hours, rates per hour.
    """

    force_name: ClassVar[str] = "transcription factor activity"
    resources: ClassVar[tuple[str, ...]] = (_ESTIMATES,)

    name: Literal["transcription"] = "transcription"
    genes: Annotated[int, Field(ge=1, le=200)] = 5
    response: Response = "softplus"
    duration: Annotated[float, Field(gt=0)] = 12.0
    lengthscale: Annotated[Distribution, AfterValidator(positive)] = Uniform(low=1.2, high=3.6)
    prior: Annotated[
        LogNormalPrior | P53EmpiricalPrior | SensitivityPrior | FittedPrior,
        Field(discriminator="name"),
    ] = P53EmpiricalPrior()
    steps: Annotated[int, Field(ge=10)] = 480

    @model_validator(mode="after")
    def _of_the_targets(self) -> Self:
        if self.genes != len(GENES) and not self.prior.any_genes:
            raise ValueError(
                f"the prior {self.prior.name} is of the {len(GENES)} p53 targets, not of "
                f"{self.genes} genes; set genes: {len(GENES)}, or prior: {{name: lognormal}}"
            )
        return self

    def strangers(self) -> tuple[System, ...]:
        wide = LogNormalPrior(spread=_WIDE).model_dump()
        responses = [name for name in get_args(Response) if name != self.response]
        changes = [{"prior": wide}, *({"response": name} for name in responses)]
        return super().strangers() + self._changed(changes)

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

    @property
    def scale_note(self) -> str:
        return (
            "the force is in standard deviations of its prior; the data tell its shape, while its "
            "scale trades with the sensitivities and comes from their prior, unless an anchor "
            "(a gene's measured sensitivity) fixes it"
        )

    def activity(self, force: Array) -> Array:
        """G(f), the protein's abundance as the genes feel it."""
        return RESPONSES[self.response](force)

    def rate(self, outputs: Any, activity: Any, parameters: Mapping[str, Any]) -> Any:
        inflow = parameters["basal"] + parameters["sensitivity"] * activity
        return inflow - parameters["decay"] * outputs

    def initial(self, parameters: Mapping[str, Any]) -> Any:
        return parameters["basal"] / parameters["decay"]

    def _nodes(self) -> Array:
        count = gaussian.node_count(0.0, self.duration, self.lengthscale.bounds[0])
        return np.linspace(0.0, self.duration, count)

    def draw(self, rng: np.random.Generator) -> Draw:
        parameters = self.prior.draw(rng, self.genes)
        lengthscale = np.asarray(self.lengthscale.sample(rng))
        coefficients = rng.standard_normal(len(self._nodes()))
        return {**parameters, "lengthscale": lengthscale, "coefficients": coefficients}

    def white_shapes(self) -> dict[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = dict.fromkeys(self.prior.varying, (self.genes,))
        return shapes | {"lengthscale": (), "coefficients": (len(self._nodes()),)}

    def from_white(self, white: Draw) -> Draw:
        lengthscale = self.lengthscale.quantile(ndtr(white["lengthscale"]))
        parameters = self.prior.of_white(white)
        return {**parameters, "lengthscale": lengthscale, "coefficients": white["coefficients"]}

    def fitted_to(self, parameters: Mapping[str, Array]) -> Transcription:
        if self.genes != len(GENES):
            raise NotImplementedError(f"a fitted prior is of {len(GENES)} genes, not {self.genes}")
        draws = np.log(np.concatenate([parameters[name] for name in _PARAMETERS], axis=1))
        covariance = np.cov(draws, rowvar=False)
        prior = FittedPrior(
            mean=tuple(draws.mean(0).tolist()),
            covariance=tuple(tuple(row) for row in covariance.tolist()),
        )
        return self.model_copy(update={"prior": prior})

    def with_outputs(self, count: int) -> Transcription:
        if count == self.genes:
            return self
        if not self.prior.any_genes:
            raise DataError(
                f"the prior {self.prior.name} is of the {len(GENES)} p53 targets, not of {count} "
                "genes"
            )
        return self.model_copy(update={"genes": count})

    def surrogate(self) -> Transcription:
        from dklfm.systems.transcription_surrogate import TranscriptionSurrogate

        return TranscriptionSurrogate.model_validate(self.model_dump())

    def solve(self, draws: Draw, x: Array) -> Solution:
        """Integrate by Runge–Kutta on a uniform grid; times outside [0, duration] are refused.

        Raises:
            ValueError: if a time lies outside the domain.
        """
        times = self._times(x)
        nodes, lengthscale = self._nodes(), draws["lengthscale"]
        weights = gaussian.interpolation_weights(draws["coefficients"], nodes, lengthscale)
        drive = self.activity(gaussian.evaluate(weights, nodes, lengthscale, self._grid()))
        outputs = self._respond(drive, draws)(times)
        return Solution(gaussian.evaluate(weights, nodes, lengthscale, times), outputs)

    def _times(self, x: Array) -> Array:
        times = x[..., 0]
        if not ((times >= 0) & (times <= self.duration)).all():
            raise ValueError(f"times must lie in [0, {self.duration:g}] {self.axes[0].unit}")
        return times

    def _grid(self) -> Array:
        """Where Runge–Kutta needs the force: the grid points and their midpoints."""
        return np.linspace(0.0, self.duration, 2 * self.steps + 1)

    def _respond(self, drive: Array, draws: Draw) -> Trajectory:
        """Of ``gene`` states to G(f), ``task x time`` on the grid."""
        half_step = self.duration / (2 * self.steps)
        return rk4(
            lambda t, y: self.rate(y, drive[:, round(t / half_step), None], draws),
            self.initial(draws),
            0.0,
            self.duration,
            self.steps,
        )
