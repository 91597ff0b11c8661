"""Figures, each a function from stored products to a matplotlib figure."""

from collections.abc import Callable

from matplotlib.figure import Figure

from dklfm.figures.calibration import draw_calibration
from dklfm.figures.curve import draw_curve
from dklfm.figures.fields import draw_fields
from dklfm.figures.kni import draw_kni
from dklfm.figures.learning import draw_learning
from dklfm.figures.p53 import draw_p53
from dklfm.figures.series import draw_series
from dklfm.figures.style import save
from dklfm.figures.tasks import draw_tasks

POSTERIOR_FIGURES: dict[str, Callable[..., Figure]] = {
    "calibration": draw_calibration,
    "tasks": draw_tasks,
    "fields": draw_fields,
    "kni": draw_kni,
    "p53": draw_p53,
    "series": draw_series,
}
"""Figures drawn from tasks, their posterior and its system, by name."""

__all__ = ["POSTERIOR_FIGURES", "draw_curve", "draw_learning", "save"]
