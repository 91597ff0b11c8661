"""The gap gene kni: its mRNA inferred from its protein over space and time."""

from __future__ import annotations

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from dklfm.figures.style import RC
from dklfm.methods import Posterior
from dklfm.scores import reference_correlations, z_scored
from dklfm.systems import System
from dklfm.tasks import Tasks


def draw_kni(tasks: Tasks, posterior: Posterior, system: System) -> Figure:
    """Protein observed and fitted; mRNA measured, inferred, and the posterior's deviation.

    The force's scale cannot be known from the protein: the measured mRNA is moved and scaled to
    the mean and standard deviation of the inferred one.
    """
    x = tasks["x"][0]
    shape = tuple(len(np.unique(x[:, d])) for d in range(2))
    position, time = np.unique(x[:, 0]), np.unique(x[:, 1])
    mean = posterior["force_mean"][0]
    measured = mean.mean() + mean.std() * z_scored(tasks["reference_mrna"][0])
    r = reference_correlations(posterior, tasks, system)["correlation_mrna"][0]
    protein = [tasks["y"][0, 0], posterior["output_mean"][0, 0]]
    force = [measured, mean]
    panels = (
        ("protein, measured", protein[0], protein, "cividis"),
        ("protein, posterior mean", protein[1], protein, "cividis"),
        ("mRNA, measured, rescaled", measured, force, "viridis"),
        (f"mRNA, inferred (r = {r:.2f})", mean, force, "viridis"),
        ("mRNA, posterior sd", posterior["force_sd"][0], [posterior["force_sd"][0]], "magma"),
    )
    with plt.rc_context(RC):
        figure, axes = plt.subplots(1, len(panels), figsize=(15, 3.2), sharex=True, sharey=True)
        for axis, (title, field, scale, colours) in zip(axes, panels, strict=True):
            low, high = min(s.min() for s in scale), max(s.max() for s in scale)
            image = axis.pcolormesh(
                time, position, field.reshape(shape), cmap=colours, vmin=low, vmax=high
            )
            figure.colorbar(image, ax=axis)
            axis.set_title(title)
            axis.set_xlabel("time (0: two intervals before the\nfirst measurement, 1: the last)")
        axes[0].set_ylabel("position (0: 32.5 %, 1: 88.5 %\nof egg length)")
    return figure
