"""Time and memory of inferring one task observed at many points, model by model.

    OMP_NUM_THREADS=1 python benchmarks/large_mesh.py --points 20000

Of the operator and of the paper's model weights are untrained: neither time nor memory depends on
them; `green` is what the package ships. Each runs in a process of its own, whose largest memory is
reported.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time

import numpy as np
import torch
import xarray as xr

from dklfm.config import KernelConfig, ModelConfig, OperatorConfig
from dklfm.inference import shipped
from dklfm.methods import TrainedModel
from dklfm.model import DKLFM, ForceModel, OperatorLFM, Scale, choose_device, load_model
from dklfm.tasks import Tasks

MODELS = ("green", "operator", "dklfm")


def field(points: int) -> Tasks:
    """One smooth field at random places, to be inferred at 1,600 of them."""
    rng = np.random.default_rng(0)
    x = rng.random((1, points, 2))
    y = np.sin(3 * x.sum(-1))[:, None] + 0.01 * rng.standard_normal((1, 1, points))
    variables = {
        "x": (("task", "point", "axis"), x),
        "y": (("task", "output", "point"), y),
        "y_sd": (("task", "output", "point"), np.full_like(y, 0.01)),
        "x_query": (("task", "query", "axis"), x[:, :1600]),
        "split": (("task",), np.array([2], dtype=np.int8)),
    }
    return Tasks(xr.Dataset(variables, coords={"task": [0], "output": ["y"], "axis": ["x", "t"]}))


def measure(name: str, points: int) -> None:
    """Infer once, and print what it took."""
    torch.manual_seed(0)
    scale = Scale((0.0, 0.0), (1.0, 1.0), 0.0, 1.0, 0.0, 1.0)
    model: ForceModel
    if name == "green":
        model, scale = load_model(shipped()["reaction_diffusion"], choose_device("cpu"))
    elif name == "operator":
        model = OperatorLFM(OperatorConfig(nodes=16, layers=3, modes=256), axes=2, outputs=1)
    else:
        model = DKLFM(ModelConfig(embedding=96, kernel=KernelConfig(amplitudes=32)), axes=2)
    method = TrainedModel(model.eval(), scale)
    tasks = field(points)
    wall, cpu = time.perf_counter(), time.process_time()
    method.infer(tasks)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{name}: {points} points, {wall:.1f} s wall, {cpu:.1f} s CPU, {memory:.2f} GiB at most")


def main() -> None:
    """Run every model in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--points", type=int, default=20_000)
    parser.add_argument("--model", choices=MODELS)
    options = parser.parse_args()
    if options.model:
        measure(options.model, options.points)
        return
    for name in MODELS:
        command = [sys.executable, __file__, "--points", str(options.points), "--model", name]
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
