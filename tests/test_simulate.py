"""A task depends on its own seed only: not on workers, neighbours, meshes or interruptions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from dklfm import simulate
from dklfm.artifacts import MANIFEST, load_dataset, read_json
from dklfm.errors import ConfigError
from dklfm.tasks import Tasks, load_tasks

Spec = dict[str, Any]


def simulated(spec: Spec, folder: Path, **options: Any) -> Tasks:
    return simulate.run(spec, folder, **options)


def test_store_holds_what_the_settings_ask_for(tasks: Tasks, simulation_spec: Spec) -> None:
    counts = simulation_spec["tasks"]["counts"]
    assert {name: len(tasks.split(name)) for name in counts} == counts
    assert tasks["y"].shape == (28, 5, 8)
    assert tasks["f"].shape == (28, 13)


def test_returned_tasks_are_the_stored_ones(simulation_spec: Spec, tmp_path: Path) -> None:
    xr.testing.assert_equal(simulated(simulation_spec, tmp_path).data, load_tasks(tmp_path).data)


def test_tasks_do_not_depend_on_the_number_of_workers(
    store: Path, simulation_spec: Spec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(simulate, "SHARD", 7)
    simulated(simulation_spec, tmp_path, workers=3)
    xr.testing.assert_identical(load_dataset(tmp_path), load_dataset(store))
    assert read_json(tmp_path / MANIFEST)["digest"] == read_json(store / MANIFEST)["digest"]


def test_tasks_of_a_split_do_not_depend_on_the_size_of_the_others(
    tasks: Tasks, simulation_spec: Spec, tmp_path: Path
) -> None:
    simulation_spec["tasks"]["counts"] = {"train": 3, "validation": 1, "test": 6}
    other = simulated(simulation_spec, tmp_path)
    xr.testing.assert_equal(
        other.split("test").data.drop_vars("task"), tasks.split("test").data.drop_vars("task")
    )


def test_fewer_tasks_are_the_first_of_more(
    tasks: Tasks, simulation_spec: Spec, tmp_path: Path
) -> None:
    simulation_spec["tasks"]["counts"] = {"train": 5, "validation": 1, "test": 1}
    fewer = simulated(simulation_spec, tmp_path).split("train")
    xr.testing.assert_equal(fewer.data, tasks.split("train").take(range(5)).data)


def test_truth_does_not_depend_on_the_mesh(
    tasks: Tasks, simulation_spec: Spec, tmp_path: Path
) -> None:
    simulation_spec["tasks"]["mesh"] = {"spacing": "regular", "points": 5}
    other = simulated(simulation_spec, tmp_path)
    for name in ("f", "h_query", "parameter_decay", "parameter_lengthscale"):
        np.testing.assert_allclose(other[name], tasks[name], rtol=0, atol=1e-12)


def test_another_seed_gives_other_tasks(
    tasks: Tasks, simulation_spec: Spec, tmp_path: Path
) -> None:
    simulation_spec["tasks"]["seed"] = 1
    other = simulated(simulation_spec, tmp_path)
    assert (np.abs(other["f"] - tasks["f"]).max(1) > 0.1).all()


def test_splits_share_no_forces(tasks: Tasks) -> None:
    assert len(np.unique(tasks["f"], axis=0)) == len(tasks)


def test_interrupted_simulation_continues_from_its_finished_shards(
    tasks: Tasks, simulation_spec: Spec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(simulate, "SHARD", 6)
    whole, sizes = simulate.simulate, []

    def killed_at_the_third_shard(system: Any, config: Any, codes: Any, indices: Any) -> Any:
        if len(sizes) == 2:
            raise KeyboardInterrupt
        sizes.append(len(codes))
        return whole(system, config, codes, indices)

    monkeypatch.setattr(simulate, "simulate", killed_at_the_third_shard)
    with pytest.raises(KeyboardInterrupt):
        simulated(simulation_spec, tmp_path)
    assert not (tmp_path / MANIFEST).exists()

    rest: list[int] = []

    def counted(system: Any, config: Any, codes: Any, indices: Any) -> Any:
        rest.append(len(codes))
        return whole(system, config, codes, indices)

    monkeypatch.setattr(simulate, "simulate", counted)
    continued = simulated(simulation_spec, tmp_path)
    assert (sizes, rest) == ([6, 6], [6, 6, 4])
    xr.testing.assert_equal(continued.data, tasks.data)
    assert not (tmp_path / "partial").exists()


def test_shards_of_other_settings_are_not_used(
    tasks: Tasks, simulation_spec: Spec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(simulate, "SHARD", 6)
    whole, done = simulate.simulate, []

    def killed_at_the_second_shard(system: Any, config: Any, codes: Any, indices: Any) -> Any:
        if done:
            raise KeyboardInterrupt
        done.append(True)
        return whole(system, config, codes, indices)

    other = simulation_spec | {"tasks": simulation_spec["tasks"] | {"seed": 9}}
    with monkeypatch.context() as patch:
        patch.setattr(simulate, "simulate", killed_at_the_second_shard)
        with pytest.raises(KeyboardInterrupt):
            simulated(other, tmp_path)
    xr.testing.assert_equal(simulated(simulation_spec, tmp_path).data, tasks.data)


def test_irregular_times_increase_inside_the_domain_and_differ_by_task(tasks: Tasks) -> None:
    times = tasks["x"][..., 0]
    assert (np.diff(times) > 0).all()
    assert times.min() >= 0
    assert times.max() <= 12
    assert len(np.unique(times)) == times.size


def test_regular_times_are_even_and_reach_both_ends(simulation_spec: Spec, tmp_path: Path) -> None:
    simulation_spec["tasks"]["mesh"]["spacing"] = "regular"
    times = simulated(simulation_spec, tmp_path)["x"][..., 0]
    np.testing.assert_allclose(times, np.broadcast_to(np.linspace(0, 12, 8), times.shape))


def test_stated_deviation_is_the_noise_share_of_each_output(tasks: Tasks) -> None:
    expected = 0.02 * tasks["h"].std(-1, keepdims=True).repeat(8, -1)
    np.testing.assert_allclose(tasks["y_sd"], expected, rtol=1e-12)


def test_noise_has_the_stated_deviations(tasks: Tasks) -> None:
    white = ((tasks["y"] - tasks["h"]) / tasks["y_sd"]).ravel()
    assert white.std() == pytest.approx(1, abs=4.5 / np.sqrt(2 * white.size))
    assert white.mean() == pytest.approx(0, abs=4.5 / np.sqrt(white.size))


def test_noise_on_the_force_has_the_stated_deviation(simulation_spec: Spec, tmp_path: Path) -> None:
    simulation_spec["tasks"] |= {"force_noise": 0.5, "query": 2000}
    tasks = simulated(simulation_spec, tmp_path)
    truth = np.stack(
        [
            np.interp(x, query, f)
            for x, query, f in zip(
                tasks["x"][..., 0], tasks["x_query"][..., 0], tasks["f"], strict=True
            )
        ]
    )
    white = (tasks["f_observed"] - truth).ravel() / 0.5
    assert white.std() == pytest.approx(1, abs=4.5 / np.sqrt(2 * white.size))


def test_noise_level_is_drawn_once_a_task(simulation_spec: Spec, tmp_path: Path) -> None:
    simulation_spec["tasks"]["noise"] = {"name": "loguniform", "low": 0.02, "high": 0.4}
    tasks = simulated(simulation_spec, tmp_path)
    share = tasks["y_sd"] / tasks["h"].std(-1, keepdims=True)
    np.testing.assert_allclose(share, share[:, :1, :1].repeat(5, 1).repeat(8, 2))
    levels = share[:, 0, 0]
    assert len(np.unique(levels)) == len(levels)
    assert levels.min() >= 0.02
    assert levels.max() <= 0.4


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ({}, "needs the sections system and tasks"),
        ({"system": {"name": "transcription"}, "task": {}}, "needs the sections system and tasks"),
        ({"system": {"name": "transcription", "gene": 5}}, "did you mean 'genes'"),
        ({"system": {"name": "transcription"}, "tasks": {"query": 1}}, "tasks: query: "),
    ],
)
def test_settings_that_are_no_simulation_are_refused(tmp_path: Path, spec: Spec, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        simulated(spec, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_uneven_noise_differs_between_outputs_and_observations(
    simulation_spec: Spec, tmp_path: Path
) -> None:
    simulation_spec["tasks"]["mesh"] = {"points": 30}
    noise = {"name": "uneven", "low": 0.1, "high": 0.1001, "spread": 0.7}
    simulation_spec["tasks"] |= {"noise": noise}
    tasks = simulated(simulation_spec, tmp_path)
    logs = np.log(tasks["y_sd"] / (0.1 * tasks["h"].std(-1, keepdims=True)))
    assert abs(logs.mean()) < 0.1
    assert abs(logs.std() - 0.7) < 0.1
    within = logs.std(-1, ddof=1)
    np.testing.assert_allclose(np.sqrt(np.square(within).mean()), 0.7 * np.sqrt(0.5), rtol=0.15)
    white = (tasks["y"] - tasks["h"]) / tasks["y_sd"]
    assert abs(white.std() - 1) < 0.1
