"""The force of measured time courses and the outputs that it explains."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from dklfm.figures.style import FORCE, OUTPUTS, RC, band

if TYPE_CHECKING:
    from dklfm.inference import Inference

_WARNING = "#b00020"
_CURVES = ("mean", "lower95", "upper95")
_MOST_LABELS = 12


def draw_inference(found: Inference, most: int) -> Figure:
    """The first ``most`` tasks side by side, with their 95 % bands.

    A task that looks unlike those that the model was trained on says so in its title.
    """
    draw = _series if len(found.inputs) == 1 else _fields
    with plt.rc_context(RC):
        return draw(found, min(most, len(found.tasks)))


def _title(found: Inference, i: int) -> tuple[str, str]:
    name = f"{found.tasks.data['task'].values[i]}"
    if found.strange[i]:
        return f"{name}\nunlike the training tasks: do not trust", _WARNING
    return name, "black"


def _series(found: Inference, columns: int) -> Figure:
    figure, axes = plt.subplots(
        2, columns, figsize=(1.6 + 3 * columns, 4.6), sharex=True, sharey="row", squeeze=False
    )
    force = found.force
    outputs = found.outputs if "output_query_mean" in found.posterior.data else None
    names = found.tasks.outputs
    for i in range(columns):
        top, bottom = axes[:, i]
        t = found.tasks["x_query"][i, :, 0]
        order = np.argsort(t)
        t = t[order]
        band(top, t, [force[name].values[i][order] for name in _CURVES], FORCE)
        title, color = _title(found, i)
        top.set_title(title, color=color)
        for j, output in enumerate(names):
            color = OUTPUTS[j % len(OUTPUTS)]
            label = output if j < _MOST_LABELS else None
            if outputs is not None:
                band(bottom, t, [outputs[name].values[i, j][order] for name in _CURVES], color)
            times, y = found.tasks["x"][i, :, 0], found.tasks["y"][i, j]
            bars = 1.96 * found.tasks["y_sd"][i, j]
            bottom.errorbar(times, y, bars, fmt=".", color=color, ms=4, lw=0.7, label=label)
        bottom.set_xlabel(found.inputs[0])
    axes[0, 0].set_ylabel(f"{found.system.force_name}\n(prior standard deviations)")
    axes[1, 0].set_ylabel("outputs, as in the table")
    shown = found.tasks["y"][:columns]
    low, high = np.nanmin(shown), np.nanmax(shown)
    axes[1, 0].set_ylim(low - 0.3 * (high - low), high + 0.3 * (high - low))  # bars may be longer
    if len(names) <= _MOST_LABELS:
        axes[1, -1].legend(loc="upper left", bbox_to_anchor=(1, 1), title="bars: ±1.96 sd")
    return figure


def _fields(found: Inference, columns: int) -> Figure:
    figure, axes = plt.subplots(
        3, columns, figsize=(1.6 + 3 * columns, 6.6), sharex=True, sharey=True, squeeze=False
    )
    for i in range(columns):
        points = found.tasks["x_query"][i].T
        rows = {
            f"{found.system.force_name}": found.force["mean"].values[i],
            "its standard deviation": found.force["sd"].values[i],
            f"{found.tasks.outputs[0]}, inferred": found.outputs["mean"].values[i, 0],
        }
        for panel, (name, values) in zip(axes[:, i], rows.items(), strict=True):
            drawn = panel.tripcolor(*points, values, shading="gouraud", rasterized=True)
            figure.colorbar(drawn, ax=panel)
            if i == 0:
                panel.set_ylabel(f"{name}\n\n{found.inputs[1]}")
        axes[2, i].plot(*found.tasks["x"][i].T, ".", color="black", ms=1.5)
        axes[2, i].set_xlabel(f"{found.inputs[0]}\ndots: observed")
        title, color = _title(found, i)
        axes[0, i].set_title(title, color=color)
    return figure
