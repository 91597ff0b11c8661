"""Trained models on disk: safetensors weights and the manifest that describes them."""

from __future__ import annotations

import hashlib
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import ConfigDict, Field, field_validator
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch.overrides import TorchFunctionMode

from dklfm.artifacts import (
    MANIFEST,
    alone_in,
    read_json,
    write_atomically,
    write_manifest,
    write_tensors,
)
from dklfm.config import TrainSpec, resolved, validate
from dklfm.errors import DklfmError, ModelError
from dklfm.model.base import ForceModel
from dklfm.model.batch import Scale
from dklfm.model.build import build_model
from dklfm.model.trust import FILE as TRUST_FILE
from dklfm.settings import Section

_LARGEST = 1e9
_LEAST_BUDGET = 50_000_000
"""Numbers that building a model may need beside its weights."""
_MOST_AXES = 3


class ModelCard(Section):
    """What the manifest of a trained model says of it.

    ``system`` holds the settings of the system that its tasks were simulated from, ``outputs`` how
    many outputs these have (0 where it does not matter and was not said);
    ``force_variance_factor`` is what calibration found the force's variances must be scaled by,
    ``force_df`` the degrees of freedom of its marginals, which are Gaussian if there is none.
    ``digest`` is of the weights, ``trust_digest`` of what its tasks look like, if it knows.
    """

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)

    spec: TrainSpec
    scale: Scale
    system: dict[str, Any] = Field(default_factory=dict)
    outputs: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    digest: str
    trust_digest: str | None = None
    force_variance_factor: Annotated[float, Field(gt=0, lt=_LARGEST)]
    force_df: Annotated[float, Field(gt=2)] | None = None
    simulation_cpu_s: float = 0.0
    training_cpu_s: float
    training_tasks: int

    @field_validator("scale")
    @classmethod
    def _a_scale(cls, scale: Scale) -> Scale:
        ends = (*scale.low, *scale.high)
        numbers = (*ends, scale.mean, scale.sd, scale.force_mean, scale.force_sd)
        ordered = all(low < high for low, high in zip(scale.low, scale.high, strict=False))
        if not all(abs(number) < _LARGEST for number in numbers):
            raise ValueError("its numbers must be finite")
        if not 1 <= len(scale.low) == len(scale.high) <= _MOST_AXES or not ordered:
            raise ValueError("low must be below high, one of each for each input")
        if not (scale.sd > 0 and scale.force_sd > 0):
            raise ValueError("standard deviations must be positive")
        return scale

    @classmethod
    def read(cls, folder: Path) -> ModelCard:
        """The card of a trained model.

        Raises:
            DataError: if the folder or its manifest is missing.
            ConfigError: if the manifest is not that of a trained model.
        """
        return validate(cls, read_json(folder / MANIFEST), str(folder / MANIFEST))

    def costs(self) -> dict[str, float]:
        """What the model cost before its first inference."""
        return {
            "simulation_cpu_s": self.simulation_cpu_s,
            "training_cpu_s": self.training_cpu_s,
            "training_tasks": self.training_tasks,
        }


def choose_device(name: str) -> torch.device:
    """The device that a config names; ``auto`` is CUDA where there is one.

    Raises:
        DklfmError: if there is no such device.
    """
    available = torch.cuda.is_available()
    if name == "auto":
        return torch.device("cuda" if available else "cpu")
    if name.startswith("cuda") and not available:
        raise DklfmError(f"device {name!r} was asked for, but torch sees no CUDA device; use cpu")
    try:
        return torch.device(name)
    except RuntimeError:
        raise DklfmError(f"no device {name!r}; use cpu, cuda, cuda:N or auto") from None


def save_model(
    folder: Path, model: ForceModel, scale: Scale, spec: TrainSpec, **facts: Any
) -> None:
    """Write ``weights.safetensors`` and, last, the manifest that declares the model whole."""
    tensors = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    path = folder / "weights.safetensors"
    write_tensors(path, tensors)
    payload = {"stage": "model", "spec": resolved(spec), "scale": asdict(scale), **facts}
    write_manifest(folder, payload, hashlib.sha256(path.read_bytes()).hexdigest())


def load_model(folder: Path, device: torch.device | str = "cpu") -> tuple[ForceModel, Scale]:
    """Read a trained model and verify it.

    Raises:
        DklfmError: if the model is missing, damaged or of another architecture than it states.
    """
    card = ModelCard.read(folder)
    path = folder / "weights.safetensors"
    try:
        if hashlib.sha256(path.read_bytes()).hexdigest() != card.digest:
            raise ModelError(f"{path} is damaged: it differs from {MANIFEST}; train it again")
        tensors = load_file(path, device=str(device))
        model = _built(card, folder, path.stat().st_size)
        model.load_state_dict(tensors)
        if not all(weights.isfinite().all() for weights in model.parameters()):
            raise ModelError(f"{path} holds weights that are not finite; train it again")
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path} cannot be read ({error}); train it again") from None
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise ModelError(
            f"{path} holds weights of another architecture than {MANIFEST} states: {reason}"
        ) from None
    return model.to(device).eval(), card.scale


class _Budget(TorchFunctionMode):
    """Refuses to make more numbers than so many, in all; a big tensor before it is made.

    A manifest may state any sizes; a process that takes all memory is killed without a word.
    """

    def __init__(self, numbers: int) -> None:
        super().__init__()
        self.left = numbers

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        size = args[0] if args and isinstance(args[0], Sequence) else args
        if size and all(isinstance(number, int) for number in size):
            self._spend(math.prod(size))
        made = func(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor) and not any(made is one for one in args):
            self._spend(made.numel())
        return made

    def _spend(self, numbers: int) -> None:
        self.left -= numbers
        if self.left < 0:
            raise MemoryError("it would be far larger than its weights")


def _built(card: ModelCard, folder: Path, weights: int) -> ForceModel:
    """A model of the stated architecture, if that is about the size of weights of so many bytes."""
    try:
        with _Budget(weights + _LEAST_BUDGET):
            return build_model(card.spec, axes=len(card.scale.low), outputs=card.outputs)
    except (AssertionError, RuntimeError, ValueError, TypeError, MemoryError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise ModelError(f"{folder / MANIFEST} states no model that can be: {reason}") from None


def ship(folder: Path, out: Path) -> None:
    """Copy a model's weights, manifest and statistics of trust; the manifest last.

    Raises:
        DklfmError: if the model is missing, damaged or of another architecture than it states.
    """
    load_model(folder)
    with alone_in(out):
        (out / MANIFEST).unlink(missing_ok=True)
        for name in ("weights.safetensors", TRUST_FILE, MANIFEST):
            if (folder / name).is_file():
                write_atomically(out / name, partial(shutil.copyfile, folder / name))
