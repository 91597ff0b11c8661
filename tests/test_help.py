"""Every command has an example in its help, and every example runs."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import typer
from typer.testing import CliRunner

from dklfm.artifacts import write_json
from dklfm.cli import app
from dklfm.config import Plan, load_config

REPOSITORY = Path(__file__).parents[1]
ORDER = (
    "config", "models", "systems list", "systems check", "check", "infer", "design",
    "simulate", "train", "evaluate", "finetune", "stage measurements", "stage fit", "stage infer",
    "stage reference", "stage score", "stage summarise", "stage table", "stage figure",
    "stage record", "stage ship",
)  # fmt: skip
"""So that each finds what those before it made."""


def commands(group: Any, name: str = "") -> Iterator[tuple[str, str]]:
    if hasattr(group, "commands"):
        for child, command in group.commands.items():
            yield from commands(command, f"{name} {child}".strip())
    else:
        yield name, group.help or ""


HELP = dict(commands(typer.main.get_command(app)))


def test_every_command_has_one_example() -> None:
    assert set(HELP) == set(ORDER)
    for name, text in HELP.items():
        assert len(re.findall(r"Example: `dklfm ", text)) == 1, name


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A place that looks like a checkout."""
    found = tmp_path_factory.mktemp("help")
    for name in ("resources", "config"):
        (found / name).symlink_to(REPOSITORY / name)
    (found / "docs").mkdir()
    (found / "docs" / "tutorial").symlink_to(REPOSITORY / "docs" / "tutorial")
    return found


@pytest.mark.parametrize("name", ORDER)
def test_its_example_runs(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    (example,) = re.findall(r"Example: `dklfm (.*)`", HELP[name])
    result = CliRunner().invoke(app, shlex.split(example))
    assert result.exit_code == 0, f"dklfm {example}\n{result.output}"
    if name == "stage score":  # a table needs two methods
        scores = pd.read_csv("results/one.csv").assign(method="another")
        scores.to_csv("results/two.csv", index=False)
    if name == "stage figure":  # a record needs what the workflow makes of the whole config
        plan = Plan.of(load_config(Path("config/config.yaml")))
        write_json(Path("results/index.json"), plan.index())
        made = [f"{e.scores.path}.csv" for e in plan.evaluations]
        for path in (*made, *(f"figures/{stage.name}.png" for stage in plan.figures)):
            whole = Path("results", path)
            whole.parent.mkdir(exist_ok=True)
            whole.touch()
