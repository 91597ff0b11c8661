"""Where next to measure: how much an observation would narrow the force, before it is made.

Around the mode of the equation's posterior force and outputs are jointly Gaussian (Laplace), so the
fall of the force's variance by an observation does not depend on its outcome: with C the covariance
of the unknowns, J_f and J_h the derivatives of the force and of all outputs at a candidate,

    C_f → C_f − J_f C J_hᵀ (J_h C J_hᵀ + σ² I)⁻¹ J_h C J_fᵀ.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from dklfm.errors import DataError
from dklfm.inference.model import Model
from dklfm.inference.noise import with_noise
from dklfm.inference.units import Units
from dklfm.methods.descent import Mode
from dklfm.methods.mechanistic import Problem
from dklfm.methods.refined import Refined
from dklfm.tasks import Tasks

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Design:
    """Candidates for one more observation of all outputs, of one task.

    Attributes:
        task: its name.
        inputs: the names of the inputs.
        observed: where it was observed, ``point x axis``.
        candidates: ``candidate x axis``.
        gain: expected fall of the force's mean variance, as a share, ``candidate``.
    """

    task: str
    inputs: tuple[str, ...]
    observed: Array
    candidates: Array
    gain: Array

    def ranked(self) -> pd.DataFrame:
        """Best first: the inputs, and ``gain``."""
        table = pd.DataFrame(self.candidates, columns=list(self.inputs)).assign(gain=self.gain)
        return table.sort_values("gain", ascending=False, kind="stable", ignore_index=True)

    def plot(self) -> Figure:
        """The gain over the candidates, and where was observed."""
        from dklfm.figures.design import draw_design

        return draw_design(self)


def design(model: Model, tasks: Tasks, at: int | ArrayLike | None = None) -> list[Design]:
    """Rank candidates for one more observation of each task.

    Args:
        model: whose equation and prior are believed.
        tasks: observed so far.
        at: candidates, as for :meth:`Model.infer`.

    Raises:
        DataError: if the model's force has no finite basis.
    """
    asked = model.asked(tasks, at)
    if "y_sd" not in asked:
        asked = with_noise(asked)
    units = Units.of(asked, model.scale, model.system.extrapolates)
    refined = Refined(model.trained, model.system)
    found = []
    for i, mode in enumerate(refined.modes(units.to_domain(asked))):
        found.append(
            Design(
                str(asked.data["task"].values[i]),
                model.inputs,
                asked["x"][i][np.isfinite(asked["y"][i]).any(0)],
                asked["x_query"][i],
                expected_falls(mode.problem, mode.mode),
            )
        )
    return found


def expected_falls(problem: Problem, mode: Mode) -> Array:
    """How much of the force's mean variance over the query points an observation would take.

    Args:
        problem: a task's.
        mode: of its posterior.

    Returns:
        ``query`` shares, of an observation of all outputs there with an output's usual noise.

    Raises:
        DataError: if an output was never observed.
    """
    force, outputs = problem.derivatives(mode.theta, mode.z)
    root = np.linalg.cholesky(np.linalg.inv(mode.hessian))
    of_force = force @ root
    of_outputs = np.moveaxis(outputs, 0, 1) @ root  # candidate output unknown
    sd = np.nanmedian(np.where(problem.observed, problem.sd, np.nan)[0], axis=1)
    if not np.isfinite(sd).all():
        raise DataError("an output was never observed; leave it out")
    seen = of_outputs @ of_outputs.mT + np.diag(np.square(sd))
    shared = of_force @ of_outputs.mT  # candidate force output
    falls = np.einsum("cfo,cfo->c", shared, np.linalg.solve(seen, shared.mT).mT)
    return falls / np.square(of_force).sum()
