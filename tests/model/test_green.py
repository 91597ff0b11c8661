"""A Green's operator learnt from simulated tasks, and exact posteriors by it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from dklfm.config import TrainSpec, validate
from dklfm.errors import ConfigError
from dklfm.model import Batch, GreenLFM, Scale, build_model
from dklfm.model.evidence import Evidence
from dklfm.model.green_operator import GreenOperator
from dklfm.model.products import KroneckerRoot, ProductModes, chebyshev_grid, chebyshev_nodes
from dklfm.settings import Constant, Distribution, Uniform
from dklfm.systems import LotkaVolterra
from dklfm.systems.forced import ForcedODE, States

SCALE = Scale((0.0,), (1.0,), mean=0.1, sd=0.5, force_mean=0.05, force_sd=0.9)
SECTION = {
    "name": "green",
    "nodes": 41,
    "modes": 12,
    "force_modes": 14,
    "proportional": "gain",
    "degrees": {"decay": 5},
    "lengthscales": ["lengthscale"],
    "width": 16,
    "layers": 1,
}


class Relaxation(ForcedODE):
    """Two copies of dy/dt = s f − λ y, one at twice the rate and from y = 1."""

    name: str = "relaxation"
    states: ClassVar[tuple[str, ...]] = ("slow", "fast")
    observed: ClassVar[tuple[str, ...]] = ("slow", "fast")
    varying: ClassVar[tuple[str, ...]] = ("gain", "decay")
    duration: float = 1.0
    lengthscale: Distribution = Uniform(low=0.2, high=0.6)
    gain: Distribution = Uniform(low=0.5, high=2.0)
    decay: Distribution = Uniform(low=0.5, high=3.0)

    def derivative(
        self, states: States, force: NDArray[np.float64], parameters: Mapping[str, Any]
    ) -> Mapping[str, NDArray[np.float64]]:
        drive, decay = parameters["gain"] * force, parameters["decay"]
        return {
            "slow": drive - decay * states["slow"],
            "fast": drive - 2 * decay * states["fast"],
        }

    def start(self, parameters: Mapping[str, Any]) -> Mapping[str, Any]:
        return {"fast": 1.0}


SYSTEM = Relaxation()


def fresh(**changes: Any) -> GreenLFM:
    spec = validate(TrainSpec, {"method": "dklfm_stream", "model": SECTION | changes}, "test")
    torch.manual_seed(0)
    built = build_model(spec, axes=1, outputs=2)
    assert isinstance(built, GreenLFM)
    return built.eval()


@pytest.fixture(scope="module")
def model() -> GreenLFM:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dklfm.model.green_operator._LESSONS", 2048)
        taught = fresh()
        taught.green.learn(SYSTEM, SCALE, seed=0)
    return taught


def simulated(
    green: GreenOperator, count: int, points: int, seed: int = 1
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """z, ``task x parameter``; x, ``task x point x 1``; outputs and force on the model's scale."""
    rng = np.random.default_rng(seed)
    white = {
        name: rng.standard_normal((count, *shape)) for name, shape in SYSTEM.white_shapes().items()
    }
    x = np.sort(rng.random((count, points, 1)), axis=1)
    solved = SYSTEM.solve(SYSTEM.from_white(white), x)
    z = torch.from_numpy(np.stack([white[name] for name in green.names], -1))
    outputs = torch.from_numpy((solved.outputs - SCALE.mean) / SCALE.sd)
    force = torch.from_numpy((solved.force - SCALE.force_mean) / SCALE.force_sd)
    return z, torch.from_numpy(x), outputs, force


def observed(
    green: GreenOperator, count: int, points: int, noise: float
) -> tuple[Batch, Tensor, Tensor]:
    """A batch with so much noise, its z and the force at its points."""
    z, x, outputs, force = simulated(green, count, points)
    generator = torch.Generator().manual_seed(0)
    y = outputs + noise * torch.randn(outputs.shape, generator=generator, dtype=torch.float64)
    mask = torch.ones(y.shape, dtype=torch.bool)
    batch = Batch(x.float(), y.float(), torch.full(y.shape, noise), mask)
    return batch, z, force


def whole(root: KroneckerRoot) -> Tensor:
    """The root as ``task x mode x mode`` matrices."""
    eye = torch.eye(len(root.kept), dtype=torch.float64)
    return root.times(eye.expand(len(root.factors[0]), -1, -1))


def dense(model: GreenLFM, batch: Batch, z: Tensor) -> tuple[Tensor, Tensor]:
    """Log N(y | z) of one task and E[f | y, z], from whole covariance matrices."""
    green = model.green
    at, x = green.at(z), batch.x
    root = whole(at.root)[0]
    read = torch.block_diag(*(modes(x)[0] for modes in green.output_modes))
    operator = at.factor[0] * (at.terms[0] @ green.operator.double().flatten(1))
    design = read @ operator.view(green.operator.shape[1:]) @ root
    mean = green.zero + read @ (at.terms[0] @ green.offset)
    rest = read @ torch.block_diag(*green.rest) @ read.mT
    noise = batch.y_sd.double().flatten() ** 2 + 1e-8 * (
        batch.y.double().square().mean(-1, keepdim=True).expand_as(batch.y).flatten()
    )
    law = torch.distributions.MultivariateNormal(mean, design @ design.mT + rest + noise.diag())
    solved = torch.linalg.solve(law.covariance_matrix, batch.y.double().flatten() - mean)
    force = green.force_modes(x)[0] @ root @ design.mT @ solved
    return law.log_prob(batch.y.double().flatten()), green.force_zero + force


def test_products_of_functions_are_found_again() -> None:
    modes = ProductModes(axes=2, nodes=9, per_axis=4, count=5)
    generator = torch.Generator().manual_seed(0)
    factors = torch.linalg.qr(torch.randn(2, 9, 4, generator=generator, dtype=torch.float64)).Q
    sizes = torch.tensor([1.0, 0.5, 0.2, 0.1], dtype=torch.float64)
    modes.learn((factors * sizes) @ factors.mT)
    grid = chebyshev_grid(9, 2)
    weights = torch.randn(3, 5, generator=generator, dtype=torch.float64)
    values = weights @ modes(grid).mT
    torch.testing.assert_close(modes.weights(values), weights)
    # With a product all are kept whose factors are larger.
    kept = set(map(tuple, modes.places.mT.tolist()))
    assert all((i - 1, j) in kept or i == 0 for i, j in kept)
    assert all((i, j - 1) in kept or j == 0 for i, j in kept)


def test_a_cut_kronecker_root_is_that_of_the_kept_products() -> None:
    modes = ProductModes(axes=2, nodes=9, per_axis=4, count=9)
    generator = torch.Generator().manual_seed(0)
    factors = torch.linalg.qr(torch.randn(2, 9, 4, generator=generator, dtype=torch.float64)).Q
    modes.learn((factors * torch.tensor([1.0, 0.5, 0.2, 0.1])) @ factors.mT)
    each = [torch.randn(3, 4, 4, generator=generator, dtype=torch.float64).tril() for _ in "xt"]
    root = KroneckerRoot(each, modes.kept)
    found = whole(root)
    for i in range(3):
        covariances = [factor[i] @ factor[i].mT for factor in each]
        expected = torch.kron(*covariances)[modes.kept][:, modes.kept]
        torch.testing.assert_close(found[i] @ found[i].mT, expected)
    columns = torch.randn(3, 9, 2, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(root.transposed_times(columns), found.mT @ columns)


def test_products_may_be_chosen_by_functions() -> None:
    grid = chebyshev_grid(9, 2)
    waves = torch.stack([(grid[:, 0] * k).sin() * (grid[:, 1] * k).cos() for k in (1.0, 2.0)])
    drawn = torch.randn(200, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values = drawn @ waves
    modes = ProductModes(axes=2, nodes=9, per_axis=9, count=6)
    lines = values.unflatten(1, (9, 9))
    modes.learn(
        torch.stack(
            [torch.einsum("nij,nkj->ik", lines, lines), torch.einsum("nij,nik->jk", lines, lines)]
        ),
        values,
    )
    torch.testing.assert_close(modes.weights(values) @ modes(grid).mT, values, atol=1e-8, rtol=0)
    sizes = modes.weights(values).square().mean(0)
    torch.testing.assert_close(sizes[:4], torch.ones(4, dtype=torch.float64))


def test_the_equation_is_learnt(model: GreenLFM) -> None:
    green = model.green
    z, x, outputs, force = simulated(green, 40, 30)
    grid = chebyshev_nodes(41).numpy()
    rng = np.random.default_rng(1)
    white = {k: rng.standard_normal((40, *shape)) for k, shape in SYSTEM.white_shapes().items()}
    on_grid = SYSTEM.solve(SYSTEM.from_white(white), np.broadcast_to(grid[:, None], (40, 41, 1)))
    w = green.force_modes.weights(torch.from_numpy(on_grid.force) / SCALE.force_sd)
    at = green.at(z)
    c = (
        at.factor[:, None]
        * ((at.terms @ green.operator.double().flatten(1)).view(40, -1, 14) @ w[..., None])[..., 0]
        + at.terms @ green.offset
    )
    read = torch.stack([modes(x) for modes in green.output_modes], 1)
    found = green.zero + (read @ c.unflatten(1, (2, -1))[..., None])[..., 0]
    assert (found - outputs).square().mean().sqrt() < 2e-3 * outputs.std()
    there = green.force_zero + (green.force_modes(x) @ w[..., None])[..., 0]
    assert (there - force).square().mean() < 4 * float(green.force_rest) + 1e-6


def test_the_law_of_the_force_is_the_prior_s(model: GreenLFM) -> None:
    green = model.green
    z = torch.tensor([[0.0, 0.0, -1.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    root = whole(green.at(z).root)
    x = torch.linspace(0, 1, 12, dtype=torch.float64)[:, None]
    read = green.force_modes(x) @ root
    drawn = SYSTEM.from_white(
        {"gain": z[:, 0].numpy(), "decay": z[:, 1].numpy(), "lengthscale": z[:, 2].numpy()}
        | {"coefficients": np.zeros((2, *SYSTEM.white_shapes()["coefficients"]))}
    )
    expected = SYSTEM.force_covariances(drawn, [x[:, 0].numpy()])[0] / SCALE.force_sd**2
    torch.testing.assert_close(read @ read.mT, torch.from_numpy(expected), atol=5e-3, rtol=0)


def test_derivatives_are_those_of_the_equation(model: GreenLFM) -> None:
    green = model.green
    z = simulated(green, 4, 2)[0]
    found, slopes = green.along(z)
    for i in range(3):
        step = 1e-5 * torch.eye(3, dtype=torch.float64)[i]
        up, down = green.at(z + step), green.at(z - step)
        roots = whole(up.root) - whole(down.root)
        by = [part / 2e-5 for part in (up.terms - down.terms, up.factor - down.factor, roots)]
        if i < 2:
            torch.testing.assert_close(slopes.terms[..., i], by[0], atol=1e-6, rtol=1e-4)
            torch.testing.assert_close(slopes.factor[:, i], by[1], atol=1e-6, rtol=1e-4)
        else:
            torch.testing.assert_close(whole(slopes.roots[0]), by[2], atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(whole(found.root), whole(green.at(z).root))


def evidence(model: GreenLFM, batch: Batch) -> Evidence:
    seen = model._seen(batch)
    precision = torch.stack([torch.block_diag(*each) for each in seen.precision])
    return Evidence(model.green, precision, seen.pull.flatten(1))


def test_evidence_and_mean_are_those_of_whole_matrices(model: GreenLFM) -> None:
    batch, z, _ = observed(model.green, 1, 15, noise=0.05)
    other = z + torch.tensor([0.4, -0.5, 0.7])
    law = evidence(model, batch)
    here, there = law.at(z), law.at(other)
    found, elsewhere = dense(model, batch, z), dense(model, batch, other)
    density = 0.5 * (other.square() - z.square()).sum()
    torch.testing.assert_close(
        (there.lost - here.lost)[0], found[0] - elsewhere[0] + density, atol=2e-3, rtol=1e-3
    )
    force = model.green.force_zero + model.green.force_modes(batch.x)[0] @ here.force()[0]
    # What was hardly observed of the outputs is left out.
    torch.testing.assert_close(force, found[1], atol=5e-3, rtol=0)


def test_its_gradient_is_that_of_the_evidence(model: GreenLFM) -> None:
    batch, z, _ = observed(model.green, 3, 15, noise=0.05)
    law = evidence(model, batch)
    gradient, curvature = law.fisher(z, law.at(z))
    for i in range(3):
        step = 1e-5 * torch.eye(3, dtype=torch.float64)[i]
        slope = (law.at(z + step).lost - law.at(z - step).lost) / 2e-5
        torch.testing.assert_close(gradient[:, i], slope, atol=1e-3, rtol=1e-3)
    assert (torch.linalg.eigvalsh(curvature) >= 1 - 1e-9).all()


def test_posteriors_hold_what_they_say(model: GreenLFM) -> None:
    batch, _, force = observed(model.green, 192, 15, noise=0.05)
    moments = model.posterior(batch, batch.x)
    error = force - moments.force_mean
    known = model.posterior(batch, batch.x, covariance=True)
    assert known.force_covariance is not None
    variance = known.force_covariance.diagonal(dim1=-2, dim2=-1)
    torch.testing.assert_close(variance, moments.force_variance, rtol=1e-4, atol=1e-8)
    inside = (error.abs() < 1.96 * moments.force_variance.sqrt()).double().mean()
    assert 0.91 < inside < 0.98
    assert 0.7 < error.square().mean() / moments.force_variance.mean() < 1.4
    # Far less than what is known of a force before anything is observed.
    assert error.square().mean() < 0.1 * force.var()
    assert moments.output_mean is not None
    truth = simulated(model.green, 192, 15)[2]
    assert (moments.output_mean - truth).square().mean().sqrt() < 0.05


def test_nothing_observed_is_the_prior(model: GreenLFM) -> None:
    batch, _, _ = observed(model.green, 2, 10, noise=0.05)
    blind = Batch(batch.x, batch.y, batch.y_sd, torch.zeros_like(batch.mask))
    moments = model.posterior(blind, batch.x)
    assert torch.allclose(moments.force_mean, model.green.force_zero.expand(2, 10), atol=0.05)
    assert torch.allclose(
        moments.force_variance, torch.full((2, 10), SCALE.force_sd**-2).double(), rtol=0.1
    )


def test_tasks_are_inferred_alike_alone_and_together(model: GreenLFM) -> None:
    batch, _, _ = observed(model.green, 20, 12, noise=0.05)
    together, alone = (
        model.posterior(batch, batch.x),
        model.posterior(batch.take(slice(3, 4)), batch.x[3:4]),
    )
    torch.testing.assert_close(together.force_mean[3:4], alone.force_mean, atol=2e-3, rtol=2e-3)


def test_the_network_is_trained_by_the_parameters(model: GreenLFM) -> None:
    batch, z, _ = observed(model.green, 8, 12, noise=0.05)
    told = Batch(batch.x, batch.y, batch.y_sd, batch.mask, parameters=z.float())
    loss = model.loss(told, batch)
    loss.backward()
    assert loss.isfinite()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    with pytest.raises(ValueError, match="parameters"):
        model.loss(batch, batch)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"degrees": {"decoy": 5}}, "it draws gain, decay, lengthscale"),
        ({"proportional": None}, "named once"),
        ({"lengthscales": ["lengthscale", "gain"], "proportional": None}, "1 axes"),
    ],
)
def test_parameters_must_be_those_of_the_system(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        fresh(**changes).green.learn(SYSTEM, SCALE, seed=0)


def test_a_parameter_that_is_fixed_is_not_named() -> None:
    with pytest.raises(ConfigError, match="it draws decay, lengthscale"):
        fresh().green.learn(Relaxation(gain=Constant(value=1.0)), SCALE, seed=0)


def test_parameters_must_be_positive() -> None:
    system = Relaxation(gain=Uniform(low=-1.0, high=1.0))
    with pytest.raises(ConfigError, match="gain is not"):
        fresh().green.learn(system, SCALE, seed=0)


def test_the_force_must_be_a_gaussian_process() -> None:
    class Vague(Relaxation):
        def force_covariances(self, *_: Any) -> Any:
            raise NotImplementedError("vague gives no covariance of its force")

    with pytest.raises(ConfigError, match="green cannot be used here: vague"):
        fresh().green.learn(Vague(), SCALE, seed=0)
    with pytest.raises(NotImplementedError, match="lotka_volterra gives no covariance"):
        LotkaVolterra().force_covariances({}, [])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"degrees": {"gain": 2}}, "named twice"),
        ({"modes": 42}, "at most 41"),
    ],
)
def test_settings_that_make_no_sense(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        fresh(**changes)
