"""Black boxes: what may and what may not change a prediction, and what they can learn."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.interpolate import CubicSpline
from torch import Tensor

from dklfm import simulate, training
from dklfm.artifacts import MANIFEST, read_json
from dklfm.config import TrainSpec, validate
from dklfm.errors import DataError
from dklfm.methods import TrainedModel
from dklfm.model import Batch, ForceModel, Moments, Scale, build_model, load_model
from dklfm.model.interpolation import spline_weights
from dklfm.tasks import Tasks
from dklfm.training import Trainer

METHODS = ("neural_process", "fno")
SIZES: dict[str, dict[str, Any]] = {
    "neural_process": {"width": 16, "layers": 2, "heads": 2},
    "fno": {"width": 16, "layers": 2, "modes": 3},
}
OUTPUTS, POINTS = 3, 8
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}


def spec(method: str, **settings: Any) -> TrainSpec:
    whole = {"least_points": None} if method == "fno" else {}
    settings["training"] = whole | settings.get("training", {})
    return validate(TrainSpec, {"method": method, "model": SIZES[method]} | settings, "test")


def model(method: str, axes: int = 1, outputs: int = OUTPUTS) -> ForceModel:
    torch.manual_seed(0)
    return build_model(spec(method), axes, outputs).eval()


def mesh(*shape: int) -> Tensor:
    axes = [torch.linspace(0, 1, n) for n in shape]
    return torch.cartesian_prod(*axes).reshape(1, -1, len(shape))


def batch(method: str, shape: tuple[int, ...] = (POINTS,), tasks: int = 3) -> Batch:
    """Random functions on a regular mesh for the operator, at random points for the process."""
    generator = torch.Generator().manual_seed(1)
    x = mesh(*shape).expand(tasks, -1, -1)
    if method == "neural_process":
        x = torch.rand(x.shape, generator=generator)
    y = torch.randn(tasks, OUTPUTS, x.shape[1], generator=generator)
    y_sd = torch.rand(y.shape, generator=generator)
    f = torch.randn(tasks, x.shape[1], generator=generator)
    return Batch(x, y, y_sd, torch.ones(y.shape, dtype=torch.bool), f)


def queries(axes: int = 1, tasks: int = 3) -> Tensor:
    return torch.rand(tasks, 5, axes, generator=torch.Generator().manual_seed(3))


def assert_same(found: Moments, expected: Moments) -> None:
    for name in ("force_mean", "force_variance"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), **TOLERANCE)


def assert_other(found: Moments, expected: Moments) -> None:
    assert (found.force_mean - expected.force_mean).abs().max() > 1e-3


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(POINTS,), (7, 6)])
def test_force_is_predicted_at_every_query_and_outputs_nowhere(
    method: str, shape: tuple[int, ...]
) -> None:
    found = model(method, len(shape)).posterior(batch(method, shape), queries(len(shape)))
    assert found.force_mean.shape == found.force_variance.shape == (3, 5)
    assert found.force_mean.dtype == found.force_variance.dtype == torch.float64
    assert (found.force_variance > 0).all()
    assert found.output_mean is found.output_variance is found.force_covariance is None


@pytest.mark.parametrize("method", METHODS)
def test_density_is_that_of_the_posterior_at_real_points(method: str) -> None:
    built, given = model(method), batch(method)
    if method == "neural_process":
        mask = given.mask.clone()
        mask[:, :, 2] = False
        given = replace(given, mask=mask)
    found, moments = built.log_densities(given), built.posterior(given, given.x)
    assert given.f is not None
    normal = torch.distributions.Normal(moments.force_mean, moments.force_variance.sqrt())
    real = given.mask.any(1)
    expected = torch.where(real, normal.log_prob(given.f.double()), 0.0).sum(-1)
    torch.testing.assert_close(found.force_given_outputs.double(), expected, rtol=1e-4, atol=1e-4)
    assert found.force_points.tolist() == real.sum(-1).tolist()
    assert not found.outputs.any()
    assert not found.output_points.any()


@pytest.mark.parametrize("method", METHODS)
def test_every_weight_has_a_gradient(method: str) -> None:
    built = model(method)
    built.log_densities(batch(method)).force_given_outputs.sum().backward()
    for name, parameter in built.named_parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("method", METHODS)
def test_training_without_a_force_is_refused(method: str) -> None:
    with pytest.raises(ValueError, match="observed force"):
        model(method).log_densities(replace(batch(method), f=None))


@pytest.mark.parametrize("method", METHODS)
def test_another_number_of_outputs_is_refused(method: str) -> None:
    with pytest.raises(DataError, match=r"the tasks have 2 outputs, \w+ was trained on 3"):
        model(method).posterior(batch(method).outputs(torch.tensor([0, 1])), queries())


@pytest.mark.parametrize("method", METHODS)
def test_tasks_and_queries_do_not_influence_each_other(method: str) -> None:
    built, given, x = model(method), batch(method), queries()
    together = built.posterior(given, x)
    alone = built.posterior(given.take(slice(1, 2)), x[1:2, 2:3])
    assert_same(alone, Moments(*(moment[1:2, 2:3] for moment in together[:2])))


@pytest.mark.parametrize("method", METHODS)
def test_posterior_does_not_look_at_the_force(method: str) -> None:
    built, given, x = model(method), batch(method), queries()
    assert_same(built.posterior(replace(given, f=None), x), built.posterior(given, x))


@pytest.mark.parametrize("method", METHODS)
def test_outputs_are_told_apart(method: str) -> None:
    built, given, x = model(method), batch(method), queries()
    turned = given.outputs(torch.tensor([1, 0, 2]))
    assert_other(built.posterior(turned, x), built.posterior(given, x))


@pytest.mark.parametrize("method", METHODS)
def test_hidden_output_says_nothing_but_differs_from_zeros(method: str) -> None:
    built, given, x = model(method), batch(method), queries()
    zeros = replace(given, y=given.y * torch.tensor([1.0, 0.0, 1.0])[:, None])
    hidden = given.only(torch.tensor([0, 2]))
    found = built.posterior(hidden, x)
    assert_same(built.posterior(replace(hidden, y=zeros.y), x), found)
    assert_other(built.posterior(zeros, x), found)


@pytest.mark.parametrize("axes", [1, 2])
def test_neural_process_does_not_see_the_order_of_points(axes: int) -> None:
    given = batch("neural_process", (POINTS,) if axes == 1 else (4, 2))
    built, x = model("neural_process", axes), queries(axes)
    order = torch.randperm(POINTS, generator=torch.Generator().manual_seed(4))
    assert_same(built.posterior(given.points(order), x), built.posterior(given, x))


def test_neural_process_does_not_see_masked_values() -> None:
    built, given, x = model("neural_process"), batch("neural_process"), queries()
    mask = torch.rand(given.mask.shape, generator=torch.Generator().manual_seed(2)) > 0.3
    holes = replace(given, mask=mask)
    junk = torch.where(mask, given.y, 50.0), torch.where(mask, given.y_sd, 9.0)
    assert_same(
        built.posterior(replace(holes, y=junk[0], y_sd=junk[1]), x), built.posterior(holes, x)
    )
    assert_other(built.posterior(holes, x), built.posterior(given, x))


def test_padding_changes_no_density_and_no_gradient_of_the_neural_process() -> None:
    given = batch("neural_process")
    nowhere = replace(
        given,
        mask=torch.zeros_like(given.mask),
        y=given.y + 50.0,
        f=torch.full((3, POINTS), torch.nan),
    )
    padded = Batch(
        *(
            torch.cat([getattr(part, name) for part in (nowhere, given)], dim=dim)
            for name, dim in (("x", 1), ("y", 2), ("y_sd", 2), ("mask", 2), ("f", 1))
        )
    )
    gradients, densities = [], []
    for tasks in (given, padded):
        built = model("neural_process")
        density = built.log_densities(tasks).force_given_outputs
        density.sum().backward()
        densities.append(density)
        gradients.append(torch.cat([p.grad.flatten() for p in built.parameters()]))
    torch.testing.assert_close(densities[1], densities[0], **TOLERANCE)
    assert (gradients[1] - gradients[0]).norm() < 1e-4 * gradients[0].norm()


def test_neural_process_without_observations_predicts_the_same_for_every_task() -> None:
    given = batch("neural_process")
    x = queries()[:1].expand(3, -1, -1)
    found = model("neural_process").posterior(given.only(torch.tensor([], dtype=torch.long)), x)
    assert found.force_mean.isfinite().all()
    assert_same(found, Moments(*(moment[:1].expand(3, -1) for moment in found[:2])))


def test_noise_that_is_stated_changes_what_the_neural_process_infers() -> None:
    built, given, x = model("neural_process"), batch("neural_process"), queries()
    noisy = replace(given, y_sd=5 * given.y_sd)
    assert_other(built.posterior(noisy, x), built.posterior(given, x))


def test_operator_refuses_irregular_meshes_and_missing_points() -> None:
    built, given, x = model("fno"), batch("fno"), queries()
    mask = given.mask.clone()
    mask[0, 1, 3] = False
    for refused in (replace(given, x=batch("neural_process").x), replace(given, mask=mask)):
        with pytest.raises(DataError, match="every output on one full regular mesh"):
            built.posterior(refused, x)


def test_operator_refuses_queries_outside_its_mesh() -> None:
    with pytest.raises(DataError, match="queries lie outside it"):
        model("fno").posterior(batch("fno"), queries() + 0.5)


def test_operator_is_the_cubic_spline_of_its_values_on_the_mesh() -> None:
    built, given = model("fno"), batch("fno")
    x = queries()
    mean, log_variance = built.predict(given, given.x)
    found_mean, found_log_variance = built.predict(given, x)
    for i in range(3):
        for values, found in ((mean, found_mean), (log_variance, found_log_variance)):
            spline = CubicSpline(given.x[i, :, 0].numpy(), values[i].detach().numpy())
            expected = torch.from_numpy(spline(x[i, :, 0].numpy())).float()
            torch.testing.assert_close(found[i].detach(), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("axis", [0, 1])
def test_operator_takes_mirrored_meshes(axis: int) -> None:
    built, given, x = model("fno", axes=2), batch("fno", (7, 6)), queries(axes=2)
    chosen = torch.tensor([True, False, True])
    mirrored = given.reflected(axis, chosen)
    flipped = given.y.unflatten(-1, (7, 6)).flip(2 + axis).flatten(2)
    turned = replace(given, y=torch.where(chosen[:, None, None], flipped, given.y))
    assert_same(built.posterior(mirrored, x), built.posterior(turned, x))


@pytest.mark.parametrize("seed", range(3))
def test_operator_hardly_depends_on_resolution(seed: int) -> None:
    torch.manual_seed(seed)
    built, at = build_model(spec("fno"), 1, 1).eval(), torch.linspace(0, 1, 9)[None, :, None]

    def predicted(n: int, cycles: int = 1) -> Tensor:
        y = torch.sin(2 * torch.pi * cycles * mesh(n)[..., 0] + 0.3)[:, None]
        given = Batch(mesh(n), y, torch.zeros_like(y), torch.ones_like(y).bool())
        return built.posterior(given, at).force_mean

    difference = (predicted(64, cycles=2) - predicted(64)).norm()
    coarse, fine = (predicted(32) - predicted(64)).norm(), (predicted(64) - predicted(128)).norm()
    assert coarse < 0.2 * difference
    assert fine < 0.65 * coarse


@pytest.mark.parametrize("shape", [(6,), (6, 5), (4, 5, 4)])
def test_splines_reproduce_products_of_cubics(shape: tuple[int, ...]) -> None:
    nodes, x = mesh(*shape).double(), queries(len(shape)).double()

    def cubic(at: Tensor) -> Tensor:
        return (1 - 2 * at + 3 * at**2 - at**3 * torch.arange(1, len(shape) + 1)).prod(-1)

    weights = spline_weights(shape, x, nodes[0, 0], nodes[0, -1])
    torch.testing.assert_close(weights @ cubic(nodes[0]), cubic(x))


def noisy_copies(method: str, tasks: int, noise: float, seed: int) -> tuple[Batch, Tensor]:
    """Outputs (f, −f) + noise of a force f ~ GP(0, RBF), and the force's prior covariance."""
    generator = torch.Generator().manual_seed(seed)
    x = mesh(POINTS).expand(tasks, -1, -1)
    if method == "neural_process":
        x = torch.rand(x.shape, generator=generator)
    covariance = torch.exp(-2 * (x - x.mT).double().square()) + 1e-6 * torch.eye(POINTS)
    white = torch.randn(tasks, POINTS, 1, generator=generator).double()
    f = (torch.linalg.cholesky(covariance) @ white)[..., 0].float()
    y = torch.stack([f, -f], dim=1)
    y = y + noise * torch.randn(y.shape, generator=generator)
    return Batch(x, y, torch.full_like(y, noise), torch.ones_like(y).bool(), f), covariance


@pytest.mark.parametrize("method", METHODS)
def test_black_box_comes_near_the_exact_posterior_of_a_linear_system(method: str) -> None:
    noise, steps = 0.5, 300
    torch.manual_seed(0)
    built = build_model(spec(method, model={"width": 32, "layers": 1}), axes=1, outputs=2)
    optimiser = torch.optim.AdamW(built.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 5e-3, total_steps=steps)
    for seed in range(1, steps + 1):
        densities = built.log_densities(noisy_copies(method, 64, noise, seed)[0])
        optimiser.zero_grad()
        (-densities.force_given_outputs / densities.force_points).mean().backward()
        optimiser.step()
        schedule.step()

    test, prior = noisy_copies(method, 1000, noise, seed=0)
    assert test.f is not None
    # Half the difference of both outputs says all that they say, with half the variance of noise.
    observed, variance = (test.y[:, :1] - test.y[:, 1:]).double() / 2, noise**2 / 2
    gain = torch.linalg.solve(prior + variance * torch.eye(POINTS), prior).mT
    posterior = (prior - gain @ prior).diagonal(dim1=1, dim2=2)
    alone = 1 / (1 + variance)  # the gain of a point that does not look at the others

    def density(mean: Tensor, variance: Tensor) -> float:
        normal = torch.distributions.Normal(mean, variance.sqrt())
        return normal.log_prob(test.f.double()).mean().item()

    exact = density((gain @ observed.mT)[..., 0], posterior)
    pointwise = density(alone * observed[:, 0], torch.tensor(alone * variance))
    with torch.no_grad():
        found = built.eval().log_densities(test).force_given_outputs.mean().item() / POINTS
    assert exact - 0.25 * (exact - pointwise) < found < exact + 0.01


@pytest.fixture(scope="module", params=METHODS)
def trained(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Tasks, Path]:
    """A black box trained for a few epochs on fields, with all that augments them."""
    folder = tmp_path_factory.mktemp(request.param)
    simulation = {
        "system": {"name": "reaction_diffusion"},
        "tasks": {
            "counts": {"train": 16, "validation": 6, "test": 4},
            "mesh": {"spacing": "regular", "points": 5},
            "query": 4,
        },
    }
    tasks = simulate.run(simulation, folder / "tasks")
    some = {"least_points": 10, "most_points": 15} if request.param == "neural_process" else {}
    settings = {"epochs": 4, "batch_size": 8, "validate_every": 2, "conditional_weight": 1.0}
    symmetries = {"reflect_axes": [0], "negate": True}
    about = spec(request.param, training=settings | symmetries | some)
    training.run(about.model_dump(), tasks, folder / "model", simulation=simulation)
    return request.param, tasks, folder / "model"


def test_trained_black_box_is_read_back_as_it_was(trained: tuple[str, Tasks, Path]) -> None:
    method, tasks, folder = trained
    built, scale = load_model(folder)
    assert built.method == method
    assert not built.training
    assert scale == Scale.of(tasks.split("train"))
    assert read_json(folder / MANIFEST)["outputs"] == 1


def test_trained_black_box_is_a_method_of_its_name(trained: tuple[str, Tasks, Path]) -> None:
    method, tasks, folder = trained
    loaded, test = TrainedModel.load(folder), tasks.split("test")
    assert loaded.name == method
    posterior = loaded.infer(test)
    assert set(posterior.data) == {"force_mean", "force_sd", "cpu_seconds"}
    x = loaded.scale.inputs(test["x_query"])
    moments = loaded.model.posterior(Batch.of(test, loaded.scale), x)
    mean = loaded.scale.force_mean + loaded.scale.force_sd * moments.force_mean.numpy()
    np.testing.assert_allclose(posterior["force_mean"], mean, rtol=1e-4, atol=1e-5)


def test_calibrated_intervals_cover_validation_tasks(trained: tuple[str, Tasks, Path]) -> None:
    _, tasks, folder = trained
    validation = tasks.split("validation")
    posterior = TrainedModel.load(folder).infer(validation)
    error = np.abs(posterior["force_mean"] - validation["f"])
    assert (error < 1.96 * posterior["force_sd"]).mean() == pytest.approx(0.95, abs=0.02)


def test_history_of_a_black_box_knows_no_coupling(trained: tuple[str, Tasks, Path]) -> None:
    history = pd.read_csv(trained[2] / "history.csv")
    assert "coupling" not in history
    looked = history.dropna()
    assert looked["epoch"].tolist() == [2, 4]
    np.testing.assert_array_equal(looked["validation_loss"], looked["validation_force_nll"])


def test_resumed_training_of_a_black_box_repeats_an_undisturbed_one(
    trained: tuple[str, Tasks, Path],
) -> None:
    about = spec(trained[0], training={"epochs": 3, "batch_size": 8})
    whole, resumed = (Trainer(trained[1], about, torch.device("cpu")) for _ in range(2))
    whole.run_epoch()
    resumed.restore(*copy.deepcopy(whole.state()))
    for trainer in (whole, resumed):
        trainer.run_epoch()
    for name, value in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value)


def test_neural_process_trains_on_all_points_from_some_with_outputs_masked(tasks: Tasks) -> None:
    about = spec("neural_process", training={"least_points": 2, "most_points": 4})
    trainer = Trainer(tasks, about, torch.device("cpu"))
    for _ in range(5):
        whole, seen = trainer._augmented(*trainer.train)
        assert whole.mask.all()
        assert whole.x.shape[1] == 8
        assert 2 <= seen.x.shape[1] <= 4
        shown = seen.mask[:, :, :1]
        assert torch.equal(seen.mask, shown.expand_as(seen.mask))
        assert 2 <= shown[0].sum() <= 5
        assert seen.y.shape[1] == 5


def test_neural_process_takes_irregular_tasks_and_the_operator_refuses_them(
    tasks: Tasks, tmp_path: Path
) -> None:
    settings = {"epochs": 1, "batch_size": 8}
    about = spec("neural_process", training=settings)
    training.run(about.model_dump(), tasks, tmp_path / "process")
    assert (tmp_path / "process" / MANIFEST).exists()
    about = spec("fno", training=settings)
    with pytest.raises(DataError, match="one full regular mesh"):
        training.run(about.model_dump(), tasks, tmp_path / "operator")
