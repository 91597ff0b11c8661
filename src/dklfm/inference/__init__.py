"""From measured time courses to the posterior of their force, with a model trained before."""

from dklfm.inference.model import Model, load, shipped
from dklfm.inference.result import Inference

__all__ = ["Inference", "Model", "load", "shipped"]
