"""Mechanistic models with an unobserved force. NumPy and SciPy only."""

from dklfm.systems.base import Axis, Solution, System, stack
from dklfm.systems.forced import ForcedODE
from dklfm.systems.lotka_volterra import LotkaVolterra
from dklfm.systems.reaction_diffusion import ReactionDiffusion
from dklfm.systems.transcription import Transcription

SYSTEMS: tuple[type[System], ...] = (Transcription, LotkaVolterra, ReactionDiffusion)
"""Every built-in system; a config names one by its ``name`` field's default."""

__all__ = [
    "SYSTEMS",
    "Axis",
    "ForcedODE",
    "LotkaVolterra",
    "ReactionDiffusion",
    "Solution",
    "System",
    "Transcription",
    "stack",
]
