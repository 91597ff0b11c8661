"""What a set of tasks must hold, and the errors that name the task at fault."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from dklfm.artifacts import save_dataset
from dklfm.errors import DataError
from dklfm.tasks import SPLITS, Tasks, load_tasks


def dataset(axes: int = 1) -> xr.Dataset:
    """Three tasks of two outputs at four points; the third is padded by one."""
    rng = np.random.default_rng(0)
    x = np.sort(rng.uniform(size=(3, 4, axes)), axis=1)
    y = rng.standard_normal((3, 2, 4))
    x[2, 3], y[2, :, 3] = np.nan, np.nan
    return xr.Dataset(
        {
            "x": (("task", "point", "axis"), x),
            "y": (("task", "output", "point"), y),
            "y_sd": (("task", "output", "point"), np.where(np.isnan(y), np.nan, 0.1)),
            "x_query": (("task", "query", "axis"), np.zeros((3, 5, axes))),
            "split": (("task",), np.array([0, 1, 2], dtype=np.int8)),
        },
        coords={"task": ["a", "b", "c"], "output": ["u", "v"]},
    )


def no_input(data: xr.Dataset) -> None:
    data["x"][1, 0] = np.nan


def duplicated(data: xr.Dataset) -> None:
    data["x"][1, 2] = data["x"][1, 1]


def falling(data: xr.Dataset) -> None:
    data["x"][1] = data["x"].values[1, ::-1]


def infinite(data: xr.Dataset) -> None:
    data["y"][1, 0, 0] = np.inf


def empty(data: xr.Dataset) -> None:
    data["y"][1] = np.nan


def no_deviation(data: xr.Dataset) -> None:
    data["y_sd"][1, 1, 1] = np.nan


def negative_deviation(data: xr.Dataset) -> None:
    data["y_sd"][1, 1, 1] = -0.1


@pytest.mark.parametrize("axes", [1, 2])
def test_padded_tasks_follow_the_schema(axes: int) -> None:
    assert len(Tasks(dataset(axes)).checked()) == 3


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (no_input, "an observation has no input value"),
        (duplicated, "times are duplicated"),
        (falling, "times do not increase"),
        (infinite, "an output is infinite"),
        (empty, "no output was observed"),
        (no_deviation, "missing or negative standard deviation"),
        (negative_deviation, "missing or negative standard deviation"),
    ],
)
def test_fault_is_named_with_its_task(spoil: Callable[[xr.Dataset], None], says: str) -> None:
    data = dataset()
    spoil(data)
    with pytest.raises(DataError, match=f"^task b: .*{says}"):
        Tasks(data).checked()


def test_points_in_the_plane_must_differ_but_need_no_order() -> None:
    data = dataset(axes=2)
    falling(data)
    Tasks(data).checked()
    duplicated(data)
    with pytest.raises(DataError, match="task b: inputs are duplicated"):
        Tasks(data).checked()


@pytest.mark.parametrize("name", ["x", "y", "x_query", "split"])
def test_required_variables_are_missed_by_name(name: str) -> None:
    with pytest.raises(DataError, match=f"lack the variable '{name}'"):
        Tasks(dataset().drop_vars(name)).checked()


def test_dimensions_are_checked_by_name() -> None:
    with pytest.raises(DataError, match="'y' has dimensions"):
        Tasks(dataset().assign(y=dataset()["y"].transpose("output", "task", "point"))).checked()


def test_no_tasks_at_all_are_refused() -> None:
    with pytest.raises(DataError, match="no tasks"):
        Tasks(dataset().isel(task=[])).checked()


@pytest.mark.parametrize(("name", "task"), list(zip(SPLITS, ("a", "b", "c"), strict=True)))
def test_split_selects_its_tasks(name: str, task: str) -> None:
    assert Tasks(dataset()).split(name).data["task"].values.tolist() == [task]


def test_empty_split_is_refused_with_the_setting_that_mends_it() -> None:
    with pytest.raises(DataError, match=r"tasks\.counts\.test above 0"):
        Tasks(dataset().isel(task=[0, 1])).split("test")


def test_shown_tasks_are_four_of_training_and_all_of_test(tasks: Tasks) -> None:
    shown = tasks.to_show()
    expected = [*tasks.split("train").data["task"].values[:4], *tasks.split("test").data["task"]]
    assert shown.data["task"].values.tolist() == [int(task) for task in expected]


def test_stored_tasks_that_break_the_schema_are_refused_with_their_folder(tmp_path: Path) -> None:
    data = dataset()
    duplicated(data)
    save_dataset(tmp_path, data, {})
    with pytest.raises(DataError, match="task b: times are duplicated") as caught:
        load_tasks(tmp_path)
    assert str(tmp_path) in str(caught.value)
