"""Beyond the range of the observations a posterior must not grow surer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dklfm import simulate, training
from dklfm.methods import Posterior, TrainedModel
from dklfm.scores import regions
from dklfm.tasks import Tasks


@pytest.fixture(scope="module")
def inferred(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tasks, Posterior]:
    folder: Path = tmp_path_factory.mktemp("lotka_volterra")
    tasks = simulate.run(
        {
            "system": {"name": "lotka_volterra", "step": 0.05},
            "tasks": {
                "counts": {"train": 64, "validation": 8, "test": 16},
                "mesh": {"points": 24},
                "query": 81,
                "extrapolate": 0.5,
            },
        },
        folder / "tasks",
    )
    spec = {
        "model": {"features": {"name": "period"}, "kernel": {"concatenate_inputs": True}},
        "training": {"epochs": 20, "least_outputs": None, "least_window": 0.5},
    }
    training.run(spec, tasks, folder / "model")
    test = tasks.split("test")
    return test, TrainedModel.load(folder / "model").infer(test)


def test_regions_are_before_inside_and_after_the_domain(inferred: tuple[Tasks, Posterior]) -> None:
    found = regions(inferred[0])
    x = inferred[0]["x_query"][0, :, 0]
    assert list(found) == ["test", "forward", "backward"]
    assert (x[found["forward"]] > 20).all()
    assert (x[found["backward"]] < 0).all()
    assert sum(map(len, found.values())) == len(x)


@pytest.mark.parametrize("region", ["forward", "backward"])
def test_bands_do_not_shrink_beyond_the_observations(
    inferred: tuple[Tasks, Posterior], region: str
) -> None:
    tasks, posterior = inferred
    found = regions(tasks)
    inside = posterior["force_sd"][:, found["test"]].mean(1)
    beyond = posterior["force_sd"][:, found[region]].mean(1)
    assert np.median(beyond / inside) >= 1
