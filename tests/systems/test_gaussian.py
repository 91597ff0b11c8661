"""Forces drawn at nodes and evaluated anywhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from dklfm.config import load_config
from dklfm.systems import gaussian
from dklfm.systems.transcription import Transcription

CONFIG = Path(__file__).parents[2] / "config" / "config.yaml"


def implied_covariance(
    nodes: NDArray[np.float64], lengthscale: float, x: NDArray[np.float64]
) -> NDArray[np.float64]:
    """k(x, G) K⁻¹ k(G, x): the covariance of f(x) for white coefficients."""
    scales = np.full(len(nodes), lengthscale)
    weights = gaussian.interpolation_weights(np.eye(len(nodes)), nodes, scales)
    values = gaussian.evaluate(weights, nodes, scales, x)
    return values.T @ values


def test_rbf_has_unit_variance_and_the_stated_decay() -> None:
    k = gaussian.rbf(np.array([0.0, 1.0]), np.array([0.0, 3.0]), np.array(2.0))
    expected = np.exp([[0.0, -9 / 8], [-1 / 8, -4 / 8]])
    np.testing.assert_allclose(k, expected, rtol=1e-15)


def test_rbf_takes_one_lengthscale_a_task() -> None:
    x = np.linspace(0, 1, 4)
    both = gaussian.rbf(x, x, np.array([0.5, 2.0]))
    np.testing.assert_array_equal(both[1], gaussian.rbf(x, x, np.array(2.0)))


@pytest.mark.parametrize("name", ["transcription", "p53"])
def test_nystrom_defect_is_negligible_at_the_shortest_lengthscale_of_a_config(name: str) -> None:
    system = load_config(CONFIG).experiments[name].system
    assert isinstance(system, Transcription)
    shortest = system.lengthscale.bounds[0]
    count = gaussian.node_count(0.0, system.duration, shortest)
    x = np.linspace(0, system.duration, 501)
    defect = gaussian.rbf(x, x, np.array(shortest)) - implied_covariance(
        np.linspace(0, system.duration, count), shortest, x
    )
    assert np.abs(defect).max() < 1e-9


@given(
    span=st.floats(0.5, 12),
    shortest=st.floats(0.1, 10),
    stretch=st.floats(1, 5),
    places=st.lists(st.floats(0, 1), min_size=2, max_size=9),
)
def test_nystrom_defect_is_small_for_every_lengthscale_above_the_shortest(
    span: float, shortest: float, stretch: float, places: list[float]
) -> None:
    duration = span * shortest
    nodes = np.linspace(0, duration, gaussian.node_count(0.0, duration, shortest))
    x = duration * np.array(places)
    defect = gaussian.rbf(x, x, np.array(shortest * stretch)) - implied_covariance(
        nodes, shortest * stretch, x
    )
    assert np.abs(defect).max() < 1e-9


def test_shared_and_repeated_inputs_give_the_same_values() -> None:
    rng = np.random.default_rng(0)
    nodes, lengthscale = np.linspace(0, 4, 24), np.array([1.0, 2.0])
    weights = gaussian.interpolation_weights(rng.standard_normal((2, 24)), nodes, lengthscale)
    x = np.linspace(0, 4, 7)
    np.testing.assert_allclose(
        gaussian.evaluate(weights, nodes, lengthscale, x),
        gaussian.evaluate(weights, nodes, lengthscale, np.stack([x, x])),
        rtol=1e-13,
    )
