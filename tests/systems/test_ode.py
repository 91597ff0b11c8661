"""Orders of convergence of the integrator and of its dense output."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from dklfm.systems.ode import Trajectory, rk4

Array = NDArray[np.float64]


def exact(t: Array | float) -> Array:
    """The solution of y' = sin t − y with y(0) = 1."""
    t = np.asarray(t)
    return 1.5 * np.exp(-t) + (np.sin(t) - np.cos(t)) / 2


def rhs(t: float, y: Array) -> Array:
    return np.sin(t) - y


def integrated(start: float, stop: float, steps: int) -> Trajectory:
    return rk4(rhs, exact(start).reshape(1, 1), start, stop, steps)


def observed_order(coarse: float, fine: float) -> float:
    return float(np.log2(coarse / fine))


@pytest.mark.parametrize(("start", "stop"), [(0.0, 3.0), (3.0, 0.0)], ids=["forward", "backward"])
def test_global_error_falls_with_the_fourth_power_of_the_step(start: float, stop: float) -> None:
    errors = [
        abs(integrated(start, stop, steps).states[-1, 0, 0] - float(exact(stop)))
        for steps in (40, 80)
    ]
    assert observed_order(*errors) == pytest.approx(4, abs=0.15)


@pytest.mark.parametrize(("start", "stop"), [(0.0, 3.0), (3.0, 0.0)], ids=["forward", "backward"])
def test_dense_output_between_the_steps_is_of_fourth_order(start: float, stop: float) -> None:
    t = np.linspace(0, 3, 331)[None]
    errors = [
        np.abs(integrated(start, stop, steps)(t)[0, 0] - exact(t[0])).max() for steps in (40, 80)
    ]
    assert observed_order(*errors) == pytest.approx(4, abs=0.25)


def test_hermite_error_keeps_its_textbook_bound() -> None:
    grid = np.linspace(0, 2, 11)
    states, slopes = np.sin(grid)[:, None, None], np.cos(grid)[:, None, None]
    t = np.linspace(0, 2, 501)[None]
    error = np.abs(Trajectory(0.0, 0.2, states, slopes)(t)[0, 0] - np.sin(t[0])).max()
    assert error <= 0.2**4 / 384


def test_dense_output_reproduces_cubics() -> None:
    grid = np.linspace(-1, 2, 4)
    states, slopes = (grid**3 - 2 * grid)[:, None, None], (3 * grid**2 - 2)[:, None, None]
    t = np.linspace(-1, 2, 50)[None]
    np.testing.assert_allclose(
        Trajectory(-1.0, 1.0, states, slopes)(t)[0, 0], t[0] ** 3 - 2 * t[0], atol=1e-13
    )


def test_dense_output_passes_through_the_computed_states() -> None:
    trajectory = integrated(0.0, 3.0, 12)
    t = np.linspace(0, 3, 13)[None]
    np.testing.assert_allclose(trajectory(t)[0, 0], trajectory.states[:, 0, 0], rtol=1e-13)


def test_tasks_and_states_are_integrated_side_by_side() -> None:
    initial = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    rates = np.array([[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]])
    trajectory = rk4(lambda t, y: -rates * y, initial, 0.0, 1.0, 50)
    t = np.array([[0.0, 0.33], [0.5, 0.77], [0.9, 1.0]])
    expected = initial[:, :, None] * np.exp(-rates[:, :, None] * t[:, None, :])
    np.testing.assert_allclose(trajectory(t), expected, rtol=1e-8)
