"""Which method a config's reference names, for a given system."""

from __future__ import annotations

from dklfm.config import AlfiConfig, DeepLFMConfig, ExactConfig, MechanisticConfig, ReferenceConfig
from dklfm.errors import DataError
from dklfm.methods.mechanistic import Mechanistic
from dklfm.methods.reaction_diffusion import ExactReactionDiffusion, MechanisticReactionDiffusion
from dklfm.methods.single import TaskMethod
from dklfm.methods.transcription import ExactTranscription
from dklfm.systems import ReactionDiffusion, System


def reference(config: ReferenceConfig, system: System) -> TaskMethod:
    """The method that fits each of the system's tasks by itself.

    Raises:
        DataError: if the method is not made for the system.
    """
    # Alfi and DeepLFM load torch, which the others do without.
    fields = isinstance(system, ReactionDiffusion)
    match config:
        case ExactConfig():
            return ExactReactionDiffusion(system) if fields else ExactTranscription(system)
        case MechanisticConfig():
            if not fields:
                return Mechanistic(system, config)
            if config.name == "mechanistic":
                return MechanisticReactionDiffusion(system, config)
            raise DataError("with known parameters reaction_diffusion is linear: use exact")
        case AlfiConfig():
            from dklfm.methods.alfi import Alfi

            return Alfi(system, config)
        case DeepLFMConfig():
            from dklfm.methods.deeplfm import DeepLFM

            return DeepLFM(system, config)
