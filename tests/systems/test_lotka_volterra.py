"""Predator and prey: against a tight integrator, and what the prey cannot tell."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.integrate import solve_ivp

from dklfm.systems import LotkaVolterra, stack
from dklfm.systems.base import Draw


def draws(system: LotkaVolterra, count: int) -> Draw:
    return stack([system.draw(np.random.default_rng(i)) for i in range(count)])


@pytest.mark.parametrize("direction", [1, -1])
def test_solution_agrees_with_a_tight_integrator_both_ways(direction: int) -> None:
    system = LotkaVolterra()
    drawn = draws(system, 6)
    times = direction * np.sort(np.random.default_rng(0).uniform(0, 30, (6, 40)))
    solution = system.solve(drawn, times[..., None])
    for i in range(6):
        alpha, beta = drawn["alpha"][i], drawn["beta"][i]

        def rhs(t: float, s: np.ndarray, a: float = alpha, b: float = beta) -> list[float]:
            return [a * s[0] - b * s[0] * s[1], s[0] * s[1] - s[1]]

        truth = solve_ivp(
            rhs, (0, direction * 30), [1, 1], "DOP853", times[i], rtol=1e-12, atol=1e-13
        ).y
        np.testing.assert_allclose(solution.outputs[i, 0], truth[0], atol=1e-6)
        np.testing.assert_allclose(solution.force[i], truth[1], atol=1e-6)


def test_state_at_time_zero_is_the_initial_one() -> None:
    system = LotkaVolterra(prey0=0.7, predator0=1.9, start=-5.0)
    solution = system.solve(draws(system, 3), np.zeros((3, 1, 1)))
    np.testing.assert_allclose(solution.outputs, 0.7, rtol=1e-12)
    np.testing.assert_allclose(solution.force, 1.9, rtol=1e-12)


@pytest.mark.parametrize("k", [0.4, 3.0])
def test_prey_does_not_tell_the_scale_of_its_predator(k: float) -> None:
    system = LotkaVolterra()
    drawn = draws(system, 4)
    scaled = {**drawn, "beta": drawn["beta"] / k, "predator0": drawn["predator0"] * k}
    x = np.broadcast_to(np.linspace(-10, 30, 50)[:, None], (4, 50, 1))
    one, other = system.solve(drawn, x), system.solve(scaled, x)
    np.testing.assert_allclose(other.outputs, one.outputs, rtol=1e-9)
    np.testing.assert_allclose(other.force, k * one.force, rtol=1e-9)


def test_prior_names_what_is_free() -> None:
    assert LotkaVolterra().prior_label == "free alpha, beta"
