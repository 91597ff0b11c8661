"""Training of models on simulated tasks, stored or streamed, resumable at any epoch."""

from dklfm.training.runs import calibration_factor, run
from dklfm.training.stream import StreamTrainer
from dklfm.training.trainer import Trainer

__all__ = ["StreamTrainer", "Trainer", "calibration_factor", "run"]
