"""The whole pipeline on a tiny config: complete, idle when done, and moved by changes only."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from dklfm.artifacts import read_json
from dklfm.config import Config, Plan, validate
from dklfm.scores import COLUMNS

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


def snakemake(folder: Path, *options: str, epochs: int = 2) -> str:
    """Run in a folder of its own, so that no state of the checkout is touched."""
    path = folder / f"config-{epochs}.yaml"
    path.write_text(yaml.safe_dump(config(folder, epochs)))
    result = subprocess.run(
        [
            *(sys.executable, "-m", "snakemake", "--cores", "2"),
            *("--snakefile", str(REPOSITORY / "Snakefile"), "--directory", str(folder)),
            *("--configfile", str(path), *options),
        ],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout + result.stderr


def planned_jobs(output: str) -> dict[str, int]:
    """The table of jobs that a dry run prints."""
    _, _, table = output.partition("Job stats:")
    return {
        name: int(count)
        for name, count in re.findall(r"^(\w+)\s+(\d+)$", table, re.MULTILINE)
        if name != "total"
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("workflow")
    snakemake(folder)
    return folder


def test_every_figure_is_drawn(finished: Path) -> None:
    plan = Plan.of(validate(Config, config(finished), "test"))
    stages = plan.stages("figure")
    assert len(stages) == 8
    for name in stages:
        figures = finished / "results" / "figures"
        assert (figures / f"{name}.pdf").read_bytes().startswith(b"%PDF")
        assert (figures / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_scores_have_the_documented_columns_and_every_split(finished: Path) -> None:
    scores = pd.read_csv(finished / "results" / "scores.csv")
    assert tuple(scores.columns) == COLUMNS
    measured = {f"p53-mmgmos/{i}" for i in (1, 2, 3)}
    others = {"test@train8", "test@regular6", "test@one_gene"}
    assert set(scores["split"]) == {"test"} | others | measured
    assert set(scores["seed"].astype(str)) == {"0", "all"}
    assert scores[["mean", "median"]].notna().all(axis=None)


def test_index_leads_to_stored_products(finished: Path) -> None:
    index = read_json(finished / "results" / "index.json")
    assert set(index) == {
        *(f"small/dklfm/seed0/{split}" for split in ("test", "test@train8", "p53-mmgmos")),
        *(f"small/{method}/seed0/test" for method in ("neural_process", "mechanistic", "alfi")),
        "fitted/deeplfm/seed0/test",
        *(f"streamed/dklfm_stream/seed0/test{suffix}" for suffix in ("", "@regular6", "@one_gene")),
        *(
            f"streamed/{method}/seed0/test{suffix}"
            for method in ("mechanistic", "dklfm_refined")
            for suffix in ("", "@one_gene")
        ),
    }
    for paths in index.values():
        for kind, path in paths.items():
            suffix = ".csv" if kind == "scores" else "/manifest.json"
            assert (finished / "results" / f"{path}{suffix}").exists()


def test_table_compares_every_method_of_a_run(finished: Path) -> None:
    every = pd.read_csv(finished / "results" / "table1.csv").set_index("method")
    streamed = every[every["run"] == "streamed"]
    assert set(streamed.index) == {"dklfm_stream", "dklfm_refined", "mechanistic"}
    table = every[every["run"] == "small"]
    assert set(table.index) == {"dklfm", "neural_process", "mechanistic", "alfi"}
    assert table["latent_mse"].notna().all()
    assert table.loc["neural_process", "output_mse"] != table.loc["alfi", "output_mse"]
    assert (finished / "results" / "table1.tex").read_text().count("toprule") == 4


def test_tasks_are_simulated_from_the_posterior_of_a_fit(finished: Path) -> None:
    (folder,) = (finished / "results" / "tasks").glob("fitted-*")
    prior = read_json(folder / "manifest.json")["spec"]["system"]["prior"]
    assert prior["name"] == "fitted"
    scores = pd.read_csv(finished / "results" / "scores.csv")
    assert set(scores.loc[scores["run"] == "fitted", "prior"]) == {"fitted to p53-puma2007"}
    assert not scores.loc[scores["run"] == "fitted", "metric"].str.startswith("force").any()


def test_second_run_has_nothing_to_do(finished: Path) -> None:
    assert "Nothing to be done" in snakemake(finished)


def test_changed_training_option_reruns_training_and_what_follows_only(finished: Path) -> None:
    jobs = planned_jobs(snakemake(finished, "--dry-run", epochs=3))
    assert jobs == {
        "train": 4, "infer": 9, "score": 9, "scores": 1, "table": 1, "figure": 8, "index": 1,
        "all": 1,
    }  # fmt: skip


def test_option_changed_back_makes_no_product_again(finished: Path) -> None:
    snakemake(finished, epochs=3)
    jobs = planned_jobs(snakemake(finished, "--dry-run"))
    assert set(jobs) <= {"scores", "table", "index", "all"}  # what every config writes
    snakemake(finished)
    assert "Nothing to be done" in snakemake(finished)
