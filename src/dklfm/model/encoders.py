"""Set encoders: from one output function's noisy points to a vector (Section 3.2)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from dklfm.errors import DataError
from dklfm.model.features import FourierFeatures

MOST_ENCODED = 2048


def masked_mean(values: Tensor, mask: Tensor, dim: int) -> Tensor:
    """Mean over ``dim`` of the entries whose mask is True; zero where there are none."""
    weight = mask.to(values)
    return (values * weight).sum(dim) / weight.sum(dim).clamp_min(1.0)


class TransformerEncoder(nn.Module):
    """Linear lift, self-attention over the points of one output, mean over points."""

    def __init__(
        self,
        axes: int,
        size: int,
        width: int,
        layers: int,
        heads: int,
        frequencies: int,
        channels: int = 1,
    ) -> None:
        super().__init__()
        self.position = FourierFeatures(axes, frequencies, 0.25, 8.0)
        self.lift = nn.Linear(channels + self.position.size, width)
        layer = nn.TransformerEncoderLayer(
            width, heads, 2 * width, dropout=0.0, batch_first=True, norm_first=True
        )
        self.attention = nn.TransformerEncoder(
            layer, layers, norm=nn.LayerNorm(width), enable_nested_tensor=False
        )
        self.project = nn.Linear(width, size)

    def forward(self, x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
        """Embed each set of points.

        Args:
            x: ``set x point x axis`` inputs in [0, 1].
            y: ``set x point`` standardised values, or ``set x point x channel`` of them.
            mask: ``set x point``, True where a point is real.

        Returns:
            ``set x size`` embeddings; zero-point sets embed a constant. Of more than MOST_ENCODED
            points, so many are looked at, evenly spread: attention is quadratic in them.
        """
        if x.shape[1] > MOST_ENCODED:
            chosen = torch.arange(MOST_ENCODED, device=x.device) * x.shape[1] // MOST_ENCODED
            x, y, mask = x[:, chosen], y[:, chosen], mask[:, chosen]
        tokens = self.lift(torch.cat([torch.atleast_3d(y), self.position(x)], dim=-1))
        hidden = mask | ~mask.any(-1, keepdim=True)  # attention over nothing is NaN
        encoded = self.attention(tokens, src_key_padding_mask=~hidden)  # set point width
        return self.project(masked_mean(encoded, mask[..., None], dim=-2))


class SpectralConvolution(nn.Module):
    """Multiply the first Fourier modes along the mesh by learned complex weights."""

    def __init__(self, axes: int, width: int, modes: int) -> None:
        super().__init__()
        self.axes, self.modes = axes, modes
        # The last axis of a real transform keeps non-negative frequencies; others keep both signs.
        corners = 2 ** (axes - 1)
        shape = (corners, width, width, *(modes,) * axes, 2)
        self.weight = nn.Parameter(torch.randn(shape) / width)

    def forward(self, values: Tensor) -> Tensor:
        """``set x width x mesh...`` values to the same shape."""
        dims = tuple(range(-self.axes, 0))
        spectrum = torch.fft.rfftn(values, dim=dims, norm="forward")
        kept = [min(self.modes, n // 2) for n in values.shape[2:-1]]
        kept.append(min(self.modes, spectrum.shape[-1]))
        out = torch.zeros_like(spectrum)
        weight = torch.view_as_complex(self.weight)
        for corner in range(len(weight)):
            block: list[slice] = []
            used: list[slice] = []
            for axis, n in enumerate(kept):
                negative = corner >> axis & 1 and axis < self.axes - 1
                block.append(slice(-n, None) if negative else slice(0, n))
                used.append(slice(0, n))
            index: tuple[Any, ...] = (..., *block)
            kept_weight = weight[corner][(slice(None), slice(None), *used)]
            out[index] = torch.einsum("si...,io...->so...", spectrum[index], kept_weight)
        return torch.fft.irfftn(out, s=values.shape[2:], dim=dims, norm="forward")


class FourierEncoder(nn.Module):
    """Fourier neural operator on a regular mesh (Li et al., 2021), mean over points."""

    def __init__(self, axes: int, size: int, width: int, layers: int, modes: int) -> None:
        super().__init__()
        self.axes = axes
        self.lift = nn.Linear(1 + axes, width)
        self.spectral = nn.ModuleList(
            SpectralConvolution(axes, width, modes) for _ in range(layers)
        )
        self.pointwise = nn.ModuleList(
            nn.Conv1d(width, width, kernel_size=1) for _ in range(layers)
        )
        self.project = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, size))

    def forward(self, x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
        """Embed each function; arguments and result as for :class:`TransformerEncoder`.

        The points must be a full regular mesh in row-major order.

        Raises:
            DataError: if points are missing or the mesh is irregular.
        """
        shape = regular_shape(x, mask)
        values = self.lift(torch.cat([y[..., None], x], dim=-1)).mT  # set width point
        for spectral, pointwise in zip(self.spectral, self.pointwise, strict=True):
            mixed = spectral(values.unflatten(-1, shape)).flatten(2)
            values = nn.functional.gelu(mixed + pointwise(values))
        return self.project(values.mean(-1))


def regular_shape(x: Tensor, mask: Tensor) -> tuple[int, ...]:
    """The mesh shape shared by all sets.

    Raises:
        DataError: if points are missing or do not form one regular mesh.
    """
    refuse = DataError(
        "the Fourier neural operator needs every output on one full regular mesh; "
        "use the transformer encoder for irregular or missing points"
    )
    if not bool(mask.all()):
        raise refuse
    first = x[0].double()
    shape = tuple(len(torch.unique(first[:, d].round(decimals=6))) for d in range(x.shape[-1]))
    if math.prod(shape) != x.shape[-2]:
        raise refuse
    axes = [
        torch.linspace(float(first[0, d]), float(first[-1, d]), n, dtype=torch.float64)
        for d, n in enumerate(shape)
    ]
    mesh = torch.cartesian_prod(*axes).reshape(first.shape)
    if not torch.allclose(x.double(), mesh.to(x.device), atol=1e-5):
        raise refuse
    return shape
