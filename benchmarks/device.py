"""Training and inference on a GPU beside one thread of the CPU, and how far answers differ.

    OMP_NUM_THREADS=1 python benchmarks/device.py --config config/best.yaml

Training: every experiment of the config, tasks a second of one epoch after another to warm up, in
batches as configured and larger ones. Inference: every model of the package, fresh test tasks.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dklfm.config import Plan, TrainSpec, load_config, parse_system, validate
from dklfm.inference import load, shipped
from dklfm.model import ModelCard
from dklfm.simulate import assemble, parse_spec, simulate
from dklfm.tasks import SPLITS, Tasks
from dklfm.training import Trainer, kind_of_trainer

STEPS = 16
"""Of an epoch."""
LARGER = 16
"""The larger batches, as multiples of those of the config."""


def simulated(spec: dict[str, Any], **counts: int) -> tuple[Tasks, dict[str, Any]]:
    """So many tasks of each split of an experiment's, and the settings they are of."""
    every = dict.fromkeys(SPLITS, 0) | counts
    settings = {**spec, "tasks": {**spec["tasks"], "counts": every}}
    system, config = parse_spec(settings, "benchmark")
    codes = np.repeat(np.arange(len(every), dtype=np.int8), list(every.values()))
    indices = np.concatenate([np.arange(count) for count in every.values()])
    return assemble(system, codes, simulate(system, config, codes, indices)), settings


def timed(work: Callable[[], Any], device: str) -> tuple[float, Any]:
    """Wall seconds, those of what is still under way on the device too; and what was returned."""
    if device != "cpu":
        torch.cuda.synchronize()
    started = time.perf_counter()
    found = work()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - started, found


def trainer(train: dict[str, Any], store: dict[str, Any], batch: int, device: str) -> Trainer:
    """A run whose epochs are STEPS of so many tasks, without a look at validation tasks."""
    training = {**train["training"], "batch_size": batch, "validate_every": 1_000_000}
    count = STEPS * batch
    streamed = "tasks" in training
    if streamed:
        training |= {"tasks": count, "observations": 1}
    spec: TrainSpec = validate(TrainSpec, {**train, "training": training}, "benchmark")
    tasks, settings = simulated(store, train=0 if streamed else count, validation=8)
    return kind_of_trainer(spec)(tasks, spec, torch.device(device), settings)


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
                took, _ = timed(run.run_epoch, device)
                rates[device, batch] = STEPS * batch / took
                ratio = rates[device, batch] / next(iter(rates.values()))
                print(
                    f"train {name} {device} batch {batch}: {1000 * took / STEPS:.1f} ms a step, "
                    f"{rates[device, batch]:.0f} tasks a second, ratio {ratio:.2f}",
                    flush=True,
                )


def inference(count: int, devices: list[str]) -> None:
    """Milliseconds a task of every model of the package, and the largest difference of means."""
    for name, folder in shipped().items():
        about = ModelCard.read(folder).system
        field = len(parse_system(about, "benchmark").axes) > 1
        mesh = {"spacing": "regular", "points": 21} if field else {"points": 30}
        tasks, _ = simulated({"system": about, "tasks": {"mesh": mesh}}, test=count)
        answers = {}
        for device in devices:
            model = load(name, device).trained
            model.infer(tasks)
            took, answers[device] = timed(partial(model.infer, tasks), device)
            apart = answers[device]["force_mean"] - answers["cpu"]["force_mean"]
            apart = np.abs(apart) / answers["cpu"]["force_sd"]
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
