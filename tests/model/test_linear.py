"""The linear law against dense Gaussian conditioning, and what it knows of simulated tasks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dklfm.config import TrainSpec, validate
from dklfm.errors import ConfigError
from dklfm.model import Batch, OperatorLFM, build_model
from dklfm.model.linear import LinearLaw
from dklfm.model.smoothing import even_grid


def paths(law: LinearLaw, tasks: int, outputs: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Smooth functions with a mean, and a force that is one of them plus the next one's slope."""
    generator = torch.Generator().manual_seed(seed)
    x = even_grid(law.fine)
    phases = torch.arange(1, 4) * torch.pi * x.sum(-1, keepdim=True)
    modes = torch.cat([phases.sin(), phases.cos()], -1)  # point mode
    weights = torch.randn(tasks, outputs, modes.shape[-1], generator=generator)
    h = weights.double() @ modes.T + 0.5 * x[:, 0]
    slope = weights.double() @ torch.cat([phases.cos(), -phases.sin()], -1).T
    return h, h[:, 0] + 0.2 * slope[:, -1]


def learnt(axes: int = 1, outputs: int = 2, modes: int = 12) -> LinearLaw:
    law = LinearLaw((7,) * axes, outputs, modes)
    law.learn(*paths(law, 600, outputs))
    return law


def observed(law: LinearLaw, h: Tensor, noise: float, points: Tensor) -> Batch:
    generator = torch.Generator().manual_seed(1)
    x = even_grid(law.fine)[points].expand(len(h), -1, -1)
    y = h[..., points]
    mask = torch.rand(y.shape, generator=generator) < 0.8
    y = y + noise * torch.randn(y.shape, generator=generator)
    return Batch(x.float(), torch.where(mask, y, 0.0).float(), torch.full(y.shape, noise), mask)


@pytest.mark.parametrize("axes", [1, 2])
def test_estimates_are_those_of_dense_conditioning(axes: int) -> None:
    law = learnt(axes)
    h, _ = paths(law, 2, 2, seed=1)
    points = torch.arange(0, h.shape[-1], 3)
    batch = observed(law, h, 0.1, points)
    found = law(batch)
    basis, mean = law.basis.double(), law.mean.double()
    on_nodes = law.designs[0].double()
    for task in range(2):
        seen = batch.mask[task].flatten()
        design = basis[:, points].flatten(0, 1)[seen]
        noise = found.noise[task].flatten()[seen].double().diag()
        inverse = (design @ design.T + noise).inverse()
        scale = found.scale[task].double()
        residual = ((batch.y[task].double() - mean[:, points]) / scale).flatten()[seen]
        of_weights = design.T @ inverse @ residual
        torch.testing.assert_close(
            found.outputs.mean[task],
            law.mean_designs[0].double() / scale + on_nodes @ of_weights,
            atol=1e-4,
            rtol=1e-4,
        )
        covariance = torch.eye(design.shape[1]) - design.T @ inverse @ design
        of_outputs = (on_nodes @ covariance * on_nodes).sum(-1)
        torch.testing.assert_close(
            found.outputs.sd[task].square(), of_outputs + 1e-6, atol=1e-5, rtol=1e-3
        )
        of_force = law.force_design.double()
        torch.testing.assert_close(
            found.force[task],
            law.force_mean.double() + of_force @ of_weights,
            atol=1e-4,
            rtol=1e-4,
        )
        spread = (of_force @ covariance * of_force).sum(-1) + law.force_rest
        torch.testing.assert_close(found.force_sd[task].square(), spread, atol=1e-5, rtol=1e-3)


def test_an_output_that_is_not_observed_is_inferred_from_the_others() -> None:
    law = LinearLaw((7,), 2, 12)
    h, f = paths(law, 600, 1)
    law.learn(torch.cat([h, 3 * h + 1], 1), f)
    h, f = paths(law, 5, 1, seed=1)
    batch = observed(law, torch.cat([h, 3 * h + 1], 1), 0.01, torch.arange(h.shape[-1]))
    batch = batch.only(torch.tensor([0]))
    found = law(batch)
    inferred = (found.scale * found.outputs.mean)[:, 1]
    torch.testing.assert_close(inferred, 3 * h[:, 0, ::4] + 1, atol=0.2, rtol=0)
    spoilt = Batch(batch.x, torch.where(batch.mask, batch.y, 1e3), batch.y_sd, batch.mask)
    torch.testing.assert_close(law(spoilt), found)


def test_slopes_and_curvatures_are_the_derivatives_of_what_is_inferred() -> None:
    law = learnt(outputs=1)
    h, _ = paths(law, 3, 1, seed=1)
    batch = observed(law, h, 0.01, torch.arange(h.shape[-1]))
    estimate = law(batch)
    found = estimate.outputs
    step = 1 / (law.fine[0] - 1)
    truth = (h / estimate.scale)[:, 0]
    slope = torch.gradient(truth, spacing=step, dim=-1)[0]
    error = found.slopes[:, 0, 1:-1, 0] - slope[:, ::4][:, 1:-1]
    assert error.square().mean() < 0.01 * slope.square().mean()
    curvature = torch.gradient(slope, spacing=step, dim=-1)[0][:, ::4][:, 1:-1]
    error = found.curvatures[:, 0, 1:-1, 0] - curvature
    assert error.square().mean() < 0.05 * curvature.square().mean()


def test_what_holds_for_all_tasks_is_known_where_nothing_is_observed() -> None:
    law = LinearLaw((9,), 1, 8)
    x = even_grid(law.fine)[:, 0]
    generator = torch.Generator().manual_seed(0)
    pinned = torch.randn(500, 1, 3, generator=generator).double() @ torch.stack(
        [(k * torch.pi * x).sin() for k in (1, 2, 3)]
    )
    law.learn(pinned, pinned[:, 0])
    batch = observed(law, pinned[:4], 0.01, torch.arange(8, 25, 2))
    found = law(batch)
    ends = (found.scale * found.outputs.mean)[..., [0, -1]]
    torch.testing.assert_close(ends, torch.zeros_like(ends), atol=1e-3, rtol=0)


def spec(**model: Any) -> TrainSpec:
    settings = {"method": "dklfm_stream", "model": {"name": "operator", **model}}
    return validate(TrainSpec, settings, "test")


def test_the_operator_of_a_law_is_of_its_outputs_alone() -> None:
    with pytest.raises(ConfigError, match="modes are of outputs that are told apart"):
        spec(modes=8, exchangeable=True)
    built = build_model(spec(modes=8, nodes=6, layers=1), axes=1, outputs=3)
    assert isinstance(built, OperatorLFM)
    assert built.linear is not None
    before = built.linear.basis.clone()
    built.linear.learn(*paths(built.linear, 50, 3))
    again = build_model(spec(modes=8, nodes=6, layers=1), axes=1, outputs=3)
    again.load_state_dict(built.state_dict())
    assert isinstance(again, OperatorLFM)
    assert again.linear is not None
    torch.testing.assert_close(again.linear.basis, built.linear.basis)
    assert not torch.equal(again.linear.basis, before)
