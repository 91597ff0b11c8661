"""The deep kernel latent force model, its encoders and the algebra of its joint Gaussian."""

from dklfm.model.batch import Batch, Scale
from dklfm.model.dklfm import DKLFM, Embedding, Moments
from dklfm.model.store import ModelCard, choose_device, load_model, save_model

__all__ = [
    "DKLFM",
    "Batch",
    "Embedding",
    "ModelCard",
    "Moments",
    "Scale",
    "choose_device",
    "load_model",
    "save_model",
]
