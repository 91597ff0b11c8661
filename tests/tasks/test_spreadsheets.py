"""Tables as spreadsheets leave them: each is read right, or refused by row and column."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest

from dklfm.errors import DataError
from dklfm.tasks import Tasks, read_table, tasks_from_table
from dklfm.tasks.tables import SPACE_TIME

NAN = float("nan")


class Good(NamedTuple):
    """A table, and the times and values of its first task."""

    habit: str
    text: str
    times: list[float]
    values: list[list[float]]
    note: str = ""


class Bad(NamedTuple):
    """A table, and what the message says."""

    habit: str
    text: str
    says: str


PLAIN = "time,output,value\n0,A,1\n2,A,3\n4,A,2\n"
T, Y = [0.0, 2.0, 4.0], [[1.0, 3.0, 2.0]]

GOOD = [
    Good("plain", PLAIN, T, Y),
    Good("one gene, wide", "time,A\n0,1\n2,3\n4,2\n", T, Y),
    Good("wide, several genes", "time,A,B\n0,1,4\n2,3,5\n4,2,6\n", T, [*Y, [4, 5, 6]]),
    Good(
        "wide, genes not in alphabetical order",
        "time,B,A\n0,4,1\n2,5,3\n4,6,2\n",
        T,
        [[4, 5, 6], *Y],
    ),
    Good("decimal commas", "time;output;value\n0;A;1,0\n2;A;3,0\n4;A;2,0\n", T, Y),
    Good(
        "decimal commas without a leading digit", "time;A\n0;,5\n2;3,5\n4;1\n", T, [[0.5, 3.5, 1]]
    ),
    Good("tabs", PLAIN.replace(",", "\t"), T, Y),
    Good("bars", PLAIN.replace(",", "|"), T, Y),
    Good("blank rows", "time,output,value\n\n0,A,1\n,,\n2,A,3\n\n4,A,2\n\n", T, Y),
    Good("blank rows above the header", "\n,,\n" + PLAIN, T, Y),
    Good("comments", "# strain 7\n" + PLAIN + "# end,,\n", T, Y),
    Good("unsorted times", "time,output,value\n4,A,2\n0,A,1\n2,A,3\n", T, Y),
    Good("repeated rows", PLAIN + "2,A,3\n", T, Y, "1 repeated rows were counted once"),
    Good("a byte order mark", "\ufeff" + PLAIN, T, Y),
    Good("Windows line ends", PLAIN.replace("\n", "\r\n"), T, Y),
    Good("quoted cells", '"time","output","value"\n"0","A","1"\n"2","A","3"\n"4","A","2"\n', T, Y),
    Good(
        "capitals and units in the header",
        "Time (h),Output,Value [AU]\n0,A,1\n2,A,3\n4,A,2\n",
        T,
        Y,
    ),
    Good(
        "other words in the header",
        "hours,gene,expression\n0,A,1\n2,A,3\n4,A,2\n",
        T,
        Y,
        "'gene' was read as output",
    ),
    Good("blanks around cells", "time , output , value\n 0 , A , 1\n2, A ,3\n4,A, 2 \n", T, Y),
    Good("empty cells", "time,A\n0,1\n2,\n4,2\n", T, [[1, NAN, 2]]),
    Good(
        "NA, nan, n/a",
        "time,A\n0,NA\n1,nan\n2,3\n3,n/a\n4,2\n",
        [0, 1, 2, 3, 4],
        [[NAN, NAN, 3, NAN, 2]],
    ),
    Good("#N/A of a formula", "time,A\n0,1\n2,#N/A\n4,2\n", T, [[1, NAN, 2]]),
    Good("dashes for missing values", "time,A\n0,1\n2,-\n4,2\n", T, [[1, NAN, 2]]),
    Good("trailing empty columns", "time,A,,\n0,1,,\n2,3,,\n4,2,,\n", T, Y),
    Good("negative values", "time,A\n0,-1\n2,3\n4,-2\n", T, [[-1, 3, -2]]),
    Good("values of a million", "time,A\n0,1e6\n2,3000000\n4,2.0E+06\n", T, [[1e6, 3e6, 2e6]]),
    Good("all zeros in one gene of two", "time,A,B\n0,1,0\n2,3,0\n4,2,0\n", T, [*Y, [0, 0, 0]]),
    Good("times below zero", "time,A\n-2,1\n0,3\n2,2\n", [-2, 0, 2], Y),
    Good(
        "unequal times a gene",
        "time,output,value\n0,A,1\n2,A,3\n1,B,5\n4,B,6\n",
        [0, 1, 2, 4],
        [[1, NAN, 3, NAN], [NAN, 5, NAN, 6]],
    ),
    Good("a gene called protein", "time,protein\n0,1\n2,3\n4,2\n", T, Y),
    Good("numbers for genes", "time,output,value\n0,7,1\n2,7,3\n4,7,2\n", T, Y),
    Good("a value that is missing in one of two rows", PLAIN + "2,A,\n", T, Y),
]

BAD = [
    Bad(
        "text in a number column",
        "time,A\n0,1\n2,high\n4,2\n",
        r"row 3, column 'A': 'high' is not a number",
    ),
    Bad(
        "a number with its unit",
        "time,A\n0,1\n2h,3\n4,2\n",
        r"row 3, column 'time': '2h' is not a number",
    ),
    Bad(
        "below the limit of detection",
        "time,A\n0,<0.1\n2,3\n4,2\n",
        r"row 2, column 'A': '<0.1' is not",
    ),
    Bad(
        "thousands between quotes",
        'time,A\n0,"1,000"\n2,3\n4,2\n',
        r"row 2, column 'A': '1,000' .* without separators",
    ),
    Bad(
        "points of thousands and decimal commas",
        "time;A\n0;1.000,5\n2;3\n",
        r"row 2, column 'A': '1.000,5' .* without separators",
    ),
    Bad(
        "decimal commas between commas",
        "time,output,value\n0,A,1,5\n2,A,3,5\n",
        r"below the header in row 1, .* separated by semicolons",
    ),
    Bad(
        "a clock for a time",
        "time,A\n09:30,1\n10:30,2\n",
        r"row 2, column 'time': '09:30' is not a number",
    ),
    Bad(
        "a date for a time",
        "time,A\n2021-03-01,1\n2021-03-02,2\n",
        r"row 2, column 'time': '2021-03-01' is not",
    ),
    Bad("an empty time", "time,A\n0,1\n,3\n4,2\n", r"row 3, column 'time': '' is not a number"),
    Bad("infinity", "time,A\n0,1\n2,inf\n4,2\n", r"row 3, column 'A': 'inf' is not a number"),
    Bad(
        "a division by zero",
        "time,A\n0,1\n2,#DIV/0!\n4,2\n",
        r"row 3, column 'A': '#DIV/0!' is not a number",
    ),
    Bad(
        "two values at a time",
        PLAIN + "2,A,5\n",
        r"rows 3 and 5: output 'A' at time 2 has two values; .* 'replicate'",
    ),
    Bad(
        "two values at a time, wide",
        "time,A\n0,1\n2,3\n2,4\n",
        r"rows 3 and 4: output 'A' at time 2 has two values",
    ),
    Bad("no header", "0,1\n2,3\n4,2\n", r"lacks the column 'time'; .* has '0', '1'"),
    Bad("no times", "output,value\nA,1\nA,2\n", r"lacks the column 'time'"),
    Bad("no values", "time,output\n0,A\n2,A\n", r"lacks the column 'value'"),
    Bad("times alone", "time,\n0,\n2,\n", r"no column of values beside its times"),
    Bad("nothing", "", r"is empty"),
    Bad("only blanks", "\n , ,\n\n", r"is empty"),
    Bad("only a header", "time,A\n", r"no rows below its header"),
    Bad("only missing values", "time,A\n0,\n2,NA\n", r"has no values"),
    Bad("one column", "time\n0\n2\n", r"'time' is no header of several columns"),
    Bad(
        "a sentence above the header",
        "Data of the experiment\ntime,A\n0,1\n",
        r"row 1: 'Data of the experiment' is no header",
    ),
    Bad("two columns of one name", "time,A,A\n0,1,2\n2,3,4\n", r"row 1: two columns are named 'A'"),
    Bad(
        "two columns of times",
        "time,t,A\n0,0,1\n",
        r"columns 'time' and 't' could each be the time",
    ),
    Bad(
        "values without a header",
        "time,A,\n0,1,7\n2,3,8\n",
        r"column 3 holds values but has no name",
    ),
    Bad(
        "a negative deviation",
        "time,output,value,sd\n0,A,1,-0.1\n2,A,3,0.1\n",
        r"row 2: a standard deviation is negative",
    ),
    Bad(
        "a deviation forgotten",
        "time,output,value,sd\n0,A,1,0.1\n2,A,3,\n",
        r"row 3: a value has no standard deviation",
    ),
    Bad(
        "an output forgotten",
        "time,output,value\n0,A,1\n2,,3\n",
        r"row 3, column 'output' is empty",
    ),
]


def tasks_of(text: str, folder: Path) -> tuple[Tasks, tuple[str, ...]]:
    path = folder / "table.csv"
    path.write_bytes(text.encode())
    table = read_table(path)
    return tasks_from_table(table), table.notes


def test_there_are_enough_habits() -> None:
    habits = [case.habit for case in (*GOOD, *BAD)]
    assert len(set(habits)) == len(habits) >= 40


@pytest.mark.parametrize("case", GOOD, ids=lambda case: case.habit)
def test_it_is_read_right(case: Good, tmp_path: Path) -> None:
    tasks, notes = tasks_of(case.text, tmp_path)
    np.testing.assert_array_equal(tasks["x"][0, :, 0], case.times)
    np.testing.assert_array_equal(tasks["y"][0], case.values)
    assert case.note in " ".join(notes)


@pytest.mark.parametrize("case", BAD, ids=lambda case: case.habit)
def test_it_is_refused_by_row_and_column(case: Bad, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=case.says) as caught:
        tasks_of(case.text, tmp_path)
    assert "table.csv" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_deviations_of_a_wide_table_stand_in_columns_beside(tmp_path: Path) -> None:
    tasks, _ = tasks_of("time,A,A sd,B,B_sd\n0,1,.1,4,.4\n2,3,.3,5,.5\n", tmp_path)
    assert tasks.outputs == ("A", "B")
    np.testing.assert_array_equal(tasks["y_sd"][0], [[0.1, 0.3], [0.4, 0.5]])


def test_tasks_and_replicates_name_the_time_courses(tmp_path: Path) -> None:
    text = "time,task,rep,output,value\n0,wt,1,A,1\n2,wt,1,A,2\n0,wt,2,A,3\n2,ko,1,A,4\n"
    tasks, _ = tasks_of(text, tmp_path)
    assert tasks.data["task"].values.tolist() == ["wt/1", "wt/2", "ko/1"]
    assert tasks.data["experiment"].values.tolist() == ["wt", "wt", "ko"]
    assert tasks.data["replicate"].values.tolist() == ["1", "2", "1"]
    np.testing.assert_array_equal(tasks["y"][:, 0], [[1, 2], [3, NAN], [4, NAN]])


def test_text_of_other_encodings_is_read(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    text = "time;Bändchen\n0;1,5\n2;3\n"
    for encoding in ("cp1252", "utf-16", "utf-8"):
        path.write_bytes(text.encode(encoding))
        tasks = tasks_from_table(read_table(path))
        assert tasks.outputs == ("Bändchen",)
        np.testing.assert_array_equal(tasks["y"][0], [[1.5, 3]])


def test_what_is_no_text_is_refused(tmp_path: Path) -> None:
    for name, content in (("t.xlsx", b"PK"), ("t.csv", b"PK\x03\x04rest"), ("u.csv", b"a\0b,c")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=name):
            read_table(tmp_path / name)


def test_fields_have_positions_and_times(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("x,t,protein\n0.5,1,3\n0.0,1,2\n0.0,0,1\n")
    tasks = tasks_from_table(read_table(path, SPACE_TIME))
    np.testing.assert_array_equal(tasks["x"][0], [[0, 0], [0, 1], [0.5, 1]])
    np.testing.assert_array_equal(tasks["y"][0], [[1, 2, 3]])


def test_numbers_of_a_data_frame_are_taken_as_they_are() -> None:
    from dklfm.tasks import table_from_dataframe

    frame = pd.DataFrame(
        {"time": [0, 1, 2], "A": [1.5, np.nan, 2.5], "replicate": [1, 1, 1]}, dtype=float
    )
    tasks = tasks_from_table(table_from_dataframe(frame))
    np.testing.assert_array_equal(tasks["y"][0], [[1.5, np.nan, 2.5]])
    frame.loc[1, "time"] = np.inf
    with pytest.raises(DataError, match="row 2, column 'time'"):
        table_from_dataframe(frame)
