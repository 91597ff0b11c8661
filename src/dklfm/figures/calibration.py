"""Are the intervals honest? A reliability diagram and a rank histogram."""

from __future__ import annotations

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from numpy.typing import NDArray

from dklfm.figures.style import FORCE, RC
from dklfm.methods import Posterior
from dklfm.scores import regions
from dklfm.systems import System
from dklfm.tasks import Tasks

_BINS = 20
_RESAMPLES = 400


def draw_calibration(tasks: Tasks, posterior: Posterior, system: System) -> Figure:
    """Coverage of central intervals at every level, and where the truth falls in its posterior.

    The rank of the truth among draws of its posterior, as a share: its probability under the
    marginals given. Over tasks of the prior it is uniform if the posterior is the true
    one (Talts et al. 2018). Points of a task are alike, so bands come from resampling tasks.
    """
    test = tasks.split("test")
    inside = regions(test)["test"]
    found = posterior.at(test)
    ranks = found.marginals("force").rank(test["f"])[:, inside]
    levels = np.linspace(0, 1, 101)  # percents: those that are named are among them
    within = np.stack([(np.abs(2 * ranks - 1) <= level).mean(1) for level in levels], axis=1)
    edges = np.linspace(0, 1, _BINS + 1)
    shares = np.stack([np.histogram(task, edges)[0] for task in ranks]) * _BINS / ranks.shape[1]
    with plt.rc_context(RC):
        figure, (left, right) = plt.subplots(1, 2, figsize=(7.5, 3.4))
        low, high = _band(within)
        left.plot([0, 1], [0, 1], color="0.6", lw=0.8)
        left.fill_between(levels, low, high, color=FORCE, alpha=0.2, lw=0)
        left.plot(levels, within.mean(0), color=FORCE, lw=1.4)
        for level in (50, 95):
            share = within.mean(0)[levels.searchsorted(level / 100 - 1e-9)]
            # In the corner below the diagonal, where no curve of a usable model comes.
            left.text(
                0.98,
                0.14 if level == 50 else 0.04,
                f"{share:.3f} at {level} %",
                transform=left.transAxes,
                ha="right",
            )
            left.plot([level / 100], [share], "o", color=FORCE, ms=4)
        left.set_xlabel("level of the central interval")
        left.set_ylabel("share of the true force inside")
        left.set_title("reliability: on the diagonal is honest")
        low, high = _band(shares)
        middle = (edges[1:] + edges[:-1]) / 2
        right.bar(middle, shares.mean(0), width=0.9 / _BINS, color=FORCE, alpha=0.6)
        error = np.abs(np.stack([low, high]) - shares.mean(0))
        right.errorbar(middle, shares.mean(0), error, fmt="none", ecolor="0.3", lw=0.8)
        right.axhline(1, color="0.6", lw=0.8)
        right.set_xlabel("rank of the true force in its posterior")
        right.set_ylabel("density")
        right.set_title("U: too narrow; hump: too wide; slope: biased")
        figure.suptitle(
            f"{system.name}: {len(test)} test tasks, bands of 95 % by resampling them", fontsize=9
        )
    return figure


def _band(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """95 % bounds of the mean over tasks, by the bootstrap."""
    rng = np.random.default_rng(0)
    chosen = rng.integers(len(values), size=(_RESAMPLES, len(values)))
    low, high = np.quantile(values[chosen].mean(1), [0.025, 0.975], axis=0)
    return low, high
