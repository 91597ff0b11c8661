"""Scores of posteriors against the truth, the same for every method.

Every metric gives one number a task; tables state mean, standard error and median over tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dklfm.errors import ConfigError, DataError
from dklfm.marginals import Marginals
from dklfm.methods import COSTS, Posterior
from dklfm.systems import System
from dklfm.tasks import Tasks

Array = NDArray[np.float64]
FLOOR = "mechanistic"
"""The method whose error is the least that observations allow: the equation itself."""
OVER_FLOOR = "latent_mse_over_floor"
ABOUT = ("run", "experiment", "method", "prior", "seed", "split")
COLUMNS = (
    "run", "experiment", "method", "prior", "seed", "split",
    "metric", "n_tasks", "mean", "se", "median",
)  # fmt: skip


@dataclass(frozen=True)
class Metric:
    """A named score.

    Attributes:
        name: as it stands in scores.csv.
        infers: what a posterior must hold for it, ``force`` or ``output``.
        needs: the truth that tasks must hold for it.
        compute: from posterior and tasks to one value a task.
        meaning: one line for the documentation.
    """

    name: str
    infers: str
    needs: str
    compute: Callable[[Posterior, Tasks], Array]
    meaning: str


def z_scored(curves: Array) -> Array:
    """Each ``task x query`` curve with zero mean and unit standard deviation."""
    centred = curves - curves.mean(-1, keepdims=True)
    return centred / centred.std(-1, keepdims=True)


def _force(
    score: Callable[[Marginals, Array], NDArray[Any]],
) -> Callable[[Posterior, Tasks], Array]:
    return lambda p, t: score(p.marginals("force"), t["f"]).mean(-1)


def _output_scale(tasks: Tasks) -> Array:
    """Standard deviation of each noise-free output over its task; constant outputs get 1."""
    sd = tasks["h_query"].std(-1, keepdims=True)
    return np.where(sd > 0, sd, 1.0)


def _output_mse(where: str, scaled: bool) -> Callable[[Posterior, Tasks], Array]:
    predicted, true = ("output_mean", "h") if where == "x" else ("output_query_mean", "h_query")

    def compute(posterior: Posterior, tasks: Tasks) -> Array:
        error = posterior[predicted] - tasks[true]
        scale = _output_scale(tasks) if scaled else 1.0
        return np.square(error / scale).mean((1, 2))

    return compute


def _output_nll(posterior: Posterior, tasks: Tasks) -> Array:
    scale = _output_scale(tasks)
    found = Marginals(posterior["output_mean"] / scale, posterior["output_sd"] / scale)
    return found.nll(tasks["h"] / scale).mean((1, 2))


METRICS = (
    Metric(
        "latent_mse",
        "force",
        "f",
        _force(lambda found, f: (found.mean - f) ** 2),
        "squared error of the force at the query points, raw",
    ),
    Metric(
        "latent_mse_z",
        "force",
        "f",
        lambda p, t: np.square(p["force_mean"] - t["f"]).mean(-1) / t["f"].var(-1),
        "latent_mse over the variance of the task's true force",
    ),
    Metric(
        "latent_mse_shape",
        "force",
        "f",
        lambda p, t: np.square(z_scored(p["force_mean"]) - z_scored(t["f"])).mean(-1),
        "squared error after both curves are z-scored: scale and offset forgiven",
    ),
    Metric(
        "output_mse",
        "output",
        "h",
        _output_mse("x", scaled=True),
        "squared error of the noise-free outputs at the observed points, in units of each "
        "output's standard deviation",
    ),
    Metric(
        "output_mse_raw",
        "output",
        "h",
        _output_mse("x", scaled=False),
        "output_mse in the outputs' own units",
    ),
    Metric(
        "output_mse_heldout",
        "output",
        "h_query",
        _output_mse("query", scaled=True),
        "output_mse at the query points, where nothing was observed",
    ),
    Metric(
        "output_mse_heldout_raw",
        "output",
        "h_query",
        _output_mse("query", scaled=False),
        "output_mse_heldout in the outputs' own units",
    ),
    Metric("force_nll", "force", "f", _force(Marginals.nll), "NLL of the force, nats a point"),
    Metric(
        "output_nll",
        "output",
        "h",
        _output_nll,
        "Gaussian NLL of the noise-free outputs at the observed points, nats a point, in units "
        "of each output's standard deviation",
    ),
    Metric(
        "force_coverage95",
        "force",
        "f",
        _force(lambda found, f: found.contains(f, 0.95)),
        "share of the true force inside the central 95 % interval",
    ),
    Metric(
        "force_coverage50",
        "force",
        "f",
        _force(lambda found, f: found.contains(f, 0.5)),
        "share of the true force inside the central 50 % interval",
    ),
    Metric(
        "force_crps", "force", "f", _force(Marginals.crps), "continuous ranked probability score"
    ),
)

_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(32)


def expected_activity(posterior: Posterior, system: System) -> Array:
    """E[G(f) | y] by Gauss–Hermite quadrature, ``task x query``."""
    force = posterior["force_mean"][..., None] + posterior["force_sd"][..., None] * _NODES
    return system.activity(force) @ (_WEIGHTS / _WEIGHTS.sum())


def reference_correlations(posterior: Posterior, tasks: Tasks, system: System) -> dict[str, Array]:
    """Pearson correlation of the inferred activity with each measured counterpart, by task."""
    activity = expected_activity(posterior, system)
    found = {}
    for name in map(str, tasks.data):
        if not name.startswith("reference_"):
            continue
        values = []
        for i, reference in enumerate(tasks[name]):
            known = np.isfinite(reference)
            times = tasks["x"][i, known, 0]
            inferred = (
                np.interp(times, tasks["x_query"][i, :, 0], activity[i])
                if tasks["x"].shape[-1] == 1
                else activity[i][known]  # queries of measured fields are their points
            )
            values.append(np.corrcoef(inferred, reference[known])[0, 1])
        found[f"correlation_{name.removeprefix('reference_')}"] = np.array(values)
    return found


def score(
    posterior: Posterior,
    tasks: Tasks,
    system: System,
    about: Mapping[str, Any],
) -> pd.DataFrame:
    """One row a task and metric: columns ABOUT, ``task``, ``metric``, ``value``.

    Tasks of measurements are few and each a thing of its own: their split names the task.

    Raises:
        ConfigError: if ``about`` lacks one of the keys ABOUT.
    """
    missing = [key for key in ABOUT if key not in about]
    if missing:
        raise ConfigError(f"the description of the scores lacks {missing[0]!r}")
    posterior = posterior.at(tasks)
    costs = {name: np.full(len(tasks), posterior.data.attrs[name]) for name in COSTS}
    costs["inference_cpu_s"] = posterior["cpu_seconds"]
    if "effective_sample_size" in posterior.data:
        costs["effective_sample_size"] = posterior["effective_sample_size"]
    if "f" not in tasks:
        if "force_mean" not in posterior.data:
            raise DataError("a posterior without a force says nothing of measurements of it")
        values = reference_correlations(posterior, tasks, system) | costs
        table = _long(values, tasks, about)
        return table.assign(split=table["split"] + "/" + table["task"].astype(str))
    tables = []
    for region, chosen in regions(tasks).items():
        part = Tasks(tasks.data.isel(query=chosen))
        inferred = Posterior(posterior.data.isel(query=chosen))
        inside = region == "test"
        values = {
            m.name: m.compute(inferred, part)
            for m in METRICS
            if f"{m.infers}_mean" in inferred.data
            and m.needs in part
            and (inside or m.needs != "h")
        }
        values |= costs if inside else {}
        split = about["split"] if inside else about["split"].replace("test", region)
        tables.append(_long(values, tasks, {**about, "split": split}))
    return pd.concat(tables, ignore_index=True)


def _long(values: Mapping[str, Array], tasks: Tasks, about: Mapping[str, Any]) -> pd.DataFrame:
    table = pd.DataFrame(values).assign(task=tasks.data["task"].values)
    table = table.melt(id_vars="task", var_name="metric", value_name="value")
    return table.assign(**about)[[*ABOUT, "task", "metric", "value"]]


def regions(tasks: Tasks) -> dict[str, NDArray[np.int64]]:
    """Positions of the query points inside the domain, and of those beyond it if there are any.

    Keys: ``test`` inside, ``forward`` above the domain, ``backward`` below it.
    """
    low, high = tasks.domain
    x = tasks["x_query"][0]  # the same grid for every simulated task
    below, above = (x < low).any(-1), (x > high).any(-1)
    named = {"test": ~(below | above), "forward": above & ~below, "backward": below & ~above}
    return {name: np.flatnonzero(where) for name, where in named.items() if where.any()}


def summarise(per_task: Iterable[pd.DataFrame]) -> pd.DataFrame:
    """Mean, standard error and median over tasks, in the columns of scores.csv.

    Beside every seed stands a row with seed ``all``: each task's mean over the seeds, so that
    its standard error is over tasks. Where the equation itself was fitted to tasks, every other
    method has rows of the metric OVER_FLOOR: its latent_mse over that of FLOOR on the same tasks.
    """
    table = pd.concat(list(per_task), ignore_index=True).astype({"seed": str})
    keys = [name for name in ABOUT if name != "seed"]
    over_seeds = table.groupby([*keys, "metric", "task"], sort=False, as_index=False)[
        "value"
    ].mean()
    both = pd.concat([table, over_seeds.assign(seed="all")], ignore_index=True)
    groups = both.groupby([*ABOUT, "metric"], sort=False)["value"]
    summary = groups.agg(n_tasks="count", mean="mean", se="sem", median="median").reset_index()
    return pd.concat([summary, _over_floor(both)], ignore_index=True)[list(COLUMNS)]


def _over_floor(values: pd.DataFrame) -> pd.DataFrame:
    """Ratios of mean and median errors to the floor's, with the standard error of the first."""
    errors = values[values["metric"] == "latent_mse"]
    fitted = errors["method"] == FLOOR
    same = ["run", "split", "task"]
    floor = errors[fitted & (errors["seed"] == "all")].set_index(same)["value"].rename("floor")
    rows = []
    paired = errors[~fitted].join(floor, on=same, how="inner")
    for about, found in paired.groupby(list(ABOUT), sort=False):
        own, least = (found[name].to_numpy(dtype=float) for name in ("value", "floor"))
        ratio = own.mean() / least.mean()
        # Of a ratio of two means over the same tasks, to first order.
        se = pd.Series(own - ratio * least).sem() / least.mean()
        numbers = (len(found), ratio, se, np.median(own) / np.median(least))
        rows.append((*about, OVER_FLOOR, *numbers))
    return pd.DataFrame(rows, columns=list(COLUMNS))
