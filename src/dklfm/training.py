"""Training of a model on simulated tasks, resumable at any epoch."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from dklfm.artifacts import dataset_digest, write_atomically
from dklfm.config import (
    OperatorConfig,
    StreamConfig,
    TasksConfig,
    TrainingConfig,
    TrainSpec,
    canonical_json,
    resolved,
    validate,
)
from dklfm.errors import DataError, DklfmError
from dklfm.model import (
    DKLFM,
    Batch,
    ForceModel,
    OperatorLFM,
    Scale,
    build_model,
    choose_device,
    save_model,
)
from dklfm.progress import progress
from dklfm.simulate import assemble, parse_spec, simulate
from dklfm.tasks import Tasks

log = logging.getLogger(__name__)
NEGLIGIBLE_COUPLING = 0.02
"""Below this prior correlation between force and outputs a model has learnt nothing."""
_SCALE_RATE = 10.0
"""Kernel and noise scales are few, well scaled and slow: they learn this much faster."""
_NORMAL_95 = 1.959964
_CHECKPOINT_SECONDS = 20.0
_STREAM_STRIDE = 2**32
"""Between the indices of the first tasks of two seeds; stored tasks come before."""


class Trainer:
    """The state of one training run: model and its average, optimiser, schedule, best weights."""

    def __init__(self, tasks: Tasks, spec: TrainSpec, device: torch.device) -> None:
        self.spec, self.device = spec, device
        train = self._first(tasks)
        self.scale = Scale.of(train)
        self.train = self._pair(train)
        self.validation = self._pair(tasks.split("validation"))
        torch.manual_seed(spec.seed)
        self.outputs = train["y"].shape[1]
        axes = len(self.scale.low)
        self.model = build_model(spec, axes=axes, outputs=self.outputs).to(device)
        average = get_ema_multi_avg_fn(spec.training.average)
        self.averaged = AveragedModel(self.model, multi_avg_fn=average)
        self.generator = torch.Generator().manual_seed(spec.seed)
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
            nn.utils.clip_grad_norm_(self.model.parameters(), config.clip_norm)
            self.optimiser.step()
            self.averaged.update_parameters(self.model)
            self.schedule.step()
            losses.append(loss.item())
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
        outputs = self._subset(batch.y.shape[1], config.least_outputs)
        for axis in config.reflect_axes:
            batch = batch.reflected(axis, self._coins(len(batch)))
        if config.negate:
            batch = batch.negated(self.scale, self._coins(len(batch)))
        seen = batch if points is None else batch.points(points.sort().values)
        if outputs is not None:
            chosen = seen.outputs if self.model.exchangeable else seen.only
            seen = chosen(outputs)
        return seen if isinstance(self.model, DKLFM) else batch, self._window(seen)

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
        return row | ({"coupling": self._coupling(model)} if isinstance(model, DKLFM) else {})

    def _coupling(self, model: DKLFM) -> float:
        coupling = model.coupling(self.validation[1].take(slice(0, 16)))
        if coupling < NEGLIGIBLE_COUPLING and self.epoch > self.spec.training.epochs // 2:
            log.warning(
                "epoch %d: force and outputs are uncorrelated under the learnt prior (%.1e); the "
                "model infers nothing. Raise model.features.frequencies, lower "
                "training.learning_rate, or train longer",
                self.epoch,
                coupling,
            )
        return coupling

    # A checkpoint holds all of the above, so that a resumed run repeats an undisturbed one.

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and plain data that determine the rest of the run."""
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"averaged.{k}": v for k, v in self.averaged.state_dict().items()}
        tensors |= {f"best.{k}": v for k, v in self.best.items()}
        tensors["generator"] = self.generator.get_state()
        optimiser = self.optimiser.state_dict()
        for index, slots in optimiser["state"].items():
            tensors |= {f"optimiser.{index}.{name}": value for name, value in slots.items()}
        plain = {
            "epoch": self.epoch,
            "cpu_seconds": self.cpu_seconds,
            "history": self.history,
            "best_density": self.best_density if self.best else None,
            "groups": optimiser["param_groups"],
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
        slots: dict[int, dict[str, Tensor]] = {}
        for key, value in under("optimiser.").items():
            index, name = key.split(".")
            slots.setdefault(int(index), {})[name] = value
        self.optimiser.load_state_dict({"state": slots, "param_groups": plain["groups"]})
        self.schedule.load_state_dict(dict(plain["schedule"]))
        self.epoch, self.cpu_seconds = plain["epoch"], plain["cpu_seconds"]
        self.history = list(plain["history"])
        best = plain["best_density"]
        self.best_density = -math.inf if best is None else best


class StreamTrainer(Trainer):
    """Training on tasks that are simulated for each epoch, from seeds that no store uses."""

    def __init__(
        self, tasks: Tasks, spec: TrainSpec, device: torch.device, simulation: Mapping[str, Any]
    ) -> None:
        assert isinstance(spec.training, StreamConfig)
        self.stream = spec.training
        self.system, self.tasks_config = parse_spec(simulation, "the tasks' own settings")
        super().__init__(tasks, spec, device)

    def _first(self, tasks: Tasks) -> Tasks:
        return self._simulated(0)

    def _simulated(self, epoch: int) -> Tasks:
        config: TasksConfig = self.tasks_config
        if self.stream.meshes:
            mesh = self.stream.meshes[epoch % len(self.stream.meshes)]
            config = config.model_copy(update={"mesh": mesh})
        count = self.stream.tasks
        first = (1 + self.spec.seed) * _STREAM_STRIDE + epoch * count
        codes = np.zeros(count, dtype=np.int8)
        indices = first + np.arange(count)
        return assemble(self.system, codes, simulate(self.system, config, codes, indices))

    @property
    def seen(self) -> int:
        return self.epoch * self.stream.tasks

    def _epoch_tasks(self) -> tuple[Batch, Batch]:
        return self._pair(self._simulated(self.epoch))

    def _pair(self, tasks: Tasks) -> tuple[Batch, Batch]:
        """The noise-free truth at the query points for an operator, and the observations."""
        context = Batch.of(tasks, self.scale).to(self.device)
        if not isinstance(self.spec.model, OperatorConfig):
            return context, context
        if "f" not in tasks or "h_query" not in tasks:
            raise DataError("an operator is trained by the true force and outputs, f and h_query")
        truth = Batch(
            self.scale.inputs(tasks["x_query"]),
            self.scale.values(tasks["h_query"]),
            torch.zeros(tasks["h_query"].shape),
            torch.ones(tasks["h_query"].shape, dtype=torch.bool),
            self.scale.force(tasks["f"]),
        )
        return truth.to(self.device), context

    def _augmented(self, batch: Batch, context: Batch) -> tuple[Batch, Batch]:
        """Random points and outputs of what is seen, and random points to be judged at."""
        if not isinstance(self.model, OperatorLFM):
            return super()._augmented(batch, context)
        config = self.stream
        points = self._subset(context.x.shape[1], config.least_points, config.most_points)
        queries = self._subset(batch.x.shape[1], config.queries, config.queries)
        outputs = self._subset(context.y.shape[1], config.least_outputs)
        if points is not None:
            context = context.points(points.sort().values)
        if queries is not None:
            batch = batch.points(queries)
        if outputs is not None and self.model.exchangeable:
            batch, context = batch.outputs(outputs), context.outputs(outputs)
        elif outputs is not None:
            context = context.only(outputs)
        return batch, context


def _is_plain(value: Any) -> bool:
    return isinstance(value, int | float | str | bool | list | None)


def _optimiser(
    model: ForceModel, config: TrainingConfig
) -> tuple[torch.optim.Optimizer, list[float]]:
    scales: list[nn.Parameter] = []
    networks: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        is_scale = name.startswith(("kernel.", "log_"))
        (scales if is_scale else networks).append(parameter)
    rates = [config.learning_rate, _SCALE_RATE * config.learning_rate]
    groups = [
        {"params": networks, "weight_decay": config.weight_decay},
        {"params": scales, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate), rates


def calibration_factor(model: ForceModel, scale: Scale, validation: Tasks) -> float:
    """What the force's posterior variances must be scaled by to cover 95 % on validation tasks.

    Few training tasks leave a model surer than it should be. One number, from the 95 %
    quantile of the standardised errors at the query points inside the domain, mends the average.
    """
    low, high = validation.domain
    squares = []
    device = next(model.parameters()).device
    for i in range(len(validation)):
        task = validation.take([i])
        x = task["x_query"][0]
        inside = ((x >= low) & (x <= high)).all(-1)
        queries = scale.inputs(x[None, inside]).to(device)
        moments = model.eval().posterior(Batch.of(task, scale).to(device), queries)
        error = scale.force(task["f"][:, inside]).to(device) - moments.force_mean
        squares.append((error.square() / moments.force_variance).flatten().cpu())
    return float(torch.cat(squares).quantile(0.95)) / _NORMAL_95**2


def run(
    spec: Mapping[str, Any],
    tasks: Tasks,
    folder: Path,
    device: str = "cpu",
    simulation: Mapping[str, Any] | None = None,
    simulation_cpu_s: float = 0.0,
) -> None:
    """Train a model into ``folder``; a checkpoint of the same settings there is resumed.

    Args:
        spec: plain data of :class:`TrainSpec`.
        tasks: simulated tasks with train and validation splits.
        folder: where weights, history and manifest go.
        device: ``cpu``, ``cuda``, ``cuda:N`` or ``auto``.
        simulation: the settings that the tasks were simulated with: a stream goes on with them,
            and those of the system are kept beside the weights.
        simulation_cpu_s: what the tasks cost, kept likewise.

    Raises:
        DklfmError: if the settings, the tasks or the device cannot be used.
    """
    checked: TrainSpec = validate(TrainSpec, dict(spec), "train")
    chosen = choose_device(device)
    if isinstance(checked.training, StreamConfig):
        if simulation is None:
            raise DataError("these tasks were not simulated, so there is no stream of more of them")
        trainer: Trainer = StreamTrainer(tasks, checked, chosen, simulation)
    else:
        trainer = Trainer(tasks, checked, chosen)
    settings = {"spec": resolved(checked), "tasks": dataset_digest(tasks.data)}
    identity = hashlib.sha256(canonical_json(settings).encode()).hexdigest()
    checkpoint = folder / "partial"
    _resume(trainer, checkpoint, identity)
    last = time.monotonic()
    left = range(trainer.epoch, checked.training.epochs)
    for _ in progress(left, "train"):
        trainer.run_epoch()
        row = trainer.history[-1]
        if "validation_loss" in row:
            log.info(
                "epoch %(epoch)d: train loss %(train_loss).4f, validation loss "
                "%(validation_loss).4f, force NLL %(validation_force_nll).4f",
                row,
            )
        if time.monotonic() - last > _CHECKPOINT_SECONDS:
            _save_checkpoint(trainer, checkpoint, identity)
            last = time.monotonic()
    if not trainer.best:
        raise DklfmError("training diverged: no validation loss was finite; lower learning_rate")
    trainer.model.load_state_dict(trainer.best)
    history = pd.DataFrame(trainer.history)
    write_atomically(folder / "history.csv", lambda p: history.to_csv(p, index=False))
    factor = calibration_factor(trainer.model, trainer.scale, tasks.split("validation"))
    save_model(
        folder,
        trainer.model,
        trainer.scale,
        checked,
        system=dict((simulation or {}).get("system", {})),
        outputs=trainer.outputs,
        force_variance_factor=factor,
        simulation_cpu_s=simulation_cpu_s,
        training_cpu_s=trainer.cpu_seconds,
        training_tasks=trainer.seen,
        validation_force_nll=-trainer.best_density,
    )
    (checkpoint / "state.safetensors").unlink(missing_ok=True)
    if checkpoint.is_dir():
        checkpoint.rmdir()


def _save_checkpoint(trainer: Trainer, folder: Path, identity: str) -> None:
    tensors, plain = trainer.state()
    metadata = {"identity": identity, "plain": json.dumps(plain)}
    write_atomically(folder / "state.safetensors", lambda p: save_file(tensors, p, metadata))


def _resume(trainer: Trainer, folder: Path, identity: str) -> None:
    path = folder / "state.safetensors"
    if not path.exists():
        return
    from safetensors import safe_open

    try:
        with safe_open(path, "pt") as handle:
            metadata = handle.metadata() or {}
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 - the handle is no mapping
    except (OSError, SafetensorError) as error:
        log.warning("the checkpoint %s cannot be read (%s); training starts afresh", path, error)
        return
    if metadata.get("identity") != identity:
        log.warning("the checkpoint %s is of other settings or tasks; training starts afresh", path)
        return
    trainer.restore(tensors, json.loads(metadata["plain"]))
    log.info("resumed at epoch %d from %s", trainer.epoch, path)
