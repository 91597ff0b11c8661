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

from dklfm.artifacts import write_atomically, write_text
from dklfm.errors import DataError
from dklfm.tables import every_set

_PACKAGES = ("numpy", "scipy", "torch", "gpytorch")
_FIGURES = ("curve", "tasks", "calibration")
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


def record(results: Path, out: Path) -> None:
    """Copy a run's scores, Table 1 and figures to a folder kept with the source.

    Raises:
        DataError: if the run is not complete.
    """
    table = results / "table1.md"
    if not table.is_file():
        raise DataError(f"{table} does not exist; finish the run first")
    source = commit()  # before what is written here makes the checkout differ
    scores = pd.read_csv(results / "scores.csv")
    runs = set(scores["run"])
    kept = []
    for path in sorted((results / "figures").glob("*.png")):
        label, _, kind = path.stem.rpartition("-")[0].rpartition("_")
        if label.removesuffix("_stream") in runs and kind in _FIGURES:
            name = f"{label}_{kind}.png"
            write_atomically(out / name, partial(shutil.copyfile, path))
            kept.append(name)
    for name in ("scores.csv", "table1.csv", "table1.tex"):
        write_atomically(out / name, partial(shutil.copyfile, results / name))
    every = every_set(scores).to_markdown(index=False, disable_numparse=True)
    pictures = "\n\n".join(f"{name.removesuffix('.png')}\n\n![{name}]({name})" for name in kept)
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
