"""Fig. 6: error against the number of training tasks, and what inference costs in all."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dklfm.errors import DataError
from dklfm.figures.style import FORCE, OUTPUTS, RC

_TRAINED = "dklfm"
_LINES = {
    "alfi": "Alfi, parameters free",
    "alfi_anchored": "Alfi, one gene anchored",
    "mechanistic": "mechanistic, prior told",
}


def draw_curve(scores: Sequence[pd.DataFrame]) -> Figure:
    """Fig. 6 and its break-even, from task-wise scores of trained and single-task methods.

    All errors are over the same tasks, those that every drawn method was scored on.

    Raises:
        DataError: if there are no trained models, or no method to compare them with.
    """
    wide = pd.concat(list(scores)).pivot_table(
        index=["method", "split", "seed", "task"], columns="metric", values="value"
    )
    wide = wide.reset_index().dropna(subset=["latent_mse"])
    single = [method for method in _LINES if method in set(wide["method"])]
    if not single or _TRAINED not in set(wide["method"]):
        raise DataError("the curve needs scores of trained models and of alfi or mechanistic")
    common = set.intersection(*(set(group["task"]) for _, group in wide.groupby("method")))
    wide = wide[wide["task"].isin(common)]
    trained = wide[wide["method"] == _TRAINED]
    with plt.rc_context(RC):
        figure, (left, right) = plt.subplots(1, 2, figsize=(9.0, 3.6))
        _errors(left, trained)
        for method, color in zip(single, OUTPUTS, strict=False):
            rows = wide[wide["method"] == method]
            left.axhline(rows["latent_mse"].mean(), color=color, lw=1.2, label=_LINES[method])
        left.set_title(f"error on the same {len(common)} test tasks")
        left.legend(loc="lower left", bbox_to_anchor=(0.0, 0.08))
        _costs(right, trained, {m: wide[wide["method"] == m] for m in single})
    return figure


def _errors(axes: Axes, trained: pd.DataFrame) -> None:
    by_seed = trained.groupby(["training_tasks", "seed"])["latent_mse"].mean().reset_index()
    axes.plot(by_seed["training_tasks"], by_seed["latent_mse"], ".", color=FORCE, alpha=0.5)
    mean = by_seed.groupby("training_tasks")["latent_mse"].mean()
    seeds = by_seed["seed"].nunique()
    axes.plot(mean.index, mean, "o-", color=FORCE, lw=1.4, label=f"DKLFM, mean of {seeds} seeds")
    axes.set_xscale("log", base=2)
    axes.set_xticks(mean.index, [f"{size:g}" for size in mean.index])
    axes.set_yscale("log")
    axes.set_xlabel("training tasks")
    axes.set_ylabel("latent MSE")


def _costs(axes: Axes, trained: pd.DataFrame, single: dict[str, pd.DataFrame]) -> None:
    largest = trained["training_tasks"].max()
    chosen = trained[trained["training_tasks"] == min(256, largest)]
    once = float((chosen["simulation_cpu_s"] + chosen["training_cpu_s"]).mean())
    each = float(chosen["inference_cpu_s"].median())
    count = np.geomspace(1, 1e4, 200)
    label = f"DKLFM: {once:.0f} s once, {1e3 * each:.0f} ms a task"
    axes.plot(count, once + each * count, color=FORCE, lw=1.4, label=label)
    for color, (method, rows) in zip(OUTPUTS, single.items(), strict=False):
        cost = float(rows["inference_cpu_s"].median())
        name = _LINES[method].split(",")[0]
        if method == "alfi_anchored":  # costs what alfi does
            continue
        axes.plot(count, cost * count, color=color, lw=1.2, label=f"{name}: {cost:.2g} s a task")
        if cost > each:
            even = once / (cost - each)
            axes.plot([even], [cost * even], "o", color=color, ms=5)
            # The cheaper method's to its right and below, the other's to the left and above.
            offset = (8, -12) if method == "mechanistic" else (-48, 8)
            at, label = (even, cost * even), f"{even:.0f} tasks"
            axes.annotate(label, at, offset, textcoords="offset points")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("tasks inferred")
    axes.set_ylabel("CPU seconds in all, one thread")
    axes.set_title("simulate + train + infer, or fit each")
    axes.legend()
