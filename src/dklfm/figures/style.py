"""One look for all figures, and one way to save them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from dklfm.artifacts import write_atomically

mpl.use("Agg")

TRUTH = "#222222"
FORCE = "#0b6fa4"
OUTPUTS = ("#c8553d", "#588b8b", "#d9a441", "#7b5ea7", "#4f772d")
REFERENCES = ("#c8553d", "#4f772d")

RC: Any = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": cycler(color=OUTPUTS),
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
    "savefig.dpi": 200,
}


def band(
    axes: Axes,
    x: NDArray[np.float64],
    curves: Sequence[NDArray[np.float64]],
    color: str,
    label: str | None = None,
) -> None:
    """A mean curve between the ends of an interval; ``curves`` are these three."""
    mean, low, high = curves
    axes.fill_between(x, low, high, color=color, alpha=0.2, lw=0)
    axes.plot(x, mean, color=color, lw=1.4, label=label)


def save(figure: Figure, stem: Path, suffixes: tuple[str, ...] = ("pdf", "png")) -> None:
    """Write ``stem.pdf`` and ``stem.png``."""
    for suffix in suffixes:
        metadata = {"CreationDate": None} if suffix == "pdf" else {"Software": None}
        write = partial(figure.savefig, format=suffix, metadata=metadata)
        write_atomically(stem.with_suffix(f".{suffix}"), write)
        figure.set_layout_engine("none")  # the second file keeps the layout of the first
