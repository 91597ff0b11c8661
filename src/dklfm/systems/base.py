"""The protocol of a system: an equation with an unobserved force, and priors over both."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from dklfm.errors import DataError
from dklfm.settings import Constant, LogNormal, Section, Uniform, beyond

Array = NDArray[np.float64]
_DIFFERENCE = 1e-5
"""Step of central differences by white variables."""
Draw = Mapping[str, Array]
"""One task's random state: parameters and force coefficients, each with a fixed shape."""


class Axis(NamedTuple):
    """One input dimension and the range on which tasks are observed."""

    name: str
    unit: str
    low: float
    high: float


@dataclass(frozen=True)
class Solution:
    """A force and the outputs it drives, noise-free.

    Attributes:
        force: ``task x point`` values of the force.
        outputs: ``task x output x point`` values of the outputs.
    """

    force: Array
    outputs: Array


@dataclass(frozen=True)
class Linearisation(Solution):
    """A solution and its derivatives by the white coefficients of the force.

    Attributes:
        force_gradient: ``task x point x coefficient``.
        output_gradient: ``task x output x point x coefficient``.
    """

    force_gradient: Array
    output_gradient: Array


class System(Section, ABC):
    """A mechanistic model with one unobserved force.

    A system is a frozen set of options (its fields, ``name`` among them), the names of its
    quantities, a prior (:meth:`draw`) and a solver (:meth:`solve`). A draw does not depend on
    any mesh, so the same task can be observed at any resolution.
    """

    name: str
    force_name: ClassVar[str] = "force"
    extrapolates: ClassVar[bool] = False
    """Whether :meth:`solve` takes inputs beyond the range of :attr:`axes`."""
    resources: ClassVar[tuple[str, ...]] = ()
    """Files under resources/ that the prior is read from; their contents enter the key."""
    source: ClassVar[tuple[str, str] | None] = None
    """Of a class that is not of this package: ``file.py:Class``, and the file's digest."""

    @property
    @abstractmethod
    def axes(self) -> tuple[Axis, ...]:
        """The input dimensions."""

    @property
    @abstractmethod
    def outputs(self) -> tuple[str, ...]:
        """The names of the observed functions."""

    @property
    def parameters(self) -> tuple[str, ...]:
        """The keys of a draw that are parameters of the equation, for the record."""
        return ()

    @property
    def prior_label(self) -> str:
        """The prior's name as it stands beside every score."""
        return "default"

    @property
    def scale_note(self) -> str:
        """Which scale of the force no data can tell, a sentence without its full stop."""
        return "the force is in standard deviations of its prior"

    def activity(self, force: Array) -> Array:
        """The non-negative or physical quantity that a force stands for; itself by default."""
        return force

    def rate(self, outputs: Any, activity: Any, parameters: Mapping[str, Any]) -> Any:
        """dy/dt of an ordinary differential equation in the outputs alone, given the force.

        Arithmetic only, so that arrays of any library with operators and broadcasting will do.

        Args:
            outputs: ``... x output`` values y.
            activity: ``... x 1`` values of the force, through :meth:`activity`.
            parameters: the parameters of the equation, scalars or one an output.

        Raises:
            NotImplementedError: if the system is not such an equation.
        """
        raise NotImplementedError(f"{self.name} gives no right-hand side")

    def initial(self, parameters: Mapping[str, Any]) -> Any:
        """The outputs at the start of the domain, for :meth:`rate`."""
        raise NotImplementedError(f"{self.name} gives no initial state")

    @abstractmethod
    def draw(self, rng: np.random.Generator) -> Draw:
        """Sample one task's parameters and force from the prior."""

    def white_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of the standard normal variables behind each key of a draw.

        Parameters that are fixed have none. For inference that varies a task's unknowns: the prior
        is N(0, I) over these.

        Raises:
            NotImplementedError: if the system's prior has no such form.
        """
        raise NotImplementedError(f"the prior of {self.name} has no standard normal form")

    def from_white(self, white: Draw) -> Draw:
        """Draws from standard normal variables, in law the same as :meth:`draw`.

        Args:
            white: arrays of :meth:`white_shapes`, each with a leading task dimension.

        Returns:
            The fields of :meth:`draw`, stacked along the task dimension.
        """
        raise NotImplementedError(f"the prior of {self.name} has no standard normal form")

    def fitted_to(self, parameters: Mapping[str, Array]) -> System:
        """The system with its prior moved to draws of the parameters from a posterior.

        Args:
            parameters: ``draw x ...`` values by their names.

        Raises:
            NotImplementedError: if the system has no prior of such a form.
        """
        raise NotImplementedError(f"{self.name} has no prior that a fit could give")

    def force_covariances(
        self, parameters: Mapping[str, Array], points: Sequence[Array]
    ) -> list[Array]:
        """What the prior's covariance of the force is a product of, one factor an axis.

        Args:
            parameters: ``task`` values of those that it depends on, by their names.
            points: coordinates along each axis, in the units of :attr:`axes`.

        Returns:
            For each axis ``task x point x point``.

        Raises:
            NotImplementedError: if the force is no Gaussian process of such a covariance.
        """
        raise NotImplementedError(f"{self.name} gives no covariance of its force")

    def linearise(self, draws: Draw, x: Array) -> Linearisation:
        """Solve tasks, and how the solutions change with ``draws["coefficients"]``.

        By central differences, unless a system knows better. Arguments as for :meth:`solve`.
        """
        base = self.solve(draws, x)
        coefficients = draws["coefficients"]
        tasks, shape = len(coefficients), coefficients.shape[1:]
        moves = _DIFFERENCE * np.eye(coefficients[0].size).reshape(-1, *shape)

        def moved(sign: float) -> Solution:
            many = {key: np.repeat(value, len(moves), axis=0) for key, value in draws.items()}
            many["coefficients"] = many["coefficients"] + sign * np.tile(
                moves, (tasks, *(1 for _ in shape))
            )
            return self.solve(many, np.repeat(x, len(moves), axis=0))

        up, down = moved(1.0), moved(-1.0)

        def gradient(higher: Array, lower: Array) -> Array:
            slopes = (higher - lower) / (2 * _DIFFERENCE)
            return np.moveaxis(slopes.reshape(tasks, len(moves), *slopes.shape[1:]), 1, -1)

        return Linearisation(
            base.force,
            base.outputs,
            gradient(up.force, down.force),
            gradient(up.outputs, down.outputs),
        )

    def with_outputs(self, count: int) -> System:
        """The same law of another number of outputs.

        Raises:
            DataError: if the system has none.
        """
        if count != len(self.outputs):
            raise DataError(f"{self.name} has {len(self.outputs)} outputs, not {count}")
        return self

    def strangers(self) -> tuple[System, ...]:
        """The same equation under other priors: of draws that this one excludes, one law at a time.

        A model of this system's tasks learns from theirs what not to be believed about.
        """
        changed = [
            {name: other.model_dump()}
            for name in type(self).model_fields
            if isinstance(value := getattr(self, name), Constant | Uniform | LogNormal)
            for other in beyond(value)
        ]
        return self._changed(changed)

    def _changed(self, changes: Sequence[Mapping[str, Any]]) -> tuple[System, ...]:
        """Systems with some settings changed, of those changes that make one."""
        found = []
        for change in changes:
            try:
                found.append(type(self).model_validate(self.model_dump() | dict(change)))
            except ValidationError:
                continue
        return tuple(found)

    def surrogate(self) -> System:
        """The same law, solved no more accurately than inference from noisy outputs needs.

        Its draws may have other coefficients of the force.
        """
        return self

    def outputs_at(self, draws: Draw, x: Array) -> Array:
        """The outputs alone of :meth:`solve`."""
        return self.solve(draws, x).outputs

    @abstractmethod
    def solve(self, draws: Draw, x: Array) -> Solution:
        """Evaluate tasks at given inputs.

        Args:
            draws: the fields of :meth:`draw`, stacked along a leading task dimension.
            x: ``task x point x axis`` inputs, in the units of :attr:`axes`.
        """

    def spec(self) -> dict[str, Any]:
        """Everything that determines the system's law, JSON-ready, for the stage keys."""
        from dklfm.resources import resource_path

        files = {
            name: hashlib.sha256(resource_path(name).read_bytes()).hexdigest()[:16]
            for name in self.resources
        }
        spec: dict[str, Any] = json.loads(self.model_dump_json())
        if self.source is not None:
            spec["file"], files["file"] = self.source
        return spec | ({"resources": files} if files else {})


def stack(draws: Sequence[Draw]) -> Draw:
    """Stack single-task draws along a leading task dimension."""
    return {key: np.stack([draw[key] for draw in draws]) for key in draws[0]}
