"""Encoders see sets of points: what may and what may not change an embedding."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from dklfm.model.encoders import (
    FourierEncoder,
    SpectralConvolution,
    TransformerEncoder,
    masked_mean,
    regular_shape,
)


def transformer(axes: int = 1) -> TransformerEncoder:
    torch.manual_seed(0)
    return TransformerEncoder(axes, 8, 16, 2, 4, 3).eval()


def fourier(axes: int = 1, seed: int = 0) -> FourierEncoder:
    torch.manual_seed(seed)
    return FourierEncoder(axes, 8, 16, 2, 4).eval()


def scattered(axes: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(3, 9, axes, generator=generator)
    y = torch.randn(3, 9, generator=generator)
    return x, y, torch.ones(3, 9, dtype=torch.bool)


def grid(*shape: int) -> Tensor:
    """A regular mesh on the unit cube in row-major order, ``1 x point x axis``."""
    axes = [torch.linspace(0, 1, n) for n in shape]
    return torch.cartesian_prod(*axes).reshape(1, -1, len(shape))


@pytest.mark.parametrize("axes", [1, 2])
def test_transformer_does_not_see_the_order_of_points(axes: int) -> None:
    encoder, (x, y, mask) = transformer(axes), scattered(axes)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(
        encoder(x[:, order], y[:, order], mask), encoder(x, y, mask), rtol=0, atol=1e-5
    )


def test_transformer_sees_where_and_what_points_are() -> None:
    encoder, (x, y, mask) = transformer(), scattered()
    r = encoder(x, y, mask)
    assert (encoder(1 - x, y, mask) - r).norm() > 1e-2
    assert (encoder(x, 2 * y, mask) - r).norm() > 1e-2


def test_transformer_does_not_see_padding() -> None:
    encoder, (x, y, mask) = transformer(), scattered()
    x_long = torch.cat([torch.rand(3, 4, 1), x], dim=1)
    y_long = torch.cat([100 * torch.randn(3, 4), y], dim=1)
    mask_long = torch.cat([torch.zeros(3, 4, dtype=torch.bool), mask], dim=1)
    torch.testing.assert_close(
        encoder(x_long, y_long, mask_long), encoder(x, y, mask), rtol=0, atol=1e-5
    )


def test_transformer_embeds_sets_of_no_points_alike() -> None:
    encoder, (x, y, mask) = transformer(), scattered()
    r = encoder(x, y, torch.zeros_like(mask))
    assert torch.isfinite(r).all()
    torch.testing.assert_close(r, r[:1].expand_as(r))


@pytest.mark.parametrize("name", ["transformer", "fourier"])
def test_sets_do_not_influence_each_other(name: str) -> None:
    encoder = transformer() if name == "transformer" else fourier()
    x, y = grid(9).expand(3, -1, -1), scattered()[1]
    mask = torch.ones(3, 9, dtype=torch.bool)
    together = encoder(x, y, mask)
    torch.testing.assert_close(encoder(x[1:2], y[1:2], mask[1:2]), together[1:2], rtol=0, atol=1e-5)


def test_fourier_encoder_refuses_irregular_meshes() -> None:
    with pytest.raises(ValueError, match="one full regular mesh; use the transformer"):
        fourier()(*scattered())


def test_fourier_encoder_refuses_missing_points() -> None:
    x, y, mask = grid(9), torch.zeros(1, 9), torch.ones(1, 9, dtype=torch.bool)
    mask[0, 4] = False
    with pytest.raises(ValueError, match="one full regular mesh; use the transformer"):
        fourier()(x, y, mask)


def test_fourier_encoder_refuses_sets_on_different_meshes() -> None:
    x = torch.cat([grid(9), grid(9) / 2])
    with pytest.raises(ValueError, match="one full regular mesh"):
        fourier()(x, torch.zeros(2, 9), torch.ones(2, 9, dtype=torch.bool))


@pytest.mark.parametrize("seed", range(3))
def test_fourier_embedding_of_a_smooth_function_hardly_depends_on_resolution(seed: int) -> None:
    encoder = fourier(seed=seed)

    def embedded(n: int, cycles: int) -> Tensor:
        x = grid(n)
        y = torch.sin(2 * math.pi * cycles * x[..., 0] + 0.3)
        return encoder(x, y, torch.ones(1, n, dtype=torch.bool))

    # The mesh holds both ends of the interval, so its period errs by 1/n: first order remains.
    difference = (embedded(32, 1) - embedded(32, 2)).norm()
    coarse = (embedded(32, 1) - embedded(64, 1)).norm()
    fine = (embedded(64, 1) - embedded(128, 1)).norm()
    assert coarse < 0.2 * difference
    assert fine < 0.65 * coarse


@pytest.mark.parametrize("shape", [(5,), (4, 3), (3, 4), (2, 3, 4)])
def test_shape_of_a_regular_mesh_is_found(shape: tuple[int, ...]) -> None:
    x = grid(*shape).expand(2, -1, -1)
    assert regular_shape(x, torch.ones(2, x.shape[1], dtype=torch.bool)) == shape


def test_mesh_without_a_corner_is_refused() -> None:
    x = grid(4, 3)[:, :-1]
    with pytest.raises(ValueError, match="one full regular mesh"):
        regular_shape(x, torch.ones(x.shape[:2], dtype=torch.bool))


def test_mesh_in_column_major_order_is_refused() -> None:
    x = grid(4, 3).flip(-1)
    with pytest.raises(ValueError, match="one full regular mesh"):
        regular_shape(x, torch.ones(x.shape[:2], dtype=torch.bool))


def test_fourier_encoder_takes_planar_meshes_of_any_shape() -> None:
    encoder = fourier(axes=2)
    for shape in ((6, 5), (3, 12)):
        x = grid(*shape)
        r = encoder(x, torch.sin(x.sum(-1)), torch.ones(x.shape[:2], dtype=torch.bool))
        assert r.shape == (1, 8)


@pytest.mark.parametrize("mesh", [(16,), (8, 12)])
def test_spectral_convolution_commutes_with_shifts(mesh: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    convolution = SpectralConvolution(len(mesh), 3, 3)
    values = torch.randn(2, 3, *mesh)
    dims = tuple(range(2, values.ndim))
    shifts = (3, 5)[: len(mesh)]
    torch.testing.assert_close(
        convolution(values.roll(shifts, dims)), convolution(values).roll(shifts, dims),
        rtol=0, atol=1e-5,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("waves", "passes"),
    [((1, 2), True), ((-2, 1), True), ((2, -2), True), ((5, 1), False), ((-5, 1), False)],
)
def test_spectral_convolution_keeps_low_frequencies_of_both_signs(
    waves: tuple[int, int], passes: bool
) -> None:
    torch.manual_seed(0)
    x = torch.cartesian_prod(torch.arange(16) / 16, torch.arange(16) / 16)
    wave = torch.cos(2 * math.pi * (x * torch.tensor(waves)).sum(-1)).reshape(1, 1, 16, 16)
    passed = SpectralConvolution(2, 1, 3)(wave).abs().max().item()
    assert (passed > 1e-2) if passes else (passed < 1e-5)


def test_spectral_convolution_keeps_its_action_at_double_resolution() -> None:
    torch.manual_seed(0)
    convolution = SpectralConvolution(1, 2, 4)

    def wave(n: int) -> Tensor:
        t = 2 * math.pi * torch.arange(n) / n
        return torch.stack([torch.sin(t), torch.cos(3 * t)])[None]

    torch.testing.assert_close(
        convolution(wave(32))[..., ::2], convolution(wave(16)), rtol=0, atol=1e-5
    )


def test_masked_mean_is_over_true_entries_and_zero_without_any() -> None:
    values = torch.tensor([[1.0, 5.0, 3.0], [7.0, 8.0, 9.0]])
    mask = torch.tensor([[True, False, True], [False, False, False]])
    assert masked_mean(values, mask, dim=1).tolist() == [2.0, 0.0]
