"""A small model of any number of genes, trained on a stream for a moment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dklfm import simulate, training
from dklfm.artifacts import MANIFEST, read_json
from dklfm.inference import Model, load
from dklfm.tasks import load_tasks

SIMULATION: dict[str, Any] = {
    "system": {
        "name": "transcription",
        "steps": 100,
        "genes": 3,
        "prior": {"name": "lognormal", "spread": 0.3},
    },
    "tasks": {
        "counts": {"train": 0, "validation": 16, "test": 16},
        "mesh": {"points": 9},
        "query": 21,
        "noise": {"name": "loguniform", "low": 0.02, "high": 0.2},
    },
}
SPEC: dict[str, Any] = {
    "method": "dklfm_stream",
    "model": {
        "name": "operator", "nodes": 10, "width": 16, "layers": 1, "heads": 2, "exchangeable": True
    },
    "training": {"tasks": 64, "epochs": 12, "least_points": 6, "least_outputs": 1},
}  # fmt: skip


@pytest.fixture(scope="session")
def streamed_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inference") / "tasks"
    simulate.run(SIMULATION, folder, workers=1)
    return folder


@pytest.fixture(scope="session")
def streamed_folder(streamed_store: Path) -> Path:
    folder = streamed_store.parent / "model"
    specification = read_json(streamed_store / MANIFEST)["spec"]
    training.run(SPEC, load_tasks(streamed_store), folder, simulation=specification)
    return folder


@pytest.fixture
def model(streamed_folder: Path) -> Model:
    return load(streamed_folder)
