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

from dklfm.settings import Section

Array = NDArray[np.float64]
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

    def activity(self, force: Array) -> Array:
        """The non-negative or physical quantity that a force stands for; itself by default."""
        return force

    @abstractmethod
    def draw(self, rng: np.random.Generator) -> Draw:
        """Sample one task's parameters and force from the prior."""

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
        return spec | ({"resources": files} if files else {})


def stack(draws: Sequence[Draw]) -> Draw:
    """Stack single-task draws along a leading task dimension."""
    return {key: np.stack([draw[key] for draw in draws]) for key in draws[0]}
