"""Infer the hidden force behind dynamical systems."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dklfm.inference import Inference, Model, load, shipped
    from dklfm.tasks import Tasks

_HOMES = {
    "Inference": "dklfm.inference",
    "Model": "dklfm.inference",
    "load": "dklfm.inference",
    "shipped": "dklfm.inference",
    "Tasks": "dklfm.tasks",
}
__all__ = ["Inference", "Model", "Tasks", "load", "shipped"]


def __getattr__(name: str) -> Any:
    # Loading torch takes a second, which --help and errors need not wait for.
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
