"""The one interface of everything that infers a force, and what it gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dklfm.artifacts import MANIFEST, load_dataset, read_json, save_dataset
from dklfm.config import parse_system
from dklfm.errors import DataError
from dklfm.marginals import Marginals
from dklfm.systems import System
from dklfm.tasks import Tasks

COSTS = ("simulation_cpu_s", "training_cpu_s", "training_tasks")
"""What a trained method cost before its first inference."""


@dataclass(frozen=True)
class Posterior:
    """Posterior moments of the force and of the noise-free outputs, in the tasks' own units.

    | variable                             | dimensions          |                      |
    |--------------------------------------|---------------------|----------------------|
    | ``force_mean``, ``force_sd``         | task, query         | at ``x_query``       |
    | ``output_mean``, ``output_sd``       | task, output, point | at ``x``             |
    | ``output_query_mean``, ``..._sd``    | task, output, query | at ``x_query``       |

    A method that infers no force, or no outputs, leaves their variables out. ``cpu_seconds``
    (task) is what inference took; the attributes COSTS are what the method had spent before.
    ``force_df`` (task), where it is, are the degrees of freedom of the force's marginals, which
    are Gaussian otherwise. Some methods add what they know beside: see there.
    """

    data: xr.Dataset

    def __getitem__(self, variable: str) -> NDArray[np.float64]:
        return self.data[variable].values

    def marginals(self, quantity: str) -> Marginals:
        """The laws at single points of ``force``, ``output`` or ``output_query``."""
        mean, sd = (self[f"{quantity}_{moment}"] for moment in ("mean", "sd"))
        if quantity == "force" and "force_df" in self.data:
            return Marginals(mean, sd, self["force_df"][:, None])
        return Marginals(mean, sd)

    def at(self, tasks: Tasks) -> Posterior:
        """The part that belongs to the given tasks, in their order.

        Raises:
            DataError: if some of them were not inferred.
        """
        try:
            return Posterior(self.data.sel(task=tasks.data["task"].values))
        except KeyError:
            raise DataError("the posterior does not cover these tasks; infer them again") from None

    def covered(self, tasks: Tasks) -> Tasks:
        """Those of the tasks that were inferred.

        Raises:
            DataError: if there are none.
        """
        inferred = set(self.data["task"].values.tolist())
        known = [i for i, name in enumerate(tasks.data["task"].values) if name in inferred]
        if not known:
            raise DataError("the posterior covers none of these tasks; infer them first")
        return tasks.take(known)

    @classmethod
    def of(
        cls,
        tasks: Tasks,
        force: tuple[NDArray[np.float64], NDArray[np.float64]] | None,
        outputs: tuple[NDArray[np.float64], NDArray[np.float64]] | None,
        cpu_seconds: NDArray[np.float64] | float,
    ) -> Posterior:
        """Name the dimensions of plain arrays.

        Args:
            tasks: the tasks inferred.
            force: mean and standard deviation, ``task x query``.
            outputs: mean and standard deviation, ``task x output x (point, query)``.
            cpu_seconds: spent on each task, or on all of them together.
        """
        points = tasks["x"].shape[1]
        shares = cpu_seconds / len(tasks) if isinstance(cpu_seconds, float) else cpu_seconds
        data: dict[str, tuple[tuple[str, ...], NDArray[np.float64]]] = {
            "cpu_seconds": (("task",), np.broadcast_to(shares, len(tasks)).copy())
        }
        if force is not None:
            data["force_mean"] = (("task", "query"), force[0])
            data["force_sd"] = (("task", "query"), force[1])
        if outputs is not None:
            for name, values in zip(("mean", "sd"), outputs, strict=True):
                data[f"output_{name}"] = (("task", "output", "point"), values[..., :points])
                data[f"output_query_{name}"] = (("task", "output", "query"), values[..., points:])
        coords = {name: tasks.data[name] for name in ("task", "output")}
        return cls(xr.Dataset(data, coords=coords))


def save_posterior(
    folder: Path, posterior: Posterior, system: Mapping[str, Any], **costs: float
) -> None:
    """Store a posterior with the settings of the system that was inferred, and COSTS if any."""
    description = {"stage": "posterior", "system": dict(system)}
    attrs = {name: costs.get(name, 0.0) for name in COSTS}
    save_dataset(folder, posterior.data.assign_attrs(attrs), description)


def load_posterior(folder: Path) -> tuple[Posterior, System]:
    """Read a posterior and its system.

    Raises:
        DklfmError: if the store is missing or damaged, or does not name its system.
    """
    posterior = Posterior(load_dataset(folder))
    return posterior, parse_system(read_json(folder / MANIFEST).get("system"), str(folder))


class Method(Protocol):
    """Turns tasks into posteriors of their forces; looks at ``x``, ``y`` and ``y_sd`` only."""

    name: str

    def infer(self, tasks: Tasks) -> Posterior:
        """The posterior at every task's ``x_query``, and of the outputs at ``x`` too."""
        ...
