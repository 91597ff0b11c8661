"""A trained model proposes, the mechanistic law judges.

From the amortised force a few damped Gauss–Newton steps lead to the mode of the equation's own
posterior, around which the parameters are sampled as in :mod:`dklfm.methods.mechanistic`. That the
search begins where the model points saves the search for a good start, and with few samples the
weights are flattened: most of what weights would still change is not worth their noise.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dklfm.config import MechanisticConfig, RefinementConfig
from dklfm.errors import DataError
from dklfm.methods.base import Posterior
from dklfm.methods.mechanistic import Anchors, Mechanistic, Mode, Problem, descend
from dklfm.methods.single import gathered
from dklfm.methods.trained import TrainedModel
from dklfm.progress import progress
from dklfm.systems import System
from dklfm.tasks import Tasks

Array = NDArray[np.float64]
_INDEPENDENT = 0.2
"""Share of the query points that count as independent estimates of the force."""
_TOLERANCE = 0.1
"""Nats; modes need only be as exact as a proposal's centre."""
_LEAST = 0.5
"""Effective share of the samples that flattened weights keep."""


class Found(NamedTuple):
    """One task's problem, the mode of its posterior, and what led there."""

    problem: Problem
    mode: Mode
    cpu_seconds: float


class Refined:
    """The posterior of the equation's parameters and force, begun at a trained model's."""

    name = "dklfm_refined"

    def __init__(
        self, model: TrainedModel, system: System, config: RefinementConfig | None = None
    ) -> None:
        self.model, self.system = model, system
        self.law = MechanisticConfig(samples=(config or RefinementConfig()).samples)

    def infer(self, tasks: Tasks, anchors: Sequence[Anchors] | None = None) -> Posterior:
        """The posterior of every task.

        Args:
            tasks: to be inferred.
            anchors: known parameters of each, if any are.

        Raises:
            DataError: if the tasks state no noise, or the system's force is no Gaussian process
                in a finite basis.
        """
        mechanistic = Mechanistic(self.system, self.law)
        fits, seconds = [], []
        for found in progress(self.modes(tasks, anchors), self.name, len(tasks)):
            started = time.process_time()
            rng = np.random.default_rng(0)  # the same for every task
            fits.append(mechanistic.around(found.problem, found.mode, rng, _LEAST))
            seconds.append(found.cpu_seconds + time.process_time() - started)
        return gathered(tasks, fits, seconds)

    def modes(self, tasks: Tasks, anchors: Sequence[Anchors] | None = None) -> Iterator[Found]:
        """The mode of each task's posterior; arguments and errors as for :meth:`infer`."""
        system = self.system.with_outputs(len(tasks.outputs))
        amortised = self.model.infer(tasks)
        for i in range(len(tasks)):
            started = time.process_time()
            known = anchors[i] if anchors is not None else {}
            problem = Problem(system, tasks.take([i]), {}, _TOLERANCE, known)
            if not (problem.coefficients and problem.parameters):
                raise DataError(f"refinement is not made for {system.name}; use mechanistic")
            z = _coefficients(problem, amortised["force_mean"][i], amortised["force_sd"][i])
            mode = descend(problem, np.zeros(problem.parameters), z)
            spent = time.process_time() - started + amortised["cpu_seconds"][i]
            yield Found(problem, mode, float(spent))


def _coefficients(problem: Problem, mean: Array, sd: Array) -> Array:
    """The most probable coefficients of a force with given moments, by the median prior."""
    at_rest = np.zeros((1, problem.parameters)), np.zeros((1, problem.coefficients))
    gradient = problem.linearise(*at_rest, queries=True).force_gradient[0]
    weighted = gradient.T * (_INDEPENDENT / np.square(sd))
    return np.linalg.solve(np.eye(problem.coefficients) + weighted @ gradient, weighted @ mean)
