"""The deep kernel latent force model, its encoders and the algebra of its joint Gaussian."""

from dklfm.model.batch import Batch, Scale
from dklfm.model.dklfm import DKLFM, Embedding, Moments

__all__ = ["DKLFM", "Batch", "Embedding", "Moments", "Scale"]
