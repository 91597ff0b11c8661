"""A trained model and how to ask it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from dklfm.config import RefinementConfig, parse_system
from dklfm.errors import DataError, ModelError
from dklfm.inference.noise import with_noise
from dklfm.inference.result import Inference
from dklfm.inference.units import Units
from dklfm.methods import Posterior, Refined, TrainedModel
from dklfm.model import ModelCard, Scale
from dklfm.model.trust import P_VALUES
from dklfm.tasks import Tasks

if TYPE_CHECKING:
    from dklfm.systems import System

Array = NDArray[np.float64]
POINTS, FIELD_NODES = 51, 21
"""Where the force is asked for by default: so many times, or nodes an axis."""
_JOINT_ENTRIES = 50_000_000
"""Entries of joint covariances that are kept unasked: 400 MB."""
Anchors = Mapping[str, Mapping[str, float]]
"""Known parameters of outputs, by the names of both: ``{"CDKN1A": {"sensitivity": 1.0}}``."""


def shipped() -> dict[str, Path]:
    """The trained models of this package by their names."""
    folder = Path(str(files("dklfm") / "weights"))
    return {path.parent.name: path.parent for path in sorted(folder.glob("*/manifest.json"))}


def load(model: str | Path, device: str = "cpu") -> Model:
    """A trained model: one of this package's by its name, or a folder that training made.

    Args:
        model: for example ``"transcription"``; :func:`shipped` lists them.
        device: ``cpu``, ``cuda``, ``cuda:N`` or ``auto``.

    Raises:
        ModelError: if there is no such model, or it is damaged.
    """
    known = shipped()
    if str(model) in known:
        return Model(known[str(model)], device)
    folder = Path(model)
    if not (folder / "manifest.json").is_file():
        raise ModelError(
            f"there is no model {str(model)!r}: neither a folder that dklfm train made, nor one of "
            f"{', '.join(known) or 'none shipped'}"
        )
    return Model(folder, device)


class Model:
    """A trained model, for measured time courses in any units.

    Attributes:
        card: what its manifest says of it.
        system: the equation and prior of the tasks that it was trained on.
        trained: the method behind it, on the training's own scale.
    """

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        self.card = ModelCard.read(folder)
        self.system: System = parse_system(self.card.system, str(folder))
        self.trained = TrainedModel.load(folder, device)

    @property
    def scale(self) -> Scale:
        """The training domain."""
        return self.trained.scale

    @property
    def inputs(self) -> tuple[str, ...]:
        """The inputs of its tasks, as columns of a table are named."""
        return ("time",) if len(self.system.axes) == 1 else ("position", "time")

    def infer(
        self,
        tasks: Tasks,
        at: int | ArrayLike | None = None,
        refine: bool = False,
        anchors: Anchors | None = None,
        rescale: bool = True,
        joint: bool | None = None,
    ) -> Inference:
        """The posterior of the force and of the noise-free outputs of every task.

        Args:
            tasks: observations; where they state no noise it is estimated.
            at: how many even times to infer at (nodes an axis, for fields), or the times.
            refine: let the equation itself correct the answer; slower.
            anchors: known parameters, in the table's units; they need ``refine``.
            rescale: fit the table's units to those of the training; if not, they are those.
            joint: keep the covariance of the force over a task's query points, for samples; by
                default if it is not large.

        Raises:
            DataError: if the model cannot take the tasks, or an anchor names no parameter.
        """
        (found,) = self.parts(tasks, at, len(tasks), refine, anchors, rescale, joint)
        return found

    def parts(
        self,
        tasks: Tasks,
        at: int | ArrayLike | None,
        size: int,
        refine: bool = False,
        anchors: Anchors | None = None,
        rescale: bool = True,
        joint: bool | None = False,
    ) -> Iterator[Inference]:
        """The same for ``size`` tasks at a time; noise and units are those of all together."""
        if anchors and not refine:
            raise DataError("anchors fix parameters of the equation: they need refine")
        notes: list[str] = []
        tasks = self.asked(tasks, at)
        if "y_sd" not in tasks:
            tasks = with_noise(tasks)
            share = np.nanmedian(tasks["y_sd"]) / np.maximum(np.nanstd(tasks["y"]), 1e-300)
            notes.append(
                "the table states no noise; it was estimated from how smooth the outputs are "
                f"(median: {share:.0%} of the values' spread)"
            )
        whole = Units.of(tasks, self.scale, self.system.extrapolates, rescale)
        if rescale:
            notes += self._about(whole)
        notes.append(self.system.scale_note)
        for start in range(0, len(tasks), size):
            chosen = slice(start, start + size)
            units, some = whole.take(chosen), Tasks(tasks.data.isel(task=chosen))
            inside = units.to_domain(some)
            if refine:
                found = self._refined(inside, anchors or {}, units)
            else:
                entries = len(some) * some["x_query"].shape[1] ** 2
                keep = entries <= _JOINT_ENTRIES if joint is None else joint
                found = self.trained.infer(inside, joint=keep)
            if refine or not rescale:
                found = self._compared(found, some)
            yield Inference(some, _back(found, units), self.system, self.inputs, tuple(notes))

    def _compared(self, found: Posterior, tasks: Tasks) -> Posterior:
        """With p-values of the tasks as if rescaled: what they are compared with is."""
        filled = Units.of(tasks, self.scale, self.system.extrapolates).to_domain(tasks)
        other = self.trained.infer(filled).data
        names = [name for name in P_VALUES if name in other]
        return Posterior(found.data.assign({name: other[name] for name in names}))

    def _refined(self, tasks: Tasks, anchors: Anchors, units: Units) -> Posterior:
        names = set(self.system.parameters)
        for output, values in anchors.items():
            if output not in tasks.outputs:
                raise DataError(f"anchor: there is no output {output!r}")
            for name, value in values.items():
                if name not in names - {"lengthscale"}:
                    raise DataError(f"anchor {output}: {self.system.name} has no {name!r}")
                if not value > 0:
                    raise DataError(f"anchor {output}: {name} must be positive")
        # dy'/dt' = (factor/rate)(b + sG) − (d/rate) y'
        per_time = 1 / units.rate[:, 0]
        pinned = [
            {
                (name, tasks.outputs.index(output)): value
                * per_time[i]
                * (1.0 if name == "decay" else units.factor[i])
                for output, values in anchors.items()
                for name, value in values.items()
            }
            for i in range(len(tasks))
        ]
        refined = Refined(self.trained, self.system, RefinementConfig())
        return refined.infer(tasks, pinned if anchors else None)

    def asked(self, tasks: Tasks, at: int | ArrayLike | None) -> Tasks:
        """The tasks with query points as asked for: see :meth:`infer`.

        Raises:
            DataError: if the points cannot be inferred at.
        """
        x = tasks["x"]
        if x.shape[-1] != len(self.inputs):
            raise DataError(f"the tasks have {x.shape[-1]} inputs, the model {len(self.inputs)}")
        low, high = np.nanmin(x, axis=1), np.nanmax(x, axis=1)
        count = None if at is None else np.asarray(at)
        if count is None or count.ndim == 0:
            nodes = (
                (POINTS if len(self.inputs) == 1 else FIELD_NODES) if count is None else int(count)
            )
            if nodes < 1:
                raise DataError("the number of points to infer at must be positive")
            even = np.linspace(0, 1, nodes)
            mesh = np.stack(np.meshgrid(*[even] * x.shape[-1], indexing="ij"), -1)
            share = mesh.reshape(1, -1, x.shape[-1])
            query = low[:, None] + (high - low)[:, None] * share
        else:
            points = count.astype(float).reshape(-1, x.shape[-1])
            outside = ((points < low.min(0)) | (points > high.max(0))).any()
            if outside and not self.system.extrapolates:
                raise DataError(
                    f"at: {self.system.name} is inferred between the first and the last "
                    f"observation, {low.min():g} to {high.max():g}"
                )
            query = np.broadcast_to(points, (len(x), *points.shape)).copy()
        return Tasks(
            tasks.data.drop_dims("query").assign(x_query=(("task", "query", "axis"), query))
        )

    def _about(self, units: Units) -> list[str]:
        """How the table's units were changed, in words."""

        def spread(values: Array) -> str:
            low, high = float(values.min()), float(values.max())
            return f"{low:.3g}" if high <= low * 1.0001 else f"{low:.3g} to {high:.3g}"

        ends = zip(self.inputs, self.system.axes, strict=True)
        return [
            f"{name} from {spread(units.origin[:, i])} on was stretched by "
            f"{spread(units.rate[:, i])}, so that the observations fill the model's "
            f"{axis.low:g} to {axis.high:g} {axis.unit}".rstrip()
            for i, (name, axis) in enumerate(ends)
        ] + [f"outputs were multiplied by {spread(units.factor)} for the model, and divided again"]


def _back(posterior: Posterior, units: Units) -> Posterior:
    """Outputs in the table's units; the force stays in the model's."""
    factor = xr.DataArray(units.factor, dims="task")
    outputs = [str(name) for name in posterior.data if str(name).startswith("output_")]
    return Posterior(
        posterior.data.assign({name: posterior.data[name] / factor for name in outputs})
    )


def anchors_of(options: Sequence[str]) -> dict[str, dict[str, float]]:
    """Anchors from ``GENE:s=1,d=0.8``, one a string.

    Raises:
        DataError: if one is not of that form.
    """
    short = {"b": "basal", "s": "sensitivity", "d": "decay"}
    found: dict[str, dict[str, float]] = {}
    for option in options:
        output, _, values = option.rpartition(":")
        try:
            pairs = dict(pair.split("=") for pair in values.split(","))
            given = {short.get(k.strip(), k.strip()): float(v) for k, v in pairs.items()}
        except ValueError:
            given = {}
        if not (output and given):
            raise DataError(f"anchor {option!r} is not like GENE:s=1,d=0.8")
        found.setdefault(output, {}).update(given)
    return found
