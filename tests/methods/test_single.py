"""Fits of single tasks: each is made once, and kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dklfm.methods import fit_each
from dklfm.methods.single import TaskPosterior
from dklfm.tasks import Tasks


class Counting:
    """Gives each task's number back, and stops where it is told to."""

    name = "counting"

    def __init__(self, force: bool = True, stop_at: int | None = None) -> None:
        self.force, self.stop_at = force, stop_at
        self.seen: list[int] = []

    def fit(self, task: Tasks) -> TaskPosterior:
        index = int(task.data["task"].values[0])
        if index == self.stop_at:
            raise KeyboardInterrupt
        self.seen.append(index)
        points, queries = task["x"].shape[1], task["x_query"].shape[1]
        output = np.full((len(task.outputs), points + queries), float(index))
        mean = np.full(queries, float(index)) if self.force else None
        return TaskPosterior(mean, mean, output, output + 1)


@pytest.fixture
def few(tasks: Tasks) -> Tasks:
    return tasks.split("test").take([0, 1, 2, 3])


def test_moments_land_at_their_tasks(few: Tasks) -> None:
    found = fit_each(Counting(), few)
    names = few.data["task"].values
    np.testing.assert_array_equal(found["force_mean"][:, 0], names)
    np.testing.assert_allclose(found["force_sd"][:, -1] ** 2, names)
    np.testing.assert_allclose(found["output_query_sd"][:, 1, 2] ** 2, names + 1)
    assert found["cpu_seconds"].shape == (4,)


def test_a_method_without_a_force_gives_none(few: Tasks) -> None:
    found = fit_each(Counting(force=False), few)
    assert "force_mean" not in found.data
    assert "output_mean" in found.data


def test_an_interrupted_run_keeps_every_finished_fit(few: Tasks, tmp_path: Path) -> None:
    names = few.data["task"].values.tolist()
    with pytest.raises(KeyboardInterrupt):
        fit_each(Counting(stop_at=names[2]), few, tmp_path)
    again = Counting()
    found = fit_each(again, few, tmp_path)
    assert again.seen == names[2:]
    assert found.data.drop_vars("cpu_seconds").equals(
        fit_each(Counting(), few).data.drop_vars("cpu_seconds")
    )


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 not an archive"])
def test_a_damaged_fit_is_made_again(few: Tasks, tmp_path: Path, damage: bytes) -> None:
    names = few.data["task"].values.tolist()
    fit_each(Counting(), few, tmp_path)
    (tmp_path / f"task-{names[1]}.npz").write_bytes(damage)
    again = Counting()
    fit_each(again, few, tmp_path)
    assert again.seen == [names[1]]
