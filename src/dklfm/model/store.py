"""Trained models on disk: safetensors weights and the manifest that describes them."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import ConfigDict, Field, PositiveFloat
from safetensors import SafetensorError
from safetensors.torch import load_file

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


class ModelCard(Section):
    """What the manifest of a trained model says of it.

    ``system`` holds the settings of the system that its tasks were simulated from, ``outputs`` how
    many outputs these have (0 where it does not matter and was not said);
    ``force_variance_factor`` is what calibration found the force's variances must be scaled by,
    ``force_df`` the degrees of freedom of its marginals, which are Gaussian if there is none.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    spec: TrainSpec
    scale: Scale
    system: dict[str, Any] = Field(default_factory=dict)
    outputs: int = 0
    digest: str
    force_variance_factor: PositiveFloat
    force_df: Annotated[float, Field(gt=2)] | None = None
    simulation_cpu_s: float = 0.0
    training_cpu_s: float
    training_tasks: int

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
        model = build_model(card.spec, axes=len(card.scale.low), outputs=card.outputs)
        model.load_state_dict(tensors)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path} cannot be read ({error}); train it again") from None
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise ModelError(
            f"{path} holds weights of another architecture than {MANIFEST} states: {reason}"
        ) from None
    return model.to(device).eval(), card.scale


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
