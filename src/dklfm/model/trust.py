"""Whether a task looks like those that a model was trained on.

What a task looks like is its embedding, and how far its observations are from the outputs that were
inferred. Both depend on how it was observed: by how many points, of how many outputs, with how much
noise. So a task is compared with simulated ones that were observed alike: its Mahalanobis distance
from them (Lee et al. 2018), and its mean squared residual, each with the distribution that it has
among them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from dklfm.artifacts import write_tensors
from dklfm.errors import ModelError
from dklfm.model.base import ForceModel, Moments
from dklfm.model.batch import Batch, Scale
from dklfm.model.encoders import masked_mean

FILE = "trust.safetensors"
LEVEL = 0.05
"""Share of tasks like those of the training that are called unlike them."""
_NEIGHBOURS = 1200
"""Simulated tasks that were observed most alike; two thirds give centre and covariance."""
_LEAST_TASKS = 8
_BIN = 0.25
"""Observations that differ by less, in logarithms, are compared with the same tasks."""
_SHRINKAGE = 0.03
"""Share of the features' own variances in their covariance."""
_LEAST_NOISE = 1e-3
"""Of an output's noise, in deviations of the training outputs."""


class Statistics(NamedTuple):
    """Of each task: how it was observed, what it looks like, and its mean squared residual."""

    design: Tensor
    features: Tensor
    residual: Tensor

    @classmethod
    def of(cls, batch: Batch, moments: Moments) -> Statistics:
        """From moments at the batch's own points first.

        Raises:
            ValueError: if the model has no embedding, or no law of the outputs.
        """
        if moments.embedding is None or moments.output_mean is None:
            raise ValueError("the model has no embedding, or no law of its outputs")
        assert moments.output_variance is not None
        points, mask = batch.y.shape[-1], batch.mask
        mean, variance = (
            values[..., :points] for values in (moments.output_mean, moments.output_variance)
        )
        noise = batch.y_sd.double().square() + _LEAST_NOISE**2
        squares = (batch.y.double() - mean).square() * mask
        seen = mask.any(-1)
        own = masked_mean(squares / (variance + noise), mask, -1)
        pure = masked_mean(squares / noise, mask, -1)
        residual = _log(masked_mean(own, seen, 1))
        location = masked_mean(batch.y, mask, -1)[..., None]
        spread = masked_mean((batch.y - location).square(), mask, -1).sqrt().double()
        level = _log(noise.sqrt() / (spread[..., None] + _LEAST_NOISE))
        features = [
            residual,
            _log((squares / (variance + noise)).amax((1, 2))),
            _log(masked_mean(pure, seen, 1)),
            _log(pure.amax(1)),
            moments.force_variance.log().mean(1),
            masked_mean(_log(variance), mask, -1).mean(1),
        ]
        gaps = batch.x[..., -1].masked_fill(~mask.any(1), torch.nan).diff(dim=1).nan_to_num()
        design = [
            _log(gaps.clamp_min(0).square().sum(1).double() + 1e-4),
            _log(seen.sum(1).double()),
            _log(mask.sum((1, 2)) / seen.sum(1).clamp_min(1)),
            masked_mean(masked_mean(level, mask, -1), seen, 1),
        ]
        return cls(
            torch.stack(design, -1),
            torch.cat([moments.embedding.double(), torch.stack(features, -1)], -1),
            residual,
        )


def _log(values: Tensor) -> Tensor:
    return values.double().clamp_min(1e-12).log()


@dataclass(frozen=True)
class Trust:
    """What simulated tasks of a model look like, however they were observed.

    Attributes:
        design: ``task x ...``, how each was observed.
        features: ``task x size``, standardised, in half precision.
        centre, scale: ``size``, of the features.
        residual: ``task``.
    """

    design: Tensor
    features: Tensor
    centre: Tensor
    scale: Tensor
    residual: Tensor

    @classmethod
    @torch.no_grad()
    def fit(cls, model: ForceModel, scale: Scale, contexts: Iterable[Batch]) -> Trust | None:
        """From simulated observations; None of a model that has no embedding."""
        found = []
        for context in (filled(batch, scale) for batch in contexts):
            moments = model.eval().posterior(context, context.x)
            if moments.embedding is None or moments.output_mean is None:
                return None
            found.append(Statistics.of(context, moments))
        design, features, residual = (
            torch.cat(parts).cpu().float() for parts in zip(*found, strict=True)
        )
        centre, spread = features.mean(0), features.std(0) + 1e-6
        return cls(design, ((features - centre) / spread).half(), centre, spread, residual)

    def p_values(self, found: Statistics) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """How often simulated tasks look stranger: by their features, by their residuals."""
        white = (found.features.cpu() - self.centre) / self.scale
        bins = (found.design.cpu() / _BIN).round()
        results = torch.empty(len(white), 2, dtype=torch.float64)
        distinct, which = torch.unique(bins, dim=0, return_inverse=True)
        for group, design in enumerate(distinct):
            chosen = which == group
            some = Statistics(*(values.cpu()[chosen] for values in found))
            results[chosen] = self._among_alike(_BIN * design, white[chosen], some)
        return results[:, 0].numpy(), results[:, 1].numpy()

    def _among_alike(self, design: Tensor, white: Tensor, found: Statistics) -> Tensor:
        """Both p-values of tasks of one design, ``task x 2``."""
        spread = self.design.std(0).clamp_min(1e-6)
        apart = ((self.design - design) / spread).square().sum(-1)
        near = apart.topk(min(_NEIGHBOURS, len(apart)), largest=False).indices.sort().values
        known = self.features[near].double()
        held = torch.arange(len(near)) % 3 == 0

        def terms(designs: Tensor) -> Tensor:
            """What is left of the design's influence is linear."""
            away = ((designs - design) / spread).double()
            return torch.cat([torch.ones(len(away), 1).to(away), away], -1)

        about = terms(self.design[near])
        slopes = torch.linalg.lstsq(about[~held], known[~held]).solution
        known = known - about @ slopes
        covariance = torch.cov(known[~held].T)
        covariance = (1 - _SHRINKAGE) * covariance + torch.diag(
            _SHRINKAGE * covariance.diagonal() + 1e-9
        )
        root = torch.linalg.cholesky(covariance)

        def distance(values: Tensor) -> Tensor:
            return torch.linalg.solve_triangular(root, values.mT, upper=False).square().sum(0)

        residual = self.residual[near].double()
        trend = torch.linalg.lstsq(about, residual[:, None]).solution[:, 0]
        own = terms(found.design)

        return torch.stack(
            [
                _exceedance(distance(known[held]), distance(white.double() - own @ slopes)),
                _exceedance(residual - about @ trend, found.residual.double() - own @ trend),
            ],
            -1,
        )

    def save(self, folder: Path) -> None:
        """Write the file beside a model's weights."""
        tensors = {name: value.contiguous() for name, value in vars(self).items()}
        write_tensors(folder / FILE, tensors)

    @classmethod
    def load(cls, folder: Path) -> Trust | None:
        """Read it; None if the model has none.

        Raises:
            ModelError: if the file is damaged.
        """
        if not (folder / FILE).is_file():
            return None
        path = folder / FILE
        try:
            found = cls(**load_file(path))
        except (OSError, SafetensorError, TypeError) as error:
            raise ModelError(f"{path} cannot be read ({error}); train it again") from None
        tasks, size = len(found.residual.flatten()), len(found.centre.flatten())
        shapes = {
            "design": (tasks, *found.design.shape[1:2]),
            "features": (tasks, size),
            "centre": (size,),
            "scale": (size,),
            "residual": (tasks,),
        }
        for name, tensor in vars(found).items():
            if tensor.shape != shapes[name] or not tensor.is_floating_point():
                raise ModelError(f"{path} is damaged: {name} is no table of numbers as it must be")
            if not tensor.isfinite().all():
                raise ModelError(f"{path} is damaged: {name} is not finite; train it again")
        if tasks < _LEAST_TASKS or not (found.scale > 0).all():
            raise ModelError(f"{path} is damaged: it describes too few tasks; train it again")
        return found


def filled(batch: Batch, scale: Scale) -> Batch:
    """Inputs stretched to fill the domain, outputs of the usual size: as tables are inferred."""
    seen = batch.mask.any(1)[..., None]
    low = batch.x.masked_fill(~seen, torch.inf).amin(1, keepdim=True)
    high = batch.x.masked_fill(~seen, -torch.inf).amax(1, keepdim=True)
    x = torch.where(seen, (batch.x - low) / (high - low).clamp_min(1e-6), batch.x)
    y = scale.mean + scale.sd * batch.y
    count = batch.mask.sum((1, 2), keepdim=True).clamp_min(1)
    size = ((y.square() * batch.mask).sum((1, 2), keepdim=True) / count).sqrt()
    factor = float(np.hypot(scale.mean, scale.sd)) / size.clamp_min(1e-12)
    moved = torch.where(batch.mask, (factor * y - scale.mean) / scale.sd, 0.0)
    return replace(batch, x=x, y=moved, y_sd=factor * batch.y_sd)


def unlike(features: NDArray[np.float64], residual: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which tasks to warn of, by their p-values; at most LEVEL of those that are alike."""
    return np.minimum(features, residual) < LEVEL / 2


def _exceedance(known: Tensor, values: Tensor) -> Tensor:
    ranked = known.sort().values
    below = torch.searchsorted(ranked, values.contiguous())
    return (1 + len(ranked) - below).double() / (1 + len(ranked))
