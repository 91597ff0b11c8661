"""Ways to infer a force, behind one protocol."""

from dklfm.methods.base import COSTS, Method, Posterior, load_posterior, save_posterior
from dklfm.methods.mechanistic import Mechanistic, fit_system
from dklfm.methods.reaction_diffusion import ExactReactionDiffusion, MechanisticReactionDiffusion
from dklfm.methods.references import reference
from dklfm.methods.refined import Refined
from dklfm.methods.single import TaskMethod, TaskPosterior, fit_each
from dklfm.methods.trained import TrainedModel
from dklfm.methods.transcription import ExactTranscription

__all__ = [
    "COSTS",
    "ExactReactionDiffusion",
    "ExactTranscription",
    "Mechanistic",
    "MechanisticReactionDiffusion",
    "Method",
    "Posterior",
    "Refined",
    "TaskMethod",
    "TaskPosterior",
    "TrainedModel",
    "fit_each",
    "fit_system",
    "load_posterior",
    "reference",
    "save_posterior",
]
