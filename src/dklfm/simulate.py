"""Simulation of tasks under dask, in shards that survive an interruption."""

from __future__ import annotations

import hashlib
import logging
import shutil
import time
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dask
import numpy as np
import xarray as xr
from distributed import Client, KilledWorker, LocalCluster, as_completed
from numpy.typing import NDArray

from dklfm.artifacts import alone_in, save_dataset, write_atomically
from dklfm.config import Mesh, TasksConfig, canonical_json, parse_system, resolved, validate
from dklfm.errors import ConfigError, DataError, DklfmError
from dklfm.progress import progress
from dklfm.settings import Uneven
from dklfm.systems import System, stack
from dklfm.tasks import DIMENSIONS, SPLITS, Tasks

SHARD = 64
"""Tasks a shard: large enough to batch the solver, small enough to lose little."""
_WORKER_SECONDS = 120
_STREAMS = ("draw", "mesh", "noise")
_CPU_SECONDS = "cpu_seconds"
log = logging.getLogger(__name__)


def simulate(
    system: System, config: TasksConfig, split_codes: NDArray[np.int8], indices: NDArray[np.int64]
) -> dict[str, NDArray[np.float64]]:
    """Simulate the named tasks as arrays of the schema of :mod:`dklfm.tasks.schema`.

    Each task has its own random streams, seeded by (seed, split, index, stream): it does not
    depend on the other tasks, on the number of workers, or, but for its noise, on the mesh.
    """
    generators = [
        [
            np.random.default_rng(np.random.SeedSequence(config.seed, spawn_key=(s, i, k)))
            for k in range(len(_STREAMS))
        ]
        for s, i in zip(split_codes.tolist(), indices.tolist(), strict=True)
    ]
    draws = stack([system.draw(streams[0]) for streams in generators])
    x = np.stack([_mesh(system, config.mesh, streams[1]) for streams in generators])
    query = _regular(system, config.query, config.extrapolate)
    x_query = np.broadcast_to(query, (len(x), *query.shape))
    solution = system.solve(draws, np.concatenate([x, x_query], axis=1))

    points = x.shape[1]
    h, f = solution.outputs[..., :points], solution.force[:, :points]
    level = np.array([config.noise.sample(streams[2]) for streams in generators])
    y_sd = np.broadcast_to(level[:, None, None] * h.std(-1, keepdims=True), h.shape)
    if isinstance(config.noise, Uneven):
        y_sd = y_sd * np.stack([config.noise.factors(s[2], h[0].shape) for s in generators])
    white = np.stack([streams[2].standard_normal(h[0].shape) for streams in generators])
    white_force = np.stack([streams[2].standard_normal(points) for streams in generators])
    return {
        "x": x,
        "y": h + y_sd * white,
        "y_sd": np.ascontiguousarray(y_sd),
        "h": h,
        "f_observed": f + config.force_noise * white_force,
        "x_query": np.ascontiguousarray(x_query),
        "f": solution.force[:, points:],
        "h_query": solution.outputs[..., points:],
        **{f"parameter_{name}": draws[name] for name in system.parameters},
    }


def _regular(system: System, points: int, beyond: float = 0.0) -> NDArray[np.float64]:
    reach = [beyond * (axis.high - axis.low) for axis in system.axes]
    axes = [
        np.linspace(axis.low - more, axis.high + more, points)
        for axis, more in zip(system.axes, reach, strict=True)
    ]
    return np.stack([a.ravel() for a in np.meshgrid(*axes, indexing="ij")], axis=-1)


def _mesh(system: System, mesh: Mesh, rng: np.random.Generator) -> NDArray[np.float64]:
    if mesh.spacing == "regular":
        return _regular(system, mesh.points)
    low = np.array([axis.low for axis in system.axes])
    high = np.array([axis.high for axis in system.axes])
    points = rng.uniform(low, high, (mesh.points ** len(low), len(low)))
    return points[np.lexsort(points.T[::-1])]


def assemble(
    system: System, split_codes: NDArray[np.int8], arrays: Mapping[str, NDArray[np.float64]]
) -> Tasks:
    """Arrays of :func:`simulate` as a checked dataset with the system's names."""
    variables: dict[str, tuple[tuple[str, ...], NDArray[Any]]] = {}
    for name, values in arrays.items():
        dims = DIMENSIONS.get(name)
        if dims is None:  # a parameter: one number a task, or one for each output
            dims = ("task", "output")[: values.ndim]
        variables[name] = (dims, values)
    variables["split"] = (("task",), split_codes)
    coords = {
        "task": np.arange(len(split_codes)),
        "output": list(system.outputs),
        "axis": [axis.name for axis in system.axes],
    }
    data = xr.Dataset(variables, coords=coords)
    data["split"].attrs = {"flag_values": [0, 1, 2], "flag_meanings": " ".join(SPLITS)}
    data["axis"].attrs = {
        "unit": [axis.unit for axis in system.axes],
        "low": [axis.low for axis in system.axes],
        "high": [axis.high for axis in system.axes],
    }
    return Tasks(data).checked()


@contextmanager
def dask_client(workers: int, scheduler: str | None = None) -> Iterator[Client]:
    """A client of an external scheduler, or of a local cluster of single-threaded processes.

    Raises:
        DklfmError: if the scheduler does not answer or has no workers.
    """
    if scheduler:
        try:
            client = Client(scheduler)
        except (OSError, TimeoutError) as error:
            raise DklfmError(f"no dask scheduler answers at {scheduler}: {error}") from None
        with client:
            _await_workers(client)
            yield client
        return
    settings = {
        "distributed.worker.daemon": False,
        "distributed.nanny.pre-spawn-environ": dict.fromkeys(
            ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"
        ),
    }
    with (
        dask.config.set(settings),
        LocalCluster(
            n_workers=workers, threads_per_worker=1, dashboard_address=None, silence_logs=40
        ) as cluster,
        Client(cluster) as client,
    ):
        _await_workers(client)
        yield client


def _await_workers(client: Client) -> None:
    try:
        client.wait_for_workers(1, timeout=_WORKER_SECONDS)
    except TimeoutError:
        raise DklfmError(
            f"no dask worker started within {_WORKER_SECONDS} s; look at the scheduler's log"
        ) from None


def _write_shard(spec: dict[str, Any], codes: Any, indices: Any, path: str) -> str:
    system, config = parse_spec(spec, "the simulation settings")
    started = time.process_time()
    arrays = simulate(system, config, codes, indices)
    arrays[_CPU_SECONDS] = np.atleast_1d(time.process_time() - started)

    def write(sibling: Path) -> None:
        with sibling.open("wb") as handle:  # a name would have .npz appended to it
            np.savez(handle, **arrays)  # type: ignore[arg-type]  # the stub wants allow_pickle here

    write_atomically(Path(path), write)
    return path


def parse_spec(spec: Mapping[str, Any], source: str) -> tuple[System, TasksConfig]:
    """The system and task settings of a simulation.

    Raises:
        ConfigError: if the settings are not those of a simulation.
    """
    if set(spec) - {"system", "tasks"} or not isinstance(spec.get("system"), Mapping | str):
        raise ConfigError(f"{source}: a simulation needs the sections system and tasks")
    system = parse_system(spec["system"], f"{source}: system")
    tasks: TasksConfig = validate(TasksConfig, spec.get("tasks", {}), f"{source}: tasks")
    if not tasks.counts.total:
        raise ConfigError(f"{source}: tasks.counts: there are no tasks to simulate")
    return system, tasks


def run(
    spec: dict[str, Any], folder: Path, workers: int = 1, scheduler: str | None = None
) -> Tasks:
    """Simulate a store of tasks; shards already finished by an interrupted run are kept.

    Args:
        spec: ``{"system": ..., "tasks": ...}``, plain data.
        folder: where ``data.zarr`` and its manifest go.
        workers: processes of a local dask cluster; 1 simulates in this process.
        scheduler: address of an external dask scheduler, which must see the same files.
    """
    system, config = parse_spec(spec, "simulate")
    spec = {"system": system.spec(), "tasks": resolved(config)}
    counts = [config.counts.train, config.counts.validation, config.counts.test]
    codes = np.repeat(np.arange(3, dtype=np.int8), counts)
    indices = np.concatenate([np.arange(n) for n in counts])

    identity = hashlib.sha256(canonical_json(spec).encode()).hexdigest()[:10]
    with alone_in(folder):
        arrays = _all_shards(
            spec, codes, indices, folder / "partial" / identity, workers, scheduler
        )
        cpu_seconds = float(arrays.pop(_CPU_SECONDS).sum())
        tasks = assemble(system, codes, arrays)
        facts = {"tasks": len(tasks), "simulation_cpu_s": cpu_seconds}
        save_dataset(folder, tasks.data, {"stage": "tasks", "spec": spec, **facts})
        shutil.rmtree(folder / "partial")
    return tasks


def _all_shards(
    spec: dict[str, Any],
    codes: NDArray[np.int8],
    indices: NDArray[np.int64],
    partial: Path,
    workers: int,
    scheduler: str | None,
) -> dict[str, NDArray[Any]]:
    """Simulated and kept in parts; whole ones that an interrupted run left are not made again."""
    shards = [slice(i, i + SHARD) for i in range(0, len(codes), SHARD)]
    paths = [partial / f"shard-{i:05d}.npz" for i in range(len(shards))]
    todo = [i for i, path in enumerate(paths) if _read_shard(path) is None]
    arguments = [(spec, codes[shards[i]], indices[shards[i]], str(paths[i])) for i in todo]
    log.info("simulating %d tasks in %d shards, %d to do", len(codes), len(shards), len(todo))
    if workers == 1 and scheduler is None:
        for one in progress(arguments, "simulate"):
            _write_shard(*one)
    elif todo:
        with dask_client(workers, scheduler) as client:
            futures = [client.submit(_write_shard, *one, pure=False) for one in arguments]
            for future in progress(as_completed(futures), "simulate", total=len(futures)):
                try:
                    future.result()
                except KilledWorker as error:
                    raise DklfmError(
                        f"{error.last_worker.address}: a worker was killed again and again, which "
                        "is what happens when memory runs out; take fewer --workers or more memory "
                        "and rerun: what was simulated is kept"
                    ) from None

    parts = [_read_shard(path) for path in paths]
    for path, part in zip(paths, parts, strict=True):
        if part is None:
            raise DataError(f"{path} was damaged after it was written; rerun to make it again")
    whole = [part for part in parts if part is not None]
    return {name: np.concatenate([part[name] for part in whole]) for name in whole[0]}


def _read_shard(path: Path) -> dict[str, NDArray[Any]] | None:
    try:
        with np.load(path, allow_pickle=False) as shard:
            return dict(shard)
    except FileNotFoundError:
        return None
    except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
        log.warning("the shard %s cannot be read (%s); it is simulated again", path, error)
        return None
