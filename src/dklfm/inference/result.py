"""What inference gives: moments, samples, tables, a figure, and what to know of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dklfm.errors import DataError
from dklfm.methods import Posterior
from dklfm.model.critic import LEVEL
from dklfm.model.trust import P_VALUES, unlike
from dklfm.systems import System
from dklfm.tasks import Tasks

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    from matplotlib.figure import Figure

_SHOWN = 20


class Stranger(NamedTuple):
    """A task that looks unlike the training, and how often simulated tasks look stranger."""

    name: str
    p_embedding: float
    p_outputs: float
    p_critic: float


@dataclass(frozen=True)
class Inference:
    """The posterior of measured tasks, in their own units of time and of the outputs.

    Attributes:
        tasks: what was observed, and where the posterior is.
        posterior: its moments.
        system: the equation and prior behind it.
        inputs: the names of the inputs, ``time`` or ``position`` and ``time``.
        notes: what was done to the observations, a sentence each.
    """

    tasks: Tasks
    posterior: Posterior
    system: System
    inputs: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def force(self) -> xr.Dataset:
        """``mean``, ``sd``, ``lower95`` and ``upper95`` of the force, ``task x query``."""
        return self._bands("force")

    @property
    def outputs(self) -> xr.Dataset:
        """The same of the noise-free outputs, ``task x output x query``.

        Raises:
            DataError: if the model infers no outputs.
        """
        if "output_query_mean" not in self.posterior.data:
            raise DataError("this model infers no outputs")
        return self._bands("output_query")

    def _bands(self, quantity: str) -> xr.Dataset:
        mean, sd = (self.posterior.data[f"{quantity}_{moment}"] for moment in ("mean", "sd"))
        ends = self.posterior.marginals(quantity).interval(0.95)
        lower, upper = (mean.copy(data=end) for end in ends)
        bands = xr.Dataset({"mean": mean, "sd": sd, "lower95": lower, "upper95": upper})
        places = {
            name: (("task", "query"), self.tasks["x_query"][..., i])
            for i, name in enumerate(self.inputs)
        }
        return bands.assign_coords(places)

    @property
    def strange(self) -> NDArray[np.bool_]:
        """Which tasks look unlike all that the model was trained on, ``task``."""
        if P_VALUES[0] not in self.posterior.data:
            return np.zeros(len(self.tasks), dtype=bool)
        return unlike({name: self.posterior[name] for name in P_VALUES})

    @property
    def strangers(self) -> list[Stranger]:
        """Those tasks, and how often simulated ones look stranger."""
        found = np.flatnonzero(self.strange)
        names = self.tasks.data["task"].values
        return [
            Stranger(str(names[i]), *(float(self.posterior[name][i]) for name in P_VALUES))
            for i in found
        ]

    def sample(self, count: int, seed: int = 0) -> xr.DataArray:
        """Draws of the force, ``sample x task x query``, of a Gaussian or Student process.

        Raises:
            DataError: if the joint covariance was not kept; ask for it with ``joint``.
        """
        if "force_covariance" not in self.posterior.data:
            raise DataError("samples need the joint covariance: infer with joint=True, not refined")
        covariance = self.posterior["force_covariance"]
        values, vectors = np.linalg.eigh(covariance)
        root = vectors * np.sqrt(np.clip(values, 0, None))[:, None]
        rng = np.random.default_rng(seed)
        white = rng.standard_normal((count, *covariance.shape[:2]))
        if "force_df" in self.posterior.data:
            df = self.posterior["force_df"]
            white *= np.sqrt((df - 2) / rng.chisquare(df, (count, len(df))))[..., None]
        draws = self.posterior["force_mean"] + np.einsum("tqk,stk->stq", root, white)
        return xr.DataArray(draws, dims=("sample", "task", "query"), coords=self.force.coords)

    def plot(self, most: int = 6) -> Figure:
        """Force above, outputs below, the first ``most`` tasks side by side."""
        from dklfm.figures.inference import draw_inference

        return draw_inference(self, most)

    def to_dataframe(self) -> pd.DataFrame:
        """One row a task, quantity and query point; columns as in posterior.csv."""
        return self.to_table().to_pandas()

    def to_table(self) -> pa.Table:
        """The same as a table of columns, single precision."""
        import pyarrow as pa

        tasks, queries = self.posterior["force_mean"].shape
        bands = [self.force] + (
            [self.outputs] if "output_query_mean" in self.posterior.data else []
        )
        quantities = ["force", *(self.tasks.outputs if len(bands) > 1 else ())]
        rows = tasks * len(quantities) * queries

        def stacked(name: str) -> NDArray[np.float32]:
            parts = [band[name].values.reshape(tasks, -1, queries) for band in bands]
            return np.concatenate(parts, axis=1).astype(np.float32).ravel()

        def labels(values: list[str], each: int) -> pa.DictionaryArray:
            places = {value: i for i, value in enumerate(dict.fromkeys(values))}
            codes = np.array([places[value] for value in values], dtype=np.int32)
            index = np.tile(np.repeat(codes, each), rows // (each * len(values)))
            return pa.DictionaryArray.from_arrays(pa.array(index), list(places))

        def named(variable: str, default: str) -> list[str]:
            if variable not in self.tasks:
                return [default] * tasks
            return [str(value) for value in self.tasks.data[variable].values]

        whole = len(quantities) * queries
        columns = {
            "task": labels(named("experiment", "1"), whole),
            "replicate": labels(named("replicate", "1"), whole),
            "quantity": labels(quantities, queries),
        }
        for i, name in enumerate(self.inputs):
            places = np.repeat(self.tasks["x_query"][..., i], len(quantities), axis=0)
            columns[name] = pa.array(places.ravel())
        for name in ("mean", "sd", "lower95", "upper95"):
            columns[name] = pa.array(stacked(name))
        return pa.table(columns)

    def to_dataset(self) -> xr.Dataset:
        """All of it with named dimensions, for NetCDF or zarr."""
        data = self.posterior.data.drop_vars(["force_covariance", "cpu_seconds"], errors="ignore")
        observed = {name: self.tasks.data[name] for name in ("x", "y", "y_sd", "x_query")}
        return data.assign(observed).assign_attrs(
            system=self.system.name, inputs=", ".join(self.inputs), notes="\n".join(self.notes)
        )

    def report(self) -> str:
        """A page of Markdown: what was inferred, how, and what to beware of."""
        return report(self, len(self.tasks), self.strangers)

    def save(self, folder: Path) -> None:
        """Write posterior.csv, posterior.nc, report.md and figure.png into a folder."""
        from dklfm.inference.files import save

        save([self], folder)


def report(first: Inference, tasks: int, strangers: Sequence[Stranger]) -> str:
    """A page of Markdown on tasks of which the first ones are given.

    Args:
        first: some of the tasks, which all were inferred alike.
        tasks: how many there are in all.
        strangers: those that look unlike what the model was trained on.
    """
    system = first.system
    lines = [
        f"# {system.force_name[:1].upper()}{system.force_name[1:]}",
        "",
        f"{tasks} time courses of {len(first.tasks.outputs)} outputs, inferred by a model of "
        f"{system.name} (prior {system.prior_label}).",
        "",
    ]
    if strangers:
        lines += _beware(strangers, tasks)
    elif P_VALUES[0] in first.posterior.data:
        lines += ["All look like what the model was trained on.", ""]
    return "\n".join([*lines, *(f"- {note[:1].upper()}{note[1:]}." for note in first.notes), ""])


def _beware(strangers: Sequence[Stranger], tasks: int) -> list[str]:
    """Which tasks are unlike the training, and in what."""
    shown, more = strangers[:_SHOWN], len(strangers) - _SHOWN
    rows = [
        " | ".join(["", name.replace("|", "\\|"), *(f"{p:.1%}" for p in p_values), ""]).strip()
        for name, *p_values in shown
    ]
    fits = min(found.p_outputs for found in strangers) > LEVEL
    return [
        f"**Beware: {len(strangers)} of {tasks} look unlike anything that the model was trained "
        "on. Their force may be wrong by more than the bands say.**",
        "",
        "| task | pattern | fit | law |",
        "|---|---|---|---|",
        *rows,
        *([f"| and {more} more | | | |"] if more > 0 else []),
        "",
        "These are the shares of simulated tasks, observed alike, that look stranger. Pattern: by "
        "what the network makes of all values. Fit: by how far the values are from the outputs "
        "inferred; a small share says that the noise is larger than stated, that values are "
        "mistaken, or that no force explains them. Law: to a classifier that has seen tasks of "
        "other priors and equations."
        + (
            " Here the values fit as well as they should; it is their pattern that is rare."
            if fits
            else ""
        ),
        "",
    ]
