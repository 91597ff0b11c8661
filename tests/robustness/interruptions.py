"""Kills every stage at random moments, and compares what it makes in the end with the undisturbed.

    python -m tests.robustness.interruptions --kills 10

A stage is started, killed, and started again over what the killed one left, until it was killed
often enough while at work; then it runs to its end. Products are compared by their contents but
for what says how long something took.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from dklfm.artifacts import MANIFEST, dataset_digest, load_dataset, read_json

_LONGER = 1.6
"""Two stages at a time are slower than one; a kill that would come too late is not counted."""
_PATIENCE = 600
"""Seconds for a stage to end by its signal, or by itself on a busy machine."""
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
_TIMINGS = ("cpu_seconds", "simulation_cpu_s", "training_cpu_s", "inference_cpu_s")
_SIMULATION = {
    "system": {"name": "transcription", "prior": {"name": "lognormal", "spread": 0.3}},
    "tasks": {
        "counts": {"train": 400, "validation": 24, "test": 24},
        "mesh": {"spacing": "irregular", "points": 12},
        "query": 31,
    },
}
_SMALL = {"embedding": 8, "encoder": {"name": "transformer", "width": 16, "layers": 1, "heads": 2}}
_STORED = {"model": _SMALL, "training": {"epochs": 8, "validate_every": 2}, "seed": 0}
_STREAMED = {
    "method": "dklfm_stream",
    "model": {"name": "operator", "nodes": 8, "width": 16, "layers": 1, "heads": 2},
    "training": {"tasks": 64, "epochs": 12, "batch_size": 16, "least_points": 6},
    "seed": 0,
}
_ABOUT = {
    "run": "one",
    "experiment": "transcription",
    "method": "dklfm",
    "prior": "default",
    "seed": 0,
    "split": "test",
}


@dataclass(frozen=True)
class Stage:
    """A command of the pipeline; ``{base}`` in its words is the folder of the products before it.

    Attributes:
        name: of its product.
        words: after ``dklfm``, with ``{out}`` for where the product goes.
    """

    name: str
    words: tuple[str, ...]

    def command(self, base: Path, out: Path) -> list[str]:
        words = (w.replace("{base}", str(base)).replace("{out}", str(out)) for w in self.words)
        return [sys.executable, "-m", "dklfm", *words]


_MECHANISTIC = json.dumps({"name": "mechanistic", "tasks": 24, "samples": 512})
STAGES = (
    Stage("tasks", ("simulate", json.dumps(_SIMULATION), "{out}")),
    Stage("tasks_dask", ("simulate", json.dumps(_SIMULATION), "{out}", "--workers", "2")),
    Stage("measured", ("stage", "measurements", "p53-mmgmos", "{out}")),
    Stage(
        "fit",
        (
            "stage",
            "fit",
            json.dumps({"system": _SIMULATION["system"], "tasks": ["1"]}),
            "{base}/measured",
            "{out}",
        ),
    ),
    Stage("model", ("train", json.dumps(_STORED), "{base}/tasks", "{out}")),
    Stage("stream", ("train", json.dumps(_STREAMED), "{base}/tasks", "{out}")),
    Stage("posterior", ("stage", "infer", "{base}/model", "{base}/tasks", "{out}")),
    Stage(
        "refined",
        (
            "stage",
            "infer",
            "{base}/stream",
            "{base}/tasks",
            "{out}",
            "--refine",
            json.dumps({"samples": 32}),
        ),
    ),
    Stage("floor", ("stage", "reference", _MECHANISTIC, "{base}/tasks", "{out}")),
    Stage(
        "scores.csv",
        ("stage", "score", json.dumps(_ABOUT), "{base}/tasks", "{base}/posterior", "{out}"),
    ),
    Stage("summary.csv", ("stage", "summarise", "{out}", "{base}/scores.csv")),
    Stage("figure", ("stage", "figure", "tasks", "{out}/f", "{base}/tasks", "{base}/posterior")),
)


def contents(product: Path) -> dict[str, Any]:
    """What a product holds, without how long it took to make.

    Raises:
        AssertionError: if something half-written is left in it.
    """
    if product.suffix == ".csv":
        table = pd.read_csv(product)
        return {"rows": table[~table["metric"].isin(_TIMINGS)].to_csv(index=False)}
    left = [str(p) for p in product.rglob("*") if p.name.endswith(".half") or "partial" in p.name]
    assert not left, f"left behind: {left}"
    found: dict[str, Any] = {}
    for path in sorted(product.glob("*")):
        if path.name == "data.zarr":
            data = load_dataset(product).drop_vars("cpu_seconds", errors="ignore")
            found[path.name] = dataset_digest(data)
        elif path.name == "history.csv":
            found[path.name] = pd.read_csv(path).drop(columns="cpu_seconds").to_csv()
        elif path.name == MANIFEST:
            manifest = {k: v for k, v in read_json(path).items() if k not in _TIMINGS}
            # That of a store covers the seconds too; its contents are compared above.
            found[path.name] = manifest | ({"digest": None} if "sizes" in manifest else {})
        elif path.name != ".lock":
            found[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def _run(command: list[str]) -> float:
    started = time.monotonic()
    subprocess.run(command, check=True, capture_output=True, text=True)
    return time.monotonic() - started


def _remove(product: Path) -> None:
    shutil.rmtree(product) if product.is_dir() else product.unlink(missing_ok=True)


def undisturbed(base: Path) -> Iterator[tuple[Stage, float]]:
    """Make every product in turn; the seconds that each took."""
    for stage in STAGES:
        yield stage, _run(stage.command(base, base / stage.name))


def survive(stage: Stage, base: Path, seconds: float, kills: int, seed: int) -> int:
    """Kill a stage so often while it is at work, then let it end and compare.

    Returns:
        How many of the killed runs had left something to go on from.

    Raises:
        AssertionError: if the product is not that of the undisturbed run.
    """
    rng = random.Random(f"{stage.name} {seed}")
    first = STAGES.index(stage)  # few kills are with other signals from stage to stage
    out = base / "killed" / stage.name
    command, expected = stage.command(base, out), contents(base / stage.name)
    done = resumed = 0
    while done < kills:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(rng.uniform(0.0, _LONGER * seconds))
        if process.poll() is None:
            process.send_signal(SIGNALS[(first + done) % len(SIGNALS)])
            done += 1
        code = process.wait(timeout=_PATIENCE)
        if code == 0:  # it was faster than the signal
            assert contents(out) == expected, f"{stage.name} differs after {done} kills"
            _remove(out)
        else:
            resumed += (out / "partial").is_dir()
    _run(command)
    assert contents(out) == expected, f"{stage.name} differs after {done} kills"
    return resumed


def main(kills: int, seed: int, folder: Path) -> None:
    """Print one line a stage, and the sum."""
    # What runs in the background of a shell ignores it, and so would the stages.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    seconds = dict(undisturbed(folder))
    with ThreadPoolExecutor(2) as pool:
        waiting = [
            (stage, pool.submit(survive, stage, folder, lasted, kills, seed))
            for stage, lasted in seconds.items()
        ]
        for stage, future in waiting:
            print(
                f"{stage.name:12} {seconds[stage]:5.1f} s undisturbed, killed {kills} times, "
                f"{future.result()} of these left work to go on from: identical",
                flush=True,
            )
    print(f"{kills * len(STAGES)} kills survived in {len(STAGES)} stages")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=10, help="of each stage")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        main(options.kills, options.seed, Path(made))
