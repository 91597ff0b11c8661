"""A measured time course whose force was measured too, for example hare and lynx."""

from __future__ import annotations

from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from dklfm.figures.style import FORCE, OUTPUTS, RC, REFERENCES, band
from dklfm.methods import Posterior
from dklfm.scores import reference_correlations, z_scored
from dklfm.systems import System
from dklfm.tasks import Tasks


def draw_series(tasks: Tasks, posterior: Posterior, system: System) -> Figure:
    """The inferred force with its measured counterpart above, the outputs below.

    Where the force's scale cannot be known the two share a shape only: the counterpart is moved
    and scaled to the mean and standard deviation of the inferred force at its times.
    """
    force, outputs = (posterior.marginals(name).curves() for name in ("force", "output_query"))
    correlations = reference_correlations(posterior, tasks, system)
    with plt.rc_context(RC):
        figure, axes = plt.subplots(
            2, len(tasks), figsize=(5.5 * len(tasks), 5), sharex=True, squeeze=False
        )
        for i in range(len(tasks)):
            top, bottom = axes[:, i]
            t, times = tasks["x_query"][i, :, 0], tasks["x"][i, :, 0]
            mean = posterior["force_mean"][i]
            shown = [curve[i] for curve in force]
            band(top, t, shown, FORCE, f"{system.force_name}, inferred, 95 % band")
            title = []
            for name, color in zip(
                (n for n in map(str, tasks.data) if n.startswith("reference_")),
                REFERENCES,
                strict=False,
            ):
                short = name.removeprefix("reference_")
                moved = mean.mean() + mean.std() * z_scored(tasks[name][i])
                top.plot(times, moved, "s", color=color, ms=4, label=f"{short}, measured, rescaled")
                title.append(
                    f"correlation with {short}: {correlations[f'correlation_{short}'][i]:.2f}"
                )
            top.set_title(", ".join(title))
            top.set_ylabel(f"{system.force_name} (model units)")
            top.legend()
            for j, output in enumerate(tasks.outputs):
                color = OUTPUTS[j % len(OUTPUTS)]
                shown = [curve[i, j] for curve in outputs]
                band(bottom, t, shown, color, f"{output}, posterior")
                bottom.plot(times, tasks["y"][i, j], ".", color=color, label=f"{output}, observed")
            bottom.set_ylabel("outputs (in units of their mean)")
            bottom.set_xlabel(tasks.axis_label(system))
            bottom.legend()
    return figure
