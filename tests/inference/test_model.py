"""Inference of measured time courses: units, noise, samples, anchors, and what is refused."""

from __future__ import annotations

from copy import copy
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import dklfm
from dklfm.errors import DataError, ModelError
from dklfm.inference import Model
from dklfm.inference.model import anchors_of
from dklfm.inference.noise import estimated_noise
from dklfm.resources import resource_path
from dklfm.tasks import Tasks, load_tasks, read_table, tasks_from_table


@pytest.fixture(scope="module")
def p53() -> Tasks:
    return tasks_from_table(read_table(resource_path("p53/expression_mmgmos.csv")))


def with_tails(model: Model, df: float | None) -> Model:
    """The model as if calibration had found these tails."""
    other = copy(model)
    other.trained = copy(model.trained)
    other.trained.force_df = df
    return other


def rescaled(tasks: Tasks, time: float, value: float, origin: float = 0.0) -> Tasks:
    data = tasks.data
    changed = {name: time * data[name] + origin for name in ("x", "x_query")}
    return Tasks(data.assign(changed | {name: value * data[name] for name in ("y", "y_sd")}))


def test_the_force_does_not_depend_on_the_units_of_the_table(model: Model, p53: Tasks) -> None:
    plain = model.infer(p53)
    other = model.infer(rescaled(p53, time=60.0, value=1e6, origin=-30.0))
    for name in ("mean", "sd"):
        np.testing.assert_allclose(other.force[name], plain.force[name], atol=1e-3)
        np.testing.assert_allclose(
            other.outputs[name], 1e6 * plain.outputs[name], rtol=1e-3, atol=1e3
        )
    np.testing.assert_allclose(other.force["time"], 60 * plain.force["time"] - 30, atol=1e-9)


def test_without_rescaling_a_table_must_lie_in_the_domain(model: Model, p53: Tasks) -> None:
    assert model.infer(p53, rescale=False).force["mean"].shape == (3, 51)
    with pytest.raises(DataError, match="must lie in"):
        model.infer(rescaled(p53, time=2.0, value=1.0), rescale=False)


def test_any_number_of_genes_is_taken_in_any_order(model: Model, p53: Tasks) -> None:
    one = Tasks(p53.data.isel(output=[2]))
    assert np.isfinite(model.infer(one).force["sd"]).all()
    turned = model.infer(Tasks(p53.data.isel(output=[4, 2, 0, 1, 3])))
    np.testing.assert_allclose(turned.force["mean"], model.infer(p53).force["mean"], atol=1e-4)


@pytest.mark.parametrize(("df", "half"), [(None, 1.959964), (6.0, 2.446912 * np.sqrt(4 / 6))])
def test_bands_are_those_of_the_calibrated_law(
    model: Model, p53: Tasks, df: float | None, half: float
) -> None:
    force = with_tails(model, df).infer(p53).force
    np.testing.assert_allclose(force["upper95"] - force["mean"], half * force["sd"], rtol=1e-6)
    np.testing.assert_allclose(force["mean"] - force["lower95"], half * force["sd"], rtol=1e-6)


@pytest.mark.parametrize("df", [None, 6.0])
def test_samples_have_the_posterior_s_moments(model: Model, p53: Tasks, df: float | None) -> None:
    found = with_tails(model, df).infer(p53, at=9)
    draws = found.sample(4000)
    assert draws.dims == ("sample", "task", "query")
    inside = (draws > found.force["lower95"]) & (draws < found.force["upper95"])
    np.testing.assert_allclose(inside.mean("sample"), 0.95, atol=0.015)
    sd = found.force["sd"].values
    np.testing.assert_allclose(draws.mean("sample"), found.force["mean"], atol=0.1 * sd.max())
    np.testing.assert_allclose(draws.std("sample"), sd, rtol=0.1)
    with pytest.raises(DataError, match="joint"):
        model.infer(p53, joint=False).sample(1)


def test_it_is_inferred_where_asked(model: Model, p53: Tasks) -> None:
    np.testing.assert_array_equal(model.infer(p53, at=[1.0, 5.5]).force["time"][2], [1.0, 5.5])
    np.testing.assert_allclose(model.infer(p53, at=3).force["time"][0], [0, 6, 12])
    with pytest.raises(DataError, match="between the first and the last observation"):
        model.infer(p53, at=[13.0])
    with pytest.raises(DataError, match="must be positive"):
        model.infer(p53, at=0)


@pytest.mark.parametrize("share", [0.03, 0.2])
def test_unstated_noise_is_estimated(streamed_store: Path, share: float) -> None:
    tasks = load_tasks(streamed_store)
    h = tasks["h"]
    noise = share * h.std(-1, keepdims=True)
    y = h + noise * np.random.default_rng(0).standard_normal(h.shape)
    found = estimated_noise(Tasks(tasks.data.assign(y=(("task", "output", "point"), y))))
    ratio = np.median(found / noise)
    assert 0.5 < ratio < 2


def test_a_table_without_noise_says_that_it_was_estimated(model: Model, p53: Tasks) -> None:
    found = model.infer(Tasks(p53.data.drop_vars("y_sd")))
    assert "no noise" in found.notes[0]
    assert np.isfinite(found.force["mean"]).all()


def test_an_anchor_fixes_a_parameter_in_the_table_s_units(model: Model, p53: Tasks) -> None:
    few = p53.take([0])
    low, high = (
        model.infer(few, refine=True, anchors={"CDKN1A": {"sensitivity": s}}).force["mean"]
        for s in (0.5, 2.0)
    )
    # A smaller sensitivity needs a larger force behind the same outputs.
    assert float(low.max()) > float(high.max())


@pytest.mark.parametrize(
    ("anchors", "says"),
    [
        ({"MDM2": {"sensitivity": 1.0}}, "no output 'MDM2'"),
        ({"BIK": {"lengthscale": 1.0}}, "has no 'lengthscale'"),
        ({"BIK": {"decay": -1.0}}, "decay must be positive"),
    ],
)
def test_an_anchor_that_names_nothing_is_refused(
    model: Model, p53: Tasks, anchors: dict[str, dict[str, float]], says: str
) -> None:
    with pytest.raises(DataError, match=says):
        model.infer(p53, refine=True, anchors=anchors)
    with pytest.raises(DataError, match="they need refine"):
        model.infer(p53, anchors=anchors)


def test_anchors_are_read_from_options() -> None:
    assert anchors_of(["A:s=1,d=0.8", "B:basal=2"]) == {
        "A": {"sensitivity": 1.0, "decay": 0.8},
        "B": {"basal": 2.0},
    }
    for wrong in ("A", "A:s", "A:s=x", ":s=1"):
        with pytest.raises(DataError, match="is not like"):
            anchors_of([wrong])


def test_noise_alone_is_unlike_the_training_and_its_tasks_are_not(
    model: Model, streamed_store: Path
) -> None:
    stored = load_tasks(streamed_store)
    each = np.arange(len(stored)).astype(str).astype(object)
    own = Tasks(stored.data.assign(experiment=("task", each)))
    plain = model.infer(own, at=3, rescale=False)
    assert plain.strange.mean() < 0.3
    rng = np.random.default_rng(0)
    wild = own.data.assign(y=own.data["y"] + rng.standard_normal(own["y"].shape))
    assert model.infer(Tasks(wild), at=3, rescale=False).strange.mean() > 0.9


def test_tables_in_memory_go_the_same_way(model: Model, p53: Tasks) -> None:
    frame = pd.read_csv(resource_path("p53/expression_mmgmos.csv"))
    found = model.infer(dklfm.Tasks.from_dataframe(frame))
    np.testing.assert_allclose(found.force["mean"], model.infer(p53).force["mean"])
    rows = found.to_dataframe()
    assert list(rows.columns) == [
        "task", "replicate", "quantity", "time", "mean", "sd", "lower95", "upper95"
    ]  # fmt: skip
    assert len(rows) == 3 * 6 * 51
    chosen = rows[(rows["replicate"] == "2") & (rows["quantity"] == "BIK")]
    np.testing.assert_allclose(chosen["mean"], found.outputs["mean"].values[1, 1], rtol=1e-5)


@pytest.mark.parametrize(
    ("values", "says"),
    [([0.0, 0.0, 0.0], "every value is 0"), ([1.0, np.nan, np.nan], "at one time")],
)
def test_what_tells_nothing_is_refused(model: Model, values: list[float], says: str) -> None:
    times = [0.0, 1.0, 2.0] if np.isfinite(values).all() else [1.0, 1.0, 1.0]
    frame = pd.DataFrame({"time": times, "A": values})
    with pytest.raises(DataError, match=says):
        model.infer(dklfm.Tasks.from_dataframe(frame.dropna()))


def test_a_model_that_does_not_exist_is_named() -> None:
    with pytest.raises(ModelError, match="no model 'absent'"):
        dklfm.load("absent")
