"""A network of the weights of modes: what it starts from."""

from __future__ import annotations

from dataclasses import replace

import torch

from dklfm.config import TrainSpec, validate
from dklfm.model import Batch, ModalLFM, build_model
from dklfm.model.linear import even_grid

X = torch.linspace(0, 1, 9)[None, :, None]


def observed(h: torch.Tensor, noise: float) -> Batch:
    """Every fourth point of functions on the law's grid, with noise of that deviation."""
    y = h[..., ::4].float()
    x = torch.linspace(0, 1, y.shape[-1])[None, :, None].expand(len(y), -1, -1)
    generator = torch.Generator().manual_seed(1)
    sd = torch.full_like(y, noise)
    return Batch(
        x, y + sd * torch.randn(y.shape, generator=generator), sd, torch.ones_like(y).bool()
    )


def fresh() -> tuple[ModalLFM, torch.Tensor]:
    """A model that has seen the law of its tasks, and nothing else; and outputs of such tasks."""
    settings = {"name": "modal", "nodes": 9, "modes": 8, "width": 16, "layers": 1}
    spec = validate(TrainSpec, {"method": "dklfm_stream", "model": settings}, "test")
    torch.manual_seed(0)
    built = build_model(spec, axes=1, outputs=2)
    assert isinstance(built, ModalLFM)
    x = even_grid(built.linear.fine)[:, 0]
    waves = torch.stack([(k * torch.pi * x).sin() for k in (1, 2, 3)])
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(400, 2, 3, generator=generator).double()
    weights[:, 1] = 0.5 * weights[:, 0]
    h = weights @ waves
    built.linear.learn(h, h[:, 0].square() - h[:, 0].square().mean() + 2 * h[:, 0])
    built.standardise(observed(h, 0.1))
    return built.eval(), h


def test_the_force_starts_as_uncertain_as_the_best_linear_estimate() -> None:
    model, h = fresh()
    torch.nn.init.zeros_(model.direct.weight)
    torch.nn.init.zeros_(model.read.bias)
    seen = observed(h[:5], 0.1)
    moments = model.posterior(seen, X.expand(5, -1, -1))
    linear = model.linear(seen)
    torch.testing.assert_close(moments.force_variance.sqrt(), linear.force_sd, rtol=1e-4, atol=1e-5)
    noisier = model.posterior(replace(seen, y_sd=5 * seen.y_sd), X.expand(5, -1, -1))
    assert (noisier.force_variance[:, 1:-1] > moments.force_variance[:, 1:-1]).all()


def test_inputs_are_of_one_order_whatever_they_are() -> None:
    model, h = fresh()
    seen = observed(h, 0.1)
    inputs = model._inputs(seen, model.linear.weights(seen))
    standard = (inputs - model.location) / model.deviation
    torch.testing.assert_close(standard.mean(0), torch.zeros(inputs.shape[1]), atol=1e-2, rtol=0)
    assert (standard.std(0) < 1.01).all()
    assert (standard.std(0)[:3] > 0.99).all()


def test_an_output_that_follows_another_is_inferred_without_being_seen() -> None:
    model, h = fresh()
    torch.nn.init.zeros_(model.direct.weight)
    torch.nn.init.zeros_(model.read.bias)
    seen = observed(h[:20], 0.01).only(torch.tensor([0]))
    moments = model.posterior(seen, X.expand(20, -1, -1))
    assert moments.output_mean is not None
    error = moments.output_mean[:, 1] - h[:20, 1, ::4]
    assert error.square().mean() < 0.01 * h[:20, 1].square().mean()
