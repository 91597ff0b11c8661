"""Ways in which observations fail to be what their equation and their stated noise say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from dklfm.model import Batch

Corruption = Callable[[Batch, torch.Generator], Batch]


def noisier(batch: Batch, generator: torch.Generator) -> Batch:
    """Noise of two to eight times the stated size."""
    factor = 2 + 6 * _uniform((len(batch), 1, 1), batch, generator)
    return _moved(batch, factor * batch.y_sd * _normal(batch.y.shape, batch, generator))


def shuffled(batch: Batch, generator: torch.Generator) -> Batch:
    """The values of each output in random order."""
    keys = _uniform(batch.y.shape, batch, generator).masked_fill(~batch.mask, 2.0)
    taken = keys.argsort(-1)
    places = (~batch.mask).to(torch.uint8).argsort(dim=-1, stable=True)

    def reordered(values: Tensor) -> Tensor:
        return values.scatter(-1, places, values.gather(-1, taken))

    return replace(batch, y=reordered(batch.y), y_sd=reordered(batch.y_sd))


def spiked(batch: Batch, generator: torch.Generator) -> Batch:
    """One value of each output off by half to twice the output's range, up or down."""
    shape = (*batch.y.shape[:2], 1)
    keys = _uniform(batch.y.shape, batch, generator).masked_fill(~batch.mask, -1.0)
    high = batch.y.masked_fill(~batch.mask, -torch.inf).amax(-1, keepdim=True)
    low = batch.y.masked_fill(~batch.mask, torch.inf).amin(-1, keepdim=True)
    range_ = (high - low).nan_to_num(0.0, 0.0, 0.0)
    size = (0.5 + 1.5 * _uniform(shape, batch, generator)) * range_
    sign = torch.where(_uniform(shape, batch, generator) < 0.5, -1.0, 1.0)
    where = keys.argmax(-1, keepdim=True)
    return _moved(batch, torch.zeros_like(batch.y).scatter(-1, where, sign * size))


def mixed(batch: Batch, _: torch.Generator) -> Batch:
    """Every output of another task, so that no force is common to them."""

    def rolled(values: Tensor) -> Tensor:
        parts = [values[:, j].roll(j, 0) for j in range(values.shape[1])]
        return torch.stack(parts, 1)

    return replace(batch, y=rolled(batch.y), y_sd=rolled(batch.y_sd), mask=rolled(batch.mask))


CORRUPTIONS: tuple[Corruption, ...] = (noisier, shuffled, spiked, mixed)


def _moved(batch: Batch, by: Tensor) -> Batch:
    return replace(batch, y=torch.where(batch.mask, batch.y + by, batch.y))


def _uniform(shape: tuple[int, ...], batch: Batch, generator: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=generator).to(batch.y)


def _normal(shape: tuple[int, ...], batch: Batch, generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator).to(batch.y)
