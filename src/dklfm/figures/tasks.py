"""Figs. 3 and 4b: training and test tasks, force and outputs, truth and inference."""

from __future__ import annotations

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from dklfm.figures.style import FORCE, OUTPUTS, RC, TRUTH, band
from dklfm.methods import Posterior
from dklfm.systems import System
from dklfm.tasks import SPLITS, Tasks


def columns_of(tasks: Tasks, training: int, test: int) -> list[int]:
    """Positions of the first tasks of both splits, none chosen by its error.

    Test tasks stand in for training tasks that there are not, as of a stream.
    """
    trained = np.flatnonzero(tasks["split"] == SPLITS.index("train"))[:training]
    tested = np.flatnonzero(tasks["split"] == SPLITS.index("test"))
    return [*trained.tolist(), *tested[: training + test - len(trained)].tolist()]


def draw_tasks(tasks: Tasks, posterior: Posterior, system: System) -> Figure:
    """Figs. 3 and 4b: two training tasks and two test tasks with a time axis, one a column.

    Of a stream, whose training tasks are not stored, they are four test tasks.
    """
    split, columns = tasks["split"], columns_of(tasks, 2, 2)
    force, outputs = (posterior.marginals(name).curves() for name in ("force", "output_query"))
    with plt.rc_context(RC):
        figure, axes = plt.subplots(
            2, len(columns), figsize=(2.6 * len(columns), 4.4), sharex=True, sharey="row"
        )
        low, high = (float(bound[0]) for bound in tasks.domain)
        beyond = tasks["x_query"].max() > high
        for column, i in enumerate(columns):
            top, bottom = axes[:, column]
            if beyond:
                for panel in (top, bottom):
                    panel.axvspan(low, high, color="0.92", lw=0)
            t = tasks["x_query"][i, :, 0]
            band(top, t, [curve[i] for curve in force], FORCE, "inferred")
            top.plot(t, tasks["f"][i], color=TRUTH, lw=1.2, ls="--", label="truth")
            name = SPLITS[split[i]]
            error = np.mean((posterior["force_mean"][i] - tasks["f"][i]) ** 2)
            kind = "training" if name == "train" else name
            top.set_title(f"{kind} task\nforce MSE {error:.2g}")
            for j, output in enumerate(tasks.outputs):
                color = OUTPUTS[j % len(OUTPUTS)]
                band(bottom, t, [curve[i, j] for curve in outputs], color, output)
                bottom.plot(t, tasks["h_query"][i, j], color=TRUTH, lw=0.8, ls="--")
                bottom.plot(tasks["x"][i, :, 0], tasks["y"][i, j], ".", color=color, ms=3)
            bottom.set_xlabel(tasks.axis_label(system))
        note = "dots: observed" + ("\nshaded: training range" if beyond else "")
        axes[0, 0].set_ylabel(f"force f:\n{system.force_name}")
        axes[1, 0].set_ylabel("outputs")
        axes[0, -1].legend(loc="upper left", bbox_to_anchor=(1, 1))
        # Of more outputs than colours a colour does not name one.
        several = len(tasks.outputs) > len(OUTPUTS)
        named = [] if several else axes[1, -1].get_legend_handles_labels()[0]
        note = f"{len(tasks.outputs)} outputs\n{note}" if several else note
        axes[1, -1].legend(handles=named, loc="upper left", bbox_to_anchor=(1, 1), title=note)
    return figure
