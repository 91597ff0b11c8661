"""How often simulated tasks are called unlike the training: those of the prior, and others.

    OMP_NUM_THREADS=1 python benchmarks/trust.py --model transcription

The tasks have five genes with 2 to 20 % noise, as tables have.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np

from dklfm.config import TasksConfig, parse_system, validate
from dklfm.inference import load
from dklfm.model.trust import P_VALUES, unlike
from dklfm.simulate import assemble, simulate
from dklfm.tasks import Tasks

GENES = 5
PRIOR: dict[str, Any] = {
    "name": "transcription",
    "genes": 20,
    "prior": {"name": "lognormal", "spread": 0.3},
}


def simulated(count: int, times: int, seed: int, **changes: Any) -> Tasks:
    settings = {
        "seed": 1000 + seed,
        "counts": {"train": 0, "validation": 0, "test": count},
        "mesh": {"spacing": "regular", "points": times},
        "noise": {"name": "uneven", "low": 0.02, "high": 0.2, "spread": 0.7},
    }
    system = parse_system(PRIOR | changes, "benchmark")
    config: TasksConfig = validate(TasksConfig, settings, "benchmark")
    codes = np.full(count, 2, dtype=np.int8)
    tasks = assemble(system, codes, simulate(system, config, codes, np.arange(count)))
    each = np.arange(count).astype(str).astype(object)
    return Tasks(tasks.data.isel(output=slice(GENES)).assign(experiment=("task", each)))


def noisier(tasks: Tasks, factor: float) -> Tasks:
    """Noise that is larger than stated."""
    rng = np.random.default_rng(0)
    more = factor * tasks["y_sd"] * rng.standard_normal(tasks["y"].shape)
    return Tasks(tasks.data.assign(y=tasks.data["y"] + more))


def independent(tasks: Tasks) -> Tasks:
    """Every gene with a force of its own: genes of different tasks, at the times of one."""
    y, sd = tasks["y"].copy(), tasks["y_sd"].copy()
    for j in range(1, y.shape[1]):
        y[:, j], sd[:, j] = np.roll(y[:, j], j, axis=0), np.roll(sd[:, j], j, axis=0)
    dims = ("task", "output", "point")
    return Tasks(tasks.data.assign(y=(dims, y), y_sd=(dims, sd)))


def shuffled(tasks: Tasks) -> Tasks:
    """Values of each gene in random order of time."""
    rng = np.random.default_rng(0)
    order = np.argsort(rng.random(tasks["y"].shape), axis=-1)
    dims = ("task", "output", "point")
    return Tasks(
        tasks.data.assign(
            y=(dims, np.take_along_axis(tasks["y"], order, -1)),
            y_sd=(dims, np.take_along_axis(tasks["y_sd"], order, -1)),
        )
    )


def spiked(tasks: Tasks) -> Tasks:
    """One value of each gene mistaken by twice the gene's range."""
    rng = np.random.default_rng(0)
    y = tasks["y"].copy()
    where = rng.integers(y.shape[2], size=y.shape[:2])[..., None]
    moved = np.take_along_axis(y, where, -1) + 2 * np.ptp(y, axis=-1, keepdims=True)
    np.put_along_axis(y, where, moved, -1)
    return Tasks(tasks.data.assign(y=(("task", "output", "point"), y)))


KINDS: dict[str, Callable[[int, int], Tasks]] = {
    "of the prior": lambda n, times: simulated(n, times, 0),
    "a force that changes in 20 minutes (lengthscale 0.3 h)": lambda n, times: simulated(
        n, times, 1, lengthscale=0.3
    ),
    "parameters spread four times as wide": lambda n, times: simulated(
        n, times, 2, prior={"name": "lognormal", "spread": 1.2}
    ),
    "an exponential response": lambda n, times: simulated(n, times, 3, response="exponential"),
    "noise five times the stated": lambda n, times: noisier(simulated(n, times, 4), 5.0),
    "a force for every gene": lambda n, times: independent(simulated(n, times, 5)),
    "values in random order": lambda n, times: shuffled(simulated(n, times, 6)),
    "one outlier a gene": lambda n, times: spiked(simulated(n, times, 7)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="transcription")
    parser.add_argument("--tasks", type=int, default=400)
    parser.add_argument("--times", type=int, nargs="+", default=[12, 24])
    options = parser.parse_args()
    model = load(options.model)
    print(f"| tasks | times | flagged | {' | '.join(P_VALUES)} |\n|---|---|---|---|---|---|")
    for name, make in KINDS.items():
        for times in options.times:
            tasks = make(options.tasks, times)
            posterior = model.infer(tasks, at=2, joint=False).posterior
            sure = np.ones(options.tasks)
            found = {p: posterior[p] for p in P_VALUES}
            alone = ({**dict.fromkeys(P_VALUES, sure), p: found[p]} for p in P_VALUES)
            shares = [unlike(p_values).mean() for p_values in (found, *alone)]
            print(f"| {name} | {times} | {' | '.join(f'{share:.0%}' for share in shares)} |")


if __name__ == "__main__":
    main()
