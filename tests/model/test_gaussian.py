"""Densities and conditionals against dense formulas written out."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import MultivariateNormal

from dklfm.model.gaussian import (
    condition,
    condition_inducing,
    isolate_padding,
    joint_log_densities,
)

SEEDS = st.integers(0, 10_000)
SIZES = st.integers(1, 7)


def covariance(generator: torch.Generator, tasks: int, size: int) -> Tensor:
    root = torch.randn(tasks, size, size, generator=generator, dtype=torch.float64)
    return root @ root.mT / size + 0.2 * torch.eye(size, dtype=torch.float64)


def normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def log_density(residual: Tensor, of: Tensor) -> Tensor:
    return MultivariateNormal(torch.zeros_like(residual), of).log_prob(residual)


def padded(
    generator: torch.Generator, matrix: Tensor, residual: Tensor, outputs: int
) -> tuple[Tensor, Tensor, Tensor, int]:
    """The same problem with junk points scattered among the outputs and among the force."""
    size = len(residual[0])
    more_outputs, more_force = 3, 2
    n = size + more_outputs + more_force
    first = torch.randperm(outputs + more_outputs, generator=generator)[:outputs].sort().values
    second = torch.randperm(n - outputs - more_outputs, generator=generator)[: size - outputs]
    places = torch.cat([first, outputs + more_outputs + second.sort().values])
    large = covariance(generator, len(matrix), n)
    large[:, places[:, None], places] = matrix
    values = torch.full((len(matrix), n), torch.nan, dtype=torch.float64)
    values[:, places] = residual
    mask = torch.zeros(len(matrix), n, dtype=torch.bool)
    mask[:, places] = True
    return large, values, mask, outputs + more_outputs


@given(SEEDS, SIZES, SIZES)
def test_joint_density_is_that_of_the_whole_gaussian(seed: int, outputs: int, force: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    matrix, residual = (
        covariance(generator, 2, outputs + force),
        normal(generator, 2, outputs + force),
    )
    mask = torch.ones(2, outputs + force, dtype=torch.bool)
    found = joint_log_densities(matrix, residual, mask, outputs)
    torch.testing.assert_close(
        found.outputs + found.force_given_outputs, log_density(residual, matrix)
    )


@given(SEEDS, SIZES, SIZES)
def test_joint_density_is_log_force_plus_log_outputs_given_force(
    seed: int, outputs: int, force: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    matrix, residual = (
        covariance(generator, 2, outputs + force),
        normal(generator, 2, outputs + force),
    )
    k_yy, k_yf = matrix[:, :outputs, :outputs], matrix[:, :outputs, outputs:]
    k_ff = matrix[:, outputs:, outputs:]
    y, f = residual[:, :outputs], residual[:, outputs:]
    gain = k_yf @ torch.linalg.inv(k_ff)  # Eqs. 5 and 6: y | f
    mean, of = (gain @ f[..., None])[..., 0], k_yy - gain @ k_yf.mT
    expected = log_density(f, k_ff) + log_density(y - mean, (of + of.mT) / 2)

    mask = torch.ones(2, outputs + force, dtype=torch.bool)
    found = joint_log_densities(matrix, residual, mask, outputs)
    torch.testing.assert_close(found.outputs + found.force_given_outputs, expected)


@given(SEEDS, SIZES, SIZES)
def test_split_is_outputs_alone_and_force_given_outputs(
    seed: int, outputs: int, force: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    matrix, residual = (
        covariance(generator, 2, outputs + force),
        normal(generator, 2, outputs + force),
    )
    k_yy, k_fy = matrix[:, :outputs, :outputs], matrix[:, outputs:, :outputs]
    k_ff = matrix[:, outputs:, outputs:]
    y, f = residual[:, :outputs], residual[:, outputs:]
    gain = k_fy @ torch.linalg.inv(k_yy)
    mean, of = (gain @ y[..., None])[..., 0], k_ff - gain @ k_fy.mT

    mask = torch.ones(2, outputs + force, dtype=torch.bool)
    found = joint_log_densities(matrix, residual, mask, outputs)
    torch.testing.assert_close(found.outputs, log_density(y, k_yy))
    torch.testing.assert_close(found.force_given_outputs, log_density(f - mean, (of + of.mT) / 2))


@given(SEEDS, SIZES, SIZES)
def test_padding_changes_no_density(seed: int, outputs: int, force: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    matrix, residual = (
        covariance(generator, 2, outputs + force),
        normal(generator, 2, outputs + force),
    )
    mask = torch.ones(2, outputs + force, dtype=torch.bool)
    plain = joint_log_densities(matrix, residual, mask, outputs)
    large = joint_log_densities(*padded(generator, matrix, residual, outputs))
    for expected, found in zip(plain, large, strict=True):
        torch.testing.assert_close(found, expected)


def test_points_are_counted_without_padding() -> None:
    mask = torch.tensor([[True, False, True, True, False], [True, True, True, False, False]])
    found = joint_log_densities(torch.eye(5).expand(2, 5, 5), torch.zeros(2, 5), mask, 3)
    assert found.output_points.tolist() == [2, 3]
    assert found.force_points.tolist() == [1, 0]


def test_padding_sends_no_nan_into_gradients() -> None:
    generator = torch.Generator().manual_seed(0)
    matrix, residual = covariance(generator, 1, 5), normal(generator, 1, 5)
    matrix.requires_grad_(True)
    large, values, mask, outputs = padded(generator, matrix, residual, 3)
    found = joint_log_densities(large, values, mask, outputs)
    (found.outputs + found.force_given_outputs).sum().backward()
    assert matrix.grad is not None
    assert torch.isfinite(matrix.grad).all()


def test_isolated_padding_has_unit_variance_and_no_covariance() -> None:
    mask = torch.tensor([[True, False, True]])
    isolated = isolate_padding(torch.full((1, 3, 3), 0.5), mask)
    expected = torch.tensor([[[0.5, 0.0, 0.5], [0.0, 1.0, 0.0], [0.5, 0.0, 0.5]]])
    torch.testing.assert_close(isolated, expected)


@given(SEEDS, SIZES, SIZES)
def test_conditional_is_the_dense_formula(seed: int, observed: int, queries: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    joint = covariance(generator, 2, observed + queries)
    residual = normal(generator, 2, observed)
    k_oo, k_qo = joint[:, :observed, :observed], joint[:, observed:, :observed]
    k_qq = joint[:, observed:, observed:]
    gain = k_qo @ torch.linalg.inv(k_oo)

    mask = torch.ones(2, observed, dtype=torch.bool)
    found = condition(k_oo, k_qo, residual, mask)
    expected = k_qq - gain @ k_qo.mT
    torch.testing.assert_close(found.shift, (gain @ residual[..., None])[..., 0])
    torch.testing.assert_close(found.covariance(k_qq), expected)
    torch.testing.assert_close(
        found.variance(k_qq.diagonal(dim1=-2, dim2=-1)), expected.diagonal(dim1=-2, dim2=-1)
    )


@given(SEEDS, SIZES, SIZES)
def test_padding_changes_no_conditional(seed: int, observed: int, queries: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    joint = covariance(generator, 2, observed + queries)
    residual = normal(generator, 2, observed)
    k_oo, k_qo = joint[:, :observed, :observed], joint[:, observed:, :observed]
    plain = condition(k_oo, k_qo, residual, torch.ones(2, observed, dtype=torch.bool))

    large, values, mask, _ = padded(generator, k_oo, residual, observed)
    cross = normal(generator, 2, queries, mask.shape[1])
    cross[:, :, mask[0]] = k_qo
    found = condition(large, cross, values, mask)
    torch.testing.assert_close(found.shift, plain.shift)
    torch.testing.assert_close(found.covariance(joint[:, observed:, observed:]),
                               plain.covariance(joint[:, observed:, observed:]))  # fmt: skip


def test_conditioning_on_nothing_gives_the_prior() -> None:
    nothing = torch.zeros(1, 3, dtype=torch.bool)
    found = condition(torch.eye(3)[None], torch.ones(1, 2, 3), torch.ones(1, 3), nothing)
    torch.testing.assert_close(found.shift, torch.zeros(1, 2))
    torch.testing.assert_close(found.variance(torch.full((1, 2), 4.0)), torch.full((1, 2), 4.0))


def test_variance_is_never_negative() -> None:
    found = condition(
        torch.ones(1, 1, 1), torch.ones(1, 1, 1), torch.ones(1, 1), torch.ones(1, 1).bool()
    )
    assert found.variance(torch.tensor([[0.999]])).item() == 0.0


def rbf(left: Tensor, right: Tensor) -> Tensor:
    return (-20 * (left[:, :, None] - right[:, None]).square()).exp()


def test_inducing_points_that_determine_the_rest_condition_exactly() -> None:
    generator = torch.Generator().manual_seed(0)
    x, queries = (torch.rand(2, n, generator=generator).double() for n in (120, 30))
    residual, mask = normal(generator, 2, 120), torch.rand(2, 120, generator=generator) < 0.8
    noise = 0.1 + torch.rand(2, 120, generator=generator).double()
    exact = condition(rbf(x, x) + torch.diag_embed(noise), rbf(queries, x), residual, mask)
    z = torch.linspace(0, 1, 25).double().expand(2, -1)
    inducing = rbf(z, z) + 1e-10 * torch.eye(25)
    found = condition_inducing(inducing, rbf(z, x), rbf(queries, z), noise, residual, mask)
    torch.testing.assert_close(found.shift, exact.shift, atol=1e-5, rtol=0)
    prior = rbf(queries, queries)
    torch.testing.assert_close(found.covariance(prior), exact.covariance(prior), atol=1e-5, rtol=0)


def test_too_few_inducing_points_are_never_surer_than_all() -> None:
    generator = torch.Generator().manual_seed(1)
    x, queries = (torch.rand(1, n, generator=generator).double() for n in (60, 40))
    residual, mask = normal(generator, 1, 60), torch.ones(1, 60, dtype=torch.bool)
    noise = torch.full((1, 60), 0.01).double()
    exact = condition(rbf(x, x) + torch.diag_embed(noise), rbf(queries, x), residual, mask)
    z = x[:, ::20]
    few = condition_inducing(rbf(z, z), rbf(z, x), rbf(queries, z), noise, residual, mask)
    prior = torch.ones(1, 40).double()
    assert (few.variance(prior) >= exact.variance(prior) - 1e-9).all()
    assert few.variance(prior).mean() > 2 * exact.variance(prior).mean()
