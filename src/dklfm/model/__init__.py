"""The deep kernel latent force model, its encoders and algebra, and black boxes beside it."""

from dklfm.model.amortised import AmortisedLFM
from dklfm.model.base import ForceModel, Moments
from dklfm.model.batch import Batch, Scale
from dklfm.model.black_box import FourierRegressor, NeuralProcess
from dklfm.model.build import build_model
from dklfm.model.dklfm import DKLFM, Embedding
from dklfm.model.green import GreenLFM
from dklfm.model.linearised import LinearisedLFM
from dklfm.model.operator import OperatorLFM
from dklfm.model.store import ModelCard, choose_device, load_model, save_model, ship
from dklfm.model.trust import Statistics, Trust

__all__ = [
    "DKLFM",
    "AmortisedLFM",
    "Batch",
    "Embedding",
    "ForceModel",
    "FourierRegressor",
    "GreenLFM",
    "LinearisedLFM",
    "ModelCard",
    "Moments",
    "NeuralProcess",
    "OperatorLFM",
    "Scale",
    "Statistics",
    "Trust",
    "build_model",
    "choose_device",
    "load_model",
    "save_model",
    "ship",
]
