"""The embedded measurements, as Tasks with the measured counterpart of their force."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd

from dklfm.errors import DataError
from dklfm.resources import resource_path
from dklfm.tasks.schema import Tasks
from dklfm.tasks.tables import read_table, tasks_from_table


def _p53(processing: str) -> Tasks:
    """One of two processings of the arrays of Barenco et al. (2006), a task a replicate.

    ``reference_western_blot`` is the only measurement of p53 itself (one blot, shown beside every
    replicate), ``reference_barenco`` the activity that Barenco et al. inferred.
    """
    path = resource_path(f"p53/expression_{processing}.csv")
    tasks = tasks_from_table(read_table(path), path.name)
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
    tasks = tasks_from_table(table, "pelts.csv")
    lynx = pelts["lynx"].to_numpy(dtype=float)[None]
    return Tasks(tasks.data.assign(reference_lynx=(("task", "point"), lynx)))


_LOADERS: dict[str, Callable[[], Tasks]] = {
    "p53-mmgmos": lambda: _p53("mmgmos"),
    "p53-puma2007": lambda: _p53("puma2007"),
    "hare-lynx": _hare_lynx,
}


def load_embedded(dataset: str) -> Tasks:
    """An embedded table of measurements by its name in a config.

    Raises:
        DataError: if there is no such table.
    """
    if dataset not in _LOADERS:
        raise DataError(f"no embedded table {dataset!r}; there are {', '.join(_LOADERS)}")
    return _LOADERS[dataset]()
