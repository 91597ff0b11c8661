"""Models for a stream of tasks: what they must not depend on, and that they learn."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dklfm import simulate, training
from dklfm.config import TrainSpec, resolved, validate
from dklfm.errors import ConfigError, DataError
from dklfm.methods import TrainedModel
from dklfm.model import DKLFM, AmortisedLFM, Batch, ForceModel, OperatorLFM, build_model
from dklfm.model.interpolation import spline_weights
from dklfm.model.trust import P_VALUES
from dklfm.tasks import Tasks
from dklfm.training import StreamTrainer

SMALL: dict[str, dict[str, Any]] = {
    "operator": {"nodes": 10, "width": 16, "layers": 2, "heads": 2, "coordinates": 3},
    "kernel_route": {
        "embedding": 8,
        "encoder": {"width": 16, "layers": 1, "heads": 2},
        "kernel": {"width": 16, "blocks": 1, "coordinates": 4},
        "noise": "given",
    },
    # Its grid must tell the outputs' modes apart to below the noise.
    "linearised": {
        "nodes": 31,
        "modes": 13,
        "force_modes": 8,
        "unknowns": 4,
        "width": 32,
        "layers": 2,
        "heads": 2,
    },
}
SIMULATION: dict[str, Any] = {
    "system": {
        "name": "transcription",
        "genes": 3,
        "response": "identity",
        "steps": 40,
        "prior": {"name": "lognormal", "spread": 0.1},
    },
    "tasks": {
        "counts": {"train": 0, "validation": 24, "test": 6},
        "mesh": {"points": 14},
        "query": 15,
        "noise": {"name": "loguniform", "low": 0.01, "high": 0.1},
    },
}
SPEC: dict[str, Any] = {
    "method": "dklfm_stream",
    "training": {
        "tasks": 64,
        "epochs": 110,
        "batch_size": 16,
        "learning_rate": 5e-3,
        "average": 0.9,
        "least_points": 8,
        "least_outputs": 1,
        "validate_every": 10,
        "queries": 11,
    },
}  # fmt: skip


SOLVED = SMALL["linearised"] | {
    "name": "linearised",
    "solution": {"degree": 2, "response_modes": 8, "laws": 2, "iterations": 8},
}


def batch(tasks: int = 2, outputs: int = 3, points: int = 9, axes: int = 1) -> Batch:
    generator = torch.Generator().manual_seed(0)
    shape = (tasks, outputs, points)
    y = torch.randn(shape, generator=generator)
    mask = torch.rand(shape, generator=generator) < 0.8
    return Batch(
        torch.rand((tasks, points, axes), generator=generator),
        torch.where(mask, y, 0.0),
        torch.full(shape, 0.1),
        mask,
    )


def model(kind: str = "operator", axes: int = 1, exchangeable: bool = True) -> ForceModel:
    torch.manual_seed(0)
    return build_model(about(kind, exchangeable), axes, outputs=3).eval()


def about(kind: str, exchangeable: bool = True, seed: int = 0) -> TrainSpec:
    section = {"name": kind, "exchangeable": exchangeable} | (SMALL | {"solved": SOLVED})[kind]
    # Tasks of a linearised equation cost little, and it needs more of them.
    own = {"tasks": 256, "learning_rate": 2e-3} if section["name"] == "linearised" else {}
    if kind == "solved":
        own["epochs"] = 20
    chosen = {"model": section, "training": SPEC["training"] | own, "seed": seed}
    return validate(TrainSpec, SPEC | chosen, "test")


KINDS = pytest.mark.parametrize("kind", SMALL)
X = torch.linspace(0, 1, 7)[None, :, None].expand(2, -1, -1)


@KINDS
def test_the_order_of_points_and_outputs_does_not_matter(kind: str) -> None:
    seen, net = batch(), model(kind)
    moments = net.posterior(seen, X)
    points, outputs = torch.randperm(9), torch.tensor([2, 0, 1])
    turned = net.posterior(seen.points(points).outputs(outputs), X)
    torch.testing.assert_close(turned.force_mean, moments.force_mean, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(
        turned.output_mean, moments.output_mean[:, outputs], atol=1e-5, rtol=1e-4
    )


@KINDS
@pytest.mark.parametrize("exchangeable", [True, False])
def test_an_output_without_observations_is_as_if_it_were_not_there(
    exchangeable: bool, kind: str
) -> None:
    seen, net = batch(), model(kind, exchangeable=exchangeable)
    hidden = net.posterior(seen.only(torch.tensor([0, 2])), X)
    if exchangeable:
        fewer = net.posterior(seen.outputs(torch.tensor([0, 2])), X)
        torch.testing.assert_close(fewer.force_mean, hidden.force_mean, atol=1e-5, rtol=1e-4)
    full = net.posterior(seen, X)
    assert not torch.allclose(hidden.force_mean, full.force_mean, atol=1e-4)


@KINDS
def test_values_at_masked_points_are_not_looked_at(kind: str) -> None:
    seen, net = batch(), model(kind)
    spoilt = Batch(seen.x, torch.where(seen.mask, seen.y, 1e3), seen.y_sd, seen.mask)
    torch.testing.assert_close(net.posterior(spoilt, X), net.posterior(seen, X))


@KINDS
@pytest.mark.parametrize("axes", [1, 2])
def test_the_covariance_is_one_and_its_diagonal_the_variance(axes: int, kind: str) -> None:
    net = model(kind, axes)
    assert isinstance(net, DKLFM | AmortisedLFM)
    x = torch.rand(2, 8, axes)
    moments = net.posterior(batch(axes=axes), x, covariance=True)
    assert moments.force_covariance is not None
    torch.testing.assert_close(
        moments.force_covariance.diagonal(dim1=-2, dim2=-1), moments.force_variance
    )
    assert torch.linalg.eigvalsh(moments.force_covariance).min() > 0


@KINDS
def test_outputs_that_differ_in_law_cannot_be_of_another_number(kind: str) -> None:
    with pytest.raises(DataError, match="have 2 outputs, dklfm_stream was trained on 3 that"):
        model(kind, exchangeable=False).posterior(batch(outputs=2), X)


@pytest.fixture(scope="module", autouse=True)
def _few_simulated_tasks() -> Iterator[None]:
    """For modes and for what tasks look like: as many as a package ships with take minutes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dklfm.training.stream._LINEAR_TASKS", 2048)
        patch.setattr("dklfm.training.runs._TRUST_TASKS", (64, 64, 64))
        yield


@pytest.fixture(scope="module", params=[*SMALL, "solved"])
def trained(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[TrainSpec, Tasks, Path]:
    folder = tmp_path_factory.mktemp("stream")
    tasks = simulate.run(SIMULATION, folder / "tasks")
    spec = about(request.param)
    training.run(resolved(spec), tasks, folder / "model", simulation=SIMULATION)
    return spec, tasks, folder / "model"


def test_it_learns_from_a_stream(trained: tuple[TrainSpec, Tasks, Path]) -> None:
    _, tasks, folder = trained
    test = tasks.split("test")
    method = TrainedModel.load(folder)
    assert method.name == "dklfm_stream"
    posterior = method.infer(test)
    error = np.square(posterior["force_mean"] - test["f"]).mean()
    assert error < 0.6 * np.square(test["f"]).mean()
    output_error = np.square(posterior["output_query_mean"] - test["h_query"]).mean()
    assert output_error < 0.05 * test["h_query"].var(-1).mean()
    spread = test["h"].std(-1, keepdims=True) * np.ones_like(test["h"])
    dims = test.data["y_sd"].dims
    sharp, noisy = (
        method.infer(Tasks(test.data.assign(y_sd=(dims, level * spread))))["force_sd"].mean()
        for level in (0.01, 0.1)  # the ends of what it was trained on
    )
    assert noisy > 1.05 * sharp


def stream(tasks: Tasks, spec: TrainSpec) -> StreamTrainer:
    return StreamTrainer(tasks, spec, torch.device("cpu"), SIMULATION)


def test_a_resumed_stream_repeats_an_undisturbed_one(
    trained: tuple[TrainSpec, Tasks, Path],
) -> None:
    spec, tasks, _ = trained
    whole, early, resumed = (stream(tasks, spec) for _ in range(3))
    for _ in range(3):
        whole.run_epoch()
    early.run_epoch()
    resumed.restore(*early.state())
    for _ in range(2):
        resumed.run_epoch()
    for name, value in whole.model.state_dict().items():
        torch.testing.assert_close(resumed.model.state_dict()[name], value, atol=0, rtol=0)


def test_every_epoch_and_seed_has_tasks_of_its_own(
    trained: tuple[TrainSpec, Tasks, Path],
) -> None:
    spec, tasks, _ = trained
    forces = []
    for seed in (0, 1):
        trainer = stream(tasks, spec.model_copy(update={"seed": seed}))
        for trainer.epoch in (0, 1):
            force = trainer._epoch_tasks()[0].f
            assert force is not None
            forces.append(force)
    assert len(torch.unique(torch.cat(forces), dim=0)) == 4 * len(force)


def observed(times: int, mesh: dict[str, Any]) -> StreamTrainer:
    """A stream whose epochs see each of four tasks so many times."""
    settings = SIMULATION["tasks"] | {"mesh": {"points": 14, **mesh}}
    simulation = SIMULATION | {"tasks": settings}
    tasks = simulate.assemble(*_few(simulation))
    wanted = {"tasks": 4, "observations": times, "least_points": None, "least_outputs": None}
    spec = SPEC | {"model": {"name": "linearised"} | SMALL["linearised"]}
    checked = validate(TrainSpec, spec | {"training": SPEC["training"] | wanted}, "test")
    return StreamTrainer(tasks, checked, torch.device("cpu"), simulation)


def _few(simulation: dict[str, Any]) -> tuple[Any, ...]:
    system, config = simulate.parse_spec(simulation, "test")
    codes = np.ones(2, dtype=np.int8)
    return system, codes, simulate.simulate(system, config, codes, np.arange(2))


def test_a_task_is_observed_several_times_at_other_points_with_other_noise() -> None:
    trainer = observed(3, {"spacing": "irregular"})
    truth, context = trainer._epoch_tasks()
    assert truth.f is not None
    assert context.y.shape == (12, 3, 14)
    assert len(torch.unique(truth.f, dim=0)) == 4
    assert (truth.f.unflatten(0, (4, 3)) == truth.f[::3, None]).all()
    assert (context.x.diff(dim=1) >= 0).all()
    times = context.x.reshape(4, 3 * 14)
    assert all(len(torch.unique(each)) == 3 * 14 for each in times)
    # What is seen is the truth of the very task, but for its noise.
    weights = spline_weights((15,), context.x)
    truth_there = (weights[:, None] @ truth.y[..., None])[..., 0]
    white = (context.y - truth_there) / context.y_sd
    assert white.square().mean().sqrt() < 3
    again = observed(3, {"spacing": "irregular"})._epoch_tasks()[1]
    torch.testing.assert_close(again.y, context.y, atol=0, rtol=0)
    trainer.epoch = 1
    assert not torch.isin(trainer._epoch_tasks()[1].x, context.x).any()


def test_several_observations_need_random_times() -> None:
    with pytest.raises(ConfigError, match="other random times: it needs a system of one axis"):
        observed(2, {"spacing": "regular"})


def test_few_outputs_are_seen_as_often_as_many(
    trained: tuple[TrainSpec, Tasks, Path],
) -> None:
    spec, tasks, _ = trained
    shares = {}
    for few in (True, False):
        drawn = spec.training.model_copy(update={"least_outputs": 1, "few_outputs": few})
        trainer = stream(tasks, spec.model_copy(update={"training": drawn}))
        seen = [trainer._seen_outputs(15) for _ in range(1000)]
        counts = torch.tensor([len(each.unique()) for each in seen if each is not None])
        assert len(counts) == 1000
        assert counts.min() == 1
        assert counts.max() == 15
        # One, two or three, four to seven, and more.
        shares[few] = counts.double().log2().long().bincount(minlength=4) / 1000
    torch.testing.assert_close(shares[True], torch.full((4,), 0.25), atol=0.06, rtol=0)
    assert shares[False][3] > 0.45


def test_who_has_not_learnt_to_tell_strangers_says_nothing_of_them(
    trained: tuple[TrainSpec, Tasks, Path], tmp_path: Path
) -> None:
    spec, tasks, folder = trained
    once = spec.training.model_copy(update={"epochs": 1, "validate_every": 1})
    silent = spec.model_copy(update={"training": once, "strangers": False})
    training.run(resolved(silent), tasks, tmp_path, simulation=SIMULATION)
    test = tasks.split("test")
    assert set(P_VALUES) <= set(TrainedModel.load(folder).infer(test).data)
    assert not set(P_VALUES) & set(TrainedModel.load(tmp_path).infer(test).data)


def test_tasks_that_were_not_simulated_have_no_stream(
    trained: tuple[TrainSpec, Tasks, Path], tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="were not simulated, so there is no stream"):
        training.run(resolved(trained[0]), trained[1], tmp_path)


def test_a_vast_deviation_does_not_drive_itself() -> None:
    """Weighted by itself without a bound, it gave gradients that grow as its exponential."""
    built, seen = model("operator").train(), batch()
    assert isinstance(built, OperatorLFM)
    torch.nn.init.constant_(built.head_force.network[-1].bias[1:2], 40.0)
    truth = replace(seen, f=torch.zeros(seen.x.shape[:2]))
    loss = built.loss(truth, seen)
    loss.backward()
    assert abs(loss.item()) < 1e3
    norms = [p.grad.norm() for p in built.parameters() if p.grad is not None]
    assert torch.stack(norms).norm() < 1e3
