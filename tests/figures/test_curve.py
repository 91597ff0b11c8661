"""Fig. 6 from made-up scores."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from dklfm.errors import DataError
from dklfm.figures import draw_curve


def scores(
    method: str, error: float, tasks: int = 4, size: int = 0, each: float = 0.01
) -> pd.DataFrame:
    metrics = {
        "latent_mse": error,
        "inference_cpu_s": each,
        "training_tasks": float(size),
        "simulation_cpu_s": 0.5 * bool(size),
        "training_cpu_s": 99.5 * bool(size),
    }
    rows = [
        {"task": task, "metric": name, "value": value}
        for task in range(tasks)
        for name, value in metrics.items()
    ]
    return pd.DataFrame(rows).assign(method=method, split=f"test@train{size}", seed=0)


def test_errors_stand_at_their_numbers_of_tasks_and_lines_at_those_of_others() -> None:
    figure = draw_curve(
        [scores("dklfm", 0.4, size=64), scores("dklfm", 0.1, size=256), scores("alfi", 0.2, each=5)]
    )
    left, right = figure.axes
    mean = next(
        line
        for line in left.lines
        if line.get_linestyle() == "-" and len(line.get_xdata()) == 2 and line.get_marker() == "o"
    )
    np.testing.assert_allclose(mean.get_xdata(), [64, 256])
    np.testing.assert_allclose(mean.get_ydata(), [0.4, 0.1])
    assert any(np.allclose(line.get_ydata(), 0.2) for line in left.lines)
    assert [text.get_text() for text in right.texts] == ["20 tasks"]  # 100 s / (5 − 0.01) s


def test_errors_are_over_the_tasks_that_all_methods_share() -> None:
    more = scores("dklfm", 0.1, tasks=4, size=64)
    more.loc[(more["task"] == 3) & (more["metric"] == "latent_mse"), "value"] = 100.0
    figure = draw_curve([more, scores("alfi", 0.2, tasks=3)])
    assert "3 test tasks" in figure.axes[0].get_title()
    assert max(max(line.get_ydata()) for line in figure.axes[0].lines) < 1


def test_nothing_to_compare_with_is_said_so() -> None:
    with pytest.raises(DataError, match="alfi or mechanistic"):
        draw_curve([scores("dklfm", 0.1, size=64)])
