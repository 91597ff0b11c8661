"""Training and inference on a GPU beside one thread of the CPU, and how far answers differ.

    OMP_NUM_THREADS=1 python benchmarks/device.py --config config/best.yaml

Training: every experiment of the config, tasks a second of one epoch after another to warm up, in
batches as configured and larger ones. Inference: every model of the package, fresh test tasks.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dklfm.config import Plan, StreamConfig, TasksConfig, TrainSpec, load_config, validate
from dklfm.inference import load, shipped
from dklfm.simulate import assemble, parse_spec, simulate
from dklfm.tasks import Tasks
from dklfm.training.reobserving import ReobservingTrainer
from dklfm.training.stream import StreamTrainer
from dklfm.training.trainer import Trainer

LARGER = 16
"""The larger batches, as multiples of those of the config."""


def simulated(spec: dict[str, Any], train: int, test: int) -> tuple[Tasks, dict[str, Any]]:
    """Few tasks of an experiment, and the settings they are of."""
    counts = {"train": train, "validation": 8, "test": test}
    settings = {**spec, "tasks": {**spec["tasks"], "counts": counts}}
    system, config = parse_spec(settings, "benchmark")
    codes = np.repeat(np.arange(3, dtype=np.int8), list(counts.values()))
    indices = np.concatenate([np.arange(count) for count in counts.values()])
    return assemble(system, codes, simulate(system, config, codes, indices)), settings


def seconds(work: Callable[[], object], device: str) -> float:
    """Wall time of what may still be under way on the device when a call returns."""
    if device != "cpu":
        torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def trainer(train: dict[str, Any], store: dict[str, Any], batch: int, device: str) -> Trainer:
    """A run whose epochs are 16 steps of so many tasks, without a look at validation tasks."""
    training = {**train["training"], "batch_size": batch, "validate_every": 1_000_000}
    streamed = "tasks" in training
    if streamed:
        training["tasks"] = 16 * batch
    spec: TrainSpec = validate(TrainSpec, {**train, "training": training}, "benchmark")
    tasks, settings = simulated(store, 0 if streamed else 16 * batch, 0)
    if isinstance(spec.training, StreamConfig):
        kind: type[Trainer] = StreamTrainer
    else:
        kind = ReobservingTrainer if spec.training.reobserve else Trainer
    return kind(tasks, spec, torch.device(device), settings)


def training(config: Path, only: Iterable[str], devices: list[str]) -> None:
    """Tasks a second of every trained model of the config."""
    models = {}
    for each in Plan.of(load_config(config)).evaluations:
        if each.model is not None and (not only or each.experiment in only):
            models.setdefault(each.experiment, each.model)
    for name, model in models.items():
        rates = {}
        for device in devices:
            size = model.spec["training"]["batch_size"]
            for batch in (size, LARGER * size) if device != "cpu" else (size,):
                run = trainer(model.spec, model.parents[0].spec, batch, device)
                run.run_epoch()
                took = seconds(run.run_epoch, device)
                rates[device, batch] = 16 * batch / took
                ratio = rates[device, batch] / next(iter(rates.values()))
                print(
                    f"train {name} {device} batch {batch}: {1000 * took / 16:.1f} ms a step, "
                    f"{rates[device, batch]:.0f} tasks a second, ratio {ratio:.2f}",
                    flush=True,
                )


def inference(count: int, devices: list[str]) -> None:
    """Milliseconds a task of every model of the package, and the largest difference of means."""
    for name in shipped():
        means = {}
        for device in devices:
            model = load(name, device).trained
            system = load(name).system
            assert system is not None
            points = 30 if len(system.axes) == 1 else 21
            spacing = "irregular" if len(system.axes) == 1 else "regular"
            tasks_config: TasksConfig = validate(
                TasksConfig,
                {
                    "counts": {"train": 0, "validation": 0, "test": count},
                    "mesh": {"spacing": spacing, "points": points},
                    "query": 61 if len(system.axes) == 1 else 21,
                },
                "benchmark",
            )
            codes = np.full(count, 2, dtype=np.int8)
            arrays = simulate(system, tasks_config, codes, np.arange(count))
            tasks = assemble(system, codes, arrays)
            model.infer(tasks)
            took = seconds(lambda model=model, tasks=tasks: model.infer(tasks), device)
            found = model.infer(tasks).data
            means[device] = found["force_mean"].to_numpy(), found["force_sd"].to_numpy()
            apart = np.abs(means[device][0] - means["cpu"][0]) / means["cpu"][1]
            print(
                f"infer {name} {device}: {1000 * took / count:.2f} ms a task, means differ by "
                f"{apart.max():.1e} posterior standard deviations at most",
                flush=True,
            )


def main() -> None:
    """Measure on every device there is."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--config", type=Path, default=Path("config/best.yaml"))
    parser.add_argument("--experiments", nargs="*", default=())
    parser.add_argument("--tasks", type=int, default=256)
    options = parser.parse_args()
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    print(torch.__version__, *(torch.cuda.get_device_name() for _ in devices[1:]), flush=True)
    inference(options.tasks, devices)
    training(options.config, options.experiments, devices)


if __name__ == "__main__":
    main()
