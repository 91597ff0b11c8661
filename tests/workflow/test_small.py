"""The whole pipeline on a tiny config: complete, idle when done, and moved by changes only."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
import yaml

from dklfm.artifacts import read_json
from dklfm.config import Config, Plan, validate
from dklfm.scores import COLUMNS
from tests.test_cli import done, refused
from tests.workflow.small import config, snakemake


def planned_jobs(output: str) -> dict[str, int]:
    """The table of jobs that a dry run prints."""
    _, _, table = output.partition("Job stats:")
    return {
        name: int(count)
        for name, count in re.findall(r"^(\w+)\s+(\d+)$", table, re.MULTILINE)
        if name != "total"
    }


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


@pytest.fixture
def written(finished: Path, tmp_path: Path) -> Path:
    """A config file whose results folder holds all that a record is made of."""
    results = tmp_path / "results"
    for name in ("figures", "scores"):
        shutil.copytree(finished / "results" / name, results / name)
    for name in ("index.json", "scores.csv", "table1.md", "table1.csv", "table1.tex"):
        shutil.copy(finished / "results" / name, results)
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config(tmp_path)))
    return path


def test_a_run_is_recorded_with_the_figures_of_its_config(written: Path, tmp_path: Path) -> None:
    results, out = tmp_path / "results", tmp_path / "docs"
    (results / "figures" / "small_tasks-ffffffffff.png").write_text("of other settings")
    done("stage", "record", written, out)
    stages = Plan.of(validate(Config, config(tmp_path), "test")).stages("figure")
    (drawn,) = (name for name, stage in stages.items() if stage.label == "small_tasks")
    kept = (out / "small_tasks.png").read_bytes()
    assert kept == (results / "figures" / f"{drawn}.png").read_bytes()
    page = (out / "README.md").read_text()
    assert page.count("](small_tasks.png)") == 1
    assert {path.name for path in out.glob("*.png")} == set(re.findall(r"\]\((\w+\.png)\)", page))
    assert all(word in page for word in ("mechanistic", "Commit ", "cores"))
    assert (out / "scores.csv").read_bytes() == (results / "scores.csv").read_bytes()


def test_only_a_finished_run_of_the_config_is_recorded(written: Path, tmp_path: Path) -> None:
    results, out = tmp_path / "results", tmp_path / "docs"
    for pattern in ("figures/small_curve-*.png", "scores/*_alfi-*.csv"):
        (made,) = results.glob(pattern)
        made.rename(tmp_path / made.name)
        assert made.name in refused("stage", "record", written, out)
        (tmp_path / made.name).rename(made)
    written.write_text(yaml.safe_dump(config(tmp_path, epochs=3)))
    assert "no finished run of this config" in refused("stage", "record", written, out)
    assert not out.exists()


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
