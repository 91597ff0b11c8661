"""Settings, manifests, weights and stores that no one meant: each works or is one line of error."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from dklfm import training
from dklfm.artifacts import MANIFEST
from dklfm.config import Config, load_config, parse_system, validate
from dklfm.errors import DklfmError
from dklfm.methods import Posterior, TrainedModel
from dklfm.tasks import Tasks, load_tasks
from tests.conftest import SIMULATION

CONFIGS = [
    yaml.safe_load(path.read_text())
    for path in sorted((Path(__file__).parents[2] / "config").glob("*.yaml"))
]
ODD: list[Any] = [
    None, True, 0, 1, -1, 2**70, 1e-320, 1e308, math.inf, math.nan, "", "1", "null", "../../etc",
    "/", "a" * 300, "\x00", "é", [], {}, [[]], {"name": "transcription"}, {"": ""}, [None], -0.0,
    "transcription", "x.py:Y", {"name": "stream"}, 0.5, "irregular",
]  # fmt: skip
VALUES = st.one_of(
    st.sampled_from(ODD),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.recursive(
        st.sampled_from(ODD),
        lambda inner: st.one_of(
            st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)
        ),
        max_leaves=5,
    ),
)


def fuzzed(examples: int) -> Any:
    checks = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
    return settings(max_examples=examples, deadline=None, suppress_health_check=checks)


@st.composite
def changed(draw: st.DrawFn, value: Any) -> Any:
    """The value with something in it replaced, removed or added."""
    whole = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, 3))):
        at = whole
        while True:
            keys = list(at) if isinstance(at, dict) else list(range(len(at)))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            if isinstance(at[key], dict | list) and draw(st.booleans()):
                at = at[key]
                continue
            kind = draw(st.sampled_from(["replace", "replace", "replace", "remove", "add"]))
            if kind == "remove":
                del at[key]
            elif kind == "add" and isinstance(at, dict):
                at[draw(st.text(max_size=6))] = copy.deepcopy(draw(VALUES))
            else:
                at[key] = copy.deepcopy(draw(VALUES))  # which later changes may go into
            break
    return whole


def refusal(call: Callable[[], object]) -> str:
    """One line of error, or nothing."""
    try:
        call()
    except DklfmError as error:
        said = str(error)
    else:
        return ""
    assert said
    assert "\n" not in said
    return said


@fuzzed(700)
@given(st.data())
def test_settings_are_a_config_or_one_line_of_error(data: st.DataObject) -> None:
    given_ = data.draw(changed(data.draw(st.sampled_from(CONFIGS))))
    refusal(lambda: validate(Config, given_, "config"))


@fuzzed(250)
@given(
    st.one_of(
        st.text(max_size=200).map(str.encode),
        st.binary(max_size=200),
        st.sampled_from(
            [
                b"!!python/object/apply:os.system ['true']",
                b"a: &a [*a]",
                b"x: 2001-99-99",
                b"[" * 5000,
                b"? [a]: b",
                b"a: !!binary =",
            ]
        ),
    )
)
def test_a_file_is_a_config_or_one_line_of_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "config.yaml"
    path.write_bytes(content)
    said = refusal(lambda: load_config(path))
    assert not said or str(path) in said


@fuzzed(250)
@given(st.data())
def test_systems_are_settings_or_one_line_of_error(data: st.DataObject) -> None:
    settings_ = data.draw(st.one_of(VALUES, changed(SIMULATION["system"])))
    refusal(lambda: parse_system(settings_, "here"))


@pytest.fixture(scope="module")
def shipped(tasks: Tasks, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A streamed model with its statistics of trust."""
    folder = tmp_path_factory.mktemp("shipped") / "model"
    spec = {
        "method": "dklfm_stream",
        "model": {"name": "operator", "nodes": 8, "width": 16, "layers": 1, "heads": 2},
        "training": {"tasks": 16, "epochs": 1, "least_points": 6, "least_outputs": 5},
    }
    simulation = copy.deepcopy(SIMULATION)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dklfm.training.runs._TRUST_TASKS", (64, 64, 64))
        training.run(spec, tasks, folder, simulation=simulation)
    return folder


def works(folder: Path, tasks: Tasks) -> bool:
    """Whether a model of a folder infers; if not, it says why in one line."""
    found: list[Posterior] = []
    said = refusal(lambda: found.append(TrainedModel.load(folder).infer(tasks.take([0]))))
    for posterior in found:
        assert np.isfinite(posterior["force_mean"]).all()
        assert (posterior["force_sd"] > 0).all()
    return not said


@pytest.fixture
def copied(shipped: Path, tmp_path: Path) -> Path:
    return shutil.copytree(shipped, tmp_path / "model", dirs_exist_ok=True)


@fuzzed(350)
@given(st.data())
def test_a_manifest_is_believed_only_as_far_as_it_fits_the_weights(
    shipped: Path, copied: Path, tasks: Tasks, data: st.DataObject
) -> None:
    known = json.loads((shipped / MANIFEST).read_text())
    text = json.dumps(data.draw(changed(known)))
    (copied / MANIFEST).write_text(text)
    works(copied, tasks)


@fuzzed(150)
@given(content=st.one_of(st.text(max_size=60), st.just("[" * 5000), st.just('{"a":' * 5000)))
def test_a_manifest_may_be_any_text(copied: Path, tasks: Tasks, content: str) -> None:
    (copied / MANIFEST).write_text(content, errors="replace")
    assert not works(copied, tasks)


@dataclass(frozen=True)
class Damage:
    """Bytes that are changed, at shares of the length (of the header's, if it is the header)."""

    kind: str
    changes: tuple[tuple[float, int], ...]

    def __call__(self, held: bytes) -> bytes:
        changed_, last = bytearray(held), min(len(held), 600 if self.kind == "header" else 2**60)
        for share, by in self.changes:
            at = min(int(share * last), last - 1)
            if self.kind == "cut":
                return held[:at]
            changed_[at] ^= by
        return bytes(changed_) + (b"more" if self.kind == "grow" else b"")


SHARES = st.floats(0, 1, exclude_max=True)
DAMAGES = st.builds(
    Damage,
    st.sampled_from(["cut", "flip", "header", "grow"]),
    st.lists(st.tuples(SHARES, st.integers(1, 255)), min_size=1, max_size=4).map(tuple),
)


@fuzzed(300)
@given(damage=DAMAGES)
def test_weights_that_differ_from_the_manifest_are_refused(
    shipped: Path, copied: Path, tasks: Tasks, damage: Damage
) -> None:
    held = (shipped / "weights.safetensors").read_bytes()
    weights = damage(held)
    assume(weights != held)
    (copied / "weights.safetensors").write_bytes(weights)
    shutil.copyfile(shipped / MANIFEST, copied / MANIFEST)
    assert not works(copied, tasks)
    # A stranger's manifest may be made to fit; the numbers must still be a model.
    card = json.loads((shipped / MANIFEST).read_text())
    card["digest"] = hashlib.sha256(weights).hexdigest()
    (copied / MANIFEST).write_text(json.dumps(card))
    works(copied, tasks)


@fuzzed(200)
@given(damage=DAMAGES)
def test_damaged_statistics_of_trust_are_refused_or_harmless(
    shipped: Path, copied: Path, tasks: Tasks, damage: Damage
) -> None:
    path = copied / "trust.safetensors"
    held = (shipped / path.name).read_bytes()
    path.write_bytes(damage(held))
    assume(path.read_bytes() != held)
    shutil.copyfile(shipped / MANIFEST, copied / MANIFEST)
    assert not works(copied, tasks)
    card = json.loads((shipped / MANIFEST).read_text())
    card["trust_digest"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (copied / MANIFEST).write_text(json.dumps(card))
    works(copied, tasks)


@fuzzed(200)
@given(which=SHARES, damage=DAMAGES)
def test_a_damaged_store_is_refused(
    store: Path, tmp_path: Path, which: float, damage: Damage
) -> None:
    copied = shutil.copytree(store, tmp_path / "tasks", dirs_exist_ok=True)
    held = [p for p in copied.rglob("*") if p.is_file() and p.stat().st_size]
    files = sorted(p.relative_to(copied) for p in held)
    name = files[int(which * len(files))]
    before = load_tasks(store)
    (copied / name).write_bytes(damage((copied / name).read_bytes()))
    found: list[Tasks] = []
    refusal(lambda: found.append(load_tasks(copied)))
    assert all(tasks.data.equals(before.data) for tasks in found)
    shutil.rmtree(copied)
