"""Fitting tasks one by one: each fit is kept as soon as it is done."""

from __future__ import annotations

import logging
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dklfm.artifacts import write_atomically
from dklfm.errors import DataError
from dklfm.methods.base import Posterior
from dklfm.progress import progress
from dklfm.systems import System
from dklfm.tasks import Tasks

Array = NDArray[np.float64]
log = logging.getLogger(__name__)


class TaskPosterior(NamedTuple):
    """Posterior moments of one task.

    Attributes:
        force_mean, force_variance: ``query`` moments; None if the method infers no force.
        output_mean, output_variance: ``output x (point, query)`` moments of the noise-free outputs.
        effective_sample_size: of the importance weights behind the moments, if there are any.
    """

    force_mean: Array | None
    force_variance: Array | None
    output_mean: Array
    output_variance: Array
    effective_sample_size: float | None = None


def mixed(weights: Array, means: Array, within: Array) -> tuple[Array, Array]:
    """Mean and variance of a weighted mixture of Gaussians, point by point.

    The weights sum to 1 and are taken for importance weights: the variance between the parts is
    corrected for the share of their spread that the weighted mean takes.

    Args:
        weights: ``part``.
        means: ``part x ...``.
        within: the parts' mean variance, ``...``.
    """
    mean = np.tensordot(weights, means, 1)
    between = np.tensordot(weights, np.square(means - mean), 1)
    between /= max(1 - np.square(weights).sum(), 1e-3)
    return mean, np.clip(within + between, 1e-12, None)


def mixture(fits: Sequence[TaskPosterior], weights: Array) -> TaskPosterior:
    """Moments of a weighted mixture of posteriors."""

    def moments(means: list[Array], variances: list[Array]) -> tuple[Array, Array]:
        return mixed(weights, np.array(means), np.tensordot(weights, np.array(variances), 1))

    means = [f.force_mean for f in fits if f.force_mean is not None]
    variances = [f.force_variance for f in fits if f.force_variance is not None]
    return TaskPosterior(
        *moments(means, variances),
        *moments([f.output_mean for f in fits], [f.output_variance for f in fits]),
        effective_sample_size=1 / float(np.square(weights).sum()),
    )


def true_parameters(system: System, task: Tasks) -> dict[str, Array]:
    """A task's own parameters, without the task dimension.

    Raises:
        DataError: if the task does not state them.
    """
    missing = [name for name in system.parameters if f"parameter_{name}" not in task]
    if missing:
        raise DataError(f"the tasks do not state their true {missing[0]}")
    return {name: task[f"parameter_{name}"][0] for name in system.parameters}


def require_noise(task: Tasks, method: str) -> None:
    """Refuse a task without ``y_sd``.

    Raises:
        DataError: if the standard deviation of the noise is not stated.
    """
    if "y_sd" not in task:
        raise DataError(f"{method} needs the standard deviation of the noise, y_sd")


class TaskMethod(Protocol):
    """A method that needs no training and looks at one task alone."""

    @property
    def name(self) -> str:
        """As it stands in scores and logs."""
        ...

    def fit(self, task: Tasks) -> TaskPosterior:
        """The posterior of the only task given.

        Raises:
            DataError: if the task does not state what the method needs.
        """
        ...


def fit_each(method: TaskMethod, tasks: Tasks, kept: Path | None = None) -> Posterior:
    """Fit every task, each once: an interrupted run loses the fit that it was at.

    Args:
        method: fits one task.
        tasks: all to be fitted.
        kept: folder of finished fits, of these very tasks and settings; made if missing.
    """
    fits, seconds = [], []
    for i in progress(range(len(tasks)), method.name):
        name = tasks.data["task"].values[i]
        path = None if kept is None else kept / f"task-{name}.npz"
        found = None if path is None else _load(path)
        if found is None:
            started = time.process_time()
            fit = method.fit(tasks.take([i]))
            found = fit, time.process_time() - started
            if path is not None:
                _save(path, *found)
        fits.append(found[0])
        seconds.append(found[1])
    return gathered(tasks, fits, seconds)


def gathered(tasks: Tasks, fits: Sequence[TaskPosterior], seconds: ArrayLike) -> Posterior:
    """The posterior of all tasks from that of each and the CPU seconds that it took."""

    def both(mean: str, variance: str) -> tuple[Array, Array]:
        return (
            np.stack([getattr(fit, mean) for fit in fits]),
            np.sqrt(np.stack([getattr(fit, variance) for fit in fits])),
        )

    posterior = Posterior.of(
        tasks,
        None if fits[0].force_mean is None else both("force_mean", "force_variance"),
        both("output_mean", "output_variance"),
        np.asarray(seconds),
    )
    if fits[0].effective_sample_size is None:
        return posterior
    sizes = np.array([fit.effective_sample_size for fit in fits])
    return Posterior(posterior.data.assign(effective_sample_size=("task", sizes)))


def _save(path: Path, fit: TaskPosterior, seconds: float) -> None:
    arrays = {name: value for name, value in fit._asdict().items() if value is not None}

    def write(sibling: Path) -> None:
        with sibling.open("wb") as handle:  # a name would have .npz appended to it
            np.savez(handle, cpu_seconds=seconds, **arrays)

    write_atomically(path, write)


def _load(path: Path) -> tuple[TaskPosterior, float] | None:
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = dict(stored)
        seconds = float(arrays.pop("cpu_seconds"))
        size = arrays.pop("effective_sample_size", None)
        size = None if size is None else float(size)
        force = {name: arrays.get(name) for name in ("force_mean", "force_variance")}
        return TaskPosterior(
            **force,
            output_mean=arrays["output_mean"],
            output_variance=arrays["output_variance"],
            effective_sample_size=size,
        ), seconds
    except FileNotFoundError:
        return None
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        log.warning("the finished fit %s cannot be read (%s); it is made again", path, error)
        return None
