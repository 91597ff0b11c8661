"""Small products that many tests read, and shape checks of the model's annotations."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from jaxtyping import install_import_hook
from xdist.scheduler import LoadFileScheduling

# Before NumPy and torch load: tests are small, and on a busy machine threads wait for one another.
for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_variable] = "1"

# Before any import of the model: its annotations are checked in tests only.
install_import_hook("dklfm.model", "beartype.beartype")

from dklfm import simulate, training  # noqa: E402 - after the hook
from dklfm.tasks import Tasks, load_tasks  # noqa: E402

# The first example of a property pays for imports, and continuous integration is slow.
settings.register_profile("dklfm", deadline=None, derandomize=True, max_examples=25)
settings.load_profile("dklfm")

_OF_ONE_RUN = ("test_clusters", "test_report", "test_slurm", "test_small")
_LONG = ("test_interruptions", "test_container")

SIMULATION: dict[str, Any] = {
    "system": {
        "name": "transcription",
        "prior": {"name": "lognormal", "spread": 0.3},
        "steps": 100,
    },
    "tasks": {
        "counts": {"train": 16, "validation": 6, "test": 6},
        "mesh": {"spacing": "irregular", "points": 8},
        "query": 13,
    },
}
TRAINING: dict[str, Any] = {
    "model": {
        "embedding": 8,
        "encoder": {
            "name": "transformer",
            "width": 16,
            "layers": 1,
            "heads": 2,
            "frequencies": 3,
        },
        "kernel": {"width": 16, "blocks": 1, "coordinates": 4, "amplitudes": 2},
    },
    "training": {"epochs": 2, "batch_size": 8, "least_points": 5, "validate_every": 1},
    "seed": 0,
}


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadFileScheduling:
    """Share the tests among workers by file, as tests of a file share products."""
    return _Scheduling(config, log)


class _Scheduling(LoadFileScheduling):
    """Files that read the same run of the pipeline stay together."""

    def _split_scope(self, nodeid: str) -> str:
        path = super()._split_scope(nodeid)
        return "pipeline" if Path(path).stem in _OF_ONE_RUN else path


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest come first, so that no worker is left with one in the end."""
    items.sort(key=lambda item: item.path.stem not in (*_OF_ONE_RUN, *_LONG))


@pytest.fixture
def simulation_spec() -> dict[str, Any]:
    """Settings of a small simulation, free to change."""
    return copy.deepcopy(SIMULATION)


@pytest.fixture
def training_spec() -> dict[str, Any]:
    """Settings of a short training of a small model, free to change."""
    return copy.deepcopy(TRAINING)


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of simulated tasks; only for reading."""
    folder = tmp_path_factory.mktemp("tasks") / "small"
    simulate.run(copy.deepcopy(SIMULATION), folder)
    return folder


@pytest.fixture(scope="session")
def tasks(store: Path) -> Tasks:
    return load_tasks(store)


@pytest.fixture(scope="session")
def model_folder(tasks: Tasks, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model trained for two epochs; only for reading."""
    folder = tmp_path_factory.mktemp("model") / "small"
    training.run(TRAINING, tasks, folder, simulation=SIMULATION)
    return folder
