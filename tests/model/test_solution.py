"""A solution operator by least squares, and posteriors by iterating on it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import softplus

from dklfm.config import SolutionConfig, TrainSpec, validate
from dklfm.errors import ConfigError
from dklfm.model import LinearisedLFM, Scale, Statistics, build_model
from dklfm.model.importance import flattened
from dklfm.model.interpolation import spline_weights
from dklfm.model.smoothing import even_grid
from dklfm.model.solution import SolutionOperator, _laws
from dklfm.model.trust import filled
from tests.model.test_linearised import observed

NODES, FORCE = 31, 4
GRID = even_grid((NODES,))[:, 0]
WAVES = torch.stack([(k * torch.pi * GRID).sin() / k for k in range(1, 1 + FORCE)])
X = torch.linspace(0, 1, 9)[None, :, None]


def equation(theta: Tensor, force: Tensor, spread: float, exchangeable: bool) -> Tensor:
    """b_j + s_j softplus(f) with log-normal b and s; ``task x output x node``."""
    basal, sensitivity = parameters(theta, spread, exchangeable).unbind(-1)
    return basal[..., None] + sensitivity[..., None] * softplus(force)[:, None]


def parameters(theta: Tensor, spread: float, exchangeable: bool) -> Tensor:
    """Positive, of ``task x output x 2`` standard normal numbers."""
    median = torch.tensor([[0.5, 1.0], [0.5, 1.0]] if exchangeable else [[0.5, 1.0], [1.5, 2.0]])
    return median * (spread * theta).exp()


def tasks(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """θ, ``task x output x 2``, and force, ``task x node``."""
    generator = torch.Generator().manual_seed(seed)
    theta = torch.randn(count, 2, 2, generator=generator, dtype=torch.float64)
    return theta, torch.randn(count, FORCE, generator=generator, dtype=torch.float64) @ WAVES


def fresh(exchangeable: bool = False, **solution: Any) -> LinearisedLFM:
    section = {"name": "linearised", "nodes": NODES, "modes": 12, "force_modes": FORCE}
    section |= {"width": 16, "layers": 1, "heads": 2, "unknowns": 0, "exchangeable": exchangeable}
    about = {"parameters": 2, "degree": 2, "response_modes": 10, "laws": 1, "iterations": 15}
    section["solution"] = about | solution
    spec = validate(TrainSpec, {"method": "dklfm_stream", "model": section}, "test")
    torch.manual_seed(0)
    built = build_model(spec, axes=1, outputs=2)
    assert isinstance(built, LinearisedLFM)
    return built.eval()


def taught(
    exchangeable: bool = False, spread: float = 0.3, **solution: Any
) -> tuple[LinearisedLFM, SolutionOperator]:
    model = fresh(exchangeable, **solution)
    theta, force = tasks(4000)
    outputs = equation(theta, force, spread, exchangeable)
    model.learn(outputs, force)
    assert model.solution is not None
    of_each = parameters(theta, spread, exchangeable)
    model.solution.learn(model.modes, outputs, force, of_each, softplus)
    return model, model.solution


def unknowns(solution: SolutionOperator, theta: Tensor, force: Tensor) -> tuple[Tensor, Tensor]:
    """Of tasks in the operator's own coordinates: weights of the force and its θ."""
    back = torch.linalg.pinv(solution.force_basis)
    kinds = len(solution.operator)
    of_each = parameters(theta, 0.3, kinds == 1)
    own = [solution._white(of_each[:, j], min(j, kinds - 1)) for j in range(2)]
    return (force - solution.force_mean) @ back.mT, torch.stack(own, 1)


@pytest.mark.parametrize("exchangeable", [True, False])
def test_an_equation_of_such_products_is_learnt_exactly(exchangeable: bool) -> None:
    model, solution = taught(exchangeable)
    theta, force = tasks(50, seed=1)
    found = solution.solve(*unknowns(solution, theta, force)).weights
    modes = model.modes
    there = modes.mean + (modes.basis.double() @ found[..., None])[..., 0]
    truth = equation(theta, force, 0.3, exchangeable)
    error = (there - truth).square().mean((0, 2)).sqrt()
    assert (error < 2e-3 * truth.std((0, 2))).all()
    unexplained = (modes.basis.double() @ solution.rest).square().sum(-1).mean(-1).sqrt()
    assert (unexplained < 3e-3).all()


@pytest.mark.parametrize("exchangeable", [True, False])
def test_its_derivatives_are_those_of_its_weights(exchangeable: bool) -> None:
    _, solution = taught(exchangeable)
    w, theta = unknowns(solution, *tasks(3, seed=1))
    found = solution.solve(w, theta)
    for at in range(FORCE):
        step = 1e-5 * torch.eye(FORCE)[at]
        up, down = (solution.solve(w + sign * step, theta).weights for sign in (1, -1))
        torch.testing.assert_close(
            found.by_force[..., at], (up - down) / 2e-5, atol=1e-6, rtol=1e-4
        )
    for at in range(2):
        step = 1e-5 * torch.eye(2)[at]
        up, down = (solution.solve(w, theta + sign * step).weights for sign in (1, -1))
        slope = (up - down) / 2e-5
        torch.testing.assert_close(found.by_own[..., at], slope, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("samples", [0, 16])
def test_a_linear_equation_is_inverted_exactly(samples: int) -> None:
    """With one law of the force and parameters that hardly vary the posterior is Gaussian."""
    model = fresh(degree=1, response_modes=FORCE, samples=samples)
    theta, force = tasks(4000)
    slopes = torch.tensor([1.0, -2.0])[:, None]
    outputs = slopes * force[:, None]
    model.learn(outputs, force)
    assert model.solution is not None
    of_each = parameters(theta, 1e-4, exchangeable=False)
    model.solution.learn(model.modes, outputs, force, of_each, lambda f: f)
    seen = observed(outputs[:6], 0.3)
    moments = model.posterior(seen, X.expand(6, -1, -1))

    prior = torch.cov(force.T, correction=0)
    design = torch.cat([slope * torch.eye(NODES)[::2] for slope in slopes]).double()
    noise = 0.3**2 * torch.eye(len(design)).double()
    gain = prior @ design.T @ torch.linalg.inv(design @ prior @ design.T + noise)
    mean = force.mean(0)
    residual = seen.y.double().flatten(1) - design @ mean
    read = spline_weights((NODES,), X[0].double())
    expected = read @ (mean[:, None] + gain @ residual.T)
    left = read @ (prior - gain @ design @ prior) @ read.T
    torch.testing.assert_close(moments.force_mean, expected.T, atol=5e-3, rtol=5e-3)
    variance = left.diagonal().expand(6, -1)
    torch.testing.assert_close(moments.force_variance, variance, atol=2e-4, rtol=2e-2)


@pytest.mark.parametrize("exchangeable", [True, False])
def test_the_posterior_covers_the_truth_and_is_sharper_than_the_network(
    exchangeable: bool,
) -> None:
    model, _ = taught(exchangeable)
    theta, force = tasks(300, seed=1)
    h = equation(theta, force, 0.3, exchangeable)
    seen = observed(h, 0.05)
    x = torch.linspace(0, 1, NODES)[None, :, None].expand(300, -1, -1)
    moments = model.posterior(seen, x, covariance=True)
    error = (moments.force_mean - force)[:, 1:-1]
    white = error / moments.force_variance.sqrt()[:, 1:-1]
    assert 0.92 < (white.abs() < 1.96).double().mean() < 0.98
    begun = model.laws(seen, x).force.mean[:, 0].double() - force
    assert error.square().mean() < 0.5 * begun.square().mean()
    assert moments.output_mean is not None
    assert (moments.output_mean - h).square().mean() < 0.05**2 / 2


def test_the_rest_of_the_outputs_is_noise_of_the_operator() -> None:
    model, solution = taught()
    theta, force = tasks(6, seed=1)
    seen = observed(equation(theta, force, 0.3, exchangeable=False), 0.05)
    x = X.expand(6, -1, -1)
    before = model.posterior(seen, x).force_variance
    solution.rest.mul_(0).add_(0.5 * torch.eye(12))
    assert (model.posterior(seen, x).force_variance > before)[:, 1:-1].all()


def test_noise_widens_the_posterior_and_without_observations_it_is_the_prior() -> None:
    model, solution = taught(laws=2)
    theta, force = tasks(6, seed=1)
    seen = observed(equation(theta, force, 0.3, exchangeable=False), 0.05)
    x = X.expand(6, -1, -1)
    variance = model.posterior(seen, x).force_variance[:, 1:-1]
    noisier = model.posterior(replace(seen, y_sd=5 * seen.y_sd), x).force_variance
    assert (noisier[:, 1:-1] > variance).all()
    nothing = replace(seen, y=0 * seen.y, mask=torch.zeros_like(seen.mask))
    moments = model.posterior(nothing, X.expand(6, -1, -1))
    covariance = (solution.shares[:, None, None] * solution.laws @ solution.laws.mT).sum(0)
    design = spline_weights((NODES,), X[0].double()) @ solution.force_basis
    expected = (design @ covariance @ design.T).diagonal() + 1e-6
    torch.testing.assert_close(moments.force_variance[0], expected, atol=1e-5, rtol=1e-3)


def test_laws_of_rough_and_smooth_forces_are_told_apart() -> None:
    generator = torch.Generator().manual_seed(0)
    sizes = torch.tensor([[1.0, 0.5, 0.3], [1.0, 0.05, 0.01]]).double()
    kind = (torch.rand(6000, generator=generator) < 0.25).long()
    weights = torch.randn(6000, 3, generator=generator).double() * sizes[kind]
    roots, shares = _laws(weights, 2)
    order = (roots @ roots.mT).diagonal(dim1=-2, dim2=-1)[:, 1].argsort(descending=True)
    found = (roots @ roots.mT).diagonal(dim1=-2, dim2=-1).sqrt()[order]
    torch.testing.assert_close(found, sizes, atol=0.0, rtol=0.06)
    torch.testing.assert_close(
        shares[order], torch.tensor([0.75, 0.25]).double(), atol=0.03, rtol=0
    )


@pytest.mark.parametrize("exchangeable", [True, False])
def test_draws_of_the_parameters_leave_less_error_than_their_mode(exchangeable: bool) -> None:
    model, solution = taught(exchangeable)
    theta, force = tasks(200, seed=1)
    seen = observed(equation(theta, force, 0.3, exchangeable), 0.05)
    x = torch.linspace(0, 1, NODES)[None, :, None].expand(200, -1, -1)
    errors, variances = [], []
    for samples in (0, 16):
        solution.config = solution.config.model_copy(update={"samples": samples})
        moments = model.posterior(seen, x)
        errors.append(float((moments.force_mean - force).square().mean()))
        variances.append(float(moments.force_variance.mean()))
    assert errors[1] < 0.95 * errors[0]
    assert variances[1] > 0.8 * errors[1]


def test_uneven_weights_are_flattened_and_even_ones_kept() -> None:
    logs = torch.tensor([[0.0, 0.1, -0.1, 0.0], [0.0, 50.0, 0.0, 1.0]], dtype=torch.float64)
    weights = flattened(logs, 0.8)
    torch.testing.assert_close(weights[0], logs[0].softmax(0))
    effective = 1 / weights[1].square().sum()
    torch.testing.assert_close(effective, torch.tensor(0.8 * 4).double(), atol=1e-3, rtol=0)
    assert weights[1].argmax() == 1


def test_parameters_of_another_number_are_one_clear_error() -> None:
    model = fresh()
    theta, force = tasks(40)
    outputs = equation(theta, force, 0.3, exchangeable=False)
    model.learn(outputs, force)
    assert model.solution is not None
    for wrong, said in ((torch.ones(40, 2, 3), "have 3:"), (torch.zeros(40, 2, 2), "not all of")):
        with pytest.raises(ConfigError, match=rf"2 positive parameters each.*{said}"):
            model.solution.learn(model.modes, outputs, force, wrong, softplus)


def test_a_model_that_iterates_says_so() -> None:
    """What tells its tasks from strangers is where it begins."""
    spec = {"method": "dklfm_stream", "model": {"name": "linearised"}}
    assert fresh().iterates
    assert not build_model(validate(TrainSpec, spec, "test"), axes=1, outputs=2).iterates


def test_strangers_are_told_by_where_iteration_begins() -> None:
    model, _ = taught()
    theta, force = tasks(6, seed=1)
    seen = observed(equation(theta, force, 0.3, exchangeable=False), 0.05)
    scale = Scale((0.0,), (1.0,), mean=0.0, sd=1.0, force_mean=0.0, force_sd=1.0)
    full = filled(seen, scale)
    found = Statistics.gathered(model, scale, [seen])
    begun = Statistics.of(full, model.begun(full, full.x))
    ended = Statistics.of(full, model.posterior(full, full.x))
    torch.testing.assert_close(found.features, begun.features.float())
    assert (found.residual - ended.residual.float()).abs().max() > 0.01


def test_where_iteration_begins_is_the_network_s_answer() -> None:
    model, _ = taught()
    theta, force = tasks(6, seed=1)
    seen, x = observed(equation(theta, force, 0.3, exchangeable=False), 0.05), X.expand(6, -1, -1)
    begun = model.begun(seen, x).force_mean
    torch.testing.assert_close(begun, model.laws(seen, x).force.mean[:, 0].double())
    assert (begun - model.posterior(seen, x).force_mean).abs().max() > 0.01


def test_sizes_are_bounded() -> None:
    with pytest.raises(ConfigError, match="degree"):
        validate(SolutionConfig, {"degree": 9}, "test")


def test_a_network_that_points_elsewhere_does_not_lead_astray() -> None:
    model, solution = taught()
    theta, force = tasks(6, seed=1)
    seen = model.modes(observed(equation(theta, force, 0.3, exchangeable=False), 0.05))
    right, wrong = solution(seen, force), solution(seen, force.mean(0) - 20 * force.flip(1))
    torch.testing.assert_close(wrong.force_weights, right.force_weights, atol=1e-2, rtol=1e-2)
