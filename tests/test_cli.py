"""The command line: a whole small run, and one clear line for every mistake."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from typer.testing import CliRunner

from dklfm.artifacts import MANIFEST, load_dataset, read_json, write_json
from dklfm.cli import app
from dklfm.scores import ABOUT, COLUMNS
from dklfm.tasks import load_tasks, tables

CONFIG_FAULT, DATA_FAULT, MODEL_FAULT = 3, 4, 5
USER_FAULTS = range(2, 7)
ABOUT_JSON = json.dumps(dict.fromkeys(ABOUT, "test") | {"seed": 0})
EXPERIMENT: dict[str, Any] = {"system": {"name": "transcription"}}


@pytest.fixture(autouse=True)
def _warnings_go_where_they_went() -> Iterator[None]:
    yield
    logging.captureWarnings(False)


def done(*arguments: Any) -> str:
    result = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(*arguments: Any, code: int | None = None) -> str:
    """The one line on standard error."""
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code in ((code,) if code else USER_FAULTS), repr(result.exception)
    assert "Traceback" not in result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith("dklfm: ")
    return line


def config_file(folder: Path, experiment: dict[str, Any], **rest: Any) -> Path:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump({"experiments": {"one": experiment}} | rest))
    return path


def copied(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to))


def test_every_stage_follows_from_the_one_before(
    simulation_spec: dict[str, Any], training_spec: dict[str, Any], tmp_path: Path
) -> None:
    tasks, model, posterior = (tmp_path / name for name in ("tasks", "model", "posterior"))
    done("simulate", json.dumps(simulation_spec), tasks)
    done("train", json.dumps(training_spec), tasks, model)
    done("stage", "infer", model, tasks, posterior)
    done("stage", "score", ABOUT_JSON, tasks, posterior, tmp_path / "one.csv")
    done("stage", "summarise", tmp_path / "scores.csv", tmp_path / "one.csv")
    assert tuple(pd.read_csv(tmp_path / "scores.csv").columns) == COLUMNS

    done("stage", "figure", "tasks", tmp_path / "shown", tasks, posterior)
    done("stage", "figure", "learning", tmp_path / "learnt", model)
    for name in ("shown", "learnt"):
        assert (tmp_path / f"{name}.pdf").read_bytes().startswith(b"%PDF")
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_measurements_are_inferred_scored_and_drawn(model_folder: Path, tmp_path: Path) -> None:
    tasks, posterior = tmp_path / "tasks", tmp_path / "posterior"
    done("stage", "measurements", "p53-mmgmos", tasks)
    done("stage", "infer", model_folder, tasks, posterior)
    done("stage", "score", ABOUT_JSON, tasks, posterior, tmp_path / "one.csv")
    done("stage", "figure", "p53", tmp_path / "p53", tasks, posterior)
    metrics = set(pd.read_csv(tmp_path / "one.csv")["metric"])
    assert {"correlation_western_blot", "correlation_barenco"} <= metrics
    assert (tmp_path / "p53.pdf").exists()


def test_settings_are_read_from_a_file_too(
    simulation_spec: dict[str, Any], store: Path, tmp_path: Path
) -> None:
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(simulation_spec))
    done("simulate", tmp_path / "spec.yaml", tmp_path / "tasks")
    assert load_dataset(tmp_path / "tasks").identical(load_dataset(store))


def test_inference_covers_test_tasks_and_a_few_of_training(
    store: Path, model_folder: Path, tmp_path: Path
) -> None:
    done("stage", "infer", model_folder, store, tmp_path / "posterior")
    found = load_dataset(tmp_path / "posterior")
    expected = load_tasks(store).to_show().data["task"].values
    assert found["task"].values.tolist() == expected.tolist()
    assert (found["force_sd"] > 0).all()


def test_config_lists_what_it_makes(tmp_path: Path) -> None:
    shown = done("config", config_file(tmp_path, EXPERIMENT | {"seeds": [0, 7]}))
    assert [line.split(": ")[0] for line in shown.splitlines()] == [
        "one/dklfm/seed0/test",
        "one/dklfm/seed7/test",
    ]


def test_mistake_of_a_real_process_is_one_line_and_a_status(tmp_path: Path) -> None:
    path = config_file(tmp_path, EXPERIMENT | {"training": {"epoch": 3}})
    result = subprocess.run(
        [sys.executable, "-m", "dklfm", "config", path], capture_output=True, text=True, check=False
    )
    assert result.returncode == CONFIG_FAULT
    assert result.stdout == ""
    assert result.stderr == (
        f"dklfm: {path}: experiments.one.training.epoch: unknown key; did you mean 'epochs'?\n"
    )


@pytest.mark.parametrize(
    ("change", "place", "says"),
    [
        ({"modell": {}}, "experiments.one.modell", "did you mean 'model'"),
        ({"training": {"epochs": "ten"}}, "experiments.one.training.epochs", "valid integer"),
        ({"training": {"epochs": -1}}, "experiments.one.training.epochs", "got -1"),
        (
            {"tasks": {"noise": {"name": "uniform", "low": 0.4, "high": 0.1}}},
            "experiments.one.tasks.noise",
            "low must be below high",
        ),
        ({"tasks": {"noise": -0.1}}, "experiments.one.tasks.noise", "must be positive"),
        ({"datasets": ["p53"]}, "experiments.one.datasets.0", "'p53-mmgmos'"),
        ({"model": {"encoder": {"name": "fourier"}}}, "experiments.one", "spacing: regular"),
    ],
)
def test_config_mistake_is_placed_and_mended(
    tmp_path: Path, change: dict[str, Any], place: str, says: str
) -> None:
    path = config_file(tmp_path, EXPERIMENT | change)
    line = refused("config", path, code=CONFIG_FAULT)
    assert f"{path}: {place}" in line
    assert says in line


def test_config_with_an_unknown_device_is_refused(tmp_path: Path) -> None:
    path = config_file(tmp_path, EXPERIMENT, device="gpu")
    assert f"{path}: device: " in refused("config", path, code=CONFIG_FAULT)


def test_file_that_is_not_yaml_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("experiments: [1\n")
    line = refused("config", tmp_path / "bad.yaml", code=CONFIG_FAULT)
    assert "bad.yaml: not valid YAML at line 2" in line


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{not json", "not JSON"),
        ('{"system": {"name": "transcription"}, "taks": {}}', "sections system and tasks"),
        ('{"system": {"name": "transcription", "gens": 3}}', "did you mean 'genes'"),
    ],
)
def test_settings_given_as_text_are_checked(tmp_path: Path, text: str, says: str) -> None:
    assert says in refused("simulate", text, tmp_path / "out", code=CONFIG_FAULT)


def test_simulation_of_no_tasks_is_refused(tmp_path: Path, simulation_spec: dict[str, Any]) -> None:
    simulation_spec["tasks"]["counts"] = {"train": 0, "validation": 0, "test": 0}
    line = refused("simulate", json.dumps(simulation_spec), tmp_path / "out")
    assert "counts" in line


def test_missing_store_is_named(tmp_path: Path) -> None:
    line = refused("train", "{}", tmp_path / "absent", tmp_path / "out", code=DATA_FAULT)
    assert f"{tmp_path / 'absent'} does not exist; run the stage that makes it" in line


def test_truncated_store_is_named(store: Path, tmp_path: Path) -> None:
    folder = copied(store, tmp_path / "tasks")
    chunk = next(p for p in (folder / "data.zarr" / "y" / "c").rglob("*") if p.is_file())
    chunk.write_bytes(chunk.read_bytes()[:40])
    line = refused("train", "{}", folder, tmp_path / "out", code=DATA_FAULT)
    assert f"{folder}/data.zarr" in line
    assert "delete the folder and rerun" in line


def test_missing_model_is_named(store: Path, tmp_path: Path) -> None:
    line = refused("stage", "infer", tmp_path / "absent", store, tmp_path / "out", code=DATA_FAULT)
    assert str(tmp_path / "absent") in line


def test_weights_of_another_architecture_are_named(
    model_folder: Path, store: Path, tmp_path: Path
) -> None:
    folder = copied(model_folder, tmp_path / "model")
    manifest = read_json(folder / MANIFEST)
    manifest["spec"]["model"]["encoder"]["width"] = 32
    write_json(folder / MANIFEST, manifest)
    line = refused("stage", "infer", folder, store, tmp_path / "out", code=MODEL_FAULT)
    assert f"{folder}/weights.safetensors holds weights of another architecture" in line


def test_damaged_weights_are_named(model_folder: Path, store: Path, tmp_path: Path) -> None:
    folder = copied(model_folder, tmp_path / "model")
    weights = bytearray((folder / "weights.safetensors").read_bytes())
    weights[-20] ^= 0xFF
    (folder / "weights.safetensors").write_bytes(weights)
    line = refused("stage", "infer", folder, store, tmp_path / "out", code=MODEL_FAULT)
    assert f"{folder}/weights.safetensors is damaged" in line
    assert "train it again" in line


def test_missing_weights_are_named(model_folder: Path, store: Path, tmp_path: Path) -> None:
    folder = copied(model_folder, tmp_path / "model")
    (folder / "weights.safetensors").unlink()
    line = refused("stage", "infer", folder, store, tmp_path / "out", code=MODEL_FAULT)
    assert f"{folder}/weights.safetensors" in line


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("1,DDB2,2,2.0,0.1", "rows 3 and 4: output 'DDB2' at time 2 has two values"),
        ("1,DDB2,4,high,0.1", "row 4, column 'value': 'high' is not a number"),
    ],
)
def test_fault_in_a_table_is_named_with_its_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row: str, says: str
) -> None:
    path = tmp_path / "expression_mmgmos.csv"
    path.write_text(f"replicate,output,time,value,sd\n1,DDB2,0,1.0,0.1\n1,DDB2,2,1.5,0.1\n{row}\n")
    read = tables.read_table
    monkeypatch.setattr("dklfm.tasks.embedded.read_table", lambda _: read(path))
    line = refused("stage", "measurements", "p53-mmgmos", tmp_path / "out", code=DATA_FAULT)
    assert f"expression_mmgmos.csv, {says}" in line


@pytest.mark.parametrize("name", ["p53", "p53-other", "../secret"])
def test_unknown_dataset_is_named_with_the_known_ones(tmp_path: Path, name: str) -> None:
    line = refused("stage", "measurements", name, tmp_path / "out", code=DATA_FAULT)
    assert repr(name) in line
    assert "p53-mmgmos" in line


@pytest.mark.parametrize("command", [("train",), ("stage", "infer")], ids=" ".join)
def test_unknown_device_is_named(
    store: Path, model_folder: Path, tmp_path: Path, command: tuple[str, ...]
) -> None:
    first = "{}" if command == ("train",) else model_folder
    line = refused(*command, first, store, tmp_path / "out", "--device", "gpu")
    assert "'gpu'" in line
    assert "cpu" in line


def test_measurements_cannot_be_learnt_from(tmp_path: Path) -> None:
    done("stage", "measurements", "p53-mmgmos", tmp_path / "tasks")
    line = refused("train", "{}", tmp_path / "tasks", tmp_path / "out", code=DATA_FAULT)
    assert "no train split" in line


def test_fourier_encoder_on_irregular_tasks_is_refused(store: Path, tmp_path: Path) -> None:
    spec = json.dumps({"model": {"encoder": {"name": "fourier"}}})
    line = refused("train", spec, store, tmp_path / "out")
    assert "one full regular mesh; use the transformer encoder" in line


def test_missing_table_of_scores_is_named(tmp_path: Path) -> None:
    line = refused("stage", "summarise", tmp_path / "out.csv", tmp_path / "absent.csv")
    assert "absent.csv" in line


def test_posterior_of_other_tasks_cannot_be_scored(
    model_folder: Path, store: Path, tmp_path: Path
) -> None:
    done("stage", "measurements", "p53-mmgmos", tmp_path / "tasks")
    done("stage", "infer", model_folder, store, tmp_path / "posterior")
    line = refused(
        *("stage", "score", ABOUT_JSON), tmp_path / "tasks", tmp_path / "posterior",
        tmp_path / "out.csv", code=DATA_FAULT,
    )  # fmt: skip
    assert "the posterior covers none of these tasks" in line


def test_description_without_its_keys_cannot_be_scored(
    model_folder: Path, store: Path, tmp_path: Path
) -> None:
    done("stage", "infer", model_folder, store, tmp_path / "posterior")
    line = refused("stage", "score", "{}", store, tmp_path / "posterior", tmp_path / "out.csv")
    assert "run" in line


def test_unknown_figure_is_refused(store: Path, tmp_path: Path) -> None:
    line = refused("stage", "figure", "pie", tmp_path / "pie", store, store, code=2)
    assert "'pie'" in line


def test_figure_of_p53_needs_its_references(
    model_folder: Path, store: Path, tmp_path: Path
) -> None:
    done("stage", "infer", model_folder, store, tmp_path / "posterior")
    line = refused("stage", "figure", "p53", tmp_path / "p53", store, tmp_path / "posterior")
    assert "reference" in line


def test_interruption_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dklfm.simulate.run", interrupt)
    assert "rerun the same command" in refused("simulate", "{}", tmp_path / "out", code=130)
