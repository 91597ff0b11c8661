"""Configs: what is accepted, and the one line that refuses the rest."""

from __future__ import annotations

import copy
import string
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from dklfm.config import Config, FourierConfig, json_schema, load_config, read_yaml, validate
from dklfm.errors import ConfigError
from dklfm.settings import Constant

REPOSITORY = Path(__file__).parents[2]
VALID: dict[str, Any] = {
    "experiments": {
        "one": {
            "system": {"name": "transcription", "prior": {"name": "lognormal"}},
            "tasks": {"mesh": {"spacing": "regular"}, "noise": {"name": "constant", "value": 0.1}},
            "model": {"encoder": {"name": "transformer"}, "kernel": {}},
            "training": {},
        }
    }
}
SECTIONS = (
    (),
    ("experiments", "one"),
    ("experiments", "one", "system"),
    ("experiments", "one", "system", "prior"),
    ("experiments", "one", "tasks"),
    ("experiments", "one", "tasks", "mesh"),
    ("experiments", "one", "tasks", "noise"),
    ("experiments", "one", "model"),
    ("experiments", "one", "model", "encoder"),
    ("experiments", "one", "model", "kernel"),
    ("experiments", "one", "training"),
)


def with_setting(path: tuple[str, ...], value: Any) -> dict[str, Any]:
    config = copy.deepcopy(VALID)
    section = config
    for key in path[:-1]:
        section = section.setdefault(key, {})
    section[path[-1]] = value
    return config


def refusal(config: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        validate(Config, config, "file.yaml")
    message = str(caught.value)
    assert message.startswith("file.yaml: ")
    assert "\n" not in message
    return message.removeprefix("file.yaml: ")


def of_experiment(*path: str, value: Any) -> str:
    return refusal(with_setting(("experiments", "one", *path), value))


@pytest.mark.parametrize("name", ["config.yaml", "quick.yaml"])
def test_config_of_the_repository_is_valid(name: str) -> None:
    assert load_config(REPOSITORY / "config" / name).experiments


@pytest.mark.parametrize(
    ("path", "near"),
    [
        (("experimnts",), "experiments"),
        (("experiments", "one", "trainings"), "training"),
        (("experiments", "one", "system", "respnse"), "response"),
        (("experiments", "one", "system", "prior", "spred"), "spread"),
        (("experiments", "one", "tasks", "mesh", "point"), "points"),
        (("experiments", "one", "tasks", "noise", "val"), "value"),
        (("experiments", "one", "model", "encoder", "with"), "width"),
        (("experiments", "one", "model", "kernel", "amplitude"), "amplitudes"),
        (("experiments", "one", "training", "learnin_rate"), "learning_rate"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_unknown_key_is_named_by_its_path_with_the_near_miss(
    path: tuple[str, ...], near: str
) -> None:
    assert (
        refusal(with_setting(path, 1)) == f"{'.'.join(path)}: unknown key; did you mean {near!r}?"
    )


def test_unknown_key_without_a_near_miss_lists_the_known_ones() -> None:
    message = of_experiment("tasks", "mesh", "zzz", value=1)
    assert message == "experiments.one.tasks.mesh.zzz: unknown key; known here: points, spacing"


@given(
    section=st.sampled_from(SECTIONS),
    key=st.text(string.ascii_lowercase, min_size=1, max_size=8).map(lambda s: f"x_{s}"),
)
def test_every_section_refuses_keys_it_does_not_know(section: tuple[str, ...], key: str) -> None:
    assert refusal(with_setting((*section, key), 1)).startswith(
        f"{'.'.join((*section, key))}: unknown key; "
    )


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        (("training", "epochs"), "many", "integer"),
        (("training", "epochs"), 0, "greater than or equal to 1"),
        (("training", "learning_rate"), -0.1, "greater than 0"),
        (("training", "learning_rate"), float("nan"), "finite"),
        (("tasks", "counts"), 3, "dictionary or instance of Counts"),
        (("tasks", "counts"), {"train": -1}, "greater than or equal to 0"),
        (("tasks", "mesh"), {"spacing": "random"}, "'regular' or 'irregular'"),
        (("tasks", "noise"), 0.0, "must be positive"),
        (("tasks", "noise"), True, "dictionary"),
        (("tasks", "force_noise"), -1, "greater than or equal to 0"),
        (("system", "duration"), -12, "greater than 0"),
        (("system", "lengthscale"), {"name": "uniform", "low": -1, "high": 2}, "must be positive"),
        (("model", "encoder"), {"name": "transformer", "width": 10}, "a multiple of heads 4"),
        (("seeds",), [-1], "greater than or equal to 0"),
        (("datasets",), ["p53"], "'p53-mmgmos'"),
    ],
)
def test_impossible_value_is_refused_at_its_place(
    path: tuple[str, ...], value: Any, says: str
) -> None:
    message = of_experiment(*path, value=value)
    assert message.startswith(".".join(("experiments", "one", *path)))
    assert says in message


@pytest.mark.parametrize("name", ["uniform", "loguniform"])
def test_range_must_rise(name: str) -> None:
    message = of_experiment("tasks", "noise", value={"name": name, "low": 0.4, "high": 0.4})
    assert message == "experiments.one.tasks.noise: low must be below high, got low=0.4, high=0.4"


def test_refusal_counts_the_other_faults() -> None:
    message = of_experiment("training", value={"epochs": 0, "batch_size": 0, "clip_norm": 0})
    assert message.endswith("(and 2 more)")


def test_unknown_system_lists_the_known_ones() -> None:
    message = of_experiment("system", "name", value="transcripton")
    assert "'transcripton'" in message
    assert "'transcription'" in message


@pytest.mark.parametrize("name", ["", "with space", "a/b", "ü", "a-b"])
def test_experiment_name_must_be_fit_for_a_path(name: str) -> None:
    config = {"experiments": {name: VALID["experiments"]["one"]}}
    assert "letters, digits and underscores" in refusal(config)


def test_device_must_be_a_known_one() -> None:
    assert refusal(VALID | {"device": "gpu"}).startswith("device: ")


def test_fourier_encoder_needs_a_regular_mesh() -> None:
    config = with_setting(("experiments", "one", "model", "encoder", "name"), "fourier")
    del config["experiments"]["one"]["tasks"]["mesh"]
    assert "tasks.mesh.spacing: regular" in refusal(config)


def test_fourier_encoder_needs_whole_meshes() -> None:
    message = of_experiment("model", "encoder", "name", value="fourier")
    assert "training.least_points: null" in message


def test_fourier_encoder_is_accepted_on_whole_regular_meshes() -> None:
    config = with_setting(("experiments", "one", "model", "encoder", "name"), "fourier")
    config["experiments"]["one"]["training"]["least_points"] = None
    experiment = validate(Config, config, "file.yaml").experiments["one"]
    assert experiment.model.encoder == FourierConfig()


def test_every_split_needs_a_task() -> None:
    assert "at least one train, validation and test task" in of_experiment(
        "tasks", "counts", value={"validation": 0}
    )


def test_bare_number_is_a_constant_distribution() -> None:
    config = validate(Config, with_setting(("experiments", "one", "tasks", "noise"), 0.3), "")
    assert config.experiments["one"].tasks.noise == Constant(value=0.3)


def test_validated_settings_cannot_change() -> None:
    config = validate(Config, VALID, "")
    with pytest.raises(ValidationError, match="frozen"):
        config.device = "cuda"  # type: ignore[misc]


def test_empty_file_is_refused_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "empty.yaml"
    path.write_text("")
    with pytest.raises(ConfigError, match="the whole file: "):
        load_config(path)


def test_yaml_fault_is_located(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("a: 1\nb: [1, 2\nc: 3\n")
    with pytest.raises(ConfigError, match=r"bad\.yaml: not valid YAML at line 3, column 2: "):
        read_yaml(path)


def test_yaml_tags_are_not_executed(tmp_path: Path) -> None:
    path = tmp_path / "tagged.yaml"
    path.write_text("a: !!python/object/apply:os.getcwd []\n")
    with pytest.raises(ConfigError, match="not valid YAML at line 1"):
        read_yaml(path)


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "binary.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not UTF-8"):
        read_yaml(path)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.yaml: cannot be read: No such file"):
        load_config(tmp_path / "absent.yaml")


def test_config_written_out_is_read_back_the_same(tmp_path: Path) -> None:
    config = load_config(REPOSITORY / "config" / "config.yaml")
    path = tmp_path / "copy.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    assert load_config(path) == config


def test_schema_documents_every_section_of_an_experiment() -> None:
    properties = json_schema()["$defs"]["Experiment"]["properties"]
    assert {"system", "tasks", "model", "training", "seeds"} <= set(properties)


def test_an_experiment_that_neither_trains_nor_fits_is_refused() -> None:
    experiment = {"system": {"name": "transcription"}, "seeds": []}
    with pytest.raises(ConfigError, match="without seeds nothing is trained"):
        validate(Config, {"experiments": {"one": experiment}}, "test")
