"""Systems of one's own: their promises, their files, and whom they are run for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from scipy.integrate import solve_ivp
from typer.testing import CliRunner

from dklfm.artifacts import read_json
from dklfm.cli import app
from dklfm.config import Config, Plan, parse_system, validate
from dklfm.errors import ConfigError
from dklfm.systems import System, stack
from dklfm.systems.checking import check_system
from dklfm.systems.custom import TRUST, load_class, trust

REPOSITORY = Path(__file__).parents[2]
FILE = REPOSITORY / "docs" / "tutorial" / "oscillator.py"
OSCILLATOR = f"{FILE}:Oscillator"
BUILT_IN = ("transcription", "lotka_volterra", "reaction_diffusion")


@pytest.fixture
def trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TRUST, "")
    trust(FILE)


def test_the_oscillator_solves_its_equation() -> None:
    system = load_class(OSCILLATOR)()
    draws = stack([system.draw(np.random.default_rng(1))])
    times = np.linspace(0, 10, 21)
    stiffness, damping = float(draws["stiffness"][0]), float(draws["damping"][0])

    def rate(t: float, y: np.ndarray) -> list[float]:
        force = float(system.solve(draws, np.full((1, 1, 1), t)).force[0, 0])
        return [y[1], force - damping * y[1] - stiffness * y[0]]

    exact = solve_ivp(rate, (0, 10), [0.0, 0.0], t_eval=times, rtol=1e-9, atol=1e-9).y[0]
    found = system.solve(draws, times[None, :, None]).outputs[0, 0]
    np.testing.assert_allclose(found, exact, atol=1e-6)


@pytest.mark.parametrize("name", [*BUILT_IN, OSCILLATOR])
def test_promises_are_kept(name: str, trusted: None) -> None:
    system = parse_system({"name": name} if name in BUILT_IN else name, "test")
    assert [finding for finding in check_system(system) if finding.fault] == []


BROKEN = """
import numpy as np
from typing import Literal
from dklfm.systems import ForcedODE

class Broken(ForcedODE):
    name: Literal["broken"] = "broken"
    states = ("y",)
    observed = ("y",)
    varying = ()

    def derivative(self, states, force, parameters):
        {derivative}
"""


@pytest.mark.parametrize(
    ("derivative", "fault"),
    [
        ("return {'y': force / 0.0}", "not finite"),
        ("return {'x': force}", "KeyError: 'y'"),
        ("return {'y': 0.0 * force}", "never vary"),
        ("return {'y': force - force.mean()}", "a task depends on its batch"),
    ],
)
def test_broken_promises_are_named(derivative: str, fault: str, tmp_path: Path) -> None:
    file = tmp_path / "broken.py"
    file.write_text(BROKEN.format(derivative=derivative))
    result = CliRunner().invoke(app, ["systems", "check", f"{file}:Broken"])
    assert result.exit_code == 4
    assert "FAULT" in result.output
    assert fault in result.output


@pytest.mark.parametrize(
    ("content", "name", "says"),
    [
        (None, "S", "cannot be read"),
        ("x = 1\n1 / 0\n", "S", "line 2: ZeroDivisionError"),
        ("def broken(:\n", "S", "SyntaxError"),
        ("S = 3\n", "S", "no class S that is a dklfm System"),
        ("from dklfm.systems import ForcedODE\nclass S(ForcedODE):\n    pass\n", "S", "derivative"),
    ],
)
def test_files_that_hold_no_system_say_why(
    tmp_path: Path, content: str | None, name: str, says: str
) -> None:
    file = tmp_path / "mine.py"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ConfigError, match=says):
        load_class(f"{file}:{name}")


def test_a_store_that_names_a_file_does_not_make_it_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TRUST, "")
    file, proof = tmp_path / "evil.py", tmp_path / "ran"
    file.write_text(f"open({str(proof)!r}, 'w')\n")
    with pytest.raises(ConfigError, match="if you trust that file"):
        parse_system({"file": f"{file}:S"}, "a store")
    assert not proof.exists()


def config(**changes: Any) -> Config:
    settings = yaml.safe_load((FILE.with_suffix(".yaml")).read_text())
    system = {"file": OSCILLATOR, **changes}
    settings["experiments"]["oscillator"]["system"] = system
    found: Config = validate(Config, settings, "test")
    return found


def test_a_config_names_it_and_its_settings_and_contents_enter_the_keys(tmp_path: Path) -> None:
    plain = Plan.of(config())
    (tasks,) = plain.stages("tasks").values()
    assert tasks.spec["system"]["file"] == OSCILLATOR
    assert set(Plan.of(config(duration=5.0)).stages("tasks")) != {tasks.name}
    with pytest.raises(ConfigError, match="stiffness"):
        config(stiffness="strong")
    copy = tmp_path / "oscillator.py"
    copy.write_text(FILE.read_text() + "\n# another\n")
    other: System = load_class(f"{copy}:Oscillator")()
    assert other.spec()["resources"] != tasks.spec["system"]["resources"]


def test_the_tutorial_goes_from_a_file_to_a_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its commands, with a training of a moment."""
    monkeypatch.setenv(TRUST, "")
    monkeypatch.chdir(REPOSITORY)
    settings = yaml.safe_load((FILE.with_suffix(".yaml")).read_text())
    experiment = settings["experiments"]["oscillator"]
    experiment["tasks"]["counts"] = {"train": 0, "validation": 8, "test": 4}
    experiment["stream"]["training"] |= {"tasks": 32, "epochs": 2, "validate_every": 1}

    def run(*arguments: object) -> None:
        result = CliRunner().invoke(app, list(map(str, arguments)))
        assert result.exit_code == 0, result.output

    run("systems", "check", "docs/tutorial/oscillator.py:Oscillator")
    tasks, model = tmp_path / "tasks", tmp_path / "model"
    simulation = {"system": experiment["system"], "tasks": experiment["tasks"]}
    run("simulate", json.dumps(simulation), tasks)
    monkeypatch.setenv(TRUST, "")
    about = {"method": "dklfm_stream", **experiment["stream"]}
    train = ("train", json.dumps(about), tasks, model)
    refused = CliRunner().invoke(app, list(map(str, train)))
    assert "if you trust that file" in refused.output
    run("--trust", "docs/tutorial/oscillator.py", *train)
    assert read_json(model / "manifest.json")["system"]["name"] == "oscillator"
    out = tmp_path / "out"
    run(
        *("--trust", "docs/tutorial/oscillator.py", "infer", "docs/tutorial/measured.csv"),
        *("--model", model, "--out", out),
    )
    assert set(pd.read_csv(out / "posterior.csv")["quantity"]) == {"force", "position"}
    assert (out / "figure.png").stat().st_size > 10_000
