"""Every trained model as a method."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from dklfm.methods.base import Posterior
from dklfm.model import Batch, ForceModel, ModelCard, Moments, Scale, choose_device, load_model
from dklfm.tasks import Tasks

_BATCH_ENTRIES = 20_000_000
"""Matrix entries computed at once: about a gigabyte of float64 work space."""


class TrainedModel:
    """The posterior of a trained model, its force variances calibrated; named as its method."""

    def __init__(self, model: ForceModel, scale: Scale, force_variance_factor: float = 1.0) -> None:
        self.model, self.scale = model, scale
        self.name = model.method
        self.force_variance_factor = force_variance_factor
        self.device = next(model.parameters()).device

    @classmethod
    def load(cls, folder: Path, device: str = "cpu") -> TrainedModel:
        """Read a trained model.

        Raises:
            DklfmError: if the weights or the device cannot be used.
        """
        model, scale = load_model(folder, choose_device(device))
        return cls(model, scale, ModelCard.read(folder).force_variance_factor)

    def infer(self, tasks: Tasks) -> Posterior:
        """The posterior of every task; black boxes give none of the outputs.

        Raises:
            DataError: if the model cannot take tasks like these.
        """
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

        def gathered(name: str, factor: float, shift: float = 0.0) -> NDArray[np.float64]:
            values = torch.cat([getattr(part, name) for part in parts]).cpu().numpy()
            return shift + factor * values

        scale = self.scale
        force_mean = gathered("force_mean", scale.force_sd, scale.force_mean)[:, points:]
        force_scale = self.force_variance_factor * scale.force_sd**2
        force = force_mean, np.sqrt(gathered("force_variance", force_scale))[:, points:]
        of_outputs = None
        if parts[0].output_mean is not None:
            output_mean = gathered("output_mean", scale.sd, scale.mean)
            of_outputs = output_mean, np.sqrt(gathered("output_variance", scale.sd**2))
        return Posterior.of(tasks, force, of_outputs, time.process_time() - started)
