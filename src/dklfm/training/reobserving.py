"""Training on stored tasks that every epoch observes anew.

Few tasks, always seen at the same points with the same noise, are learnt by heart. Their noise-free
truth is stored on a grid, so that they can be observed again: other points of it, fresh noise.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dklfm.errors import DataError
from dklfm.model import Batch
from dklfm.tasks import Tasks
from dklfm.training.trainer import Trainer


class ReobservingTrainer(Trainer):
    """The same training; only observations differ from epoch to epoch.

    Raises:
        DataError: if the tasks hold no truth to observe.
    """

    def __init__(self, tasks: Tasks, *about: Any) -> None:
        super().__init__(tasks, *about)
        train = tasks.split("train")
        if "f" not in train or "h_query" not in train:
            raise DataError("training.reobserve needs the true force and outputs, f and h_query")
        low, high = train.domain
        query = train["x_query"][0]
        inside = ((query >= low) & (query <= high)).all(-1)
        self._x = self.scale.inputs(train["x_query"][:, inside])
        self._h = self.scale.values(train["h_query"][..., inside])
        self._f = self.scale.force(train["f"][:, inside])
        self._force_noise = self.law[1].force_noise / self.scale.force_sd

    def _epoch_tasks(self) -> tuple[Batch, Batch]:
        """As many points as the stored mesh has, as far as the grid has them."""
        y_sd = self.train[0].y_sd.cpu()
        points = min(y_sd.shape[-1], self._x.shape[1])
        chosen = self._some(self._x.shape[1], points).sort(1).values
        of_each = chosen[:, None].expand(-1, self._h.shape[1], -1)
        levels = self._some(y_sd.shape[-1], points)[:, None].expand_as(of_each)
        noise = y_sd.gather(2, levels)
        f = self._f.gather(1, chosen)
        batch = Batch(
            self._x.gather(1, chosen[..., None].expand(-1, -1, self._x.shape[-1])),
            self._h.gather(2, of_each) + noise * self._normal(noise),
            noise,
            torch.ones_like(noise, dtype=torch.bool),
            f + self._force_noise * self._normal(f),
        ).to(self.device)
        return batch, batch

    def _some(self, size: int, count: int) -> Tensor:
        """So many different indices below ``size`` for every task."""
        keys = torch.rand(len(self._x), size, generator=self.generator)
        return keys.argsort(1)[:, :count]

    def _normal(self, like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=self.generator, dtype=like.dtype)
