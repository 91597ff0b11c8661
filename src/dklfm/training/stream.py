"""Training on tasks that are simulated for each epoch and never stored."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dklfm.config import (
    GreenConfig,
    LinearisedConfig,
    Mesh,
    OperatorConfig,
    StreamConfig,
    TasksConfig,
)
from dklfm.errors import ConfigError, DataError
from dklfm.model import AmortisedLFM, Batch, ForceModel, GreenLFM, LinearisedLFM
from dklfm.model.amortised import JudgedLFM
from dklfm.simulate import assemble, simulate
from dklfm.systems import System
from dklfm.tasks import DIMENSIONS, Tasks
from dklfm.training.corruptions import CORRUPTIONS, mixed
from dklfm.training.trainer import Trainer

Array = NDArray[np.float64]
_LARGEST = 1e6
_LOOK = 32
"""Tasks that are observed alike, when a trained model looks at tasks."""
_LINEAR_TASKS = 8192
"""That the linear law of force and outputs, or their modes, are learnt from."""
_LOOKS = 16
"""Subsets of what is observed in the first epoch that inputs are standardised by."""
_STREAM_STRIDE = 2**32
"""Between the indices of the first tasks of two seeds; stored tasks come before."""


class StreamTrainer(Trainer):
    """Training on tasks that are simulated for each epoch, from seeds that no store uses."""

    @property
    def stream(self) -> StreamConfig:
        assert isinstance(self.spec.training, StreamConfig)
        return self.spec.training

    @property
    def system(self) -> System:
        return self.law[0]

    @property
    def tasks_config(self) -> TasksConfig:
        return self.law[1]

    def _first(self, tasks: Tasks) -> Tasks:
        scattered = self.tasks_config.mesh.spacing == "irregular" and not self.stream.meshes
        if self.stream.observations > 1 and not (scattered and len(self.system.axes) == 1):
            raise ConfigError(
                "training.observations sees every task at other random times: it needs a system "
                "of one axis, tasks.mesh.spacing: irregular and no training.meshes; leave it out"
            )
        return self._simulated(0)

    def _new_model(self, axes: int) -> ForceModel:
        model = super()._new_model(axes)
        if isinstance(model, JudgedLFM) and model.mesh is not None:
            truth = self._truth_on_a_mesh(model.mesh)
            outputs, force = self.scale.values(truth["h"]), self.scale.force(truth["f_observed"])
            model.learn(outputs, force)
            if isinstance(model, LinearisedLFM) and model.solution is not None:
                parameters = self._own_parameters(truth)
                model.solution.learn(model.modes, outputs, force, parameters, self._activity)
        if isinstance(model, GreenLFM):
            model.green.learn(self.system, self.scale, self.spec.seed)
        if isinstance(model, LinearisedLFM | GreenLFM):
            self.model = model  # decides what is observed
            looks = [self._augmented(*self.train)[1] for _ in range(_LOOKS)]
            (model if isinstance(model, GreenLFM) else model.modes).standardise(looks)
        return model

    def _truth_on_a_mesh(self, points: int) -> dict[str, Array]:
        """Free of noise, of tasks that nothing else sees; so many points an axis."""
        mesh = Mesh(spacing="regular", points=points)
        changes = {"mesh": mesh, "query": 2, "force_noise": 0.0}
        config = self.tasks_config.model_copy(update=changes)
        # Midway between the tasks of the epochs and those that a trained model looks at.
        first = (1 + self.spec.seed) * _STREAM_STRIDE + _STREAM_STRIDE // 2
        indices = first + np.arange(_LINEAR_TASKS)
        return simulate(self.system, config, np.zeros(_LINEAR_TASKS, dtype=np.int8), indices)

    def _own_parameters(self, truth: Mapping[str, Array]) -> Tensor:
        """Those that each output has a value of, ``task x output x parameter``."""
        every = (truth[f"parameter_{name}"] for name in self.system.parameters)
        own = [values for values in every if values.ndim > 1]
        return torch.from_numpy(np.stack(own, -1) if own else np.empty((*truth["h"].shape[:2], 0)))

    def _activity(self, force: Tensor) -> Tensor:
        """What a force on the model's scale stands for."""
        physical = self.scale.force_mean + self.scale.force_sd * force
        return torch.from_numpy(self.system.activity(physical.numpy()))

    def _simulated(self, epoch: int) -> Tasks:
        config: TasksConfig = self.tasks_config
        if self.stream.meshes:
            mesh = self.stream.meshes[epoch % len(self.stream.meshes)]
            config = config.model_copy(update={"mesh": mesh})
        count, observations = self.stream.tasks, self.stream.observations
        mesh = config.mesh.model_copy(update={"points": observations * config.mesh.points})
        config = config.model_copy(update={"mesh": mesh})
        first = (1 + self.spec.seed) * _STREAM_STRIDE + epoch * count
        indices = first + np.arange(count)
        arrays = simulate(self.system, config, np.zeros(count, dtype=np.int8), indices)
        if observations > 1:
            arrays = _parted(arrays, observations, np.random.default_rng([self.spec.seed, epoch]))
        return assemble(self.system, np.zeros(observations * count, dtype=np.int8), arrays)

    @property
    def seen(self) -> int:
        return self.epoch * self.stream.tasks

    def contexts(self, count: int, first: int = 0, system: System | None = None) -> Iterator[Batch]:
        """Observations of so many tasks that no epoch sees: thinned as in training, or on grids.

        Every other batch is on an even grid of any number of points that training has seen, which
        is how tables are.

        Args:
            count: of tasks; rounded up to whole batches.
            first: index of the first.
            system: whose they are, if not of the system of the training.
        """
        config, batch = self.tasks_config, _LOOK
        least = self.stream.least_points or config.mesh.points
        for part in range(first // batch, math.ceil((first + count) / batch)):
            mesh = (
                self.stream.meshes[part % len(self.stream.meshes)] if self.stream.meshes else None
            )
            if part % 2 and len(self.system.axes) == 1:
                points = int(
                    torch.randint(least, config.mesh.points + 1, (), generator=self.generator)
                )
                mesh = Mesh(spacing="regular", points=max(2, points))
            chosen = config.model_copy(update={"mesh": mesh or config.mesh})
            last = (2 + self.spec.seed) * _STREAM_STRIDE - 1
            indices = last - part * batch - np.arange(batch)
            codes = np.zeros(batch, dtype=np.int8)
            with np.errstate(all="ignore"):
                arrays = simulate(system or self.system, chosen, codes, indices)
            usual = _usual(arrays)
            if not usual.any():
                continue
            arrays = {name: values[usual] for name, values in arrays.items()}
            truth, context = self._pair(assemble(self.system, codes[usual], arrays))
            if part % 2 and len(self.system.axes) == 1:
                outputs = self._seen_outputs(context.y.shape[1])
                if outputs is not None:
                    alike = self.model.exchangeable
                    context = context.outputs(outputs) if alike else context.only(outputs)
                yield context
            else:
                yield self._augmented(truth, context)[1]

    def strangers(self, count: int, first: int = 0) -> Iterator[Iterator[Batch]]:
        """As many observations of what is not of the training's law, kind by kind.

        Each other prior is a kind, and all corruptions together, which are easier to see.

        Args:
            count: of tasks; of each kind they are rounded to whole batches.
            first: index of the first.
        """
        others = self.system.strangers()
        each = _whole(count / (1 + len(others)))
        for other in others:
            yield self.contexts(each, first, other)
        yield self._corrupted(_whole(each / len(CORRUPTIONS)), first + each)

    def _corrupted(self, each: int, first: int) -> Iterator[Batch]:
        for i, corruption in enumerate(CORRUPTIONS):
            for context in self.contexts(each, first + i * each):
                if corruption is not mixed or context.y.shape[1] > 1:
                    yield corruption(context, self.generator)

    def _epoch_tasks(self) -> tuple[Batch, Batch]:
        tasks = self._simulated(self.epoch)
        truth, context = self._pair(tasks)
        if isinstance(self.model, GreenLFM):
            green = self.model.green
            z = green.standard({name: tasks[f"parameter_{name}"] for name in green.names})
            truth = replace(truth, parameters=z.float().to(self.device))
        return truth, context

    def _pair(self, tasks: Tasks) -> tuple[Batch, Batch]:
        """The noise-free truth at the query points, for models judged by it, and observations."""
        context = Batch.of(tasks, self.scale).to(self.device)
        if not isinstance(self.spec.model, OperatorConfig | LinearisedConfig | GreenConfig):
            return context, context
        return self._truth(tasks), context

    def _truth(self, tasks: Tasks) -> Batch:
        if "f" not in tasks or "h_query" not in tasks:
            raise DataError("dklfm_stream is trained by the true force and outputs, f and h_query")
        truth = Batch(
            self.scale.inputs(tasks["x_query"]),
            self.scale.values(tasks["h_query"]),
            torch.zeros(tasks["h_query"].shape),
            torch.ones(tasks["h_query"].shape, dtype=torch.bool),
            self.scale.force(tasks["f"]),
        )
        return truth.to(self.device)

    def _augmented(self, batch: Batch, context: Batch) -> tuple[Batch, Batch]:
        """Random points and outputs of what is seen, and random points to be judged at."""
        if not isinstance(self.model, AmortisedLFM):
            return super()._augmented(batch, context)
        config = self.stream
        points = self._subset(context.x.shape[1], config.least_points, config.most_points)
        queries = self._subset(batch.x.shape[1], config.queries, config.queries)
        outputs = self._seen_outputs(context.y.shape[1])
        if points is not None:
            context = context.points(points.sort().values)
        if queries is not None:
            batch = batch.points(queries)
        if outputs is not None and self.model.exchangeable:
            batch, context = batch.outputs(outputs), context.outputs(outputs)
        elif outputs is not None:
            context = context.only(outputs)
        return batch, context

    def _seen_outputs(self, size: int) -> Tensor | None:
        least = self.stream.least_outputs
        if least is None or not self.stream.few_outputs:
            return super()._seen_outputs(size)
        least = min(least, size)
        share = float(torch.rand((), generator=self.generator))
        count = int(least * ((size + 1) / least) ** share)
        return torch.randperm(size, generator=self.generator)[:count].to(self.device)


def _whole(count: float) -> int:
    """At least one batch."""
    return max(1, round(count / _LOOK)) * _LOOK


def _parted(arrays: Mapping[str, Array], parts: int, rng: np.random.Generator) -> dict[str, Array]:
    """Every task so many times, each seen at a random part of its points."""
    tasks, points = arrays["x"].shape[:2]
    order = rng.permuted(np.tile(np.arange(points), (tasks, 1)), axis=1)
    chosen = np.sort(order.reshape(parts * tasks, -1), axis=1)
    found = {}
    for name, values in arrays.items():
        found[name] = np.repeat(values, parts, axis=0)
        dims = DIMENSIONS.get(name, ())
        if "point" in dims:
            at = dims.index("point")
            others = tuple(i for i in range(1, values.ndim) if i != at)
            found[name] = np.take_along_axis(found[name], np.expand_dims(chosen, others), at)
    return found


def _usual(arrays: Mapping[str, Array]) -> NDArray[np.bool_]:
    """Which tasks have a solution of any size that a model could be shown."""
    size = np.max([np.abs(values).reshape(len(values), -1).max(1) for values in arrays.values()], 0)
    return size < _LARGEST
