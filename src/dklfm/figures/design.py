"""What one more observation would tell of the force, by where it is made."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from dklfm.figures.style import FORCE, RC, TRUTH

if TYPE_CHECKING:
    from dklfm.inference.design import Design


def draw_design(found: Design) -> Figure:
    """A curve over times, or a map over positions and times; dots where was observed."""
    best = found.ranked().iloc[0]
    with plt.rc_context(RC):
        figure, axes = plt.subplots(figsize=(5, 3.2))
        if len(found.inputs) == 1:
            axes.plot(found.candidates[:, 0], 100 * found.gain, color=FORCE)
            axes.plot(found.observed[:, 0], 0 * found.observed[:, 0], "o", color=TRUTH, ms=4)
            axes.axvline(best.iloc[0], color=FORCE, lw=0.8, ls="--")
            axes.set_ylabel("expected fall of the\nforce's variance (%)")
            axes.set_ylim(bottom=-0.05 * 100 * found.gain.max())
        else:
            x, y = found.candidates.T
            drawn = axes.tripcolor(x, y, 100 * found.gain, shading="gouraud")
            figure.colorbar(drawn, ax=axes, label="expected fall of the\nforce's variance (%)")
            axes.plot(*found.observed.T, "o", color=TRUTH, ms=2)
            axes.plot(*best.iloc[:2], "*", color="white", ms=12, mec=TRUTH)
            axes.set_ylabel(found.inputs[1])
        axes.set_xlabel(f"{found.inputs[0]}; dots: observed so far")
        place = ", ".join(f"{name} {best[name]:.3g}" for name in found.inputs)
        axes.set_title(f"{found.task}: best at {place}")
    return figure
