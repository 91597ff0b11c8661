"""Between the units of a table and the domain that a model was trained on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dklfm.errors import DataError
from dklfm.model import Scale
from dklfm.tasks import Tasks

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Units:
    """x' = low + rate · (x − origin) and y' = factor · y, one for all replicates of an experiment.

    A mechanistic model whose rates are unknown is the same model in any unit of time, and with
    outputs in any common unit; a trained one has seen a certain range of both.

    Attributes:
        low: where the training domain begins, ``axis``.
        origin: the lowest inputs, ``task x axis``.
        rate: training units per unit of the table, ``task x axis``.
        factor: likewise of the outputs, ``task``.
    """

    low: Array
    origin: Array
    rate: Array
    factor: Array

    @classmethod
    def of(cls, tasks: Tasks, scale: Scale, extrapolates: bool, rescale: bool = True) -> Units:
        """The span of each experiment's inputs fills the domain, its outputs have the usual size.

        Args:
            tasks: measured.
            scale: of the training tasks.
            extrapolates: whether inputs beyond the domain are possible.
            rescale: if not, the table is in the units of the training tasks already.

        Raises:
            DataError: if an experiment's inputs do not vary or its outputs are all zero, or without
                rescaling lie beyond the domain.
        """
        low, high = np.array(scale.low), np.array(scale.high)
        x, y = tasks["x"], tasks["y"]
        if not rescale:
            inside = np.isnan(x) | ((x >= low) & (x <= high))
            if not (inside.all() or extrapolates):
                raise DataError(
                    f"without rescaling inputs must lie in {low.tolist()} to {high.tolist()}"
                )
            one = np.ones(len(tasks))
            return cls(low, np.tile(low, (len(x), 1)), np.ones((len(x), len(low))), one)
        usual = np.hypot(scale.mean, scale.sd)
        groups = _experiments(tasks)
        first, last = _extremes(x, groups)
        squares = np.bincount(groups, np.nansum(np.square(y), axis=(1, 2)))
        size = np.sqrt(squares / np.bincount(groups, np.isfinite(y).sum((1, 2))))
        names = tasks.data["task"].values
        for i in np.flatnonzero((last <= first)[groups].any(1)):
            raise DataError(f"task {names[i]}: all observations are at one time or position")
        for i in np.flatnonzero(~(size[groups] > 0)):
            raise DataError(f"task {names[i]}: every value is 0; there is nothing to infer from")
        rate = (high - low) / (last - first)
        return cls(low, first[groups], rate[groups], (usual / size)[groups])

    def take(self, tasks: slice) -> Units:
        """Those of some tasks."""
        return Units(self.low, self.origin[tasks], self.rate[tasks], self.factor[tasks])

    def inputs(self, x: Array) -> Array:
        """``task x point x axis`` of the table to those of the domain."""
        return self.low + self.rate[:, None] * (x - self.origin[:, None])

    def outputs(self, y: Array) -> Array:
        """``task x output x ...`` of the domain to those of the table."""
        return y / self.factor.reshape(-1, *(1 for _ in y.shape[1:]))

    def to_domain(self, tasks: Tasks) -> Tasks:
        """The tasks as the model knows such."""
        factor = xr.DataArray(self.factor, dims="task")
        data = tasks.data.assign(
            x=(tasks.data["x"].dims, self.inputs(tasks["x"])),
            x_query=(tasks.data["x_query"].dims, self.inputs(tasks["x_query"])),
            y=tasks.data["y"] * factor,
        )
        if "y_sd" in tasks:
            data = data.assign(y_sd=tasks.data["y_sd"] * factor)
        return Tasks(data)


def _extremes(x: Array, groups: NDArray[np.int64]) -> tuple[Array, Array]:
    """Least and largest inputs of each group of tasks, ``group x axis``; NaN is none."""
    first = np.full((groups.max() + 1, x.shape[-1]), np.inf)
    last = -first
    np.fmin.at(first, groups, np.fmin.reduce(x, axis=1))
    np.fmax.at(last, groups, np.fmax.reduce(x, axis=1))
    return first, last


def _experiments(tasks: Tasks) -> NDArray[np.int64]:
    """Which tasks belong together, ``task``; all do if the table does not say."""
    if "experiment" not in tasks:
        return np.zeros(len(tasks), dtype=np.int64)
    return np.unique(tasks.data["experiment"].values.astype(str), return_inverse=True)[1]
