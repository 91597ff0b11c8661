"""Figures of fields and of measured time courses, drawn from made-up posteriors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dklfm import simulate
from dklfm.config import TasksConfig, validate
from dklfm.figures import POSTERIOR_FIGURES, draw_fields, save
from dklfm.methods import Posterior
from dklfm.systems import LotkaVolterra, ReactionDiffusion, System, Transcription
from dklfm.tasks import Tasks, load_embedded


def fields() -> Tasks:
    settings = {
        "counts": {"train": 1, "validation": 0, "test": 4},
        "mesh": {"spacing": "regular", "points": 5},
        "query": 6,
    }
    config: TasksConfig = validate(TasksConfig, settings, "test")
    codes = np.array([0, 2, 2, 2, 2], dtype=np.int8)
    arrays = simulate.simulate(ReactionDiffusion(), config, codes, np.array([0, 0, 1, 2, 3]))
    return simulate.assemble(ReactionDiffusion(), codes, arrays)


def made_up(tasks: Tasks) -> Posterior:
    rng = np.random.default_rng(0)
    count, outputs, points = tasks["y"].shape
    queries = tasks["x_query"].shape[1]
    force = rng.normal(size=(count, queries))
    values = rng.normal(size=(count, outputs, points + queries))
    return Posterior.of(tasks, (force, np.ones_like(force)), (values, np.ones_like(values)), 1.0)


@pytest.mark.parametrize(
    ("kind", "tasks", "system"),
    [
        ("fields", fields(), ReactionDiffusion()),
        ("fields", fields().split("test"), ReactionDiffusion()),
        ("calibration", fields(), ReactionDiffusion()),
        ("kni", load_embedded("kni"), ReactionDiffusion()),
        ("series", load_embedded("hare-lynx"), LotkaVolterra()),
    ],
)
def test_figure_is_written_as_pdf_and_png(
    kind: str, tasks: Tasks, system: System, tmp_path: Path
) -> None:
    save(POSTERIOR_FIGURES[kind](tasks, made_up(tasks), system), tmp_path / kind)
    assert (tmp_path / f"{kind}.pdf").read_bytes().startswith(b"%PDF")
    assert (tmp_path / f"{kind}.png").read_bytes().startswith(b"\x89PNG")
    assert len(list(tmp_path.iterdir())) == 2


def test_fields_stand_beside_the_floor_where_there_is_one() -> None:
    tasks = fields().split("test")
    floor = made_up(tasks.take([0, 1]))
    drawn = draw_fields(tasks, made_up(tasks), ReactionDiffusion(), floor)
    titles = [axes.get_title() for axes in drawn.axes if "MSE" in axes.get_title()]
    assert ["floor" in title for title in titles] == [True, True, False, False]


def test_of_more_outputs_than_colours_none_is_named() -> None:
    settings = {"counts": {"train": 0, "validation": 0, "test": 4}, "query": 11}
    config: TasksConfig = validate(TasksConfig, settings, "test")
    codes = np.full(4, 2, dtype=np.int8)
    system = Transcription(steps=20, genes=12)
    tasks = simulate.assemble(system, codes, simulate.simulate(system, config, codes, np.arange(4)))
    drawn = POSTERIOR_FIGURES["tasks"](tasks, made_up(tasks), system)
    legend = drawn.axes[-1].get_legend()
    assert legend is not None
    assert legend.get_texts() == []
    assert legend.get_title().get_text().startswith("12 outputs")


def calibrated(tasks: Tasks, width: float) -> Posterior:
    """Posteriors whose standard deviations are the errors' own, times ``width``."""
    rng = np.random.default_rng(0)
    error = rng.normal(size=tasks["f"].shape)
    force = tasks["f"] + error, np.full_like(error, width)
    return Posterior.of(tasks, force, None, 1.0)


@pytest.mark.parametrize(("width", "low", "high"), [(1.0, 0.93, 0.97), (0.5, 0.6, 0.75)])
def test_calibration_shows_the_share_inside(width: float, low: float, high: float) -> None:
    settings = {"counts": {"train": 0, "validation": 0, "test": 60}, "query": 21}
    config: TasksConfig = validate(TasksConfig, settings, "test")
    codes = np.full(60, 2, dtype=np.int8)
    system = Transcription(steps=20)
    arrays = simulate.simulate(system, config, codes, np.arange(60))
    tasks = simulate.assemble(system, codes, arrays)
    posterior = calibrated(tasks, width)
    drawn = POSTERIOR_FIGURES["calibration"](tasks, posterior, system)
    notes = [text.get_text() for text in drawn.axes[0].texts]
    (share,) = (float(note.split()[0]) for note in notes if note.endswith("95 %"))
    assert low < share < high
    inside = posterior.marginals("force").contains(tasks["f"], 0.95)
    assert share == pytest.approx(inside.mean(), abs=6e-4)
