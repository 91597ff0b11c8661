"""Table 1: methods beside each other, and the paper's own figures apart."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from dklfm import tables
from dklfm.scores import summarise


def per_task(method: str, run: str = "one", count: int = 4, **metrics: float) -> pd.DataFrame:
    values = {"inference_cpu_s": 0.5, "simulation_cpu_s": 1.0, "training_cpu_s": 9.0} | metrics
    rows = [
        {"task": i, "metric": name, "value": value + (i if name == "inference_cpu_s" else 0.0)}
        for i in range(count)
        for name, value in values.items()
    ]
    about = {"run": run, "experiment": "transcription", "prior": "p", "seed": 0, "split": "test"}
    return pd.DataFrame(rows).assign(method=method, **about)


@pytest.fixture
def scores() -> pd.DataFrame:
    return summarise(
        [
            per_task("dklfm", latent_mse=0.1, output_mse=2e-4),
            per_task("deeplfm", count=2, output_mse=0.03, simulation_cpu_s=0.0, training_cpu_s=0.0),
            per_task("dklfm", run="alone", latent_mse=0.2),
        ]
    )


def test_every_method_of_a_comparison_has_a_row(scores: pd.DataFrame) -> None:
    table = tables.comparison(scores).set_index("method")
    assert list(table.index) == ["dklfm", "deeplfm"]
    assert table["n_tasks"].tolist() == [4, 2]
    assert table.loc["dklfm", "latent_mse"] == pytest.approx(0.1)
    assert table["latent_mse"].isna().tolist() == [False, True]
    assert table["inference_cpu_s"].tolist() == [2.0, 1.0]  # medians
    assert table["once_cpu_s"].tolist() == [10.0, 0.0]


def test_a_run_of_one_method_compares_nothing(scores: pd.DataFrame) -> None:
    assert set(tables.comparison(scores)["run"]) == {"one"}


def test_seeds_are_averaged_and_single_seeds_left_out() -> None:
    second = per_task("dklfm", latent_mse=0.3).assign(seed=1)
    both = summarise([per_task("dklfm", latent_mse=0.1), second, per_task("alfi", latent_mse=0.2)])
    table = tables.comparison(both).set_index("method")
    assert table.loc["dklfm", "latent_mse"] == pytest.approx(0.2)
    assert len(table) == 2


def test_every_set_of_test_tasks_has_a_row(scores: pd.DataFrame) -> None:
    denser = per_task("dklfm", latent_mse=0.1).assign(split="test@2x")
    floor = per_task("mechanistic", latent_mse=0.05, count=2).assign(split="test@2x")
    measured = per_task("dklfm", correlation=0.9).assign(split="test/0")
    more = summarise([per_task("dklfm", latent_mse=0.3), denser, floor, measured])
    table = tables.every_set(more).set_index(["set", "method"])
    assert list(table.index) == [
        ("test", "dklfm"), ("test@2x", "dklfm"), ("test@2x", "mechanistic")
    ]  # fmt: skip
    assert table["of the floor's"].tolist() == ["–", "2 ± 0", "–"]
    assert table["latent MSE ± se (median)"].iloc[0] == "0.3 ± 0 (0.3)"


def test_the_paper_stands_apart_with_its_caveat(scores: pd.DataFrame) -> None:
    text = tables.markdown(tables.comparison(scores))
    ours, _, paper = text.partition("the paper**")
    assert "| deeplfm  | 2       | –" in ours
    assert "0.117" in paper
    assert "0.117" not in ours
    assert "not stated" in paper


def test_three_forms_say_the_same(scores: pd.DataFrame, tmp_path: Path) -> None:
    table = tables.comparison(scores)
    tables.save(table, tmp_path / "table1")
    latex = (tmp_path / "table1.tex").read_text()
    assert latex.count(r"\toprule") == latex.count(r"\bottomrule") == 3
    assert r"$\pm$" in latex
    assert "±" not in latex
    assert len(pd.read_csv(tmp_path / "table1.csv")) == len(table)
    assert "latent MSE ± se (median)" in (tmp_path / "table1.md").read_text()


def test_small_numbers_keep_their_digits(scores: pd.DataFrame) -> None:
    assert "2.0e-04" in tables.markdown(tables.comparison(scores))


def test_without_two_methods_to_compare_only_the_paper_s_table_is_left(tmp_path: Path) -> None:
    row = {
        "run": "one",
        "experiment": "transcription",
        "method": "dklfm",
        "prior": "p",
        "seed": "all",
    }
    scores = pd.DataFrame([{**row, "split": "test", "metric": "latent_mse", "n_tasks": 4,
                            "mean": 0.1, "se": 0.01, "median": 0.1}])  # fmt: skip
    table = tables.comparison(scores)
    assert table.empty
    tables.save(table, tmp_path / "table1")
    assert "the paper" in (tmp_path / "table1.md").read_text()
