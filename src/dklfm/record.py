"""A run's tables and figures beside the commit and the machine that made them."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from functools import partial
from importlib import metadata
from pathlib import Path

import pandas as pd

from dklfm.artifacts import read_json, write_atomically, write_text
from dklfm.config import Config, Plan
from dklfm.errors import DataError
from dklfm.tables import every_set

_PACKAGES = ("numpy", "scipy", "torch", "gpytorch")
_FIGURES = ("curve", "tasks", "fields", "calibration")
"""Kinds of figures that are kept."""


def commit() -> str:
    """The commit of the checkout in the current folder, marked if files differ from it."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "no git checkout"
    return found.stdout.strip()


def machine() -> str:
    """Processor, cores and the packages that speed depends on, in one line."""
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next(line.partition(":")[2].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        pass
    packages = ", ".join(f"{name} {metadata.version(name)}" for name in _PACKAGES)
    return f"{model}, {os.cpu_count()} cores; Python {platform.python_version()}, {packages}"


def record(config: Config, out: Path) -> None:
    """Copy scores, Table 1 and figures of a config's run to a folder kept with the source.

    Raises:
        DataError: if the results folder holds no finished run of this very config.
    """
    plan, results = Plan.of(config), config.results
    index, table = results / "index.json", results / "table1.md"
    # Of the config as it was before, the folder may hold other figures of the same names.
    if not (table.is_file() and index.is_file() and read_json(index) == plan.index()):
        raise DataError(f"{results} holds no finished run of this config; run it to its end first")
    kept = {
        f"{stage.label}.png": results / "figures" / f"{stage.name}.png"
        for stage in plan.figures
        if stage.spec["figure"] in _FIGURES
    }
    scored = [results / f"{evaluation.scores.path}.csv" for evaluation in plan.evaluations]
    for made in (*scored, *kept.values()):
        if not made.is_file():
            raise DataError(f"{made} does not exist; run the config to its end first")
    source = commit()  # before what is written here makes the checkout differ
    for name, drawn in kept.items():
        write_atomically(out / name, partial(shutil.copyfile, drawn))
    for name in ("scores.csv", "table1.csv", "table1.tex"):
        write_atomically(out / name, partial(shutil.copyfile, results / name))
    scores = pd.read_csv(results / "scores.csv")
    every = every_set(scores).to_markdown(index=False, disable_numparse=True)
    pictures = "\n\n".join(f"{Path(name).stem}\n\n![{name}]({name})" for name in kept)
    parts = (
        f"# Table 1 ({results.name})",
        f"Commit {source}; {machine()}. CPU times are of one thread.",
        table.read_text(encoding="utf-8").strip(),
        "## Every set of test tasks",
        "More of what was scored is in [scores.csv](scores.csv).",
        every,
        "## Figures",
        pictures,
    )
    write_text(out / "README.md", "\n\n".join(parts) + "\n")
