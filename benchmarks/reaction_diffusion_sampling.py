"""Time per reaction–diffusion task: the square-root sampler against the dense joint.

Run with one BLAS thread: ``OMP_NUM_THREADS=1 python benchmarks/reaction_diffusion_sampling.py``.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_variable] = "1"  # before NumPy loads its BLAS

import numpy as np  # noqa: E402 - BLAS reads its threads at import

from dklfm.systems.base import stack  # noqa: E402 - likewise
from dklfm.systems.reaction_diffusion import ReactionDiffusion  # noqa: E402 - likewise
from dklfm.systems.reaction_diffusion_covariance import (  # noqa: E402 - likewise
    grid_covariances,
    sample_joint,
)


@contextmanager
def timed(total: dict[str, list[float]], label: str) -> Iterator[None]:
    """Add the block's CPU and wall seconds to ``total[label]``."""
    wall, cpu = time.perf_counter(), time.process_time()
    yield
    seconds = total.setdefault(label, [0.0, 0.0])
    seconds[0] += time.process_time() - cpu
    seconds[1] += time.perf_counter() - wall


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=448, help="tasks for the fast sampler")
    parser.add_argument("--dense-tasks", type=int, default=5, help="tasks for the dense joint")
    parser.add_argument("--grid", type=int, default=21, help="points along each axis")
    options = parser.parse_args()

    system, rng = ReactionDiffusion(), np.random.default_rng(0)
    axis = np.linspace(0.0, 1.0, options.grid)
    points = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2)
    seconds: dict[str, list[float]] = {}

    with timed(seconds, "fast"):
        draws = stack([system.draw(rng) for _ in range(options.tasks)])
        system.solve(draws, np.broadcast_to(points, (options.tasks, *points.shape)))
    for _ in range(options.dense_tasks):
        draw = system.draw(rng)
        with timed(seconds, "build"):
            joint = grid_covariances(draw, (axis, axis), (axis, axis)).joint()
        with timed(seconds, "dense"):
            sample_joint(joint, rng, 1)

    fast, build, dense = (
        np.array(seconds[label]) / count * 1e3
        for label, count in (
            ("fast", options.tasks),
            ("build", options.dense_tasks),
            ("dense", options.dense_tasks),
        )
    )
    print(f"{options.grid} x {options.grid} points, one thread; ms per task")
    print(f"{'':42}{'CPU':>9}{'wall':>9}{'ratio':>8}")
    for label, row in (
        (f"square-root sampler ({options.tasks} tasks)", fast),
        (f"dense: covariances ({options.dense_tasks} tasks)", build),
        ("dense: eigendecomposition and sample", dense),
        ("dense: both", build + dense),
    ):
        print(f"{label:42}{row[0]:9.2f}{row[1]:9.2f}{row[0] / fast[0]:7.0f}x")
    print(f"{options.tasks} tasks: {seconds['fast'][0]:.2f} CPU s, {seconds['fast'][1]:.2f} wall s")


if __name__ == "__main__":
    main()
