"""``dklfm infer``, ``check``, ``design``, ``evaluate`` and ``finetune`` as a shell runs them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from typer.testing import CliRunner, Result

from dklfm.cli import app
from dklfm.resources import resource_path
from dklfm.tasks import load_tasks

TABLE = resource_path("p53/expression_mmgmos.csv")
DATA_FAULT, MODEL_FAULT, STRANGE = 4, 5, 7


def run(*arguments: object, code: int = 0, text: str | None = None) -> Result:
    result = CliRunner().invoke(app, [str(a) for a in arguments], input=text)
    assert result.exit_code == code, result.output
    return result


def test_inference_writes_table_dataset_figure_and_report(
    streamed_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    result = run("infer", TABLE, "--model", streamed_folder, "--out", out)
    names = {path.name for path in out.iterdir()}
    assert names == {"posterior.csv", "posterior.nc", "report.md", "figure.png"}
    rows = pd.read_csv(out / "posterior.csv")
    assert len(rows) == 3 * 6 * 51
    assert set(rows["quantity"]) == {"force", "DDB2", "BIK", "TNFRSF10B", "CDKN1A", "SESN1"}
    dataset = xr.load_dataset(out / "posterior.nc", engine="scipy")
    force = rows[(rows["replicate"] == 3) & (rows["quantity"] == "force")]
    np.testing.assert_allclose(force["mean"], dataset["force_mean"].values[2], rtol=1e-5)
    assert "3 time courses of 5 outputs" in (out / "report.md").read_text()
    assert "3 time courses of 5 outputs" in result.output


def test_a_program_reads_json_and_writes_to_standard_input(
    streamed_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    options = ("--model", streamed_folder, "--out", out, "--at", "0,6,12", "--no-figure", "--json")
    result = run("infer", "-", *options, text=TABLE.read_text())
    about = json.loads(result.stdout)
    assert about["tasks"] == 3
    assert about["outputs"][0] == "DDB2"
    assert pd.read_csv(out / "posterior.csv")["time"].unique().tolist() == [0, 6, 12]
    assert not (out / "figure.png").exists()


def test_places_come_from_a_file_too(streamed_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "times.csv").write_text("time\n1\n2.5\n")
    options = ("--model", streamed_folder, "--out", tmp_path, "--no-figure")
    run("infer", TABLE, *options, "--at", tmp_path / "times.csv")
    assert pd.read_csv(tmp_path / "posterior.csv")["time"].unique().tolist() == [1, 2.5]
    assert "list of times" in run("infer", TABLE, *options, "--at", "noon", code=DATA_FAULT).output


def test_a_fault_leaves_what_was_there(streamed_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run("infer", TABLE, "--model", streamed_folder, "--out", out, "--no-figure")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    options = ("--model", streamed_folder, "--out", out, "--at", "99")
    run("infer", TABLE, *options, "--anchor", "A:s=1", code=DATA_FAULT)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_strangers_are_named_and_may_fail_a_script(streamed_folder: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    wild = pd.DataFrame({"time": np.arange(9.0), "A": 5 + rng.standard_normal(9), "A sd": 0.01})
    table = tmp_path / "wild.csv"
    wild.to_csv(table, index=False)
    options = ("--model", streamed_folder, "--out", tmp_path / "out")
    said = run("infer", table, *options).output
    assert "Beware: 1 of 1" in said
    assert "| 1 | " in said
    run("infer", table, *options, "--strict", code=STRANGE)
    about = json.loads(run("check", table, "--model", streamed_folder, "--json").stdout)
    assert set(about["strange"]) == {"1"}
    assert min(about["strange"]["1"].values()) < 0.05


def test_check_says_how_a_table_was_understood(streamed_folder: Path) -> None:
    result = run("check", TABLE, "--model", streamed_folder)
    assert "3 time courses of 5 outputs" in result.output
    assert "105 observations, 0 missing, noise stated" in result.output


def test_refinement_and_anchors_are_options(streamed_folder: Path, tmp_path: Path) -> None:
    few = tmp_path / "few.csv"
    frame = pd.read_csv(TABLE)
    frame[frame["replicate"] == 1].to_csv(few, index=False)
    run(
        *("infer", few, "--model", streamed_folder, "--out", tmp_path / "out", "--refine"),
        *("--anchor", "CDKN1A:d=0.8", "--no-figure"),
    )
    data = xr.load_dataset(tmp_path / "out" / "posterior.nc", engine="scipy")
    assert {"p_embedding", "p_outputs"} <= set(data)  # a refined answer may be of a stranger too


def test_design_ranks_candidates_and_draws_them(streamed_folder: Path, tmp_path: Path) -> None:
    options = ("--model", streamed_folder, "--at", "7", "--out", tmp_path, "--best", "2", "--json")
    best = json.loads(run("design", TABLE, *options).stdout)
    assert [row["task"] for row in best] == ["1", "1", "2", "2", "3", "3"]
    ranked = pd.read_csv(tmp_path / "design.csv")
    assert len(ranked) == 21
    assert (np.diff(ranked["gain"][:7]) <= 0).all()
    assert ranked["gain"].between(0, 1).all()
    assert (tmp_path / "design.png").exists()


def test_fine_tuning_goes_on_from_the_weights_and_scores_both(
    streamed_folder: Path, streamed_store: Path, tmp_path: Path
) -> None:
    scores = json.loads(run("evaluate", streamed_folder, streamed_store, "--json").stdout)
    assert scores["latent_mse"] > 0
    out = tmp_path / "tuned"
    result = run("finetune", streamed_folder, streamed_store, out, "--share", "0.25")
    line = next(row for row in result.output.splitlines() if row.startswith("latent_mse"))
    before, after = map(float, line.split()[1:])
    assert before == pytest.approx(scores["latent_mse"], rel=1e-3)
    # Three epochs more of the same change little; three from scratch would be far off.
    assert after < 1.2 * before
    card = json.loads((out / "manifest.json").read_text())
    assert card["spec"]["training"]["epochs"] == 3


def test_lists_name_what_there_is() -> None:
    assert "transcription" in run("systems", "list").output
    json.loads(run("models", "--json").stdout)


def test_a_missing_model_is_one_line() -> None:
    output = run("infer", TABLE, "--model", "absent", code=MODEL_FAULT).output
    assert output.strip().count("\n") == 0
    assert "no model 'absent'" in output


def test_parquet_netcdf_and_stores_are_read_too(
    streamed_folder: Path, streamed_store: Path, tmp_path: Path
) -> None:
    frame = pd.read_csv(TABLE)
    frame.to_parquet(tmp_path / "table.parquet")
    few = load_tasks(streamed_store).take([0, 1])
    few.data.drop_attrs().to_netcdf(tmp_path / "tasks.nc", engine="scipy")
    for table, tasks in (
        (tmp_path / "table.parquet", 3),
        (tmp_path / "tasks.nc", 2),
        (streamed_store, 32),
    ):
        about = json.loads(run("check", table, "--model", streamed_folder, "--json").stdout)
        assert about["tasks"] == tasks
    (tmp_path / "broken.nc").write_bytes(b"CDF")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    for name in ("broken.nc", "broken.parquet"):
        result = run("check", tmp_path / name, "--model", streamed_folder, code=DATA_FAULT)
        assert name in result.output
        assert result.output.strip().count("\n") == 0


def test_many_tasks_are_written_as_they_are_inferred(
    streamed_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In chunks, as the whole at once."""
    options = ("--model", streamed_folder, "--no-figure", "--at", "5")
    run("infer", TABLE, *options, "--out", tmp_path / "whole")
    monkeypatch.setattr("dklfm.cli.asking._CHUNK", 2)
    run("infer", TABLE, *options, "--out", tmp_path / "parts")
    whole, parts = (pd.read_csv(tmp_path / name / "posterior.csv") for name in ("whole", "parts"))
    pd.testing.assert_frame_equal(whole, parts, rtol=1e-3)
    data = xr.load_dataset(tmp_path / "parts" / "posterior.nc", engine="scipy")
    assert data.sizes["task"] == 3
