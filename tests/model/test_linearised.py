"""Conditioning on an equation that a network makes linear: what it is before anything is learnt."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from dklfm.config import TrainSpec, validate
from dklfm.model import Batch, LinearisedLFM, build_model
from dklfm.model.interpolation import spline_weights
from dklfm.model.linearised import _TRUSTED
from dklfm.model.smoothing import LEAST_NOISE, even_grid, standardise

NODES = 21
GRID = even_grid((NODES,))[:, 0]
X = torch.linspace(0, 1, 9)[None, :, None]


def fresh(outputs: int = 2, **settings: Any) -> LinearisedLFM:
    section = {"name": "linearised", "nodes": NODES, "modes": 6, "force_modes": 3, "unknowns": 2}
    section |= {"width": 16, "layers": 1, "heads": 2} | settings
    spec = validate(TrainSpec, {"method": "dklfm_stream", "model": section}, "test")
    torch.manual_seed(0)
    built = build_model(spec, axes=1, outputs=outputs)
    assert isinstance(built, LinearisedLFM)
    return built.eval()


def told_nothing(model: LinearisedLFM, *, known: bool) -> LinearisedLFM:
    """Whose network says nothing; ``known``: beside the force nothing is unknown either."""
    with torch.no_grad():
        model.passes[-1].read[-1].weight.zero_()
        if known:
            model.design[..., model.config.force_modes :] = 0
    return model


def linear_tasks(count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs, force and weights where both outputs are one linear map of the force each."""
    waves = torch.stack([(k * torch.pi * GRID).sin() for k in (1, 2, 3)])
    weights = torch.randn(count, 3, generator=torch.Generator().manual_seed(0)).double()
    maps = torch.tensor([[1.0, 0.5, 0.2], [-0.3, 1.0, 0.6]]).double()
    return (weights[:, None] * maps) @ waves + 0.3, weights @ waves, weights


def observed(h: Tensor, noise: float) -> Batch:
    """Every other point of functions on the grid, with noise of that deviation."""
    y = h[..., ::2].float()
    x = torch.linspace(0, 1, y.shape[-1])[None, :, None].expand(len(y), -1, -1)
    sd = torch.full_like(y, noise)
    white = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    return Batch(x, y + sd * white, sd, torch.ones_like(y).bool())


def test_a_linear_equation_is_inverted_exactly_before_any_training() -> None:
    model = fresh()
    h, f, _ = linear_tasks(4000)
    model.learn(h, f)
    told_nothing(model, known=True)
    seen = observed(h[:6], 0.3)
    moments = model.posterior(seen, X.expand(6, -1, -1), covariance=True)

    every = torch.cat([h.flatten(1), f], 1)
    covariance = torch.cov(every.T, correction=0)
    places = torch.arange(0, 2 * NODES, 2)
    places = torch.cat([places[places < NODES], NODES + torch.arange(0, NODES, 2)])
    at = spline_weights((NODES,), X[0].double())
    cross = at @ covariance[2 * NODES :, places]
    scale = standardise(seen)[1].double()
    noise = (seen.y_sd.double().square() + (LEAST_NOISE * scale).square()).flatten(1)
    noise = noise / torch.sigmoid(torch.tensor(_TRUSTED)).double()
    whole = covariance[places][:, places] + torch.diag_embed(noise)
    residual = seen.y.double().flatten(1) - every.mean(0)[places]
    gain = cross @ torch.linalg.inv(whole)
    mean = at @ f.mean(0) + (gain @ residual[..., None])[..., 0]
    prior = at @ covariance[2 * NODES :, 2 * NODES :] @ at.T
    left = (prior - gain @ cross.T).diagonal(dim1=-2, dim2=-1)
    torch.testing.assert_close(moments.force_mean, mean, atol=2e-3, rtol=1e-3)
    torch.testing.assert_close(moments.force_variance, left, atol=1e-4, rtol=1e-2)


def test_what_else_is_unknown_widens_the_posterior() -> None:
    model = fresh()
    h, f, _ = linear_tasks(400)
    model.learn(h, f)
    seen = observed(h[:6], 0.1)
    wide = told_nothing(model, known=False).posterior(seen, X.expand(6, -1, -1))
    narrow = told_nothing(model, known=True).posterior(seen, X.expand(6, -1, -1))
    assert (wide.force_variance > narrow.force_variance)[:, 1:-1].all()


@pytest.mark.parametrize("exchangeable", [True, False])
def test_what_is_unknown_of_an_output_by_itself_is_conditioned_on_exactly(
    exchangeable: bool,
) -> None:
    h, f, _ = linear_tasks(400)
    seen = observed(h[:6], 0.1)
    alone = told_nothing(fresh(unknowns=0, own_unknowns=2, exchangeable=exchangeable), known=False)
    alone.learn(h, f)
    found = alone._trail(seen).found[-1]
    # The same numbers among those of all outputs together, each with a use for one output.
    joint = told_nothing(fresh(unknowns=4, exchangeable=False), known=False)
    joint.modes, joint.exchangeable = alone.modes, exchangeable
    joint.sizes[0] = 6 * 7
    read = torch.zeros(6, 2, sum(joint.sizes))
    joint.design.data = alone.design.data.new_zeros(2, 6, 7)
    joint.design.data[..., :3] = alone.design[..., :3]
    for j in range(2):
        own = alone.design[j if not exchangeable else 0, :, 3:]
        joint.design.data[j, :, 3 + 2 * j : 5 + 2 * j] = own
    joint.offset.data = alone.offset.data
    other = joint._conditioned(alone.modes(seen), read, found.prior)
    torch.testing.assert_close(found.mean, other.mean[:, :3])
    torch.testing.assert_close(found.weights(), other.weights())
    loads, others = found.loads(), other.loads()
    torch.testing.assert_close(loads @ loads.mT, others @ others.mT)
    means = found.unknown[..., :2].flatten(1)
    torch.testing.assert_close(means, other.mean[:, 3:])
    spread = (other.root @ other.root.mT).diagonal(dim1=-2, dim2=-1)[:, 3:]
    assert (found.unknown[..., 2:].exp().square().flatten(1) <= spread * (1 + 1e-9)).all()


def test_forces_that_are_expected_smaller_are_in_all_that_follows() -> None:
    h, f, _ = linear_tasks(400)
    seen = observed(h[:6], 0.3)
    told, other = (told_nothing(fresh(adaptive_prior=each), known=False) for each in (True, False))
    told.learn(h, f)
    other.learn(h, f)
    sizes = torch.tensor([0.5, 2.0, 0.8])
    with torch.no_grad():
        told.prior[-1].weight.zero_()
        told.prior[-1].bias[:] = torch.diag(sizes.log()).flatten()
        other.design.copy_(told.design)
        other.design[..., :3] *= sizes
        other.modes.force_basis *= sizes
    one, same = (each.posterior(seen, X.expand(6, -1, -1)) for each in (told, other))
    torch.testing.assert_close(one.force_mean, same.force_mean)
    torch.testing.assert_close(one.force_variance, same.force_variance)
    torch.testing.assert_close(one.output_mean, same.output_mean)
    told.prior[-1].bias.data[1] = 0.5  # modes that go together
    mixed = told.posterior(seen, X.expand(6, -1, -1))
    assert (mixed.force_mean - one.force_mean).abs().max() > 1e-3


@pytest.mark.parametrize("passes", [1, 2])
def test_noise_widens_it_and_observations_narrow_it(passes: int) -> None:
    model = fresh(passes=passes)
    h, f, _ = linear_tasks(400)
    model.learn(h, f)
    x = X.expand(6, -1, -1)
    seen = observed(h[:6], 0.1)
    variance = model.posterior(seen, x).force_variance[:, 1:-1]
    noisier = model.posterior(replace(seen, y_sd=5 * seen.y_sd), x).force_variance
    fewer = model.posterior(seen.points(torch.arange(0, 11, 3)), x).force_variance
    assert (noisier[:, 1:-1] > variance).all()
    assert (fewer[:, 1:-1] > variance).all()


def test_an_output_that_goes_with_another_is_inferred_without_being_seen() -> None:
    model = fresh()
    h, f, _ = linear_tasks(400)
    model.learn(h, f)
    told_nothing(model, known=True)
    moments = model.posterior(
        observed(h[:20], 0.02).only(torch.tensor([0])),
        torch.linspace(0, 1, NODES)[None, :, None].expand(20, -1, -1),
    )
    assert moments.output_mean is not None
    error = moments.output_mean[:, 1] - h[:20, 1]
    assert error.square().mean() < 0.05 * h[:20, 1].var()


@pytest.mark.parametrize("exchangeable", [True, False])
def test_inputs_are_of_one_order_whatever_they_are(exchangeable: bool) -> None:
    model = fresh(exchangeable=exchangeable)
    h, f, _ = linear_tasks(400)
    model.learn(h, f)
    seen = observed(h, 0.1)
    model.modes.standardise([seen, seen.points(torch.arange(6))])
    described = model.modes(seen).described
    assert described.abs().max() <= 10
    few = model.modes(seen.points(torch.arange(6))).described
    both = torch.cat([described, few]).flatten(0, 1 if exchangeable else 0)
    assert both.mean(0).abs().max() < 0.1
    assert (both.std(0) < 1.05).all()


def test_outputs_that_are_alike_are_seen_in_units_of_their_own() -> None:
    model = fresh(exchangeable=True)
    h, f, _ = linear_tasks(400)
    model.learn(h, f)
    seen = observed(h[:5], 0.1)
    moved = replace(seen, y=7 + 3 * seen.y, y_sd=3 * seen.y_sd)
    one, other = model.modes(seen), model.modes(moved)
    torch.testing.assert_close(other.precision, one.precision, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(other.pull, one.pull, rtol=1e-3, atol=1e-2)
    torch.testing.assert_close(other.location, 7 + 3 * one.location)
    torch.testing.assert_close(other.scale, 3 * one.scale)


def test_outputs_are_learnt_from_a_share_of_the_tasks() -> None:
    model = fresh()
    h, f, _ = linear_tasks(400)
    model.learn(h, f)
    seen, x = observed(h[:20], 0.1), torch.linspace(0, 1, NODES)[None, :, None].expand(20, -1, -1)
    truth = Batch(x, h[:20].float(), torch.zeros(20, 2, NODES), torch.ones(20, 2, NODES).bool())
    truth = replace(truth, f=f[:20].float())
    model.loss(truth, seen).backward()
    assert model.rest.bias.grad is not None
    assert (model.rest.bias.grad != 0).all()
    other = truth.y.clone()
    other[3:] += 1  # 20 tasks are three lessons
    assert model.loss(replace(truth, y=other), seen) == model.loss(truth, seen)
    other[:3] += 1
    assert model.loss(replace(truth, y=other), seen) > model.loss(truth, seen)


@pytest.mark.parametrize("exchangeable", [True, False])
def test_each_pass_is_trained_to_be_right_by_itself(exchangeable: bool) -> None:
    model = fresh(passes=2, own_unknowns=1, exchangeable=exchangeable)
    h, f, _ = linear_tasks(400)
    model.learn(h, f)
    seen, x = observed(h[:8], 0.1), torch.linspace(0, 1, NODES)[None, :, None].expand(8, -1, -1)
    truth = Batch(x, h[:8].float(), torch.zeros(8, 2, NODES), torch.ones(8, 2, NODES).bool())
    truth = replace(truth, f=f[:8].float())
    with torch.no_grad():
        model.passes[1].report.weight.zero_()
        before = model.laws(seen, x).force.mean
        model.passes[0].read[-1].bias -= 3  # observations are trusted less
        # What is found last does not hang on the first pass here, so its loss alone is the first's.
        torch.testing.assert_close(model.laws(seen, x).force.mean, before)
        worse = model.loss(truth, seen)
        model.passes[0].read[-1].bias += 3
        assert worse > model.loss(truth, seen) + 0.1
    model.loss(truth, seen).backward()
    assert all(each.read[-1].weight.grad.abs().sum() > 0 for each in model.passes)


@pytest.mark.parametrize("heads", [0, 2])
def test_outputs_that_are_alike_see_each_other_in_any_order(heads: int) -> None:
    model = fresh(outputs=3, exchangeable=True, heads=heads)
    h, f, _ = linear_tasks(400)
    model.learn(h, f)
    with torch.no_grad():
        model.passes[0].read[-1].weight.mul_(100)  # what a network says is to matter
    every = torch.cat([h, h[:, :1] + h[:, 1:]], 1)
    seen, x = observed(every[:4], 0.1), X.expand(4, -1, -1)
    moments = model.posterior(seen, x)
    turned = torch.tensor([2, 0, 1])
    again = model.posterior(seen.outputs(turned), x)
    torch.testing.assert_close(again.force_mean, moments.force_mean, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(
        again.output_mean, moments.output_mean[:, turned], atol=1e-4, rtol=1e-4
    )
    other = replace(seen, y=torch.cat([seen.y[:, :2], -3 * seen.y[:, 2:]], 1))
    said = [model._trail(each).found[0].design[:, 0] for each in (seen, other)]
    assert (said[0] - said[1]).abs().max() > 1e-2
    unseen = [
        replace(each, mask=each.mask & (torch.arange(3) < 2)[:, None]) for each in (seen, other)
    ]
    without = [model.posterior(each, x).force_mean for each in unseen]
    torch.testing.assert_close(*without)
