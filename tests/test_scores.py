"""Scores against an independent library, exact samples and their written definitions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import scoringrules
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import norm
from scipy.stats import t as student

from dklfm.marginals import Marginals, fit_tails
from dklfm.methods import COSTS, Posterior
from dklfm.scores import (
    ABOUT,
    COLUMNS,
    FLOOR,
    METRICS,
    OVER_FLOOR,
    expected_activity,
    reference_correlations,
    score,
    summarise,
    z_scored,
)
from dklfm.systems import Transcription
from dklfm.tasks import Tasks

Array = NDArray[np.float64]
REALS = st.floats(-5, 5)
SCALES = st.floats(0.4, 10)  # the library's logarithmic score underflows beyond 38 deviations
ABOUT_VALUES: dict[str, Any] = {
    "run": "r",
    "experiment": "transcription",
    "method": "dklfm",
    "prior": "p",
    "seed": 3,
    "split": "test",
}


def posterior(tasks: Tasks, error: float = 0.3, sd: float = 0.5) -> Posterior:
    """The truth with a constant error and a constant deviation."""
    h = np.concatenate([tasks["h"], tasks["h_query"]], axis=-1)
    found = Posterior.of(
        tasks,
        (tasks["f"] + error, np.full_like(tasks["f"], sd)),
        (h + error, np.full_like(h, sd)),
        cpu_seconds=2.0 * len(tasks),
    )
    costs = {"simulation_cpu_s": 3.0, "training_cpu_s": 12.0, "training_tasks": 8}
    return Posterior(found.data.assign_attrs(costs))


def metric(name: str, of: Posterior, tasks: Tasks) -> Array:
    return next(m for m in METRICS if m.name == name).compute(of, tasks)


def law(mean: float, sd: float, df: float = np.inf) -> Marginals:
    return Marginals(np.array(mean), np.array(sd), df)


@given(REALS, SCALES, REALS)
def test_nll_is_the_logarithmic_score(mean: float, sd: float, truth: float) -> None:
    found = law(mean, sd).nll(np.array(truth))
    assert found == pytest.approx(scoringrules.logs_normal(truth, mean, sd), rel=1e-9, abs=1e-9)


@given(REALS, SCALES, REALS)
def test_crps_is_that_of_a_gaussian(mean: float, sd: float, truth: float) -> None:
    found = law(mean, sd).crps(np.array(truth))
    assert found == pytest.approx(scoringrules.crps_normal(truth, mean, sd), rel=1e-9, abs=1e-9)


@given(REALS, SCALES, REALS, st.floats(2.5, 200))
def test_scores_with_tails_are_those_of_a_student(
    mean: float, sd: float, truth: float, df: float
) -> None:
    found, scale = law(mean, sd, df), sd * np.sqrt((df - 2) / df)
    crps = scoringrules.crps_t(truth, df, mean, scale)
    assert found.crps(np.array(truth)) == pytest.approx(crps, rel=1e-7, abs=1e-9)
    expected = student(df, mean, scale)
    assert found.nll(np.array(truth)) == pytest.approx(-expected.logpdf(truth), abs=1e-9)
    assert found.rank(np.array(truth)) == pytest.approx(expected.cdf(truth), abs=1e-12)
    assert found.interval(0.9) == pytest.approx(expected.interval(0.9))
    assert expected.std() == pytest.approx(sd)


@pytest.mark.parametrize(("df", "spread"), [(3.0, 1.0), (8.0, 0.5), (np.inf, 2.0)])
def test_tails_are_found_from_errors(df: float, spread: float) -> None:
    rng = np.random.default_rng(0)
    errors = rng.standard_normal(400_000)
    if np.isfinite(df):
        errors = rng.standard_t(df, 400_000) * np.sqrt((df - 2) / df)
    factor, found = fit_tails(spread * errors)
    fitted = Marginals(np.zeros_like(errors), np.full_like(errors, np.sqrt(factor)), found)
    assert 1 / found == pytest.approx(1 / df, abs=0.02)
    for level in (0.5, 0.95):
        assert fitted.contains(spread * errors, level).mean() == pytest.approx(level, abs=0.003)


def test_tails_lighter_than_a_gaussians_leave_it_one() -> None:
    factor, df = fit_tails(np.linspace(-1, 1, 10_001))
    assert df == np.inf
    assert factor == pytest.approx((0.95 / 1.959964) ** 2, rel=1e-3)


@pytest.mark.parametrize("level", [0.5, 0.95])
def test_exact_posteriors_cover_at_their_level(level: float) -> None:
    rng = np.random.default_rng(0)
    mean, sd = rng.normal(size=20_000), rng.uniform(0.1, 3, 20_000)
    share = Marginals(mean, sd).contains(mean + sd * rng.standard_normal(20_000), level).mean()
    assert share == pytest.approx(level, abs=4.5 * np.sqrt(level * (1 - level) / 20_000))


@given(st.floats(0.01, 0.99), REALS, SCALES)
def test_interval_ends_at_the_quantiles(level: float, mean: float, sd: float) -> None:
    end = norm.ppf(0.5 + level / 2, mean, sd)
    assert law(mean, sd).contains(np.array(mean + 0.999 * (end - mean)), level)
    assert not law(mean, sd).contains(np.array(mean + 1.001 * (end - mean)), level)


def test_squared_error_is_raw(tasks: Tasks) -> None:
    found = metric("latent_mse", posterior(tasks), tasks)
    np.testing.assert_allclose(found, np.full(len(tasks), 0.09))


def test_relative_squared_error_is_over_the_variance_of_the_true_force(tasks: Tasks) -> None:
    found = metric("latent_mse_z", posterior(tasks), tasks)
    np.testing.assert_allclose(found, 0.09 / tasks["f"].var(1))


def test_prior_mean_scores_one_on_relative_squared_error(tasks: Tasks) -> None:
    of = posterior(tasks)
    mean = np.broadcast_to(tasks["f"].mean(1, keepdims=True), tasks["f"].shape)
    flat = Posterior(of.data.assign(force_mean=(("task", "query"), mean)))
    np.testing.assert_allclose(metric("latent_mse_z", flat, tasks), np.ones(len(tasks)))


def test_shape_error_forgives_scale_and_offset(tasks: Tasks) -> None:
    of = posterior(tasks)
    scaled = Posterior(of.data.assign(force_mean=3 * of.data["force_mean"] - 7))
    np.testing.assert_allclose(metric("latent_mse_shape", scaled, tasks), 0, atol=1e-20)


def test_shape_error_of_the_opposite_is_four(tasks: Tasks) -> None:
    of = posterior(tasks)
    opposite = Posterior(of.data.assign(force_mean=-of.data["force_mean"]))
    np.testing.assert_allclose(metric("latent_mse_shape", opposite, tasks), 4)


@given(st.lists(st.integers(-50, 50), min_size=3, max_size=9, unique=True))
def test_z_scored_curves_have_zero_mean_and_unit_deviation(values: list[int]) -> None:
    found = z_scored(np.array([values], dtype=float))
    assert found.mean() == pytest.approx(0, abs=1e-12)
    assert found.std() == pytest.approx(1)


@pytest.mark.parametrize(
    ("name", "truth"), [("output_mse", "h"), ("output_mse_heldout", "h_query")]
)
def test_output_errors_are_in_deviations_of_each_output(
    tasks: Tasks, name: str, truth: str
) -> None:
    found = metric(name, posterior(tasks), tasks)
    expected = (0.09 / tasks["h_query"].var(-1)).mean(-1)
    np.testing.assert_allclose(found, expected)
    assert truth in tasks


def test_raw_output_error_is_in_the_outputs_own_units(tasks: Tasks) -> None:
    np.testing.assert_allclose(metric("output_mse_raw", posterior(tasks), tasks), 0.09)


def test_output_nll_is_that_of_scaled_outputs(tasks: Tasks) -> None:
    scale = tasks["h_query"].std(-1, keepdims=True) * np.ones_like(tasks["h"])
    expected = scoringrules.logs_normal(0.0, 0.3 / scale, 0.5 / scale).mean((1, 2))
    np.testing.assert_allclose(metric("output_nll", posterior(tasks), tasks), expected)


@pytest.mark.parametrize(
    ("name", "rule"),
    [("force_nll", scoringrules.logs_normal), ("force_crps", scoringrules.crps_normal)],
)
def test_force_scores_are_means_over_the_query_points(tasks: Tasks, name: str, rule: Any) -> None:
    of = posterior(tasks)
    expected = rule(tasks["f"], of["force_mean"], of["force_sd"]).mean(1)
    np.testing.assert_allclose(metric(name, of, tasks), expected)


@pytest.mark.parametrize(
    ("name", "inside"), [("force_coverage95", 1.95 / 0.5), ("force_coverage50", 0.67 / 0.5)]
)
def test_coverage_of_a_constant_error_is_all_or_nothing(
    tasks: Tasks, name: str, inside: float
) -> None:
    near, far = posterior(tasks, inside * 0.25), posterior(tasks, inside * 0.26)
    assert metric(name, near, tasks).tolist() == [1.0] * len(tasks)
    assert metric(name, far, tasks).tolist() == [0.0] * len(tasks)


def test_expected_activity_is_the_mean_over_the_posterior(tasks: Tasks) -> None:
    of = posterior(tasks)
    log_normal = expected_activity(of, Transcription(response="exponential"))
    np.testing.assert_allclose(log_normal, np.exp(of["force_mean"] + 0.125), rtol=1e-10)
    linear = expected_activity(of, Transcription(response="identity"))
    np.testing.assert_allclose(linear, of["force_mean"], rtol=1e-10)


def measured(tasks: Tasks, reference: Array) -> Tasks:
    """Tasks as if measured: no truth, but a counterpart of the force."""
    known = [name for name in ("f", "h", "h_query", "f_observed") if name in tasks]
    data = tasks.data.drop_vars(known).assign(reference_blot=(("task", "point"), reference))
    return Tasks(data)


@pytest.mark.parametrize(("slope", "correlation"), [(2.5, 1.0), (-0.1, -1.0)])
def test_correlation_with_a_line_through_the_inferred_activity_is_one(
    tasks: Tasks, slope: float, correlation: float
) -> None:
    system, of = Transcription(), posterior(tasks)
    activity = expected_activity(of, system)
    reference = np.stack(
        [
            3 + slope * np.interp(x, grid, curve)
            for x, grid, curve in zip(
                tasks["x"][..., 0], tasks["x_query"][..., 0], activity, strict=True
            )
        ]
    )
    reference[:, 2] = np.nan  # not measured then
    found = reference_correlations(of, measured(tasks, reference), system)
    np.testing.assert_allclose(found["correlation_blot"], np.full(len(tasks), correlation))


def test_tasks_without_references_have_no_correlations(tasks: Tasks) -> None:
    assert reference_correlations(posterior(tasks), tasks, Transcription()) == {}


def scored(tasks: Tasks, error: float = 0.3, **about: Any) -> pd.DataFrame:
    return score(posterior(tasks, error), tasks, Transcription(), ABOUT_VALUES | about)


def test_table_has_a_row_a_task_and_metric(tasks: Tasks) -> None:
    table = scored(tasks)
    assert list(table.columns) == [*ABOUT, "task", "metric", "value"]
    names = {m.name for m in METRICS} | {"inference_cpu_s", *COSTS}
    assert set(table["metric"]) == names
    assert len(table) == len(names) * len(tasks)
    assert not table.duplicated(["task", "metric"]).any()


def test_costs_are_those_of_the_products(tasks: Tasks) -> None:
    costs = scored(tasks).groupby("metric")["value"].agg(["min", "max"])
    assert costs.loc["inference_cpu_s"].tolist() == [2.0, 2.0]
    assert costs.loc["training_cpu_s"].tolist() == [12.0, 12.0]


def test_measured_tasks_are_named_in_their_split(tasks: Tasks) -> None:
    few = tasks.take([0, 1])
    table = score(posterior(few), measured(few, few["y"][:, 0]), Transcription(), ABOUT_VALUES)
    assert set(table["split"]) == {"test/0", "test/1"}
    assert "latent_mse" not in set(table["metric"])


def test_summary_has_the_documented_columns(tasks: Tasks) -> None:
    assert tuple(summarise([scored(tasks)]).columns) == COLUMNS


def test_summary_states_mean_error_and_median_over_tasks(tasks: Tasks) -> None:
    summary = summarise([scored(tasks)]).set_index(["seed", "metric"]).loc[("3", "latent_mse_z")]
    values = metric("latent_mse_z", posterior(tasks), tasks)
    assert summary["n_tasks"] == len(tasks)
    assert summary["mean"] == pytest.approx(values.mean())
    assert summary["se"] == pytest.approx(values.std(ddof=1) / np.sqrt(len(values)))
    assert summary["median"] == pytest.approx(np.median(values))


def test_all_seeds_are_averaged_task_by_task(tasks: Tasks) -> None:
    summary = summarise([scored(tasks, 0.1, seed=0), scored(tasks, 0.3, seed=1)])
    rows = summary[summary["metric"] == "latent_mse"].set_index("seed")
    assert set(rows.index) == {"0", "1", "all"}
    assert rows.loc["all", "n_tasks"] == len(tasks)
    assert rows.loc["all", "mean"] == pytest.approx((0.01 + 0.09) / 2)
    assert rows.loc["all", "se"] == pytest.approx(0, abs=1e-12)


def test_errors_stand_over_the_floor_of_the_same_tasks(tasks: Tasks) -> None:
    few = tasks.take([0, 1, 2])
    of_model = [scored(tasks, 0.4, method="dklfm", seed=seed) for seed in (0, 1)]
    summary = summarise([*of_model, scored(few, 0.2, method=FLOOR)])
    rows = summary[summary["metric"] == OVER_FLOOR].set_index("seed")
    assert set(rows["method"]) == {"dklfm"}
    assert set(rows.index) == {"0", "1", "all"}
    assert rows["n_tasks"].tolist() == [3, 3, 3]
    assert rows["mean"].tolist() == pytest.approx([4.0] * 3)
    assert rows["se"].tolist() == pytest.approx([0.0] * 3, abs=1e-12)


def test_error_of_the_ratio_is_that_of_a_bootstrap() -> None:
    rng = np.random.default_rng(0)
    about = {**ABOUT_VALUES, "seed": 0, "metric": "latent_mse"}
    own, floor = rng.gamma(2.0, 1.0, (2, 400))
    own += floor

    def table(method: str, values: Array) -> pd.DataFrame:
        return pd.DataFrame({"task": range(len(values)), "value": values}).assign(
            **(about | {"method": method})
        )

    found = summarise([table("dklfm", own), table(FLOOR, floor)])
    row = found[(found["metric"] == OVER_FLOOR) & (found["seed"] == "all")].iloc[0]
    chosen = rng.integers(400, size=(4000, 400))
    ratios = own[chosen].mean(1) / floor[chosen].mean(1)
    assert row["mean"] == pytest.approx(own.mean() / floor.mean())
    assert row["se"] == pytest.approx(ratios.std(), rel=0.1)


def test_splits_are_summarised_apart(tasks: Tasks) -> None:
    summary = summarise([scored(tasks, 0.1), scored(tasks, 0.3, split="test@2x")])
    rows = summary[(summary["metric"] == "latent_mse") & (summary["seed"] == "all")]
    means = rows.set_index("split")["mean"].to_dict()
    assert means == pytest.approx({"test": 0.01, "test@2x": 0.09})


def test_posterior_is_selected_by_task(tasks: Tasks) -> None:
    of, some = posterior(tasks), tasks.take([5, 2])
    np.testing.assert_array_equal(of.at(some)["force_mean"], of["force_mean"][[5, 2]])


def test_metrics_have_unique_names_and_a_meaning() -> None:
    assert len({m.name for m in METRICS}) == len(METRICS)
    assert all(m.meaning for m in METRICS)


def test_posterior_keeps_query_and_observed_points_apart(tasks: Tasks) -> None:
    of = posterior(tasks, error=0.0)
    xr.testing.assert_allclose(of.data["output_mean"].drop_vars("axis", errors="ignore"),
                               tasks.data["h"].drop_vars("axis", errors="ignore"))  # fmt: skip
    np.testing.assert_allclose(of["output_query_mean"], tasks["h_query"])
