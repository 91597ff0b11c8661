"""Whether a task looks like those that a model was trained on.

Two statistics, each with the distribution that it has on simulated tasks: the Mahalanobis distance
of a task's embedding from theirs (Lee et al. 2018), and the mean squared residual of its
observations from the posterior of its outputs. Half of the simulated tasks, observed on meshes as
random as in training, give the centre and the covariance, the other half the distributions.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from dklfm.artifacts import write_atomically
from dklfm.errors import ModelError
from dklfm.model.base import ForceModel, Moments
from dklfm.model.batch import Batch

FILE = "trust.safetensors"
LEVEL = 0.05
"""Share of tasks like those of the training that are called unlike them."""
_SHRINKAGE = 0.05
"""Share of the embedding's mean variance in its covariance: directions that never vary stay."""
_LEAST_NOISE = 1e-3
"""Of an output's noise, in deviations of the training outputs."""


class Statistics(NamedTuple):
    """Of each task: its embedding, and how far its observations are from the outputs inferred."""

    embedding: Tensor
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
        points = batch.y.shape[-1]
        variance = moments.output_variance[..., :points] + batch.y_sd.double().square()
        error = batch.y.double() - moments.output_mean[..., :points]
        squares = error.square() / (variance + _LEAST_NOISE**2) * batch.mask
        mean = squares.sum((-1, -2)) / batch.mask.sum((-1, -2)).clamp_min(1)
        return cls(moments.embedding.double(), mean.clamp_min(1e-12).log())


@dataclass(frozen=True)
class Trust:
    """What simulated tasks of a model look like.

    Attributes:
        centre: ``size``, of the embeddings.
        whitening: ``size x size``, L⁻ᵀ with L Lᵀ their covariance.
        distances: sorted, of tasks that the former were not fitted to.
        residuals: sorted, likewise.
    """

    centre: Tensor
    whitening: Tensor
    distances: Tensor
    residuals: Tensor

    @classmethod
    @torch.no_grad()
    def fit(cls, model: ForceModel, contexts: Iterable[Batch]) -> Trust | None:
        """From simulated observations; None of a model that has no embedding."""
        found = []
        for context in contexts:
            moments = model.eval().posterior(context, context.x)
            if moments.embedding is None or moments.output_mean is None:
                return None
            found.append(Statistics.of(context, moments))
        embedding, residual = (torch.cat(parts).cpu() for parts in zip(*found, strict=True))
        fitted, held = embedding[::2], embedding[1::2]
        centre = fitted.mean(0)
        covariance = torch.cov(fitted.T)
        level = _SHRINKAGE * covariance.diagonal().mean()
        covariance = covariance + level * torch.eye(len(centre), dtype=covariance.dtype)
        whitening = torch.linalg.inv(torch.linalg.cholesky(covariance)).mT.contiguous()
        distances = ((held - centre) @ whitening).square().sum(-1)
        return cls(centre, whitening, distances.sort().values, residual[1::2].sort().values)

    def p_values(self, statistics: Statistics) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """How often simulated tasks look stranger: by their embedding, by their residuals."""
        white = (statistics.embedding.cpu() - self.centre) @ self.whitening
        return (
            _exceedance(self.distances, white.square().sum(-1)),
            _exceedance(self.residuals, statistics.residual.cpu()),
        )

    def save(self, folder: Path) -> None:
        """Write the file beside a model's weights."""
        tensors = {name: value.contiguous() for name, value in vars(self).items()}
        write_atomically(folder / FILE, lambda path: save_file(tensors, path))

    @classmethod
    def load(cls, folder: Path) -> Trust | None:
        """Read it; None if the model has none.

        Raises:
            ModelError: if the file is damaged.
        """
        if not (folder / FILE).is_file():
            return None
        try:
            return cls(**load_file(folder / FILE))
        except (OSError, SafetensorError, TypeError) as error:
            raise ModelError(f"{folder / FILE} cannot be read ({error}); train it again") from None


def unlike(embedding: NDArray[np.float64], residual: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which tasks to warn of, by their p-values; at most LEVEL of those that are alike."""
    return np.minimum(embedding, residual) < LEVEL / 2


def _exceedance(known: Tensor, values: Tensor) -> NDArray[np.float64]:
    below = torch.searchsorted(known, values.double())
    return ((1 + len(known) - below) / (1 + len(known))).clamp(max=1).double().numpy()
