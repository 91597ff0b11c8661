"""Tasks: many instances of one system, as an xarray Dataset with named dimensions.

| variable            | dimensions           | meaning                                          |
|---------------------|----------------------|--------------------------------------------------|
| ``x``               | task, point, axis    | where outputs were observed; NaN pads            |
| ``y``               | task, output, point  | noisy observations; NaN where missing            |
| ``y_sd``            | task, output, point  | standard deviation of their noise (optional)     |
| ``h``               | task, output, point  | noise-free outputs at ``x`` (optional)           |
| ``f_observed``      | task, point          | noisy force at ``x`` (optional; training only)   |
| ``x_query``         | task, query, axis    | where a posterior is asked for                   |
| ``f``               | task, query          | noise-free force at ``x_query`` (optional)       |
| ``h_query``         | task, output, query  | noise-free outputs at ``x_query`` (optional)     |
| ``split``           | task                 | 0 train, 1 validation, 2 test                    |
| ``reference_*``     | task, point          | a measured counterpart of the force (optional)   |
| ``parameter_*``     | task, ...            | true parameters (optional)                       |
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dklfm.artifacts import load_dataset
from dklfm.errors import DataError
from dklfm.systems import System

if TYPE_CHECKING:
    import pandas as pd

SPLITS = ("train", "validation", "test")
SHOWN_TRAINING_TASKS = 4
DIMENSIONS = {
    "x": ("task", "point", "axis"),
    "y": ("task", "output", "point"),
    "y_sd": ("task", "output", "point"),
    "h": ("task", "output", "point"),
    "f_observed": ("task", "point"),
    "x_query": ("task", "query", "axis"),
    "f": ("task", "query"),
    "h_query": ("task", "output", "query"),
    "split": ("task",),
}
_REQUIRED = ("x", "y", "x_query", "split")


@dataclass(frozen=True)
class Tasks:
    """A checked dataset of tasks; the table above is its schema."""

    data: xr.Dataset

    def __len__(self) -> int:
        return self.data.sizes["task"]

    def __contains__(self, variable: str) -> bool:
        return variable in self.data

    def __getitem__(self, variable: str) -> NDArray[np.float64]:
        if variable not in self.data:
            raise DataError(f"tasks lack the variable {variable!r}")
        return self.data[variable].values

    @classmethod
    def from_dataframe(cls, frame: pd.DataFrame, inputs: tuple[str, ...] = ("time",)) -> Tasks:
        """Tasks of a table in memory: tidy or wide, columns as :func:`dklfm.tasks.read_table`.

        Args:
            frame: observations.
            inputs: ``("time",)``, or ``("position", "time")`` for fields.

        Raises:
            DataError: naming the row and column that cannot be used.
        """
        from dklfm.tasks.tables import table_from_dataframe, tasks_from_table

        return tasks_from_table(table_from_dataframe(frame, inputs))

    @property
    def outputs(self) -> tuple[str, ...]:
        return tuple(str(name) for name in self.data["output"].values)

    @property
    def domain(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Lowest and highest inputs on which such tasks are observed, each ``axis``."""
        about = self.data["axis"].attrs if "axis" in self.data.coords else {}
        if "low" in about:
            return np.array(about["low"], dtype=float), np.array(about["high"], dtype=float)
        return np.nanmin(self["x"], axis=(0, 1)), np.nanmax(self["x"], axis=(0, 1))

    def axis_label(self, system: System) -> str:
        """Name and unit of the first input, as the tasks state it or else the system."""
        axis = system.axes[0]
        about = self.data["axis"].attrs if "axis" in self.data.coords else {}
        unit = about.get("unit", [axis.unit])[0]
        return f"{axis.name} ({unit})" if unit else axis.name

    def split(self, name: str) -> Self:
        """The tasks of one split.

        Raises:
            DataError: if there are none.
        """
        chosen = np.flatnonzero(self.data["split"].values == SPLITS.index(name))
        if not len(chosen):
            raise DataError(f"these tasks have no {name} split; set tasks.counts.{name} above 0")
        return self.take(chosen)

    def named(self, names: Sequence[str]) -> Self:
        """The tasks of given names; all of them, if none is given.

        Raises:
            DataError: if there is no task of a name.
        """
        known = [str(name) for name in self.data["task"].values]
        for name in names:
            if name not in known:
                raise DataError(f"there is no task {name!r}; there are {', '.join(known)}")
        return self.take([known.index(name) for name in names]) if names else self

    def to_show(self) -> Self:
        """The test tasks and the first few training tasks: what figures and scores look at."""
        split = self.data["split"].values
        shown = np.flatnonzero(split == SPLITS.index("train"))[:SHOWN_TRAINING_TASKS]
        return self.take(np.concatenate([shown, np.flatnonzero(split == SPLITS.index("test"))]))

    def take(self, indices: Sequence[int] | NDArray[np.int64]) -> Self:
        """The tasks at given positions."""
        return type(self)(self.data.isel(task=np.asarray(indices)))

    def checked(self) -> Self:
        """Itself, if it follows the schema.

        Raises:
            DataError: naming the task and what is wrong with it.
        """
        for name in _REQUIRED:
            self[name]
        for name, dims in DIMENSIONS.items():
            if name in self.data and self.data[name].dims != dims:
                raise DataError(
                    f"tasks variable {name!r} has dimensions {self.data[name].dims}, not {dims}"
                )
        if not len(self):
            raise DataError("there are no tasks")
        self._check_inputs()
        if np.isinf(self["y"]).any():
            raise DataError(f"{self._first(np.isinf(self['y']))}: an output is infinite")
        empty = ~np.isfinite(self["y"]).any(axis=(1, 2))
        if empty.any():
            raise DataError(f"{self._first(empty)}: no output was observed")
        if "y_sd" in self:
            bad = np.isfinite(self["y"]) & ~(self["y_sd"] >= 0)
            if bad.any():
                raise DataError(
                    f"{self._first(bad)}: an observation has a missing or negative standard "
                    "deviation"
                )
        return self

    def _check_inputs(self) -> None:
        x = self["x"]
        lost = np.asarray(~np.isfinite(x).all(axis=-1))
        if (lost & np.isfinite(self["y"]).any(1)).any():
            where = lost & np.isfinite(self["y"]).any(1)
            raise DataError(f"{self._first(where)}: an observation has no input value")
        if x.shape[-1] == 1:
            steps: NDArray[np.float64] = np.diff(x[..., 0], axis=1)
            if (steps == 0).any():
                raise DataError(f"{self._first(steps == 0)}: times are duplicated; merge them")
            if (steps < 0).any():
                raise DataError(f"{self._first(steps < 0)}: times do not increase; sort them")
            return
        for i, points in enumerate(x):
            real = points[~lost[i]]
            if len(np.unique(real, axis=0)) < len(real):
                name = self.data["task"].values[i]
                raise DataError(f"task {name}: inputs are duplicated; merge them")

    def _first(self, bad: NDArray[np.bool_] | np.bool_) -> str:
        i = int(np.argwhere(bad)[0][0])
        return f"task {self.data['task'].values[i]}"


def load_tasks(folder: Path) -> Tasks:
    """Read and check a store of tasks.

    Raises:
        DataError: if the store is missing, damaged or does not follow the schema.
    """
    try:
        return Tasks(load_dataset(folder)).checked()
    except DataError as error:
        raise DataError(str(error) if str(folder) in str(error) else f"{folder}: {error}") from None
