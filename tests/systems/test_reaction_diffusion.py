"""Reaction–diffusion: kernels against quadrature, paths against an independent PDE solver."""

from __future__ import annotations

import json

import numpy as np
import pytest
from numpy.polynomial.legendre import leggauss
from scipy.integrate import quad, solve_ivp
from scipy.interpolate import BarycentricInterpolator

from dklfm.settings import LogNormal
from dklfm.systems import greens
from dklfm.systems.base import Array, Draw, stack
from dklfm.systems.reaction_diffusion import ReactionDiffusion
from dklfm.systems.reaction_diffusion_covariance import (
    covariances,
    grid_covariances,
    sample_joint,
)

GRID = np.linspace(0.0, 1.0, 21)
QUADRATURE = 1e-9
EXTREMES = [
    (decay, diffusion, theta)
    for decay in (0.01, 0.4)
    for diffusion in (0.001, 0.1)
    for theta in (0.1, 0.4)
]


def mesh(x: Array, t: Array) -> Array:
    """``point x axis``, x slow and t fast."""
    return np.stack(np.meshgrid(x, t, indexing="ij"), axis=-1).reshape(-1, 2)


def parameters(decay: float, diffusion: float, theta_x: float, theta_t: float) -> Draw:
    values = {
        "production": 0.8,
        "decay": decay,
        "diffusion": diffusion,
        "lengthscale_x": theta_x,
        "lengthscale_t": theta_t,
    }
    return {key: np.asarray(value) for key, value in values.items()}


def tasks(system: ReactionDiffusion, count: int, seed: int = 0) -> Draw:
    rng = np.random.default_rng(seed)
    return stack([system.draw(rng) for _ in range(count)])


def k(a, b, theta):
    return np.exp(-(((a - b) / theta) ** 2))


# Kernels against quadrature.


@pytest.mark.parametrize(("decay", "diffusion", "theta"), EXTREMES)
@pytest.mark.parametrize("mode", [1, 3, 30, 300])
def test_relaxation_equals_quadrature(decay, diffusion, theta, mode):
    rate = decay + diffusion * (mode * np.pi) ** 2
    for t in (0.05, 0.6, 1.0):
        for s in (0.0, 0.5, 1.0):
            start = max(0.0, t - 50 / rate)  # what lies before has decayed below e^{−50}

            def integrand(tau, t=t, s=s):
                return np.exp(-rate * (t - tau)) * k(tau, s, theta)

            expected, _ = quad(integrand, start, t, epsabs=1e-13, limit=200)
            assert greens.relaxation(t, s, rate, theta) == pytest.approx(expected, abs=QUADRATURE)


def test_relaxation_where_its_branches_meet():
    """At θβ/2 = (t − s)/θ the argument of erfcx is zero."""
    rate, theta, t = 4.0, 0.5, 0.5
    expected, _ = quad(lambda tau: np.exp(-rate * (t - tau)) * k(tau, 0, theta), 0, t)
    assert greens.relaxation(t, 0.0, rate, theta) == pytest.approx(expected, abs=QUADRATURE)


@pytest.mark.parametrize("theta", [0.1, 0.25, 0.4])
def test_sine_transform_equals_quadrature(theta):
    modes = np.array([1, 2, 5, 20, 44, 45, 46, 100, 301])
    positions = np.array([0.0, 0.03, 0.5, 0.8, 1.0])
    actual = greens.sine_transform(modes, positions, theta)
    for i, mode in enumerate(modes):
        for j, x in enumerate(positions):
            expected, _ = quad(
                k, 0, 1, args=(x, theta), weight="sin", wvar=mode * np.pi, epsabs=1e-13, limit=200
            )
            assert actual[i, j] == pytest.approx(expected, abs=QUADRATURE)


@pytest.mark.parametrize("theta", [0.1, 0.4])
def test_sine_overlap_equals_quadrature(theta):
    modes = np.array([1, 2, 3, 8, 30, 101, 300])
    actual = greens.sine_overlap(modes, theta)
    # The integral over ζ is the transform tested above; Gauss–Legendre with five nodes for the
    # fastest half-wave does the one over ξ.
    nodes, weights = leggauss(1500)
    xi = (nodes + 1) / 2
    sines = np.sin(np.pi * modes[:, None] * xi)
    expected = (sines * weights / 2) @ greens.sine_transform(modes, xi, theta).T
    assert np.abs(actual - expected).max() < QUADRATURE


@pytest.mark.parametrize(("decay", "diffusion", "theta"), EXTREMES)
def test_steady_state_equals_quadrature(decay, diffusion, theta):
    kappa = np.sqrt(decay / diffusion)
    positions, sources = np.array([0.0, 0.02, 0.4, 1.0]), np.array([0.0, 0.3, 1.0])
    actual = greens.steady_state(positions, sources, decay, diffusion, theta)

    def integrand(xi, x, s):
        low, high = np.minimum(x, xi), np.maximum(x, xi)
        green = np.sinh(kappa * low) * np.sinh(kappa * (1 - high))
        return green / (diffusion * kappa * np.sinh(kappa)) * k(xi, s, theta)

    for i, x in enumerate(positions):
        for j, s in enumerate(sources):
            parts = (quad(integrand, *ends, (x, s), epsabs=1e-13) for ends in ((0, x), (x, 1)))
            assert actual[i, j] == pytest.approx(sum(value for value, _ in parts), abs=QUADRATURE)


@pytest.mark.parametrize(("decay", "diffusion", "theta"), EXTREMES)
def test_covariances_equal_quadrature_of_the_greens_function(decay, diffusion, theta):
    """E[y y'] = ∫∫ G k G', with a truncated Green's function and no closed form at all."""
    theta_x, theta_t, modes = theta, 0.5 - theta, 8
    draw = parameters(decay, diffusion, theta_x, theta_t)
    points = np.array([(0.1, 0.2), (0.35, 1.0), (0.5, 0.05), (0.9, 0.6)])
    nodes, weights = leggauss(80)
    unit, weights = (nodes + 1) / 2, weights / 2

    n = np.arange(1, modes + 1)
    rate = decay + diffusion * (np.pi * n) ** 2
    sines = np.sin(np.pi * np.outer(unit, n)) * weights[:, None]
    green, times = [], []
    for x, t in points:
        fading = np.exp(-np.outer(rate, t * (1 - unit))) * (t * weights)
        green.append(0.8 * (2 * np.sin(np.pi * n * x) * sines) @ fading)
        times.append(t * unit)
    actual = covariances(draw, points, points, modes)
    over_x = k(unit[:, None], unit, theta_x)
    for i, (x, t) in enumerate(points):
        assert actual.uu[i] == pytest.approx(
            k(x, points[:, 0], theta_x) * k(t, points[:, 1], theta_t), abs=1e-14
        )
        for j in range(len(points)):
            answer = np.sum(np.outer(k(x, unit, theta_x), k(t, times[j], theta_t)) * green[j])
            assert actual.uy[i, j] == pytest.approx(answer, abs=QUADRATURE)
            over_t = k(times[i][:, None], times[j], theta_t)
            answer = np.sum((over_x @ green[j] @ over_t.T) * green[i])
            assert actual.yy[i, j] == pytest.approx(answer, abs=QUADRATURE)


def test_grid_covariances_equal_scattered_ones():
    draw = parameters(0.1, 0.004, 0.15, 0.3)
    x, t, other = GRID[::4], GRID[::5], np.array([0.13, 0.77])
    on_grid = grid_covariances(draw, (x, t), (other, t))
    for block, scattered in zip(
        on_grid, covariances(draw, mesh(x, t), mesh(other, t)), strict=True
    ):
        assert np.abs(block - scattered).max() < 1e-13


def test_default_modes_leave_2e_5():
    for theta in (0.1, 0.4):
        draw = parameters(0.01, 0.001, theta, theta) | {"production": np.asarray(1.0)}
        coarse, fine = (
            grid_covariances(draw, (GRID, GRID), (GRID, GRID), *modes) for modes in ((), (2000,))
        )
        assert np.abs(coarse.uy - fine.uy).max() < 2e-5
        assert np.abs(coarse.yy - fine.yy).max() < 2e-5


@pytest.mark.parametrize("seed", range(12))
def test_joint_is_positive_semidefinite(seed):
    draw = dict(ReactionDiffusion().draw(np.random.default_rng(seed)))
    if seed < 4:
        draw["diffusion"] = np.asarray((0.001, 0.1)[seed % 2])
        draw["lengthscale_t"] = np.asarray((0.1, 0.4)[seed // 2])
    values = np.linalg.eigvalsh(grid_covariances(draw, (GRID, GRID), (GRID, GRID)).joint())
    assert values[0] > -1e-10 * values[-1]


# Sampled paths.


@pytest.mark.parametrize("theta", [0.2, 0.4])
@pytest.mark.parametrize("diffusion", [0.001, 0.1])
def test_law_of_the_sampler_is_the_closed_form(diffusion, theta):
    """The response to each white coefficient is a column of a square root of the joint."""
    system = ReactionDiffusion(
        production=0.8, decay=0.2, diffusion=diffusion, lengthscale_x=theta, lengthscale_t=theta
    )
    draw = dict(system.draw(np.random.default_rng(0)))
    shape = draw.pop("coefficients").shape
    units = np.eye(shape[0] * shape[1]).reshape(-1, *shape)
    draws = {key: np.full(len(units), value) for key, value in draw.items()}
    x, t = GRID[::4], np.array([0.0, 0.05, 0.3, 1.0])
    points = np.broadcast_to(mesh(x, t), (len(units), len(x) * len(t), 2))
    solution = system.solve(draws | {"coefficients": units}, points)
    force, output = solution.force, solution.outputs[:, 0]

    expected = grid_covariances(draw, (x, t), (x, t), 3000)
    assert np.abs(force.T @ force - expected.uu).max() < 1e-9
    assert np.abs(force.T @ output - expected.uy).max() < 2e-7
    assert np.abs(output.T @ output - expected.yy).max() < 2e-7


@pytest.mark.parametrize("sampler", ["square root", "dense"])
def test_empirical_covariance_is_the_closed_form(sampler):
    """All 325 second moments of 4000 draws have |z| < 4 (by chance, one run in 50 fails)."""
    count, x, t = 4000, np.array([0.0, 0.05, 0.3, 0.8]), np.array([0.0, 0.1, 0.55, 1.0])
    system = ReactionDiffusion(
        production=0.8, decay=0.2, diffusion=0.003, lengthscale_x=0.25, lengthscale_t=0.15
    )
    draws = tasks(system, count)
    first = {key: values[0] for key, values in draws.items()}
    expected = grid_covariances(first, (x, t), (x, t)).joint()
    if sampler == "dense":
        samples = sample_joint(expected, np.random.default_rng(1), count)
    else:
        solution = system.solve(draws, np.broadcast_to(mesh(x, t), (count, 16, 2)))
        samples = np.hstack([solution.force, solution.outputs[:, 0]])

    variance = np.diag(expected)
    random = variance > 1e-12  # the boundary and the initial state are not
    assert np.abs(samples[:, ~random]).max() < 1e-6
    keep = np.ix_(random, random)
    error = (samples.T @ samples / count - expected)[keep]
    deviation = np.sqrt((np.outer(variance, variance) + expected**2)[keep] / count)
    assert np.abs(error / deviation).max() < 4


def collocation_solution(force, times: Array, draw: Draw, nodes: Array, at: Array) -> Array:
    """``node x time`` outputs by Chebyshev collocation in x and implicit Runge–Kutta in t."""
    count = len(nodes)
    weight = np.r_[2.0, np.ones(count - 2), 2.0] * (-1.0) ** np.arange(count)
    gap = nodes[:, None] - nodes + np.eye(count)
    slope = np.outer(weight, 1 / weight) / gap
    slope -= np.diag(slope.sum(axis=1))
    interior = slice(1, -1)
    operator = float(draw["diffusion"]) * (slope @ slope)[interior, interior]
    operator -= float(draw["decay"]) * np.eye(count - 2)
    drive = BarycentricInterpolator(times, float(draw["production"]) * force[interior].T)

    y = np.zeros((count, len(at)))
    y[interior] = solve_ivp(
        lambda t, y: operator @ y + drive(t), (0, 1), np.zeros(count - 2), method="Radau",
        t_eval=at, jac=operator, rtol=1e-9, atol=1e-11,
    ).y  # fmt: skip
    return y


@pytest.mark.parametrize(("decay", "diffusion", "theta"), EXTREMES)
def test_outputs_solve_the_equation(decay, diffusion, theta):
    system = ReactionDiffusion(decay=decay, diffusion=diffusion, lengthscale_t=theta)
    draws = tasks(system, 1, seed=3)
    draw = {key: values[0] for key, values in draws.items()}
    nodes = (1 - np.cos(np.linspace(0, np.pi, 73))) / 2
    nodes[[0, -1]] = 0.0, 1.0
    times = (1 - np.cos(np.linspace(0, np.pi, 81))) / 2
    force = system.solve(draws, mesh(nodes, times)[None]).force.reshape(len(nodes), -1)
    expected = collocation_solution(force, times, draw, nodes, GRID)
    actual = system.solve(draws, mesh(nodes, GRID)[None]).outputs.reshape(len(nodes), -1)
    assert np.linalg.norm(actual - expected) < 1e-6 * np.linalg.norm(expected)


def test_a_draw_is_the_same_function_on_every_mesh():
    system = ReactionDiffusion()
    draws, fine = tasks(system, 5), np.linspace(0, 1, 41)
    coarse = system.solve(draws, np.broadcast_to(mesh(GRID, GRID), (5, 441, 2)))
    dense = system.solve(draws, np.broadcast_to(mesh(fine, fine), (5, 1681, 2)))
    for one, other in ((coarse.force, dense.force), (coarse.outputs, dense.outputs)):
        shared = other.reshape(5, 41, 41)[:, ::2, ::2].reshape(5, -1)
        assert np.abs(one.reshape(5, -1) - shared).max() < 1e-12


def test_scattered_points_agree_with_the_grid():
    system, rng = ReactionDiffusion(), np.random.default_rng(5)
    draws = tasks(system, 5)
    on_grid = system.solve(draws, np.broadcast_to(mesh(GRID, GRID), (5, 441, 2)))
    chosen = np.stack([rng.permutation(441)[:30] for _ in range(5)])
    points = np.concatenate([mesh(GRID, GRID)[chosen], rng.random((5, 200, 2))], axis=1)
    scattered = system.solve(draws, points)
    for one, other in (
        (on_grid.force, scattered.force),
        (on_grid.outputs[:, 0], scattered.outputs[:, 0]),
    ):
        assert np.abs(np.take_along_axis(one, chosen, axis=1) - other[:, :30]).max() < 1e-12


def test_boundary_and_initial_values_are_zero():
    system = ReactionDiffusion()
    points = np.broadcast_to(mesh(GRID, GRID), (8, 441, 2))
    y = system.solve(tasks(system, 8), points).outputs.reshape(8, 21, 21)
    assert (y[:, [0, -1]] == 0).all()
    assert (y[:, :, 0] == 0).all()
    assert (y[:, 1:-1, 1:] != 0).all()
    beside = mesh(np.array([1e-9, 0.5, 1 - 1e-9]), np.array([1e-9, 0.5]))
    y = system.solve(tasks(system, 8), np.broadcast_to(beside, (8, 6, 2))).outputs[:, 0]
    assert np.abs(y[:, [0, 1, 2, 4, 5]]).max() < 1e-6 < np.abs(y[:, 3]).min()


def test_points_outside_the_square_are_refused():
    system = ReactionDiffusion()
    with pytest.raises(ValueError, match="unit square"):
        system.solve(tasks(system, 1), np.array([[[0.5, 1.2]]]))
    with pytest.raises(ValueError, match="unit square"):
        covariances(parameters(0.1, 0.01, 0.2, 0.2), np.array([[-0.1, 0.5]]), np.ones((1, 2)))


def test_a_lengthscale_below_the_nominal_bound_is_no_error():
    system = ReactionDiffusion(lengthscale_x=LogNormal(median=0.2, spread=0.3))
    draws = dict(tasks(system, 1))
    draws["lengthscale_x"] = np.array([0.9 * system.lengthscale_x.bounds[0]])
    assert np.isfinite(system.solve(draws, np.array([[[0.5, 0.5]]])).outputs).all()


def test_spec_is_json_and_a_seed_means_one_draw():
    system = ReactionDiffusion(diffusion=0.01)
    assert ReactionDiffusion(**json.loads(json.dumps(system.spec()))) == system
    one, other = tasks(system, 2, seed=9), tasks(system, 2, seed=9)
    assert all((one[key] == other[key]).all() for key in one)
