"""Fig. 4a: the activity of p53 inferred from its five target genes."""

from __future__ import annotations

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from dklfm.figures.style import FORCE, OUTPUTS, RC, REFERENCES, band
from dklfm.methods import Posterior
from dklfm.scores import expected_activity, reference_correlations
from dklfm.systems import System
from dklfm.tasks import Tasks

_NAMES = {
    "western_blot": "western blot of Ser15-phosphorylated p53 (measured)",
    "barenco": "activity inferred by Barenco et al. 2006 (a model's output)",
}


def draw_p53(tasks: Tasks, posterior: Posterior, system: System) -> Figure:
    """Replicate by replicate: activity with its references above, the five genes below.

    References have no units in common with the inferred activity: each is scaled to it by
    least squares, slope only.
    """
    activity = expected_activity(posterior, system)
    low, high = map(system.activity, posterior.marginals("force").interval(0.95))
    outputs = posterior.marginals("output_query").curves()
    correlations = reference_correlations(posterior, tasks, system)
    with plt.rc_context(RC):
        figure, axes = plt.subplots(
            2, len(tasks), figsize=(3.2 * len(tasks), 5.2), sharex=True, sharey="row", squeeze=False
        )
        for i, replicate in enumerate(tasks.data["task"].values):
            top, bottom = axes[:, i]
            times, grid = tasks["x"][i, :, 0], tasks["x_query"][i, :, 0]
            top.fill_between(grid, low[i], high[i], color=FORCE, alpha=0.2, lw=0)
            top.plot(grid, activity[i], color=FORCE, lw=1.4, label="inferred by dklfm, 95 % band")
            lines = []
            for (key, name), color, marker in zip(
                _NAMES.items(), REFERENCES, ("s", "o"), strict=True
            ):
                reference = tasks[f"reference_{key}"][i]
                inferred = np.interp(times, grid, activity[i])
                scale = (inferred @ reference) / (reference @ reference)
                top.plot(times, scale * reference, marker, color=color, ms=4, label=name)
                short = {"western_blot": "the blot", "barenco": "Barenco's"}[key]
                lines.append(f"r = {correlations[f'correlation_{key}'][i]:.2f} with {short}")
            top.set_title("\n".join([f"replicate {replicate}", *lines]))
            for j, gene in enumerate(tasks.outputs):
                color = OUTPUTS[j % len(OUTPUTS)]
                band(bottom, grid, [curve[i, j] for curve in outputs], color)
                bottom.errorbar(
                    times, tasks["y"][i, j], 1.96 * tasks["y_sd"][i, j],
                    fmt=".", color=color, ms=4, lw=0.7, label=gene,
                )  # fmt: skip
            bottom.set_ylim(-0.6, 1.3 * np.nanmax(tasks["y"]))  # bars may be far longer
            bottom.set_xlabel("time after irradiation (h)")
        axes[0, 0].set_ylabel(f"p53 activity G(f)\nG = {system.model_dump()['response']}")
        axes[1, 0].set_ylabel("mRNA (standard deviations\nof replicate 1)")
        axes[1, -1].legend(loc="upper left", bbox_to_anchor=(1, 1), title="bars: ±1.96 sd")
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=1)
    return figure
