"""Every trained model as a method."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dklfm.errors import DataError, ModelError
from dklfm.methods.base import Posterior
from dklfm.model import (
    Batch,
    ForceModel,
    ModelCard,
    Moments,
    Scale,
    Statistics,
    Trust,
    choose_device,
    load_model,
)
from dklfm.model.trust import P_VALUES
from dklfm.tasks import Tasks

Array = NDArray[np.float64]
_MOST_TASKS = 64
"""Larger batches leave the cache, and are slower."""
_BATCH_ENTRIES = 20_000_000
"""Matrix entries computed at once: about a gigabyte of float64 work space."""


class TrainedModel:
    """The posterior of a trained model, its force variances calibrated; named as its method."""

    def __init__(
        self,
        model: ForceModel,
        scale: Scale,
        force_variance_factor: float = 1.0,
        trust: Trust | None = None,
        force_df: float | None = None,
    ) -> None:
        self.model, self.scale = model, scale
        self.name = model.method
        self.force_variance_factor = force_variance_factor
        self.trust = trust
        self.force_df = force_df
        self.device = next(model.parameters()).device

    @classmethod
    def load(cls, folder: Path, device: str = "cpu") -> TrainedModel:
        """Read a trained model.

        Raises:
            DklfmError: if the weights or the device cannot be used.
        """
        model, scale = load_model(folder, choose_device(device))
        card = ModelCard.read(folder)
        trust = Trust.load(folder, card.trust_digest)
        return cls(model, scale, card.force_variance_factor, trust, card.force_df)

    def infer(self, tasks: Tasks, joint: bool = False, iterate: bool = True) -> Posterior:
        """The posterior of every task; black boxes give none of the outputs.

        A model that knows what its tasks look like also tells how often such look stranger, by the
        P_VALUES of :mod:`dklfm.model.trust`.

        Args:
            tasks: to be inferred.
            joint: also give the covariance of the force over a task's query points.
            iterate: let a model that iterates do so. Without, the answer is where it would begin,
                and whether the tasks are strange is not told.

        Raises:
            DataError: if the model cannot take tasks like these.
            ModelError: if what it answers is not finite.
        """
        started = time.process_time()
        x_all = self.scale.inputs(np.concatenate([tasks["x"], tasks["x_query"]], axis=1))
        batch = Batch.of(tasks, self.scale)
        outputs, points = batch.y.shape[1:]
        columns = (1 + outputs) * x_all.shape[1]
        entries = outputs * points * (outputs * points + columns)
        size = max(1, min(_MOST_TASKS, _BATCH_ENTRIES // entries))
        parts: list[Moments] = []
        unlike: list[dict[str, Array]] = []
        for i in range(0, len(batch), size):
            seen = batch.take(slice(i, i + size)).to(self.device)
            queries = x_all[i : i + size].to(self.device)
            if iterate:
                found = self._moments(seen, queries, joint)
            else:
                found = self.model.begun(seen, queries)
            parts.append(found._replace(embedding=None))
            if self.trust is not None and iterate:
                looked = self.model.begun(seen, seen.x) if self.model.iterates else found
                unlike.append(self.trust.p_values(Statistics.of(seen, looked)))

        def gathered(name: str, factor: float, shift: float = 0.0) -> Array:
            values = torch.cat([getattr(part, name) for part in parts]).cpu().numpy()
            return shift + factor * values

        scale = self.scale
        force_mean = gathered("force_mean", scale.force_sd, scale.force_mean)[:, points:]
        force_scale = self.force_variance_factor * scale.force_sd**2
        force = force_mean, np.sqrt(gathered("force_variance", force_scale))[:, points:]
        if not (np.isfinite(force).all() and (force[1] > 0).all()):
            raise ModelError(
                f"the {self.name} model gives no finite answer; its weights are damaged, or the "
                "tasks lie far beyond what it was trained on"
            )
        of_outputs = None
        if parts[0].output_mean is not None:
            output_mean = gathered("output_mean", scale.sd, scale.mean)
            of_outputs = output_mean, np.sqrt(gathered("output_variance", scale.sd**2))
        posterior = Posterior.of(tasks, force, of_outputs, time.process_time() - started)
        more: dict[str, tuple[tuple[str, ...], Array]] = {}
        if self.force_df is not None:
            more["force_df"] = (("task",), np.full(len(tasks), self.force_df))
        if joint:
            covariance = gathered("force_covariance", force_scale)[:, points:, points:]
            more["force_covariance"] = (("task", "query", "other_query"), covariance)
        if unlike:
            for name in P_VALUES:
                more[name] = (("task",), np.concatenate([part[name] for part in unlike]))
        return Posterior(posterior.data.assign(more))

    def _moments(self, batch: Batch, queries: Tensor, joint: bool) -> Moments:
        if not joint:
            return self.model.posterior(batch, queries)
        if not self.model.joint:
            raise DataError(f"{self.name} has no joint law of the force")
        return self.model.posterior(batch, queries, covariance=True)
