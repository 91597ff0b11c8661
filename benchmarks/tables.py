"""What inferring from tables costs: one table beside importing torch, and many tasks in one file.

    OMP_NUM_THREADS=1 python benchmarks/tables.py

Each command is a process of its own, whose largest memory and CPU seconds are reported.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

from dklfm.resources import resource_path
from dklfm.systems import Transcription, stack

TIMES = np.arange(0.0, 14.0, 2.0)


def measured(*command: str) -> tuple[float, float, float]:
    """Wall and CPU seconds and GiB of a process.

    Raises:
        SystemExit: if it fails.
    """
    started = time.perf_counter()
    child = os.fork()
    if child == 0:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        os.execv(sys.executable, [sys.executable, *command])
    _, status, usage = os.wait4(child, 0)
    if status:
        sys.exit(f"{' '.join(command)} failed")
    cpu = usage.ru_utime + usage.ru_stime
    return time.perf_counter() - started, cpu, usage.ru_maxrss / 2**20


def table(tasks: int, path: Path) -> None:
    """Five genes at seven times, 10 % noise."""
    system, rng = Transcription(steps=100), np.random.default_rng(0)
    x = np.broadcast_to(TIMES[:, None], (tasks, len(TIMES), 1))
    h = system.solve(stack([system.draw(rng) for _ in range(tasks)]), x).outputs
    sd = np.broadcast_to(0.1 * h.std((1, 2), keepdims=True), h.shape)
    y = h + sd * rng.standard_normal(h.shape)
    task, gene, point = np.indices(y.shape).reshape(3, -1)
    columns = {
        "task": task,
        "output": np.array(system.outputs)[gene],
        "time": TIMES[point],
        "value": y.ravel(),
        "sd": sd.ravel(),
    }
    pd.DataFrame(columns).to_csv(path, index=False, float_format="%.6g")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="transcription")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        one = ("-m", "dklfm", "infer", str(resource_path("p53/expression_mmgmos.csv")))
        infer = (*one, "--model", options.model, "--out", str(folder / "one"))
        runs = [(measured("-c", "import torch"), measured(*infer)) for _ in range(options.repeats)]
        (torch, torch_cpu), (own, own_cpu) = (
            (statistics.median(r[i][0] for r in runs), statistics.median(r[i][1] for r in runs))
            for i in (0, 1)
        )
        print(f"import torch: {torch:.2f} s wall, {torch_cpu:.2f} s CPU")
        print(f"dklfm infer, p53: {own:.2f} s wall, {own_cpu:.2f} s CPU, {own / torch:.1f} times")
        base = 0.0
        for tasks in (1, 1000, 10_000):
            path = folder / "many.csv"
            table(tasks, path)
            command = ("infer", str(path), "--model", options.model, "--no-figure")
            wall, cpu, memory = measured("-m", "dklfm", *command, "--out", str(folder / "many"))
            if tasks == 1:
                base = cpu
                continue
            print(
                f"{tasks} tasks: {wall:.1f} s wall, {cpu:.1f} s CPU, "
                f"{tasks / (cpu - base):.0f} tasks a CPU s beyond starting, {memory:.2f} GiB"
            )


if __name__ == "__main__":
    main()
