"""The config files of the repository and the schema that documents them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dklfm.config import Plan, json_schema, load_config

CONFIG = Path(__file__).parents[2] / "config"


@pytest.mark.parametrize("name", ["config.yaml", "quick.yaml"])
def test_config_files_are_valid_and_make_figures(name: str) -> None:
    plan = Plan.of(load_config(CONFIG / name))
    assert plan.figures
    assert len(plan.stages("scores")) == len(plan.evaluations)


def test_written_schema_is_that_of_the_models() -> None:
    written = json.loads((CONFIG / "schema.json").read_text())
    assert written == json_schema(), "run: dklfm config config/schema.json --schema"


def test_every_setting_is_explained() -> None:
    text = (CONFIG / "README.md").read_text()
    sections = ["Experiment", "TasksConfig", "ModelConfig", "KernelConfig", "StoredConfig"]
    sections += ["StreamConfig", "OperatorConfig", "LinearisedConfig", "GreenConfig"]
    sections += ["KernelRouteConfig"]
    systems = ("Transcription", "LotkaVolterra", "ReactionDiffusion")
    for section in (*sections, *systems):
        for setting in json_schema()["$defs"][section]["properties"].keys() - {"name"}:
            assert f"{setting}`" in text or f"`{setting}" in text, f"{section}.{setting}"
