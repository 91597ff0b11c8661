"""What inference asks of a system: white variables, derivatives, right-hand sides, fits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.stats import ks_2samp

from dklfm.config import parse_system
from dklfm.errors import ConfigError
from dklfm.systems import System, stack
from dklfm.systems.gaussian import rbf

SPECS: list[dict[str, Any]] = [
    {"name": "transcription", "prior": {"name": "lognormal", "spread": 0.3}, "steps": 60},
    {"name": "transcription", "prior": {"name": "p53-empirical"}, "steps": 60},
    {"name": "transcription", "prior": {"name": "sensitivity"}, "steps": 60},
    {
        "name": "lotka_volterra",
        "step": 0.1,
        "prey0": {"name": "lognormal", "median": 1, "spread": 1},
    },
    {"name": "reaction_diffusion"},
]


def white(system: System, count: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal((count, *s)) for name, s in system.white_shapes().items()}


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: "-".join(map(str, spec.values()))[:40])
def test_white_variables_have_the_law_of_the_prior(spec: dict[str, Any]) -> None:
    system = parse_system(spec, "test")
    rng = np.random.default_rng(1)
    drawn = stack([system.draw(rng) for _ in range(600)])
    made = system.from_white(white(system, 600))
    assert made.keys() == drawn.keys()
    for name in drawn:
        assert made[name].shape == drawn[name].shape
        first, second = drawn[name].reshape(600, -1)[:, 0], made[name].reshape(600, -1)[:, 0]
        if np.ptp(first) > 0:
            assert ks_2samp(first, second).pvalue > 1e-3, name
        else:
            np.testing.assert_allclose(second, first)


def test_transcription_knows_its_derivatives_by_the_force() -> None:
    system = parse_system(SPECS[0], "test").surrogate()
    draws = system.from_white(white(system, 2))
    x = np.tile(np.linspace(0, 12, 7)[:, None], (2, 1, 1))
    known, differences = system.linearise(draws, x), System.linearise(system, draws, x)
    np.testing.assert_allclose(known.outputs, differences.outputs, atol=1e-8)
    np.testing.assert_allclose(known.force_gradient, differences.force_gradient, atol=1e-8)
    np.testing.assert_allclose(known.output_gradient, differences.output_gradient, atol=1e-8)
    assert np.abs(known.output_gradient).max() > 0.1


def test_derivatives_by_differences_are_those_of_a_linear_system() -> None:
    system = parse_system({"name": "reaction_diffusion"}, "test")
    draws = dict(system.from_white(white(system, 1)))
    x = np.random.default_rng(0).uniform(0, 1, (1, 5, 2))
    found = system.linearise(draws, x)
    np.testing.assert_allclose(
        np.einsum("opc,c->op", found.output_gradient[0], draws["coefficients"][0].ravel()),
        found.outputs[0],
        atol=1e-6,
    )


@pytest.mark.parametrize("spec", SPECS[:4], ids=lambda spec: spec["name"])
def test_a_right_hand_side_is_that_of_the_solution(spec: dict[str, Any]) -> None:
    system = parse_system(spec, "test")
    draws = system.from_white(white(system, 3))
    step = 1e-3
    t = np.array([2.0 - step, 2.0, 2.0 + step])
    solution = system.solve(draws, np.tile(t[:, None], (3, 1, 1)))
    slope = (solution.outputs[..., 2] - solution.outputs[..., 0]) / (2 * step)
    activity = system.activity(solution.force)[:, 1:2]
    parameters = {
        name: draws[name].reshape(3, -1) for name in system.parameters if name != "lengthscale"
    }
    rate = system.rate(solution.outputs[..., 1], activity, parameters)
    np.testing.assert_allclose(rate, slope, rtol=1e-3, atol=1e-4)
    start = system.solve(draws, np.zeros((3, 1, 1)))
    np.testing.assert_allclose(
        np.broadcast_to(system.initial(parameters), start.outputs[..., 0].shape),
        start.outputs[..., 0],
        rtol=1e-6,
    )


def test_transcription_is_solved_alike_at_shared_and_at_own_times() -> None:
    """Runs of tasks with the same times are solved together."""
    system = parse_system(SPECS[0], "test").surrogate()
    draws = system.from_white(white(system, 6))
    own = np.sort(np.random.default_rng(0).uniform(0, 12, (6, 5, 1)), axis=1)
    first, second = own[:1], own[1:2]
    for x in (
        own,
        np.broadcast_to(first, own.shape),
        np.concatenate([np.tile(first, (3, 1, 1)), np.tile(second, (3, 1, 1))]),
        np.concatenate([np.tile(first, (2, 1, 1)), np.tile(second, (4, 1, 1))]),
        np.concatenate([np.tile(first, (2, 1, 1)), np.tile(second, (2, 1, 1)), first, second]),
    ):
        together, linear = system.solve(draws, x), system.linearise(draws, x)
        for i in range(6):
            one = {name: value[i : i + 1] for name, value in draws.items()}
            alone, gradient = system.solve(one, x[i : i + 1]), system.linearise(one, x[i : i + 1])
            for name in ("force", "outputs"):
                np.testing.assert_allclose(getattr(together, name)[i], getattr(alone, name)[0])
            for name in ("force", "outputs", "force_gradient", "output_gradient"):
                expected = getattr(gradient, name)[0]
                np.testing.assert_allclose(getattr(linear, name)[i], expected, atol=1e-12)


def test_surrogate_of_predators_is_finer_than_noise() -> None:
    system = parse_system({"name": "lotka_volterra"}, "test")
    draws = system.from_white(white(system, 5))
    x = np.tile(np.linspace(0, 12, 30)[:, None], (5, 1, 1))
    fine, coarse = system.solve(draws, x).outputs, system.surrogate().solve(draws, x).outputs
    assert np.abs(fine - coarse).max() < 1e-3 * fine.std()


@pytest.mark.parametrize("response", ["identity", "softplus", "exponential"])
def test_surrogate_of_genes_solves_their_equation(response: str) -> None:
    """Against an adaptive integrator driven by the surrogate's own force."""
    system = parse_system(SPECS[0] | {"response": response}, "test").surrogate()
    draws = system.from_white(white(system, 3))
    times = np.linspace(0, 12, 30)
    found = system.solve(draws, np.broadcast_to(times[:, None], (3, 30, 1))).outputs
    for i in range(3):
        one = {name: value[i : i + 1] for name, value in draws.items()}

        def rate(t: float, y: np.ndarray, one: dict[str, np.ndarray] = one) -> np.ndarray:
            force = system.solve(one, np.full((1, 1, 1), t)).force
            parameters = {k: one[k][0] for k in ("basal", "sensitivity", "decay")}
            return np.asarray(system.rate(y, system.activity(force[0]), parameters))

        start = (one["basal"] / one["decay"])[0]
        exact = solve_ivp(rate, (0, 12), start, t_eval=times, rtol=1e-8, atol=1e-8).y
        error = np.abs(found[i] - exact).max(1)
        assert (error < 2e-3 * exact.std(1)).all()


def test_surrogate_of_genes_has_the_covariance_of_the_prior() -> None:
    system = parse_system(SPECS[0], "test").surrogate()
    times = np.linspace(0, 12, 40)
    lengthscale = np.array([1.2, 2.0, 3.6])
    draws = dict(system.from_white(white(system, 3))) | {"lengthscale": lengthscale}
    root = system.linearise(draws, np.broadcast_to(times[:, None], (3, 40, 1))).force_gradient
    np.testing.assert_allclose(
        root @ root.mT, rbf(times[None], times[None], lengthscale), atol=5e-4
    )


def test_a_fitted_prior_has_the_moments_of_the_draws_behind_it() -> None:
    system = parse_system(SPECS[0], "test")
    draws = system.from_white(white(system, 4000))
    fitted = system.fitted_to(draws)
    again = fitted.from_white(white(fitted, 4000, seed=1))
    for name in ("basal", "sensitivity", "decay"):
        np.testing.assert_allclose(
            np.log(again[name]).mean(0), np.log(draws[name]).mean(0), atol=0.03
        )
        np.testing.assert_allclose(
            np.log(again[name]).std(0), np.log(draws[name]).std(0), rtol=0.06
        )
    assert parse_system(fitted.spec(), "test") == fitted


def test_a_prior_of_the_five_targets_is_of_five_genes() -> None:
    system = parse_system(SPECS[0], "test")
    fitted = system.fitted_to(system.from_white(white(system, 50)))
    for prior in (fitted.spec()["prior"], {"name": "sensitivity"}):
        with pytest.raises(ConfigError, match="is of the 5 p53 targets, not of 3 genes; set"):
            parse_system({"name": "transcription", "genes": 3, "prior": prior}, "test")
    three = parse_system(SPECS[0] | {"genes": 3}, "test")
    with pytest.raises(NotImplementedError, match="of 5 genes, not 3"):
        three.fitted_to(three.from_white(white(three, 50)))


def test_other_genes_have_the_moments_of_a_target_picked_at_random() -> None:
    five = parse_system(SPECS[0], "test")
    three = parse_system(SPECS[0] | {"genes": 3}, "test")
    names = ("basal", "sensitivity", "decay")
    mixture = five.from_white(white(five, 20_000))
    pooled = three.from_white(white(three, 20_000))
    assert pooled["basal"].shape == (20_000, 3)
    logs = [np.log(np.stack([draw[k].ravel() for k in names])) for draw in (mixture, pooled)]
    np.testing.assert_allclose(logs[1].mean(1), logs[0].mean(1), atol=0.02)
    np.testing.assert_allclose(np.cov(logs[1]), np.cov(logs[0]), atol=0.03)


@pytest.mark.parametrize("method", ["rate", "initial"])
def test_a_field_gives_no_ordinary_right_hand_side(method: str) -> None:
    system = parse_system({"name": "reaction_diffusion"}, "test")
    with pytest.raises(NotImplementedError, match="reaction_diffusion gives no"):
        getattr(system, method)(*([{}] if method == "initial" else [0.0, 0.0, {}]))
