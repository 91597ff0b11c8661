"""Training of models on simulated tasks, stored or streamed, resumable at any epoch."""

from dklfm.training.runs import kind_of_trainer, run
from dklfm.training.stream import StreamTrainer
from dklfm.training.trainer import Trainer

__all__ = ["StreamTrainer", "Trainer", "kind_of_trainer", "run"]
