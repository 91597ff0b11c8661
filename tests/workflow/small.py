"""A tiny config with every kind of stage, and Snakemake on it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

REPOSITORY = Path(__file__).parents[2]


def config(folder: Path, epochs: int = 2) -> dict[str, Any]:
    return {
        "results": str(folder / "results"),
        "experiments": {
            "small": {
                "system": {"name": "transcription", "steps": 100},
                "tasks": {
                    "counts": {"train": 24, "validation": 8, "test": 8},
                    "mesh": {"points": 8},
                    "query": 21,
                },
                "model": {
                    "noise": "given",
                    "embedding": 8,
                    "encoder": {"name": "transformer", "width": 16, "layers": 1, "heads": 2},
                    "kernel": {"width": 16, "blocks": 1},
                },
                "training": {"epochs": epochs, "least_points": 5},
                "datasets": ["p53-mmgmos"],
                "baselines": ["neural_process"],
                "references": [
                    {"name": "mechanistic", "tasks": 2, "samples": 64},
                    {"name": "alfi", "tasks": 2, "iterations": 5},
                ],
                "curve": [8],
            },
            "streamed": {
                "system": {"name": "transcription", "steps": 100, "genes": 3},
                "tasks": {
                    "counts": {"train": 0, "validation": 6, "test": 4},
                    "mesh": {"points": 8},
                    "query": 21,
                },
                "stream": {
                    "model": {
                        "name": "operator",
                        "nodes": 8,
                        "width": 16,
                        "layers": 1,
                        "heads": 2,
                        "exchangeable": True,
                    },
                    "training": {"tasks": 16, "epochs": epochs, "least_points": 5},
                },
                "test_meshes": [{"spacing": "regular", "points": 6}],
                "test_systems": {"one_gene": {"genes": 1}},
                "references": [{"name": "mechanistic", "tasks": 2, "samples": 64}],
                "references_on": ["test", "test@one_gene"],
                "refine": {"samples": 16},
            },
            "fitted": {
                "system": {"name": "transcription", "steps": 100},
                "prior_from": "p53-puma2007",
                "prior_tasks": ["1"],
                "tasks": {"counts": {"train": 0, "validation": 0, "test": 2}, "query": 21},
                "seeds": [],
                "references": [{"name": "deeplfm", "iterations": 5, "samples": 10}],
            },
        },
    }


def start(
    folder: Path, *options: str, epochs: int = 2, env: Mapping[str, str] | None = None
) -> subprocess.Popen[str]:
    """Snakemake in a folder of its own, so that no state of the checkout is touched."""
    path = folder / f"config-{epochs}.yaml"
    path.write_text(yaml.safe_dump(config(folder, epochs)))
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "snakemake"),
            *("--snakefile", str(REPOSITORY / "Snakefile"), "--directory", str(folder)),
            *("--configfile", str(path), *options),
        ],
        cwd=REPOSITORY,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def output(run: subprocess.Popen[str]) -> str:
    """What a run that must succeed printed."""
    printed, _ = run.communicate()
    assert run.returncode == 0, printed
    return printed


def snakemake(folder: Path, *options: str, epochs: int = 2) -> str:
    """Run the pipeline on this machine and return what it printed."""
    return output(start(folder, "--cores", "2", *options, epochs=epochs))
