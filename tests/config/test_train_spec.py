"""What a training is told: the section of its method, and settings that its method can take."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from dklfm.config import (
    FourierRegressorConfig,
    ModelConfig,
    NeuralProcessConfig,
    TrainSpec,
    canonical_json,
    resolved,
    validate,
)
from dklfm.errors import ConfigError

WHOLE = {"least_points": None}


def spec(**settings: Any) -> TrainSpec:
    return validate(TrainSpec, settings, "train")


@pytest.mark.parametrize(
    ("settings", "digest"),
    [
        ({}, "87f21cb676c2e513"),
        ({"model": {"features": {"name": "period"}}}, "9bdb4fcbbe6c8098"),
    ],
)
def test_settings_of_a_dklfm_resolve_as_they_always_did(
    settings: dict[str, Any], digest: str
) -> None:
    text = canonical_json(resolved(spec(**settings)))
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == digest


@pytest.mark.parametrize(
    ("method", "section"),
    [
        ("dklfm", ModelConfig),
        ("neural_process", NeuralProcessConfig),
        ("fno", FourierRegressorConfig),
    ],
)
def test_model_is_the_section_of_the_method(method: str, section: type) -> None:
    by_default = spec(method=method, training=WHOLE)
    assert by_default.model == section()
    assert spec(method=method, model={}, training=WHOLE) == by_default
    assert spec(**resolved(by_default)) == by_default


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (
            {"method": "gp"},
            "method: input should be 'dklfm', 'dklfm_stream', 'neural_process' or 'fno', got 'gp'",
        ),
        ({"method": "fno", "model": {"heads": 2}}, "model.heads: unknown key; "),
        ({"model": {"layers": 2}}, "model.layers: unknown key; "),
        ({"model": {"kernel": {"amplitude": 2}}}, "did you mean 'amplitudes'?"),
        ({"method": "neural_process", "model": {"widht": 2}}, "did you mean 'width'?"),
        ({"method": "neural_process", "model": {"width": 30}}, "model: width 30 must be a mult"),
        (
            {"method": "dklfm_stream", "model": {"name": "operator", "heads": 3}},
            "width 64 must be a multiple of heads 3",
        ),
        (
            {
                "method": "dklfm_stream",
                "model": {"name": "linearised", "heads": 3, "exchangeable": True},
            },
            "width 256 must be a multiple of heads 3",
        ),
        ({"method": "fno"}, "set training.least_points: null"),
        (
            {"method": "fno", "training": WHOLE | {"least_window": 0.5}},
            "set training.least_window: null",
        ),
    ],
)
def test_setting_that_the_method_cannot_take_is_refused(
    settings: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        spec(**settings)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
