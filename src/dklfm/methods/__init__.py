"""Ways to infer a force, behind one protocol."""

from dklfm.methods.base import Method, Posterior, load_posterior, save_posterior
from dklfm.methods.dklfm import TrainedDKLFM
from dklfm.methods.exact import ExactReactionDiffusion, MechanisticReactionDiffusion

REFERENCES = {cls.name: cls for cls in (ExactReactionDiffusion, MechanisticReactionDiffusion)}
"""Methods that need no training, by their name in a config."""

__all__ = ["REFERENCES", "Method", "Posterior", "TrainedDKLFM", "load_posterior", "save_posterior"]
