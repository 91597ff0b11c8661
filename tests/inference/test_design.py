"""Where next to measure, against posteriors with the observation made."""

from __future__ import annotations

import numpy as np

from dklfm.inference.design import Design, expected_falls
from dklfm.methods import ExactTranscription, Refined
from dklfm.tasks import Tasks
from tests.methods.test_mechanistic import tasks_of
from tests.methods.test_refined import SETTLED, untrained


def observed_too(task: Tasks, candidate: int) -> Tasks:
    """The task with one more observation of every output, at a query point."""
    data = task.data
    point = data["x_query"].isel(query=[candidate]).rename(query="point")
    x = np.concatenate([data["x"].values, point.values], axis=1)
    order = np.argsort(x[0, :, 0])
    sd = np.median(data["y_sd"].values, axis=-1, keepdims=True)
    y = np.concatenate([data["y"].values, np.zeros_like(sd)], -1)
    y_sd = np.concatenate([data["y_sd"].values, sd], -1)
    dims = ("task", "output", "point")
    return Tasks(
        data.drop_dims("point").assign(
            x=(("task", "point", "axis"), x[:, order]),
            y=(dims, y[..., order]),
            y_sd=(dims, y_sd[..., order]),
        )
    )


def test_the_expected_fall_is_that_of_the_exact_posterior() -> None:
    """In a linear system the variance does not depend on what is observed."""
    system, task = tasks_of(SETTLED, 1, points=6)
    exact = ExactTranscription(system)
    before = exact.fit(task).force_variance
    assert before is not None
    (found,) = Refined(untrained(system, task), system).modes(task)
    falls = expected_falls(found.problem, found.mode)
    for candidate in (1, 4, 9, 13):
        after = exact.fit(observed_too(task, candidate)).force_variance
        assert after is not None
        np.testing.assert_allclose(falls[candidate], 1 - after.mean() / before.mean(), atol=0.01)


def test_candidates_are_ranked_by_their_gain() -> None:
    candidates = np.array([[0.0], [1.0], [2.0]])
    found = Design("1", ("time",), candidates[:1], candidates, np.array([0.1, 0.3, 0.2]))
    assert found.ranked()["time"].tolist() == [1.0, 2.0, 0.0]
