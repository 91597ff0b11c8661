"""The embedded measurements, as Tasks with the measured counterpart of their force."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import xarray as xr

from dklfm.errors import DataError
from dklfm.resources import resource_path
from dklfm.tasks.schema import SPLITS, Tasks
from dklfm.tasks.tables import read_table, table_from_dataframe, tasks_from_table

_TYPICAL_OUTPUT_SD = 0.15
"""Median standard deviation of a reaction–diffusion output under the default prior."""


def _p53(processing: str) -> Tasks:
    """One of two processings of the arrays of Barenco et al. (2006), a task a replicate.

    ``reference_western_blot`` is the only measurement of p53 itself (one blot, shown beside every
    replicate), ``reference_barenco`` the activity that Barenco et al. inferred.
    """
    path = resource_path(f"p53/expression_{processing}.csv")
    tasks = tasks_from_table(read_table(path))
    activity = pd.read_csv(resource_path("p53/activity.csv"), dtype={"replicate": str})
    times = tasks["x"][..., 0]
    references = {}
    for source, rows in activity.groupby("source", sort=True):
        values = np.full(times.shape, np.nan)
        for i, replicate in enumerate(tasks.data["task"].values):
            own = rows[rows["replicate"] == replicate]
            chosen = own if len(own) else rows
            values[i] = np.interp(times[i], chosen["time"], chosen["value"])
        references[f"reference_{source}"] = (("task", "point"), values)
    return Tasks(tasks.data.assign(references))


def _hare_lynx() -> Tasks:
    """Pelts of the Hudson's Bay Company: hares in units of their mean, years since 1900."""
    pelts = pd.read_csv(resource_path("hare_lynx/pelts.csv"))
    table = pd.DataFrame(
        {
            "time": pelts["year"] - 1900.0,
            "output": "prey",
            "value": pelts["hare"] / pelts["hare"].mean(),
            "replicate": "1900-1920",
        }
    )
    tasks = tasks_from_table(table_from_dataframe(table))
    lynx = pelts["lynx"].to_numpy(dtype=float)[None]
    axis = xr.DataArray(["time"], dims="axis", attrs={"unit": ["years since 1900"]})
    data = tasks.data.assign(reference_lynx=(("task", "point"), lynx))
    return Tasks(data.assign_coords(axis=axis))


def _kni() -> Tasks:
    """Protein and mRNA of the gap gene kni (Becker et al. 2013) on the unit square.

    Position: 32.5 to 88.5 % of egg length, where the protein nearly vanishes at both ends. Time:
    the model starts from no protein, the first measurement does not; 0 lies two sampling intervals
    before it, where the protein's early growth extrapolates to nothing, and 1 at the last. Protein
    is scaled to the standard deviation of outputs simulated under the default prior.
    """
    table = pd.read_csv(resource_path("kni/expression.csv")).sort_values(["position", "time"])
    times, positions = np.unique(table["time"]), np.unique(table["position"])
    start = times[0] - 2 * (times[1] - times[0])
    x = np.stack(
        [
            (table["position"] - positions[0]) / (positions[-1] - positions[0]),
            (table["time"] - start) / (times[-1] - start),
        ],
        axis=-1,
    )[None]
    protein = table["protein"].to_numpy() * (_TYPICAL_OUTPUT_SD / table["protein"].std())
    data = xr.Dataset(
        {
            "x": (("task", "point", "axis"), x),
            "y": (("task", "output", "point"), protein[None, None]),
            "x_query": (("task", "query", "axis"), x),
            "split": (("task",), np.array([SPLITS.index("test")], dtype=np.int8)),
            "reference_mrna": (("task", "point"), table["mrna"].to_numpy(dtype=float)[None]),
        },
        coords={"task": ["kni"], "output": ["protein"]},
    )
    return Tasks(data).checked()


_LOADERS: dict[str, Callable[[], Tasks]] = {
    "p53-mmgmos": lambda: _p53("mmgmos"),
    "p53-puma2007": lambda: _p53("puma2007"),
    "hare-lynx": _hare_lynx,
    "kni": _kni,
}


def load_embedded(dataset: str) -> Tasks:
    """An embedded table of measurements by its name in a config.

    Raises:
        DataError: if there is no such table.
    """
    if dataset not in _LOADERS:
        raise DataError(f"no embedded table {dataset!r}; there are {', '.join(_LOADERS)}")
    return _LOADERS[dataset]()
