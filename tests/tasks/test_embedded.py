"""Embedded measurements: shapes, scales and references."""

from __future__ import annotations

import numpy as np

from dklfm.tasks import load_embedded


def test_hares_are_in_units_of_their_mean_and_lynx_are_the_reference() -> None:
    tasks = load_embedded("hare-lynx")
    assert tasks["y"].shape == (1, 1, 21)
    assert abs(tasks["y"].mean() - 1) < 1e-12
    np.testing.assert_array_equal(tasks["x"][0, :, 0], np.arange(21.0))
    assert tasks["reference_lynx"].max() == 59.4


def test_kni_lies_in_the_unit_square_after_its_start_from_nothing() -> None:
    tasks = load_embedded("kni")
    x = tasks["x"][0]
    assert x.shape == (8 * 57, 2)
    assert x[:, 0].min() == 0
    assert x.max() == 1
    assert abs(x[:, 1].min() - 2 / 9) < 1e-9
    np.testing.assert_array_equal(tasks["x"], tasks["x_query"])
    assert np.isfinite(tasks["reference_mrna"]).all()


def test_peak_of_kni_is_where_it_was_measured() -> None:
    tasks = load_embedded("kni")
    peak = tasks["x"][0, tasks["reference_mrna"][0].argmax()]
    np.testing.assert_allclose(peak, [(64.5 - 32.5) / 56, 4 / 9], rtol=1e-9)
