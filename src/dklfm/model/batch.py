"""Tasks as padded tensors on the scale of the model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dklfm.errors import DataError
from dklfm.tasks import Tasks


@dataclass(frozen=True)
class Scale:
    """The training domain: inputs map to [0, 1], outputs and force to zero mean, unit variance.

    One mean and deviation serve all outputs, so that they stay exchangeable.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]
    mean: float
    sd: float
    force_mean: float
    force_sd: float

    @classmethod
    def of(cls, tasks: Tasks) -> Scale:
        """The scale of a training set.

        Raises:
            DataError: if the force is unknown, or the outputs do not vary at all.
        """
        if "f_observed" not in tasks:
            raise DataError(
                "these tasks have no observed force, so nothing can be learnt from them"
            )
        y, f = tasks["y"], tasks["f_observed"]
        sd = float(np.nanstd(y))
        if not sd > 0:
            raise DataError("the training outputs are all equal; nothing can be learnt from them")
        low, high = tasks.domain
        return cls(
            tuple(low.tolist()),
            tuple(high.tolist()),
            mean=float(np.nanmean(y)),
            sd=sd,
            force_mean=float(np.nanmean(f)),
            force_sd=float(np.nanstd(f)),
        )

    def inputs(self, x: np.ndarray) -> Tensor:
        low, high = np.array(self.low), np.array(self.high)
        return torch.from_numpy((np.nan_to_num(x) - low) / (high - low)).float()

    def values(self, y: np.ndarray) -> Tensor:
        return torch.from_numpy(np.nan_to_num((y - self.mean) / self.sd)).float()

    def force(self, f: np.ndarray) -> Tensor:
        return torch.from_numpy((f - self.force_mean) / self.force_sd).float()

    def deviations(self, sd: np.ndarray) -> Tensor:
        return torch.from_numpy(np.nan_to_num(sd / self.sd)).float()


@dataclass(frozen=True)
class Batch:
    """Tasks that share a computation; tasks with fewer points or outputs are padded.

    Attributes:
        x: inputs in [0, 1].
        y: standardised outputs, zero where missing.
        y_sd: standard deviation of their noise, zero where unknown.
        mask: True where an output was observed.
        f: standardised noisy force at ``x``, if known.
        parameters: those that the tasks were simulated with, as standard normal numbers, where a
            model is trained by them.
    """

    x: Float[Tensor, "task point axis"]
    y: Float[Tensor, "task output point"]
    y_sd: Float[Tensor, "task output point"]
    mask: Bool[Tensor, "task output point"]
    f: Float[Tensor, "task point"] | None = None
    parameters: Float[Tensor, "task parameter"] | None = None

    @classmethod
    def of(cls, tasks: Tasks, scale: Scale) -> Batch:
        """Standardise tasks.

        Raises:
            DataError: if the tasks have another number of inputs than the model.
        """
        if tasks["x"].shape[-1] != len(scale.low):
            raise DataError(
                f"the tasks have {tasks['x'].shape[-1]} input dimensions, "
                f"the model was trained with {len(scale.low)}"
            )
        y = tasks["y"]
        y_sd = scale.deviations(tasks["y_sd"]) if "y_sd" in tasks else torch.zeros(y.shape)
        f = scale.force(tasks["f_observed"]) if "f_observed" in tasks else None
        mask = torch.from_numpy(np.isfinite(y))
        return cls(scale.inputs(tasks["x"]), scale.values(y), y_sd, mask, f)

    def __len__(self) -> int:
        return len(self.x)

    def take(self, tasks: Tensor | slice) -> Batch:
        """A subset of the tasks."""
        return self._each(lambda values: values[tasks])

    def points(self, chosen: Tensor) -> Batch:
        """A subset of the points, the same for every task."""
        return replace(
            self,
            x=self.x[:, chosen],
            y=self.y[..., chosen],
            y_sd=self.y_sd[..., chosen],
            mask=self.mask[..., chosen],
            f=None if self.f is None else self.f[:, chosen],
        )

    def outputs(self, chosen: Tensor) -> Batch:
        """A subset of the outputs, the same for every task."""
        return replace(
            self, y=self.y[:, chosen], y_sd=self.y_sd[:, chosen], mask=self.mask[:, chosen]
        )

    def only(self, chosen: Tensor) -> Batch:
        """All outputs at their places, those not chosen hidden."""
        hidden = torch.ones(self.y.shape[1], dtype=torch.bool, device=self.y.device)
        hidden[chosen] = False
        return replace(self, mask=self.mask & ~hidden[:, None])

    def reflected(self, axis: int, chosen: Bool[Tensor, " task"]) -> Batch:
        """The chosen tasks mirrored along one axis of the domain."""
        x = self.x.clone()
        x[chosen, :, axis] = 1 - x[chosen, :, axis]
        return replace(self, x=x)

    def negated(self, scale: Scale, chosen: Bool[Tensor, " task"]) -> Batch:
        """The chosen tasks with the sign of force and outputs changed, about their true zeros."""
        sign = torch.where(chosen, -1.0, 1.0)
        shift, force_shift = scale.mean / scale.sd, scale.force_mean / scale.force_sd
        y = sign[:, None, None] * (self.y + shift) - shift
        f = None if self.f is None else sign[:, None] * (self.f + force_shift) - force_shift
        return replace(self, y=torch.where(self.mask, y, 0.0), f=f)

    def to(self, device: torch.device | str) -> Batch:
        return self._each(lambda values: values.to(device))

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """The same with all that there is of it changed."""
        parts = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{k: change(v) for k, v in parts.items() if v is not None})
