"""Mechanistic models with an unobserved force. NumPy and SciPy only."""

from dklfm.systems.base import Axis, Solution, System, stack
from dklfm.systems.transcription import Transcription

SYSTEMS: tuple[type[System], ...] = (Transcription,)
"""Every built-in system; a config names one by its ``name`` field's default."""

__all__ = ["SYSTEMS", "Axis", "Solution", "System", "Transcription", "stack"]
