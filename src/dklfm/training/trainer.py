"""One training run as a state that moves epoch by epoch, on tasks that are stored."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any, TypedDict

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from dklfm.config import TasksConfig, TrainingConfig, TrainSpec
from dklfm.errors import DataError, DklfmError
from dklfm.model import Batch, ForceModel, Scale, build_model
from dklfm.simulate import parse_spec
from dklfm.systems import System
from dklfm.tasks import Tasks

log = logging.getLogger(__name__)
NEGLIGIBLE_COUPLING = 0.02
"""Below this prior correlation between force and outputs a model has learnt nothing."""
_SCALE_RATE = 10.0
"""Kernel and noise scales are few, well scaled and slow: they learn this much faster."""
_STEPS_PER_BASIS = 20
"""Of SOAP between two looks at the eigenbases of the gradients' second moments."""


class Trainer:
    """The state of one training run: model and its average, optimiser, schedule, best weights."""

    def __init__(
        self,
        tasks: Tasks,
        spec: TrainSpec,
        device: torch.device,
        simulation: Mapping[str, Any] | None = None,
        start: tuple[ForceModel, Scale] | None = None,
    ) -> None:
        self.spec, self.device, self.simulation = spec, device, simulation
        train = self._first(tasks)
        self.scale = Scale.of(train) if start is None else start[1]
        self.train = self._pair(train)
        self.validation = self._pair(tasks.split("validation"))
        torch.manual_seed(spec.seed)
        self.outputs = train["y"].shape[1]
        self.generator = torch.Generator().manual_seed(spec.seed)
        axes = len(self.scale.low)
        if start is None:
            self.model = self._new_model(axes).to(device)
        else:
            self.model = start[0].to(device).train()
        average = get_ema_multi_avg_fn(spec.training.average)
        self.averaged = AveragedModel(self.model, multi_avg_fn=average)
        config = spec.training
        self.optimiser, rates = _optimiser(self.model, config)
        steps = config.epochs * math.ceil(len(train) / config.batch_size)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimiser, max_lr=rates, total_steps=steps
        )
        self.epoch = 0
        self.cpu_seconds = 0.0
        self.history: list[dict[str, float]] = []
        self.best: dict[str, Tensor] = {}
        self.best_density = -math.inf

    @property
    def seen(self) -> int:
        """How many different tasks the run has trained on."""
        return len(self.train[0])

    @property
    def averaged_model(self) -> ForceModel:
        """The model with the weights' moving average."""
        assert isinstance(self.averaged.module, ForceModel)
        return self.averaged.module

    def run_epoch(self) -> None:
        """One pass over the training tasks, and a look at the validation tasks when due."""
        started, config = time.process_time(), self.spec.training
        self.model.train()
        losses = []
        batch, context = self._epoch_tasks()
        order = torch.randperm(len(context), generator=self.generator)
        for chosen in order.to(self.device).split(config.batch_size):
            parts = self._augmented(batch.take(chosen), context.take(chosen))
            loss = self.model.loss(*parts, config.conditional_weight)
            self.optimiser.zero_grad(set_to_none=True)
            loss.backward()
            norm = nn.utils.clip_grad_norm_(self.model.parameters(), config.clip_norm)
            if norm.isfinite():
                self.optimiser.step()
                self.averaged.update_parameters(self.model)
                losses.append(loss.item())
            else:
                log.warning(
                    "epoch %d: a step without a finite gradient is left out", self.epoch + 1
                )
            self.schedule.step()
        if not losses:
            raise DklfmError("training diverged: no gradient was finite; lower learning_rate")
        self.epoch += 1
        row: dict[str, float] = {
            "epoch": self.epoch,
            "train_loss": sum(losses) / len(losses),
            "learning_rate": float(self.schedule.get_last_lr()[0]),
        }
        if self.epoch % config.validate_every == 0 or self.epoch == config.epochs:
            row |= self._validate()
        self.cpu_seconds += time.process_time() - started
        self.history.append({**row, "cpu_seconds": self.cpu_seconds})

    @cached_property
    def law(self) -> tuple[System, TasksConfig]:
        """What the tasks were simulated by.

        Raises:
            DataError: if they were not.
        """
        if self.simulation is None:
            raise DataError(
                "these tasks were not simulated, so there is no stream of more of them "
                "and no truth to observe anew"
            )
        return parse_spec(self.simulation, "the tasks' own settings")

    def _new_model(self, axes: int) -> ForceModel:
        return build_model(self.spec, axes=axes, outputs=self.outputs)

    def _first(self, tasks: Tasks) -> Tasks:
        """The training tasks of the first epoch, which set the scale."""
        return tasks.split("train")

    def _epoch_tasks(self) -> tuple[Batch, Batch]:
        """What the next epoch is judged by, and the observations that the model sees."""
        return self.train

    def _pair(self, tasks: Tasks) -> tuple[Batch, Batch]:
        """Observations as both, as every model but the operator is judged by them."""
        batch = Batch.of(tasks, self.scale).to(self.device)
        return batch, batch

    def _augmented(self, batch: Batch, _: Batch) -> tuple[Batch, Batch]:
        """Tasks to train on, and what the model sees of them.

        It sees a random subset of points and outputs, which frees it from the mesh. The DKLFM's
        likelihood covers that subset. A black box predicts the force at all points instead, and
        outputs that it does not see are masked, as it tells them apart by their place.
        """
        config = self.spec.training
        points = self._subset(batch.x.shape[1], config.least_points, config.most_points)
        outputs = self._seen_outputs(batch.y.shape[1])
        for axis in config.reflect_axes:
            batch = batch.reflected(axis, self._coins(len(batch)))
        if config.negate:
            batch = batch.negated(self.scale, self._coins(len(batch)))
        seen = batch if points is None else batch.points(points.sort().values)
        if outputs is not None:
            chosen = seen.outputs if self.model.exchangeable else seen.only
            seen = chosen(outputs)
        return seen if self.model.judged_where_seen else batch, self._window(seen)

    def _seen_outputs(self, size: int) -> Tensor | None:
        """Which of so many outputs a step sees; all, if None."""
        return self._subset(size, self.spec.training.least_outputs)

    def _coins(self, size: int) -> Tensor:
        return (torch.rand(size, generator=self.generator) < 0.5).to(self.device)

    def _window(self, batch: Batch) -> Batch:
        """Everything, or a random window of the first axis for each task."""
        least = self.spec.training.least_window
        if least is None:
            return batch
        share, place = torch.rand(2, len(batch), 1, generator=self.generator).to(self.device)
        width = least + (1 - least) * share
        start = place * (1 - width)
        x = batch.x[..., 0]
        inside = (x >= start) & (x <= start + width)
        return replace(batch, mask=batch.mask & inside[:, None])

    def _subset(self, size: int, least: int | None, most: int | None = None) -> Tensor | None:
        if least is None:
            return None
        bounds = min(least, size), min(most or size, size) + 1
        count = torch.randint(*bounds, (), generator=self.generator)
        chosen = torch.randperm(size, generator=self.generator)[: int(count)]
        return chosen.to(self.device)

    @torch.no_grad()
    def _validate(self) -> dict[str, float]:
        model = self.averaged_model.eval()
        sums = torch.zeros(4, dtype=torch.float64)
        for i in range(0, len(self.validation[0]), self.spec.training.batch_size):
            part = slice(i, i + self.spec.training.batch_size)
            densities = model.log_densities(*(batch.take(part) for batch in self.validation))
            sums += torch.stack([total.double().sum().cpu() for total in densities])
        outputs, force, output_points, force_points = sums.tolist()
        density = force / force_points
        if math.isfinite(density) and density > self.best_density:
            self.best_density = density
            self.best = {k: v.detach().clone() for k, v in model.state_dict().items()}
        row = {
            "validation_loss": -(outputs + force) / (output_points + force_points),
            "validation_force_nll": -density,
        }
        coupling = model.coupling(self.validation[1].take(slice(0, 16)))
        if coupling is None:
            return row
        if coupling < NEGLIGIBLE_COUPLING and self.epoch > self.spec.training.epochs // 2:
            log.warning(
                "epoch %d: force and outputs are uncorrelated under the learnt prior (%.1e); the "
                "model infers nothing. Raise model.features.frequencies, lower "
                "training.learning_rate, or train longer",
                self.epoch,
                coupling,
            )
        return row | {"coupling": coupling}

    # A checkpoint holds all of the above, so that a resumed run repeats an undisturbed one.

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and plain data that determine the rest of the run."""
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"averaged.{k}": v for k, v in self.averaged.state_dict().items()}
        tensors |= {f"best.{k}": v for k, v in self.best.items()}
        tensors["generator"] = self.generator.get_state()
        optimiser = self.optimiser.state_dict()
        slots = _apart(optimiser["state"], "optimiser", tensors)
        plain = {
            "epoch": self.epoch,
            "cpu_seconds": self.cpu_seconds,
            "history": self.history,
            "best_density": self.best_density if self.best else None,
            "groups": optimiser["param_groups"],
            "slots": slots,
            "schedule": {k: v for k, v in self.schedule.state_dict().items() if _is_plain(v)},
        }
        return {k: v.detach().cpu().contiguous() for k, v in tensors.items()}, plain

    def restore(self, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> None:
        """Continue from what :meth:`state` gave."""

        def under(prefix: str) -> dict[str, Tensor]:
            return {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}

        self.model.load_state_dict(under("model."))
        self.averaged.load_state_dict(under("averaged."))
        self.best = {k: v.to(self.device) for k, v in under("best.").items()}
        self.generator.set_state(tensors["generator"])
        slots = {int(i): _together(each, tensors) for i, each in plain["slots"].items()}
        self.optimiser.load_state_dict({"state": slots, "param_groups": plain["groups"]})
        self.schedule.load_state_dict(dict(plain["schedule"]))
        self.epoch, self.cpu_seconds = plain["epoch"], plain["cpu_seconds"]
        self.history = list(plain["history"])
        best = plain["best_density"]
        self.best_density = -math.inf if best is None else best


class _Place(TypedDict):
    """Of a tensor that is kept apart from plain data; its strides decide how products round."""

    tensor: str
    strides: list[int]


def _apart(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """Nested state as plain data; its tensors go to ``tensors``, by names under ``name``."""
    if isinstance(value, Tensor):
        tensors[name] = value
        return _Place(tensor=name, strides=list(value.stride()))
    if isinstance(value, dict):
        return {str(k): _apart(each, f"{name}.{k}", tensors) for k, each in value.items()}
    if isinstance(value, list):
        return [_apart(each, f"{name}.{i}", tensors) for i, each in enumerate(value)]
    return value


def _together(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """What :func:`_apart` took apart."""
    if isinstance(value, dict) and value.keys() == _Place.__annotations__.keys():
        kept = tensors[value["tensor"]]
        return kept.new_empty_strided(kept.shape, value["strides"]).copy_(kept)
    if isinstance(value, dict):
        return {k: _together(each, tensors) for k, each in value.items()}
    if isinstance(value, list):
        return [_together(each, tensors) for each in value]
    return value


def _is_plain(value: Any) -> bool:
    return isinstance(value, int | float | str | bool | list | None)


def _optimiser(
    model: ForceModel, config: TrainingConfig
) -> tuple[torch.optim.Optimizer, list[float]]:
    scales = list(model.scales())
    apart = {id(scale) for scale in scales}
    networks = [parameter for parameter in model.parameters() if id(parameter) not in apart]
    rates = [config.learning_rate, _SCALE_RATE * config.learning_rate]
    groups = [
        {"params": networks, "weight_decay": config.weight_decay},
        {"params": scales, "weight_decay": 0.0},
    ]
    if config.optimiser == "soap":
        # Adam in slowly turning eigenbases: Vyas et al. (2024), https://arxiv.org/abs/2409.11321.
        from pytorch_optimizer import SOAP

        frequency = _STEPS_PER_BASIS
        return SOAP(groups, rates[0], betas=(0.95, 0.99), precondition_frequency=frequency), rates
    return torch.optim.AdamW(groups, lr=config.learning_rate, fused=True), rates
