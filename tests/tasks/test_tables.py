"""Tables of measurements as tasks, and the row and column of every fault."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from dklfm.errors import DataError
from dklfm.resources import resource_path
from dklfm.tasks import Tasks, load_embedded, read_table, tasks_from_table

DATASETS = ("p53-mmgmos", "p53-puma2007")
GOOD = """\
replicate,output,time,value,sd
1,u,0,1.0,0.1
1,u,2,2.0,0.1
1,u,5,3.0,0.1
1,v,0,4.0,0.2
1,v,3,5.0,0.2
2,v,1,6.0,0.3
2,v,4,7.0,0.3
"""


def table_of(text: str, folder: Path) -> Tasks:
    path = folder / "table.csv"
    path.write_text(text)
    return tasks_from_table(read_table(path))


def test_each_replicate_is_a_test_task_on_the_union_of_its_times(tmp_path: Path) -> None:
    tasks = table_of(GOOD, tmp_path)
    assert tasks.data["task"].values.tolist() == ["1", "2"]
    np.testing.assert_array_equal(tasks["x"][0, :, 0], [0, 2, 3, 5])
    np.testing.assert_array_equal(tasks["x"][1, :, 0], [1, 4, np.nan, np.nan])
    assert len(tasks.split("test")) == 2


def test_unmeasured_values_are_missing(tmp_path: Path) -> None:
    tasks, nan = table_of(GOOD, tmp_path), np.nan
    np.testing.assert_array_equal(tasks["y"][0], [[1, 2, nan, 3], [4, nan, 5, nan]])
    np.testing.assert_array_equal(tasks["y"][1], [[nan] * 4, [6, 7, nan, nan]])
    np.testing.assert_array_equal(tasks["y_sd"][0], [[0.1, 0.1, nan, 0.1], [0.2, nan, 0.2, nan]])


def test_force_is_asked_for_over_the_span_of_each_replicate(tmp_path: Path) -> None:
    query = table_of(GOOD, tmp_path)["x_query"][..., 0]
    np.testing.assert_allclose(query[:, [0, -1]], [[0, 5], [1, 4]])
    np.testing.assert_allclose(np.diff(query), np.diff(query)[:, :1].repeat(120, 1), atol=1e-12)


def test_table_without_replicates_and_deviations_is_one_task(tmp_path: Path) -> None:
    tasks = table_of("output,time,value\nu,0,1\nu,1,2\n", tmp_path)
    assert len(tasks) == 1
    assert "y_sd" not in tasks


def test_empty_value_is_a_missing_observation(tmp_path: Path) -> None:
    tasks = table_of("output,time,value\nu,0,1\nu,1,\nu,2,NA\n", tmp_path)
    np.testing.assert_array_equal(tasks["y"][0, 0], [1, np.nan, np.nan])


@pytest.mark.parametrize(
    ("line", "by", "says"),
    [
        ("1,u,2,2.0,0.1", "1,u,0,2.0,0.1", "rows 2 and 3: output 'u' at time 0 has two values"),
        ("2,v,4,7.0,0.3", "2,v,1,7.0,0.3", "rows 7 and 8: output 'v' at time 1 has two values"),
        ("1,u,2,2.0,0.1", "1,u,2,2.0,-0.1", "row 3: a standard deviation is negative"),
        ("1,u,2,2.0,0.1", "1,u,2,2.0,", "row 3: a value has no standard deviation"),
        ("1,u,2,2.0,0.1", "1,,2,2.0,0.1", "row 3, column 'output' is empty"),
        ("1,u,2,2.0,0.1", "1,u,2,high,0.1", "row 3, column 'value': 'high' is not a number"),
        ("1,v,0,4.0,0.2", "1,v,noon,4.0,0.2", "row 5, column 'time': 'noon' is not a number"),
        ("1,v,0,4.0,0.2", "1,v,,4.0,0.2", "row 5, column 'time': '' is not a number"),
        ("1,v,3,5.0,0.2", "1,v,3,inf,0.2", "row 6, column 'value': 'inf' is not a number"),
        ("2,v,1,6.0,0.3", "2,v,1,6.0,x", "row 7, column 'sd': 'x' is not a number"),
    ],
)
def test_fault_is_named_with_its_row(tmp_path: Path, line: str, by: str, says: str) -> None:
    assert GOOD.count(line) == 1
    with pytest.raises(DataError, match=rf"table\.csv, {says}"):
        table_of(GOOD.replace(line, by), tmp_path)


def test_rows_are_counted_as_in_the_file_even_below_a_blank_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="row 5, column 'value'"):
        table_of("output,time,value\nu,0,1\n\nu,1,2\nu,2,three\n", tmp_path)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("output,value\nu,1\n", "lacks the column 'time'"),
        ("output,time,value\n", "has no rows"),
        ("", "is empty"),
        ("output,time,value\nu,0,1,2,3\nu,0\n", "is not a table: below the header in row 1"),
    ],
)
def test_file_that_is_no_such_table_is_refused(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(DataError, match=says) as caught:
        table_of(text, tmp_path)
    assert "table.csv" in str(caught.value)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.csv does not exist"):
        read_table(tmp_path / "absent.csv")


@pytest.mark.parametrize("dataset", DATASETS)
class TestEmbedded:
    def test_three_replicates_of_five_genes_at_seven_times(self, dataset: str) -> None:
        tasks = load_embedded(dataset)
        assert tasks["y"].shape == (3, 5, 7)
        assert tasks.outputs == ("DDB2", "BIK", "TNFRSF10B", "CDKN1A", "SESN1")
        np.testing.assert_array_equal(tasks["x"][..., 0], [[0, 2, 4, 6, 8, 10, 12]] * 3)

    def test_every_value_has_a_positive_deviation(self, dataset: str) -> None:
        tasks = load_embedded(dataset)
        assert np.isfinite(tasks["y"]).all()
        assert (tasks["y_sd"] > 0).all()

    def test_both_references_are_known_at_every_time(self, dataset: str) -> None:
        tasks = load_embedded(dataset)
        for name in ("reference_western_blot", "reference_barenco"):
            assert tasks[name].shape == (3, 7)
            assert np.isfinite(tasks[name]).all()

    def test_values_are_those_of_the_file(self, dataset: str) -> None:
        file = resource_path(f"p53/expression_{dataset.removeprefix('p53-')}.csv")
        tasks = load_embedded(dataset)
        for row in pd.read_csv(file, dtype={"replicate": str}).itertuples():
            place = {"task": row.replicate, "output": row.output}
            j = [0, 2, 4, 6, 8, 10, 12].index(int(row.time))
            assert tasks.data["y"].sel(place).values[j] == row.value
            assert tasks.data["y_sd"].sel(place).values[j] == row.sd


def test_processings_differ() -> None:
    first, second = (load_embedded(dataset)["y"] for dataset in DATASETS)
    assert not np.allclose(first, second)


def test_one_western_blot_stands_beside_every_replicate() -> None:
    blot = load_embedded("p53-mmgmos")["reference_western_blot"]
    np.testing.assert_array_equal(blot, blot[:1].repeat(3, 0))
