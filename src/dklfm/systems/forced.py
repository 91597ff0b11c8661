"""Ordinary differential equations driven by a Gaussian process: what most new systems are."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar

import numpy as np
from pydantic import AfterValidator, Field
from scipy.special import ndtr

from dklfm.settings import Constant, Distribution, Uniform, positive
from dklfm.systems import gaussian
from dklfm.systems.base import Array, Axis, Draw, Solution, System
from dklfm.systems.ode import rk4

States = Mapping[str, Array]


class ForcedODE(System):
    """d(states)/dt = derivative(states, f(t), parameters) with f ~ GP(0, RBF), from t = 0.

    A subclass names its states, which of them are observed, and its parameters, each a field with a
    prior; it says the derivative and, if not zero, where the states start.
    """

    states: ClassVar[tuple[str, ...]]
    observed: ClassVar[tuple[str, ...]]
    varying: ClassVar[tuple[str, ...]]
    """The fields that are parameters of the equation."""
    unit: ClassVar[str] = ""
    """Of time."""

    duration: Annotated[float, Field(gt=0)] = 10.0
    lengthscale: Annotated[Distribution, AfterValidator(positive)] = Uniform(low=1.0, high=3.0)
    steps: Annotated[int, Field(ge=10)] = 200

    @abstractmethod
    def derivative(
        self, states: States, force: Array, parameters: Mapping[str, Array]
    ) -> Mapping[str, Array]:
        """Time derivatives by the names of the states; every array is ``task``."""

    def start(self, parameters: Mapping[str, Array]) -> Mapping[str, Array]:
        """States at t = 0 that are not zero."""
        return {}

    @property
    def axes(self) -> tuple[Axis, ...]:
        return (Axis("time", self.unit, 0.0, self.duration),)

    @property
    def outputs(self) -> tuple[str, ...]:
        return self.observed

    @property
    def parameters(self) -> tuple[str, ...]:
        return (*self.varying, "lengthscale")

    def _nodes(self) -> Array:
        count = gaussian.node_count(0.0, self.duration, self.lengthscale.bounds[0])
        return np.linspace(0.0, self.duration, count)

    def draw(self, rng: np.random.Generator) -> Draw:
        drawn = {name: np.asarray(getattr(self, name).sample(rng)) for name in self.parameters}
        return {**drawn, "coefficients": rng.standard_normal(len(self._nodes()))}

    def white_shapes(self) -> dict[str, tuple[int, ...]]:
        priors = ((name, getattr(self, name)) for name in self.parameters)
        shapes: dict[str, tuple[int, ...]] = {
            name: () for name, prior in priors if not isinstance(prior, Constant)
        }
        return shapes | {"coefficients": (len(self._nodes()),)}

    def from_white(self, white: Draw) -> Draw:
        coefficients = white["coefficients"]
        rest = np.zeros(len(coefficients))
        drawn = {
            name: getattr(self, name).quantile(ndtr(white.get(name, rest)))
            for name in self.parameters
        }
        return {**drawn, "coefficients": coefficients}

    def force_covariances(
        self, parameters: Mapping[str, Array], points: Sequence[Array]
    ) -> list[Array]:
        lengthscale = parameters["lengthscale"]
        times = np.broadcast_to(points[0], (len(lengthscale), len(points[0])))
        return [gaussian.rbf(times, times, lengthscale)]

    def solve(self, draws: Draw, x: Array) -> Solution:
        """Integrate by Runge–Kutta on a uniform grid.

        Raises:
            ValueError: if a time lies outside the domain.
        """
        times = x[..., 0]
        if not ((times >= 0) & (times <= self.duration)).all():
            raise ValueError(f"times must lie in [0, {self.duration:g}] {self.unit}".rstrip())
        nodes, lengthscale = self._nodes(), draws["lengthscale"]
        weights = gaussian.interpolation_weights(draws["coefficients"], nodes, lengthscale)
        # Runge–Kutta needs the force at the ends and middles of its steps.
        grid = np.linspace(0.0, self.duration, 2 * self.steps + 1)
        force = gaussian.evaluate(weights, nodes, lengthscale, grid)
        half = self.duration / (2 * self.steps)
        parameters = {name: draws[name] for name in self.varying}

        def rhs(t: float, values: Array) -> Array:
            states = dict(zip(self.states, values.T, strict=True))
            found = self.derivative(states, force[:, round(t / half)], parameters)
            return np.stack([np.broadcast_to(found[name], len(times)) for name in self.states], 1)

        begun = self.start(parameters)
        initial = np.stack(
            [np.broadcast_to(begun.get(name, 0.0), len(times)) for name in self.states], axis=1
        )
        path = rk4(rhs, initial, 0.0, self.duration, self.steps)(times)
        chosen = [self.states.index(name) for name in self.observed]
        return Solution(gaussian.evaluate(weights, nodes, lengthscale, times), path[:, chosen])
