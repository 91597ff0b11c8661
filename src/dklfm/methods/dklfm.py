"""The trained deep kernel latent force model as a method."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch

from dklfm.methods.base import Posterior
from dklfm.model import DKLFM, Batch, ModelCard, Moments, Scale, choose_device, load_model
from dklfm.tasks import Tasks

_BATCH_ENTRIES = 20_000_000
"""Matrix entries computed at once: about a gigabyte of float64 work space."""


class TrainedDKLFM:
    """Exact Gaussian conditioning under a trained deep kernel, its force variances calibrated."""

    name = "dklfm"

    def __init__(self, model: DKLFM, scale: Scale, force_variance_factor: float = 1.0) -> None:
        self.model, self.scale = model, scale
        self.force_variance_factor = force_variance_factor
        self.device = next(model.parameters()).device

    @classmethod
    def load(cls, folder: Path, device: str = "cpu") -> TrainedDKLFM:
        """Read a trained model.

        Raises:
            DklfmError: if the weights or the device cannot be used.
        """
        model, scale = load_model(folder, choose_device(device))
        return cls(model, scale, ModelCard.read(folder).force_variance_factor)

    def infer(self, tasks: Tasks) -> Posterior:
        started = time.process_time()
        x_all = self.scale.inputs(np.concatenate([tasks["x"], tasks["x_query"]], axis=1))
        batch = Batch.of(tasks, self.scale)
        outputs, points = batch.y.shape[1:]
        columns = (1 + outputs) * x_all.shape[1]
        size = max(1, _BATCH_ENTRIES // (outputs * points * (outputs * points + columns)))
        parts: list[Moments] = []
        for i in range(0, len(batch), size):
            chosen = slice(i, i + size)
            queries = x_all[chosen].to(self.device)
            parts.append(self.model.posterior(batch.take(chosen).to(self.device), queries))

        def gathered(name: str, factor: float, shift: float = 0.0) -> np.ndarray:
            values = torch.cat([getattr(part, name) for part in parts]).cpu().numpy()
            return shift + factor * values

        scale = self.scale
        force_mean = gathered("force_mean", scale.force_sd, scale.force_mean)[:, points:]
        force_scale = self.force_variance_factor * scale.force_sd**2
        force_sd = np.sqrt(gathered("force_variance", force_scale))[:, points:]
        output_mean = gathered("output_mean", scale.sd, scale.mean)
        output_sd = np.sqrt(gathered("output_variance", scale.sd**2))
        seconds = time.process_time() - started
        return Posterior.of(tasks, (force_mean, force_sd), (output_mean, output_sd), seconds)
