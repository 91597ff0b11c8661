"""The deep latent force model against quadrature, automatic differentiation and known outputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.integrate import quad
from torch.distributions import Normal, kl_divergence

from dklfm import simulate
from dklfm.config.references import DeepLFMConfig
from dklfm.methods.deeplfm import DeepLFM, ResponseLayer
from dklfm.systems import Transcription
from dklfm.tasks import Tasks

Array = NDArray[np.float64]
QUICK = DeepLFMConfig(features=50, samples=10, iterations=200)
LINEAR: dict[str, Any] = {"name": "transcription", "genes": 3, "response": "identity"}


def layer_of(inputs: int, outputs: int, features: int, seed: int = 1) -> ResponseLayer:
    return ResponseLayer(
        inputs,
        outputs,
        features,
        lengthscale=0.3,
        decay=1.5,
        sensitivity=2.0,
        mean_sd=1.0,
        sd=1.0,
        generator=torch.Generator().manual_seed(seed),
    ).double()


def slopes(layer: ResponseLayer, times: torch.Tensor) -> dict[str, torch.Tensor]:
    """Derivatives of the mean by each group of weights, ``output x point x weight...``."""
    weights = {name: getattr(layer, name).detach() for name in ("real", "imaginary", "initial")}

    def mean(given: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.func.functional_call(layer, given, (times,))[0]

    return {name: slope.detach() for name, slope in torch.func.jacrev(mean)(weights).items()}


def tasks_of(system: dict[str, Any], **settings: Any) -> tuple[DeepLFM, Tasks]:
    spec = {
        "system": system,
        "tasks": {"counts": {"train": 0, "validation": 0, "test": 1}, "seed": 5, **settings},
    }
    parsed, config = simulate.parse_spec(spec, "test")
    codes = np.full(1, 2, dtype=np.int8)
    arrays = simulate.simulate(parsed, config, codes, np.arange(1))
    return DeepLFM(parsed, QUICK), simulate.assemble(parsed, codes, arrays)


def z_mse(mean: Array, truth: Array) -> float:
    return float(np.max(np.mean((mean - truth) ** 2, -1) / np.var(truth, -1)))


@pytest.fixture(scope="module")
def linear() -> tuple[DeepLFM, Tasks]:
    return tasks_of(LINEAR, query=13)


def test_features_are_waves_convolved_with_the_greens_function() -> None:
    layer, times = layer_of(1, 1, 3), np.array([0.0, 0.2, 0.7, 1.3])
    found = slopes(layer, torch.tensor(times)[None])

    def driven(s: float, t: float, frequency: float, phase: float) -> float:
        return float(np.exp(-1.5 * (t - s)) * np.cos(frequency * s - phase))

    for m, frequency in enumerate(layer.white_frequency[0].numpy() / 0.3):
        for weights, phase in (("real", 0.0), ("imaginary", np.pi / 2)):
            expected = [quad(driven, 0, t, args=(t, frequency, phase))[0] for t in times]
            response = found[weights][0, :, 0, 0, m] * np.sqrt(3) / 2
            np.testing.assert_allclose(response, expected, atol=1e-7)
    np.testing.assert_allclose(found["initial"][0, :, 0, 0], np.exp(-1.5 * times), atol=1e-7)


def test_the_kernel_tends_to_that_of_the_linear_equation_as_features_grow() -> None:
    times = np.linspace(0.1, 1.5, 8)
    nodes, quadrature = np.polynomial.legendre.leggauss(60)
    # Gauss–Legendre over [0, t]: Green's function at the nodes, times the weights of the rule.
    s = 0.5 * times[:, None] * (nodes + 1)
    green = 2.0 * np.exp(-1.5 * (times[:, None] - s)) * 0.5 * times[:, None] * quadrature
    force = np.exp(-0.5 * ((s[:, :, None, None] - s) / 0.3) ** 2)
    exact = np.einsum("im,imjn,jn->ij", green, force, green)

    def error(features: int) -> float:
        errors = []
        for seed in range(5):
            found = slopes(layer_of(1, 1, features, seed=seed), torch.tensor(times)[None])
            phi = torch.cat([found["real"], found["imaginary"]], -1)[0].flatten(1)
            errors.append(abs((phi @ phi.T).numpy() - exact).max() / exact.max())
        return float(np.mean(errors))

    few, many = error(100), error(10_000)
    assert many < 0.01
    assert 5 < few / many < 20  # as 1 / √features


def test_moments_are_those_of_a_linear_map_of_independent_weights() -> None:
    layer = layer_of(2, 3, 4)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    x = torch.rand(2, 5, generator=generator, dtype=torch.float64)
    sds = {"real": layer.log_sd, "imaginary": layer.log_sd, "initial": layer.log_initial_sd}
    parts = [
        (slope * getattr(layer, name), (slope * sds[name].exp()).square())
        for name, slope in slopes(layer, x).items()
    ]
    expected = (
        sum(part.flatten(2).sum(-1) for part in group) for group in zip(*parts, strict=True)
    )
    for moment, value in zip(layer(x), expected, strict=True):
        torch.testing.assert_close(moment, value)


def test_divergence_is_the_sum_over_independent_gaussians() -> None:
    layer = layer_of(2, 3, 4)
    with torch.no_grad():
        layer.log_sd -= 1.0
        layer.initial += 0.5
    expected = sum(
        kl_divergence(Normal(mean, sd.exp()), Normal(0.0, 1.0)).sum()
        for mean, sd in (
            (layer.real, layer.log_sd),
            (layer.imaginary, layer.log_sd),
            (layer.initial, layer.log_initial_sd),
        )
    )
    torch.testing.assert_close(layer.divergence(), expected)


def test_outputs_of_a_linear_system_are_recovered(linear: tuple[DeepLFM, Tasks]) -> None:
    method, task = linear
    fit = method.fit(task)
    truth = np.concatenate([task["h"][0], task["h_query"][0]], -1)
    assert fit.force_mean is None
    assert fit.force_variance is None
    assert fit.output_mean.shape == fit.output_variance.shape == truth.shape
    assert z_mse(fit.output_mean[:, :30], task["h"][0]) < 0.01
    assert z_mse(fit.output_mean, truth) < 0.1
    assert np.mean(abs(fit.output_mean - truth) < 3 * np.sqrt(fit.output_variance)) > 0.9


def test_noise_that_is_not_stated_is_learnt(linear: tuple[DeepLFM, Tasks]) -> None:
    method, task = linear
    fit = method.fit(Tasks(task.data.drop_vars("y_sd")))
    assert z_mse(fit.output_mean[:, :30], task["h"][0]) < 0.05


def test_one_layer_explains_a_linear_system() -> None:
    method, task = tasks_of(LINEAR)
    shallow = DeepLFM(method.system, QUICK.model_copy(update={"layers": 1}))
    assert z_mse(shallow.fit(task).output_mean[:, :30], task["h"][0]) < 0.2


def test_missing_values_are_recovered_and_padding_is_harmless(
    linear: tuple[DeepLFM, Tasks],
) -> None:
    method, task = linear
    data = task.data.copy(deep=True)
    for name in ("y", "y_sd"):
        data[name][0, 0, 10:20:3] = np.nan
        data[name][0, :, -1] = np.nan
        data[name][0, 2] = np.nan
    data["x"][0, -1] = np.nan
    fit = method.fit(Tasks(data))
    assert np.isfinite(fit.output_mean).all()
    assert (fit.output_variance > 0).all()
    assert z_mse(fit.output_mean[:2, :29], task["h"][0, :2, :29]) < 0.05


def test_outputs_come_in_the_units_of_the_task(linear: tuple[DeepLFM, Tasks]) -> None:
    _, task = linear
    method = DeepLFM(Transcription(), QUICK.model_copy(update={"iterations": 10}))
    data = task.data.copy(deep=True)
    data["y"] = 50 + 1000 * data["y"]
    data["y_sd"] = 1000 * data["y_sd"]
    there, here = method.fit(Tasks(data)), method.fit(task)
    np.testing.assert_allclose(there.output_mean, 50 + 1000 * here.output_mean, rtol=1e-3)
    np.testing.assert_allclose(there.output_variance, 1e6 * here.output_variance, rtol=1e-2)


def test_fits_are_deterministic_and_leave_the_global_generator_alone(
    linear: tuple[DeepLFM, Tasks],
) -> None:
    method, task = linear
    quick = DeepLFM(method.system, QUICK.model_copy(update={"iterations": 5}))
    before = torch.get_rng_state()
    first = quick.fit(task)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(1)
    second = quick.fit(task)
    np.testing.assert_array_equal(first.output_mean, second.output_mean)
    np.testing.assert_array_equal(first.output_variance, second.output_variance)


def test_fields_over_two_inputs_are_recovered() -> None:
    mesh = {"spacing": "regular", "points": 12}
    method, task = tasks_of({"name": "reaction_diffusion"}, mesh=mesh, query=7, noise=0.01)
    fit = method.fit(task)
    assert fit.output_mean.shape == (1, 144 + 49)
    assert z_mse(fit.output_mean[:, 144:], task["h_query"][0]) < 0.1
