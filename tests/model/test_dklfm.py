"""The model against dense float64 algebra, and what must not change its answers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from torch import Tensor
from torch.distributions import MultivariateNormal

from dklfm.config import ModelConfig, validate
from dklfm.errors import DataError
from dklfm.model import DKLFM, Batch, Moments, Scale
from dklfm.model.dklfm import FORCE_JITTER, OUTPUT_JITTER
from dklfm.model.kernel import join
from dklfm.tasks import Tasks

ENCODERS: dict[str, dict[str, Any]] = {
    "transformer": {"name": "transformer", "width": 16, "layers": 2, "heads": 2},
    "fourier": {"name": "fourier", "width": 16, "layers": 2, "modes": 3},
}
TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}
OUTPUTS, POINTS = 3, 8


def model(axes: int = 1, encoder: str = "transformer", **options: Any) -> DKLFM:
    torch.manual_seed(0)
    kernel = {"width": 16, "blocks": 1, "coordinates": 4} | options.pop("kernel", {})
    spec = {"embedding": 8, "encoder": ENCODERS[encoder], "kernel": kernel, **options}
    built = DKLFM(validate(ModelConfig, spec, "test"), axes, OUTPUTS).eval()
    # Means start at zero and both branches alike, where they could be wrong unseen.
    for network in (built.force_mean, built.output_mean):
        if network is not None:
            torch.nn.init.normal_(network.head.weight, std=0.1)
    torch.nn.init.normal_(built.latent.force.input.weight, std=0.5)
    if built.latent.operator is not None:
        torch.nn.init.normal_(built.latent.operator.weight, std=0.5)
    return built


def batch(axes: int = 1, tasks: int = 3, regular: bool = False) -> Batch:
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(tasks, POINTS, axes, generator=generator)
    if axes == 1:
        x = x.sort(1).values
    if regular:
        x = torch.linspace(0, 1, POINTS)[None, :, None].expand(tasks, -1, -1)
    y = torch.randn(tasks, OUTPUTS, POINTS, generator=generator)
    y_sd = 0.1 + torch.rand(y.shape, generator=generator)
    f = torch.randn(tasks, POINTS, generator=generator)
    return Batch(x, y, y_sd, torch.ones(y.shape, dtype=torch.bool), f)


def with_holes(full: Batch) -> Batch:
    """Some observations missing, one output of one task wholly so, junk in their places."""
    mask = torch.rand(full.mask.shape, generator=torch.Generator().manual_seed(2)) > 0.3
    mask[0, 1] = False
    mask[:, 0, 0] = True
    return replace(full, mask=mask, y=torch.where(mask, full.y, 0.0))


def queries(axes: int = 1, tasks: int = 3) -> Tensor:
    return torch.rand(tasks, 5, axes, generator=torch.Generator().manual_seed(3))


def assert_same(found: Moments, expected: Moments) -> None:
    for name in ("force_mean", "force_variance", "output_mean", "output_variance"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), **TOLERANCE)


def permuted_outputs(moments: Moments, order: Tensor) -> Moments:
    return moments._replace(
        output_mean=moments.output_mean[:, order], output_variance=moments.output_variance[:, order]
    )


@torch.no_grad()
def dense_joint(built: DKLFM, given: Batch, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Prior mean and covariance in float64 of (h, f at x, h at x), and the noise on h."""
    r = built.embed(given)
    parts = [built.outputs_at(r, given.x), built.force_at(r, x), built.outputs_at(r, x)]
    latent = parts[0][0].double()
    for part, _ in parts[1:]:
        latent = join(latent, part.double())
    mean = torch.cat([m.double() for _, m in parts], dim=1)
    noise = built.noise_variance(given).flatten(1).double() + OUTPUT_JITTER
    return mean, built.kernel(latent, latent), noise


@pytest.mark.parametrize("noise", ["homoscedastic", "relative", "given"])
@pytest.mark.parametrize("holes", [False, True])
@pytest.mark.parametrize("differential", [False, True])
def test_posterior_is_dense_conditioning_in_float64(
    noise: str, holes: bool, differential: bool
) -> None:
    built = model(noise=noise, kernel={"differential": differential})
    given, x = batch(), queries()
    given = with_holes(given) if holes else given
    moments = built.posterior(given, x, covariance=True)
    mean, covariance, noise_variance = dense_joint(built, given, x)
    n, m = OUTPUTS * POINTS, x.shape[1]
    for i in range(len(given)):
        seen = given.mask[i].flatten()
        k_oo = covariance[i, :n, :n] + torch.diag(noise_variance[i])
        gain = torch.linalg.solve(k_oo[seen][:, seen], covariance[i, :n, n:][seen]).mT
        residual = given.y[i].flatten().double()[seen] - mean[i, :n][seen]
        posterior_mean = mean[i, n:] + gain @ residual
        posterior = covariance[i, n:, n:] - gain @ covariance[i, :n, n:][seen]
        found_mean = torch.cat([moments.force_mean[i], moments.output_mean[i].flatten()])
        found = torch.cat([moments.force_variance[i], moments.output_variance[i].flatten()])
        # The model's residual is formed in float32.
        torch.testing.assert_close(found_mean, posterior_mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found, posterior.diagonal(), rtol=1e-7, atol=1e-9)
        assert moments.force_covariance is not None
        torch.testing.assert_close(
            moments.force_covariance[i], posterior[:m, :m], rtol=1e-7, atol=1e-9
        )


@pytest.mark.parametrize("holes", [False, True])
@pytest.mark.parametrize("amplitudes", [0, 4])
def test_log_densities_are_those_of_the_dense_joint_gaussian(holes: bool, amplitudes: int) -> None:
    built, given = model(kernel={"amplitudes": amplitudes}), batch()
    given = with_holes(given) if holes else given
    mean, covariance, noise = dense_joint(built, given, given.x)
    n = OUTPUTS * POINTS
    force_noise = (2 * built.log_force_noise.double()).exp() + FORCE_JITTER
    with torch.no_grad():
        found = built.log_densities(given)
    assert given.f is not None
    for i in range(len(given)):
        k = covariance[i, : n + POINTS, : n + POINTS]
        k = k + torch.diag(torch.cat([noise[i], force_noise.expand(POINTS)]))
        values = torch.cat([given.y[i].flatten(), given.f[i]]).double()
        seen = torch.cat([given.mask[i].flatten(), given.mask[i].any(0)])
        both = MultivariateNormal(mean[i, : n + POINTS][seen], k[seen][:, seen].detach())
        outputs_seen = seen & (torch.arange(n + POINTS) < n)
        alone = MultivariateNormal(
            mean[i, : n + POINTS][outputs_seen], k[outputs_seen][:, outputs_seen].detach()
        )
        torch.testing.assert_close(
            (found.outputs + found.force_given_outputs)[i].double(),
            both.log_prob(values[seen]), rtol=1e-3, atol=1e-2,
        )  # fmt: skip
        torch.testing.assert_close(
            found.outputs[i].double(), alone.log_prob(values[outputs_seen]), rtol=1e-3, atol=1e-2
        )


@pytest.mark.parametrize(
    "kernel", [{"base": "rbf"}, {"base": "periodic"}, {"differential": True}], ids=str
)
@pytest.mark.parametrize("concatenate", [False, True])
def test_prior_covariance_of_outputs_and_force_is_positive_semidefinite(
    kernel: dict[str, Any], concatenate: bool
) -> None:
    built = model(kernel=kernel | {"concatenate_inputs": concatenate})
    _, covariance, _ = dense_joint(built, batch(), queries())
    eigenvalues = torch.linalg.eigvalsh(covariance)
    assert (eigenvalues > -1e-10 * eigenvalues[:, -1:]).all()


@pytest.mark.parametrize("axes", [1, 2])
def test_order_of_points_changes_nothing(axes: int) -> None:
    built, given, x = model(axes), with_holes(batch(axes)), queries(axes)
    order = torch.randperm(POINTS, generator=torch.Generator().manual_seed(4))
    assert_same(built.posterior(given.points(order), x), built.posterior(given, x))
    with torch.no_grad():
        torch.testing.assert_close(
            sum(built.log_densities(given.points(order))[:2]),
            sum(built.log_densities(given)[:2]), rtol=1e-3, atol=1e-2,
        )  # fmt: skip


@pytest.mark.parametrize("encoder", ENCODERS)
def test_order_of_outputs_permutes_outputs_and_leaves_the_force(encoder: str) -> None:
    built, given, x = model(encoder=encoder), batch(regular=True), queries()
    order = torch.tensor([2, 0, 1])
    assert_same(
        built.posterior(given.outputs(order), x),
        permuted_outputs(built.posterior(given, x), order),
    )


def test_outputs_that_are_told_apart_have_names() -> None:
    built, given, x = model(exchangeable=False), batch(), queries()
    order = torch.tensor([2, 0, 1])
    moved = built.posterior(given.outputs(order), x).force_mean
    assert (moved - built.posterior(given, x).force_mean).abs().max() > 1e-3
    with pytest.raises(DataError, match="2 outputs, dklfm was trained on 3 that it tells apart"):
        built.posterior(given.outputs(order[:2]), x)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_tasks_of_a_batch_do_not_influence_each_other(encoder: str) -> None:
    built, given, x = model(encoder=encoder), batch(regular=True), queries()
    together = built.posterior(given, x)
    for i in range(len(given)):
        alone = built.posterior(given.take(slice(i, i + 1)), x[i : i + 1])
        assert_same(alone, Moments(*(t[i : i + 1] for t in together[:4]), None))


def test_order_of_queries_permutes_the_answers() -> None:
    built, given, x = model(), batch(), queries()
    turned, straight = built.posterior(given, x.flip(1)), built.posterior(given, x)
    assert_same(
        turned, Moments(*(moment.flip(-1) for moment in straight[:4]), force_covariance=None)
    )


def padded(given: Batch) -> Batch:
    """Three points in which nothing was observed, with junk in all values, put in front."""
    tasks = len(given)

    def ahead(values: Tensor, junk: float, dim: int) -> Tensor:
        shape = list(values.shape)
        shape[dim] = 3
        return torch.cat([torch.full(shape, junk).to(values.dtype), values], dim=dim)

    assert given.f is not None
    padding = torch.full((tasks, 3), torch.nan)
    return Batch(
        ahead(given.x, 0.3, 1), ahead(given.y, 50.0, 2), ahead(given.y_sd, 9.0, 2),
        ahead(given.mask, 0.0, 2), torch.cat([padding, given.f], dim=1),
    )  # fmt: skip


@pytest.mark.parametrize("noise", ["homoscedastic", "relative", "given"])
def test_padding_with_points_changes_no_posterior(noise: str) -> None:
    built, given, x = model(noise=noise), with_holes(batch()), queries()
    assert_same(built.posterior(padded(given), x), built.posterior(given, x))


def test_padding_with_points_changes_no_density_and_no_gradient() -> None:
    gradients, losses = [], []
    for given in (with_holes(batch()), padded(with_holes(batch()))):
        built = model()
        losses.append(sum(built.log_densities(given)[:2]).sum())
        losses[-1].backward()
        gradients.append(
            torch.cat([p.grad.flatten() for p in built.parameters() if p.grad is not None])
        )
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-4, atol=1e-2)
    assert (gradients[1] - gradients[0]).norm() < 1e-2 * gradients[0].norm()


def test_output_without_observations_does_not_change_the_others() -> None:
    built, given, x = model(), batch(), queries()
    blank = torch.zeros(len(given), 1, POINTS)
    more = replace(
        given,
        y=torch.cat([given.y, blank], dim=1),
        y_sd=torch.cat([given.y_sd, blank], dim=1),
        mask=torch.cat([given.mask, blank.bool()], dim=1),
    )
    found = built.posterior(more, x)
    assert torch.isfinite(found.output_mean).all()
    assert_same(
        found._replace(
            output_mean=found.output_mean[:, :OUTPUTS],
            output_variance=found.output_variance[:, :OUTPUTS],
        ),
        built.posterior(given, x),
    )


def test_missing_values_in_tasks_change_nothing(tasks: Tasks) -> None:
    built, scale = model(), Scale.of(tasks.split("train"))
    some = tasks.take([0, 1])
    longer = some.data.pad(point=(0, 2), constant_values=np.nan)
    wider = longer.reindex(output=[*some.outputs, "unmeasured"])
    x = scale.inputs(some["x_query"])
    found = built.posterior(Batch.of(Tasks(wider), scale), x)
    assert_same(
        found._replace(
            output_mean=found.output_mean[:, :5], output_variance=found.output_variance[:, :5]
        ),
        built.posterior(Batch.of(some, scale), x),
    )


def test_posterior_does_not_look_at_the_force() -> None:
    built, given, x = model(), batch(), queries()
    assert_same(built.posterior(given, x), built.posterior(replace(given, f=None), x))


def test_more_noise_means_less_certainty() -> None:
    built, given, x = model(noise="given"), batch(), queries()
    noisy = replace(given, y_sd=10 * given.y_sd)
    less, more = built.posterior(given, x), built.posterior(noisy, x)
    assert (more.force_variance > less.force_variance).all()


def test_homoscedastic_noise_is_one_learned_variance() -> None:
    built = model(noise="homoscedastic")
    expected = (2 * built.log_noise).exp().expand(3, OUTPUTS, POINTS)
    torch.testing.assert_close(built.noise_variance(batch()), expected)


def test_relative_noise_is_a_share_of_the_observed_variance() -> None:
    built, given = model(noise="relative"), with_holes(batch())
    observed = given.y[1, 2][given.mask[1, 2]]
    expected = (2 * built.log_noise).exp() * observed.var(unbiased=False)
    torch.testing.assert_close(built.noise_variance(given)[1, 2], expected.expand(POINTS))


def test_given_noise_adds_a_learned_excess() -> None:
    built, given = model(noise="given"), batch()
    expected = given.y_sd**2 + (2 * built.log_noise).exp()
    torch.testing.assert_close(built.noise_variance(given), expected)


def test_training_without_a_force_is_refused() -> None:
    with pytest.raises(ValueError, match="observed force"):
        model().log_densities(replace(batch(), f=None))


def test_coupling_is_a_correlation() -> None:
    assert 0 < model().coupling(batch()) < 1


def test_coupling_of_independent_force_and_outputs_is_zero() -> None:
    built = model(kernel={"amplitudes": 0, "coordinates": 1})
    far = built.latent.force.input.bias
    with torch.no_grad():
        built.latent.coordinates.weight.mul_(1e3)
        far.add_(1e3)
    assert built.coupling(batch()) == pytest.approx(0, abs=1e-6)


def test_scale_maps_training_tasks_to_the_unit_interval_and_unit_variance(tasks: Tasks) -> None:
    train = tasks.split("train")
    scaled = Batch.of(train, Scale.of(train))
    assert scaled.f is not None
    assert scaled.x.min() >= 0
    assert scaled.x.max() <= 1
    for values in (scaled.y, scaled.f):
        assert values.mean().item() == pytest.approx(0, abs=1e-5)
        assert values.std(unbiased=False).item() == pytest.approx(1, abs=1e-5)


def test_measurements_have_no_force_to_learn_from(tasks: Tasks) -> None:
    with pytest.raises(DataError, match="no observed force"):
        Scale.of(Tasks(tasks.data.drop_vars("f_observed")))


def test_constant_outputs_are_refused(tasks: Tasks) -> None:
    with pytest.raises(DataError, match="all equal"):
        Scale.of(Tasks(tasks.data.assign(y=xr.ones_like(tasks.data["y"]))))


def test_tasks_with_another_number_of_inputs_are_refused(tasks: Tasks) -> None:
    plane = Scale((0.0, 0.0), (1.0, 1.0), 0.0, 1.0, 0.0, 1.0)
    with pytest.raises(DataError, match="1 input dimensions, the model was trained with 2"):
        Batch.of(tasks, plane)


def test_many_observations_are_condensed_to_the_same_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    built, x = model(), queries()
    given = batch()
    exact = built.posterior(given, x, covariance=True)
    monkeypatch.setattr("dklfm.model.dklfm.MOST_EXACT", 1)
    monkeypatch.setattr("dklfm.model.dklfm.INDUCING", given.y[0].numel())
    condensed = built.posterior(given, x, covariance=True)
    for found, expected in zip(condensed, exact, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)
