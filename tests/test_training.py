"""Training: repeatable to the bit, resumable to the bit, and open about failure."""

from __future__ import annotations

import itertools
import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from dklfm import training
from dklfm.artifacts import MANIFEST, read_json
from dklfm.config import TrainSpec, validate
from dklfm.errors import ConfigError, DataError, DklfmError
from dklfm.model import DKLFM, Batch, Scale, choose_device, load_model
from dklfm.tasks import Tasks, load_embedded
from dklfm.training import Trainer
from dklfm.training.reobserving import ReobservingTrainer
from tests.conftest import SIMULATION

Spec = dict[str, Any]


def trained(spec: Spec, tasks: Tasks, folder: Path) -> dict[str, torch.Tensor]:
    training.run(spec, tasks, folder, simulation=SIMULATION)
    return load_model(folder)[0].state_dict()


def assert_identical(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def interrupt_after(epochs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Trainer.run_epoch

    def run_epoch(self: Trainer) -> None:
        if self.epoch == epochs:
            raise KeyboardInterrupt
        whole(self)

    monkeypatch.setattr(Trainer, "run_epoch", run_epoch)


def interrupted(
    spec: Spec, tasks: Tasks, folder: Path, epochs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("dklfm.training.runs._LEAST_SECONDS", -1.0)
        patch.setattr("dklfm.training.runs._CHECKPOINT_SHARE", math.inf)
        interrupt_after(epochs, patch)
        with pytest.raises(KeyboardInterrupt):
            training.run(spec, tasks, folder, simulation=SIMULATION)


def columns(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "history.csv").drop(columns="cpu_seconds")


def test_one_seed_gives_identical_weights(
    model_folder: Path, training_spec: Spec, tasks: Tasks, tmp_path: Path
) -> None:
    torch.manual_seed(123)
    assert_identical(
        trained(training_spec, tasks, tmp_path), load_model(model_folder)[0].state_dict()
    )


def test_another_seed_gives_other_weights(
    model_folder: Path, training_spec: Spec, tasks: Tasks, tmp_path: Path
) -> None:
    other = trained(training_spec | {"seed": 1}, tasks, tmp_path)
    expected = load_model(model_folder)[0].state_dict()
    assert not torch.equal(other["encoder.lift.weight"], expected["encoder.lift.weight"])


@pytest.mark.parametrize(
    ("epochs", "other"),
    [(1, {}), (3, {}), (3, {"reobserve": True}), (3, {"optimiser": "soap"})],
)
def test_resumed_training_is_identical_to_an_undisturbed_one(
    training_spec: Spec,
    tasks: Tasks,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    epochs: int,
    other: Spec,
) -> None:
    training_spec["training"] |= {"epochs": 5, "validate_every": 2, **other}
    expected = trained(training_spec, tasks, tmp_path / "whole")

    folder = tmp_path / "resumed"
    interrupted(training_spec, tasks, folder, epochs, monkeypatch)
    assert not (folder / MANIFEST).exists()
    run_epochs = []
    whole = Trainer.run_epoch
    monkeypatch.setattr(
        Trainer, "run_epoch", lambda self: run_epochs.append(self.epoch) or whole(self)
    )
    assert_identical(trained(training_spec, tasks, folder), expected)
    pd.testing.assert_frame_equal(columns(folder), columns(tmp_path / "whole"))
    assert run_epochs == list(range(epochs, 5))
    assert not (folder / "partial").exists()


def test_checkpoint_of_other_settings_is_passed_over_with_a_warning(
    model_folder: Path,
    training_spec: Spec,
    tasks: Tasks,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    interrupted(training_spec | {"seed": 5}, tasks, tmp_path, 1, monkeypatch)
    found = trained(training_spec, tasks, tmp_path)
    assert "other settings or tasks; training starts afresh" in caplog.text
    assert_identical(found, load_model(model_folder)[0].state_dict())


def test_damaged_checkpoint_is_passed_over_with_a_warning(
    model_folder: Path,
    training_spec: Spec,
    tasks: Tasks,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    interrupted(training_spec, tasks, tmp_path, 1, monkeypatch)
    path = tmp_path / "partial" / "state.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    found = trained(training_spec, tasks, tmp_path)
    assert "cannot be read" in caplog.text
    assert_identical(found, load_model(model_folder)[0].state_dict())


def test_checkpoint_of_another_version_is_refused_and_kept(
    training_spec: Spec, tasks: Tasks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(training_spec, tasks, tmp_path, 1, monkeypatch)
    path = tmp_path / "partial" / "state.safetensors"
    with safe_open(path, "pt") as handle:
        metadata = handle.metadata()
        tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 - the handle is no mapping
    tensors["model.forgotten"] = torch.zeros(1)
    save_file(tensors, path, metadata)
    with pytest.raises(DklfmError, match=r"another version of dklfm .*forgotten.*; remove it"):
        trained(training_spec, tasks, tmp_path)
    assert path.exists()


def test_loss_falls(training_spec: Spec, tasks: Tasks, tmp_path: Path) -> None:
    training_spec["training"] |= {"epochs": 30, "learning_rate": 5e-3}
    trained(training_spec, tasks, tmp_path)
    history = columns(tmp_path)
    for name in ("train_loss", "validation_loss", "validation_force_nll"):
        assert history[name].tail(3).mean() < 0.5 * history[name].head(3).mean()


def test_kept_weights_are_those_of_the_best_validation(
    training_spec: Spec, tasks: Tasks, tmp_path: Path
) -> None:
    training_spec["training"] |= {"epochs": 12, "learning_rate": 2e-2}
    training.run(training_spec, tasks, tmp_path)
    history = columns(tmp_path)
    best = history["validation_force_nll"].min()
    assert read_json(tmp_path / MANIFEST)["validation_force_nll"] == pytest.approx(best)

    model, scale = load_model(tmp_path)
    validation = Batch.of(tasks.split("validation"), scale)
    with torch.no_grad():
        densities = model.log_densities(validation)
    points = densities.force_points.sum().item()
    found = -densities.force_given_outputs.sum().item() / points
    assert found == pytest.approx(best, rel=1e-4)


def test_conditional_weight_adds_to_the_loss(
    training_spec: Spec, tasks: Tasks, tmp_path: Path
) -> None:
    training_spec["training"] |= {"epochs": 1, "batch_size": 100}

    def first_loss(weight: float) -> float:
        training_spec["training"]["conditional_weight"] = weight
        training.run(training_spec, tasks, tmp_path / str(weight))
        return float(columns(tmp_path / str(weight))["train_loss"].item())

    plain, one, two = (first_loss(weight) for weight in (0.0, 1.0, 2.0))
    assert two - one == pytest.approx(one - plain, rel=1e-4)
    assert one != plain


def test_negligible_coupling_is_warned_of_in_the_later_half(
    training_spec: Spec,
    tasks: Tasks,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    training_spec["training"]["epochs"] = 4
    monkeypatch.setattr(DKLFM, "coupling", lambda self, batch: 0.001)
    trained(training_spec, tasks, tmp_path)
    warned = [r.args[0] for r in caplog.records if "uncorrelated" in r.msg and r.args]
    assert warned == [3, 4]


def test_substantial_coupling_is_not_warned_of(
    training_spec: Spec,
    tasks: Tasks,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(DKLFM, "coupling", lambda self, batch: 0.5)
    with caplog.at_level(logging.WARNING):
        trained(training_spec, tasks, tmp_path)
    assert "uncorrelated" not in caplog.text


def test_divergence_ends_in_an_error_that_names_the_mend(
    training_spec: Spec, tasks: Tasks, tmp_path: Path
) -> None:
    training_spec["training"]["learning_rate"] = 1e8
    with pytest.raises(DklfmError, match=r"lower (training\.)?learning_rate"):
        training.run(training_spec, tasks, tmp_path)
    assert not (tmp_path / MANIFEST).exists()


def test_a_step_without_a_finite_gradient_is_left_out(
    training_spec: Spec,
    tasks: Tasks,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    whole, calls = DKLFM.loss, itertools.count()

    def sometimes(self: DKLFM, *args: Any) -> torch.Tensor:
        loss = whole(self, *args)
        return loss * math.nan if next(calls) == 1 else loss

    monkeypatch.setattr(DKLFM, "loss", sometimes)
    weights = trained(training_spec, tasks, tmp_path)
    assert not any(values.isnan().any() for values in weights.values())
    assert np.isfinite(columns(tmp_path)["train_loss"]).all()
    assert sum("left out" in record.msg for record in caplog.records) == 1


def test_model_is_read_back_with_its_scale(
    model_folder: Path, training_spec: Spec, tasks: Tasks
) -> None:
    model, scale = load_model(model_folder)
    assert model.config.embedding == training_spec["model"]["embedding"]
    assert scale == Scale.of(tasks.split("train"))
    assert not model.training


def test_manifest_records_settings_system_and_costs(model_folder: Path, tasks: Tasks) -> None:
    manifest = read_json(model_folder / MANIFEST)
    assert manifest["spec"]["training"]["epochs"] == 2
    assert manifest["system"]["name"] == "transcription"
    assert manifest["training_tasks"] == len(tasks.split("train"))
    assert manifest["training_cpu_s"] > 0


def test_history_has_a_row_an_epoch(model_folder: Path) -> None:
    history = columns(model_folder)
    assert history["epoch"].tolist() == [1, 2]
    assert np.isfinite(history.to_numpy()).all()


def test_tasks_are_observed_anew_at_other_points_with_noise_of_the_same_size(
    training_spec: Spec, tasks: Tasks
) -> None:
    training_spec["training"]["reobserve"] = True
    spec = validate(TrainSpec, training_spec, "test")
    trainer = ReobservingTrainer(tasks, spec, torch.device("cpu"), SIMULATION)
    train, scale = tasks.split("train"), trainer.scale
    (first, _), (second, _) = trainer._epoch_tasks(), trainer._epoch_tasks()
    assert first.y.shape == trainer.train[0].y.shape
    assert not torch.equal(first.x, second.x)
    grid = scale.inputs(train["x_query"])[..., 0]
    place = (first.x[:, :, None, 0] - grid[:, None]).abs().argmin(-1)
    torch.testing.assert_close(grid.gather(1, place), first.x[..., 0])
    truth = scale.values(train["h_query"]).gather(
        2, place[:, None].expand(-1, first.y.shape[1], -1)
    )
    deviations = (first.y - truth) / first.y_sd
    assert abs(float(deviations.std()) - 1) < 0.1
    assert set(first.y_sd.flatten().tolist()) <= set(trainer.train[0].y_sd.flatten().tolist())


def test_measurements_cannot_be_learnt_from(training_spec: Spec, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no train split"):
        training.run(training_spec, load_embedded("p53-mmgmos"), tmp_path)


def test_unknown_setting_is_refused_before_anything_is_written(
    training_spec: Spec, tasks: Tasks, tmp_path: Path
) -> None:
    training_spec["training"]["epoch"] = 3
    with pytest.raises(ConfigError, match=r"training\.epoch: unknown key; did you mean 'epochs'"):
        training.run(training_spec, tasks, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_cpu_is_always_there() -> None:
    assert choose_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize(("there", "kind"), [(True, "cuda"), (False, "cpu")])
def test_auto_takes_cuda_where_it_is(
    monkeypatch: pytest.MonkeyPatch, there: bool, kind: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    assert choose_device("auto").type == kind


def test_absent_cuda_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DklfmError, match=r"'cuda:1' was asked for.*use cpu"):
        choose_device("cuda:1")


@pytest.mark.parametrize("name", ["gpu", "", "cuda:first"])
def test_unknown_device_is_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(DklfmError, match="cpu"):
        choose_device(name)
