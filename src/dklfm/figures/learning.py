"""Learning curves of one experiment's seeds."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from dklfm.figures.style import OUTPUTS, RC


def draw_learning(histories: Mapping[int, pd.DataFrame]) -> Figure:
    """Training and validation loss (Eq. 4 a point), force NLL, and force-output coupling."""
    panels = (
        ("train_loss", "loss −log p(f, y), nats a point"),
        ("validation_force_nll", "validation −log p(f | y),\nnats a point"),
        ("coupling", "prior correlation of force\nand outputs (rms)"),
    )
    # An operator has no joint law of force and outputs, and so no coupling.
    shown = [panel for panel in panels if all(panel[0] in h for h in histories.values())]
    with plt.rc_context(RC):
        figure, axes = plt.subplots(1, len(shown), figsize=(3.2 * len(shown), 2.9))
        for axis, (column, title) in zip(axes, shown, strict=True):
            for color, (seed, history) in zip(OUTPUTS, histories.items(), strict=False):
                known = history.dropna(subset=[column])
                axis.plot(known["epoch"], known[column], color=color, lw=1.2, label=f"seed {seed}")
                if column == "train_loss":
                    looked = history.dropna(subset=["validation_loss"])
                    axis.plot(
                        looked["epoch"], looked["validation_loss"], color=color, lw=1.0, ls=":"
                    )
            if column != "coupling":  # the first epochs are far off
                columns = [column, "validation_loss"] if column == "train_loss" else [column]
                late = [h.loc[h["epoch"] > 0.15 * len(h), columns] for h in histories.values()]
                low, high = np.nanmin(pd.concat(late)), np.nanmax(pd.concat(late))
                axis.set_ylim(low - 0.1, max(high, 1.5 * (column != "train_loss")) + 0.1)
            axis.set_xlabel("epoch")
            axis.set_ylabel(title)
        axes[0].set_title("solid: training, on subsets;\ndotted: validation, on all points")
        axes[1].axhline(1.419, color="0.6", lw=0.8)
        axes[1].set_title("grey: the prior alone")
        if len(shown) == len(panels):
            axes[2].set_ylim(bottom=0)
            axes[2].set_title("near 0: nothing is learnt")
        axes[-1].legend()
    return figure
