"""The command line of single-task methods, of fitted priors, and of what compares methods."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from dklfm.artifacts import MANIFEST, read_json, write_json
from dklfm.methods import load_posterior
from tests.test_cli import ABOUT_JSON, DATA_FAULT, copied, done, refused

FEW = json.dumps({"name": "mechanistic", "tasks": 2, "samples": 64, "starts": 4})


@pytest.fixture(scope="module")
def reference(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reference") / "mechanistic"
    done("stage", "reference", FEW, store, folder)
    return folder


def test_a_reference_fits_the_first_test_tasks(reference: Path) -> None:
    posterior, system = load_posterior(reference)
    assert posterior.data.sizes["task"] == 2
    assert system.name == "transcription"
    assert not (reference / "partial").exists()


def test_an_interrupted_reference_keeps_its_fits(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dklfm.methods.mechanistic import Mechanistic

    fit, seen = Mechanistic.fit, []

    def stopping(self: Mechanistic, task: object) -> object:
        seen.append(task)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return fit(self, task)  # type: ignore[arg-type]

    monkeypatch.setattr(Mechanistic, "fit", stopping)
    assert "interrupted" in refused_by_interrupt(FEW, store, tmp_path / "out")
    assert len(list((tmp_path / "out" / "partial").glob("*/task-*.npz"))) == 1
    done("stage", "reference", FEW, store, tmp_path / "out")
    assert len(seen) == 3


def refused_by_interrupt(*arguments: object) -> str:
    from typer.testing import CliRunner

    from dklfm.cli import app

    result = CliRunner().invoke(app, ["stage", "reference", *map(str, arguments)])
    assert result.exit_code == 130
    return result.stderr


def test_an_unknown_reference_is_named(store: Path, tmp_path: Path) -> None:
    line = refused("stage", "reference", "nuts", store, tmp_path / "out")
    assert "nuts" in line
    assert "mechanistic" in line


def test_a_reference_made_for_other_systems_says_so(store: Path, tmp_path: Path) -> None:
    line = refused("stage", "reference", "exact", store, tmp_path / "out", code=DATA_FAULT)
    assert "response identity" in line


def test_a_fit_becomes_the_prior_of_a_simulation(store: Path, tmp_path: Path) -> None:
    measured = tmp_path / "p53"
    done("stage", "measurements", "p53-puma2007", measured)
    system = read_json(store / MANIFEST)["spec"]["system"]
    settings = json.dumps({"system": system, "tasks": ["1"]})
    done("stage", "fit", settings, measured, tmp_path / "fit")
    simulation = {"system": system, "tasks": {"counts": {"train": 2, "validation": 0, "test": 0}}}
    done("simulate", json.dumps(simulation), tmp_path / "out", "--fitted", tmp_path / "fit")
    assert read_json(tmp_path / "out" / MANIFEST)["spec"]["system"]["prior"]["name"] == "fitted"


def test_a_fit_to_a_task_that_is_not_there_says_which_are(store: Path, tmp_path: Path) -> None:
    measured = tmp_path / "p53"
    done("stage", "measurements", "p53-puma2007", measured)
    settings = json.dumps({"system": {"name": "transcription"}, "tasks": ["4"]})
    assert "there are 1, 2, 3" in refused("stage", "fit", settings, measured, tmp_path / "fit")


def test_methods_are_compared_in_a_table(
    store: Path, model_folder: Path, reference: Path, tmp_path: Path
) -> None:
    about = json.loads(ABOUT_JSON) | {"split": "test", "run": "one"}
    done("stage", "infer", model_folder, store, tmp_path / "posterior")
    posteriors = {"dklfm": tmp_path / "posterior", "mechanistic": reference}
    for method, posterior in posteriors.items():
        description = json.dumps(about | {"method": method})
        done("stage", "score", description, store, posterior, tmp_path / f"{method}.csv")
    per_task = [tmp_path / f"{method}.csv" for method in posteriors]
    results = tmp_path / "results"
    done("stage", "summarise", results / "scores.csv", *per_task)
    done("stage", "table", results / "scores.csv", results / "table1")
    assert set(pd.read_csv(results / "table1.csv")["method"]) == set(posteriors)


def test_a_table_without_scores_says_what_makes_them(tmp_path: Path) -> None:
    assert "does not exist" in refused(
        "stage", "table", tmp_path / "scores.csv", tmp_path / "table1"
    )


def test_tasks_of_a_reference_state_their_system(store: Path, tmp_path: Path) -> None:
    nameless = copied(store, tmp_path / "nameless")
    manifest = read_json(nameless / MANIFEST)
    write_json(nameless / MANIFEST, {**manifest, "spec": {}})
    refused("stage", "reference", "mechanistic", nameless, tmp_path / "out")
