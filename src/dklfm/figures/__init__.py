"""Figures, each a function from stored products to a matplotlib figure."""

from dklfm.figures.learning import draw_learning
from dklfm.figures.p53 import draw_p53
from dklfm.figures.style import save
from dklfm.figures.tasks import draw_tasks

__all__ = ["draw_learning", "draw_p53", "draw_tasks", "save"]
