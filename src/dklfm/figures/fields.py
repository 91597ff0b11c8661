"""Fig. 5: force and output over space and time, truth and inference."""

from __future__ import annotations

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from numpy.typing import NDArray

from dklfm.figures.style import RC
from dklfm.figures.tasks import columns_of
from dklfm.methods import Posterior
from dklfm.systems import System
from dklfm.tasks import SPLITS, Tasks

Field = NDArray[np.float64]


def draw_fields(
    tasks: Tasks, posterior: Posterior, system: System, floor: Posterior | None = None
) -> Figure:
    """A training task and the first four test tasks, one a column, on the query mesh.

    Of a stream, whose training tasks are not stored, they are five test tasks. Truth and inference
    share a colour scale; the error has its own row and scale. The error of ``floor``, a reference
    method's posterior of test tasks, stands beside the model's where it was fitted.
    """
    split, columns = tasks["split"], columns_of(tasks, 1, 4)
    fitted = set() if floor is None else set(floor.data["task"].values.tolist())
    space, time = system.axes
    groups = (
        ("force u", tasks["f"], posterior["force_mean"], "viridis"),
        (
            f"output {tasks.outputs[0]}",
            tasks["h_query"][:, 0],
            posterior["output_query_mean"][:, 0],
            "cividis",
        ),
    )
    extent = (time.low, time.high, space.low, space.high)
    mesh = [len(np.unique(tasks["x_query"][0, :, d])) for d in range(2)]
    with plt.rc_context(RC):
        figure, axes = plt.subplots(
            6, len(columns), figsize=(2.3 * len(columns) + 1, 10.2), sharex=True, sharey=True
        )
        for column, i in enumerate(columns):
            for row, (name, truth, inferred, colours) in enumerate(groups):
                pair = [truth[i].reshape(mesh), inferred[i].reshape(mesh)]
                error = pair[1] - pair[0]
                low, high = min(p.min() for p in pair), max(p.max() for p in pair)
                panels = axes[3 * row : 3 * row + 3, column]
                for panel, field in zip(panels[:2], pair, strict=True):
                    image = panel.imshow(
                        field, origin="lower", aspect="auto", extent=extent,
                        cmap=colours, vmin=low, vmax=high,
                    )  # fmt: skip
                figure.colorbar(image, ax=panels[:2], shrink=0.8)
                bound = np.abs(error).max()
                image = panels[2].imshow(
                    error, origin="lower", aspect="auto", extent=extent,
                    cmap="RdBu_r", vmin=-bound, vmax=bound,
                )  # fmt: skip
                figure.colorbar(image, ax=panels[2], shrink=0.8)
                if column == 0:
                    for panel, kind in zip(panels, ("truth", "inferred", "error"), strict=True):
                        panel.set_ylabel(f"{name}\n{kind}\n\n{space.name}")
            kind = SPLITS[split[i]].replace("train", "training")
            mse = np.mean(np.square(posterior["force_mean"][i] - tasks["f"][i]))
            title = f"{kind} task\nforce MSE {mse:.2g}"
            if floor is not None and tasks.data["task"].values[i] in fitted:
                best = floor.at(tasks.take([i]))["force_mean"][0]
                title += f" (floor {np.mean(np.square(best - tasks['f'][i])):.2g})"
            axes[0, column].set_title(title)
            axes[-1, column].set_xlabel(time.name)
    return figure
