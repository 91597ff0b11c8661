"""Ways to infer a force, behind one protocol."""

from dklfm.methods.base import Method, Posterior
from dklfm.methods.dklfm import TrainedDKLFM

__all__ = ["Method", "Posterior", "TrainedDKLFM"]
