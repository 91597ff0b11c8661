"""The simulator of transcription against independent solutions and its stated priors."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from scipy.integrate import solve_ivp

from dklfm.resources import resource_path
from dklfm.settings import Constant
from dklfm.systems import Transcription, gaussian, stack
from dklfm.systems.base import Draw
from dklfm.systems.transcription import GENES, LogNormalPrior, P53EmpiricalPrior

Array = NDArray[np.float64]
PARAMETERS = ("basal", "sensitivity", "decay")
RESPONSES = ("identity", "softplus", "exponential", "sigmoid")


def drawn(system: Transcription, count: int) -> Draw:
    return stack([system.draw(np.random.default_rng(seed)) for seed in range(count)])


def published() -> pd.DataFrame:
    return pd.read_csv(resource_path("p53/parameters.csv"))


def response(name: str, f: Array) -> Array:
    formulas = {
        "identity": f,
        "softplus": np.log1p(np.exp(f)),
        "exponential": np.exp(f),
        "sigmoid": np.exp(f) / (1 + np.exp(f)),
    }
    return formulas[name]


@pytest.mark.parametrize("name", RESPONSES)
def test_solution_agrees_with_an_adaptive_solver_at_irregular_times(name: str) -> None:
    system = Transcription(response=name)
    draws = drawn(system, 3)
    times = np.sort(np.random.default_rng(9).uniform(0, system.duration, (3, 40)), axis=1)
    solution = system.solve(draws, times[..., None])

    nodes = np.linspace(0, 12, gaussian.node_count(0, 12, system.lengthscale.bounds[0]))
    weights = gaussian.interpolation_weights(draws["coefficients"], nodes, draws["lengthscale"])
    for i in range(3):
        b, s, d = (draws[key][i] for key in PARAMETERS)

        def force(t: float | Array, i: int = i) -> Array:
            distance = (np.atleast_1d(t)[:, None] - nodes) / draws["lengthscale"][i]
            return np.exp(-0.5 * distance**2) @ weights[i]

        reference = solve_ivp(
            lambda t, y, b=b, s=s, d=d, force=force: b + s * response(name, force(t)) - d * y,
            (0, 12), b / d, "DOP853", times[i], rtol=1e-12, atol=1e-13,
        )  # fmt: skip
        np.testing.assert_allclose(solution.outputs[i], reference.y, rtol=0, atol=1e-6)
        np.testing.assert_allclose(solution.force[i], force(times[i]), rtol=0, atol=1e-8)


def test_one_draw_is_the_same_function_on_every_mesh() -> None:
    system = Transcription()
    draws = drawn(system, 2)
    fine = np.broadcast_to(np.linspace(0, 12, 97)[:, None], (2, 97, 1))
    on_fine, on_coarse = system.solve(draws, fine), system.solve(draws, fine[:, ::8])
    np.testing.assert_allclose(on_coarse.force, on_fine.force[:, ::8], rtol=0, atol=1e-12)
    np.testing.assert_allclose(on_coarse.outputs, on_fine.outputs[..., ::8], rtol=0, atol=1e-12)


def test_draw_of_a_task_does_not_depend_on_the_tasks_beside_it() -> None:
    system = Transcription()
    draws = drawn(system, 3)
    x = np.broadcast_to(np.linspace(0, 12, 9)[:, None], (3, 9, 1))
    alone = system.solve({key: value[1:2] for key, value in draws.items()}, x[:1])
    np.testing.assert_allclose(
        alone.outputs[0], system.solve(draws, x).outputs[1], rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("name", RESPONSES)
def test_outputs_start_at_their_basal_steady_state(name: str) -> None:
    system = Transcription(response=name)
    draws = drawn(system, 4)
    outputs = system.solve(draws, np.zeros((4, 1, 1))).outputs[..., 0]
    np.testing.assert_allclose(outputs, draws["basal"] / draws["decay"], rtol=1e-14)


@pytest.mark.parametrize("outside", [-1e-9, 12.000001])
def test_times_outside_the_domain_are_refused(outside: float) -> None:
    system = Transcription()
    with pytest.raises(ValueError, match=r"\[0, 12\] h"):
        system.solve(drawn(system, 1), np.array([[[6.0], [outside]]]))


def test_times_at_both_ends_of_the_domain_are_accepted() -> None:
    system = Transcription()
    outputs = system.solve(drawn(system, 1), np.array([[[0.0], [12.0]]])).outputs
    assert np.isfinite(outputs).all()


def test_forces_have_the_moments_of_the_stated_gaussian_process() -> None:
    count, times = 4000, np.array([0.0, 0.7, 2.0, 5.5, 6.0, 12.0])
    system = Transcription(genes=1, steps=10, lengthscale=Constant(value=2.0))
    x = np.broadcast_to(times[:, None], (count, len(times), 1))
    forces = system.solve(drawn(system, count), x).force
    expected = np.exp(-((times[:, None] - times) ** 2) / 8)
    # An entry's error has standard deviation below √(2/count), a mean's below 1/√count.
    assert np.abs(forces.T @ forces / count - expected).max() < 4.5 * np.sqrt(2 / count)
    assert np.abs(forces.mean(0)).max() < 4.5 / np.sqrt(count)


def test_prior_without_spread_gives_the_published_values() -> None:
    draw = LogNormalPrior(spread=0.0).draw(np.random.default_rng(0), len(GENES))
    table = published().query("source == 'moss2021'").set_index(["parameter", "gene"])["value"]
    for name in PARAMETERS:
        expected = [table[name, gene] for gene in GENES]
        np.testing.assert_allclose(draw[name], expected, rtol=1e-14)


def test_lognormal_prior_has_the_stated_relative_spread() -> None:
    rng = np.random.default_rng(0)
    prior = LogNormalPrior(spread=0.4)
    logs = np.log([[prior.draw(rng, 5)[name] for name in PARAMETERS] for _ in range(2000)])
    assert logs.std(0) == pytest.approx(np.full((3, 5), 0.4), abs=4.5 * 0.4 / np.sqrt(4000))


def test_empirical_prior_reproduces_the_log_moments_of_the_published_estimates() -> None:
    count, rng = 3000, np.random.default_rng(0)
    draws = [P53EmpiricalPrior().draw(rng, 5) for _ in range(count)]
    table = published()
    logs = table.assign(value=np.log(table["value"])).groupby(["parameter", "gene"])["value"]
    mean, sd = logs.mean(), logs.std()
    for name in PARAMETERS:
        sample = np.log([draw[name] for draw in draws])
        for j, gene in enumerate(GENES):
            error = sd[name, gene] / np.sqrt(count)
            assert sample[:, j].mean() == pytest.approx(mean[name, gene], abs=4.5 * error)
            assert sample[:, j].std() == pytest.approx(sd[name, gene], abs=4.5 * error)


@pytest.mark.parametrize("genes", [1, 3, 12])
def test_every_number_of_genes_can_be_simulated(genes: int) -> None:
    system = Transcription(genes=genes)
    outputs = system.solve(drawn(system, 2), np.full((2, 4, 1), [[0.0], [1.0], [5.0], [12.0]]))
    assert outputs.outputs.shape == (2, genes, 4)
    assert len(set(system.outputs)) == genes


def test_five_outputs_bear_the_names_of_the_measured_targets() -> None:
    assert Transcription().outputs == GENES


def test_settings_of_the_law_name_the_contents_of_its_resources() -> None:
    assert set(Transcription().spec()["resources"]) == {"p53/parameters.csv"}
