"""What every configured object is made of: frozen sections and one-dimensional priors."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from scipy.special import ndtri


class Section(BaseModel):
    """An immutable group of settings that refuses keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Constant(Section):
    """A point mass; a bare number in a config file means this."""

    name: Literal["constant"] = "constant"
    value: float

    def sample(self, rng: np.random.Generator) -> float:
        return self.value

    def quantile(self, probability: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.full_like(probability, self.value)

    @property
    def bounds(self) -> tuple[float, float]:
        return self.value, self.value


class Uniform(Section):
    """U(low, high)."""

    name: Literal["uniform"] = "uniform"
    low: float
    high: float

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.low < self.high:
            raise ValueError(f"low must be below high, got low={self.low}, high={self.high}")
        return self

    def sample(self, rng: np.random.Generator) -> float:
        return rng.uniform(self.low, self.high)

    def quantile(self, probability: NDArray[np.float64]) -> NDArray[np.float64]:
        return self.low + (self.high - self.low) * np.asarray(probability)

    @property
    def bounds(self) -> tuple[float, float]:
        return self.low, self.high


class LogUniform(Uniform):
    """exp U(log low, log high), for positive quantities known to an order of magnitude."""

    name: Literal["loguniform"] = "loguniform"  # type: ignore[assignment]  # narrows the tag
    low: Annotated[float, Field(gt=0)]

    def sample(self, rng: np.random.Generator) -> float:
        return float(np.exp(rng.uniform(np.log(self.low), np.log(self.high))))

    def quantile(self, probability: NDArray[np.float64]) -> NDArray[np.float64]:
        return self.low * (self.high / self.low) ** np.asarray(probability)


class LogNormal(Section):
    """exp N(log median, spread²)."""

    name: Literal["lognormal"] = "lognormal"
    median: Annotated[float, Field(gt=0)]
    spread: Annotated[float, Field(ge=0)]

    def sample(self, rng: np.random.Generator) -> float:
        return self.median * float(np.exp(self.spread * rng.standard_normal()))

    def quantile(self, probability: NDArray[np.float64]) -> NDArray[np.float64]:
        return self.median * np.exp(self.spread * ndtri(probability))

    @property
    def bounds(self) -> tuple[float, float]:
        """The central 99.99 %."""
        reach = np.exp(3.9 * self.spread)
        return self.median / reach, self.median * reach


def _bare_number(value: Any) -> Any:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return Constant(value=value)
    return value


class Uneven(LogUniform):
    """A level drawn like ``loguniform`` for a task, and factors on it for each observation.

    The logarithms of the factors are normal with standard deviation ``spread``, half of their
    variance shared by the observations of an output: measurement errors as tables state them.
    """

    name: Literal["uneven"] = "uneven"  # type: ignore[assignment]  # narrows the tag
    spread: Annotated[float, Field(ge=0, le=3)] = 0.7

    def factors(self, rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float64]:
        """Factors of one task's observations, ``output x point``."""
        logs = rng.standard_normal(shape) + rng.standard_normal((shape[0], 1))
        return np.exp(self.spread * np.sqrt(0.5) * logs)


Distribution = Annotated[
    Annotated[Constant | Uniform | LogUniform | LogNormal, Field(discriminator="name")],
    BeforeValidator(_bare_number),
]
"""A prior over one number. In YAML: ``2.0`` or ``{name: uniform, low: 1, high: 3}``."""


def beyond(distribution: Distribution) -> tuple[LogUniform, ...]:
    """Priors of what this one excludes, up to four times below and above; none if it reaches 0."""
    low, high = distribution.bounds
    if low <= 0:
        return ()
    return LogUniform(low=low / 4, high=low / 1.5), LogUniform(low=1.5 * high, high=4 * high)


Noise = Annotated[
    Annotated[Constant | Uniform | LogUniform | LogNormal | Uneven, Field(discriminator="name")],
    BeforeValidator(_bare_number),
]
"""The same, or a noise that differs between a task's observations."""


def positive(distribution: Distribution | Noise) -> Distribution | Noise:
    """Refuse a prior that reaches zero or below.

    Raises:
        ValueError: if the lower bound is not positive.
    """
    if distribution.bounds[0] <= 0:
        raise ValueError(f"must be positive, but its lower bound is {distribution.bounds[0]:g}")
    return distribution
