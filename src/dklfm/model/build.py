"""From the settings of a training to the model that it trains."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from dklfm.config import (
    FourierRegressorConfig,
    GreenConfig,
    KernelRouteConfig,
    LinearisedConfig,
    NeuralProcessConfig,
    OperatorConfig,
    TrainSpec,
)
from dklfm.model.base import ForceModel
from dklfm.model.black_box import FourierRegressor, NeuralProcess
from dklfm.model.dklfm import DKLFM
from dklfm.model.ensemble import Ensemble
from dklfm.model.green import GreenLFM
from dklfm.model.linearised import LinearisedLFM
from dklfm.model.operator import OperatorLFM
from dklfm.model.streamed import StreamedDKLFM


def build_model(spec: TrainSpec, axes: int, outputs: int) -> ForceModel:
    """A model with fresh weights.

    Args:
        spec: its method and sizes.
        axes: input dimensions of the tasks.
        outputs: functions observed of each task; black boxes are tied to that number.
    """
    if isinstance(spec.model, NeuralProcessConfig):
        return NeuralProcess(spec.model, axes, outputs)
    if isinstance(spec.model, FourierRegressorConfig):
        return FourierRegressor(spec.model, axes, outputs)
    if isinstance(spec.model, OperatorConfig):
        return OperatorLFM(spec.model, axes, outputs)
    if isinstance(spec.model, LinearisedConfig):
        return LinearisedLFM(spec.model, axes, outputs)
    if isinstance(spec.model, GreenConfig):
        return GreenLFM(spec.model, axes, outputs)
    single: Callable[[], ForceModel] = partial(DKLFM, spec.model, axes, outputs)
    if isinstance(spec.model, KernelRouteConfig):
        single = partial(StreamedDKLFM, spec.model, axes, outputs)
    return Ensemble(single, spec.model.members) if spec.model.members > 1 else single()
