"""Files that no one meant: each is a table, or one line on why it is not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dklfm.errors import DataError
from dklfm.tasks import read_table, tasks_from_table

ODD = [
    "", "0", "1", "2.5", "1,5", "NA", "-", "inf", "1e400", "time", "output", "value", "sd", "A",
    "#N/A", "nan", "1e-320", "0x1", "١", "\x00", "\r", '"', "'", "true", "None", "1_000", "∞", "−1",
    "+1", " 3 ",
]  # fmt: skip
CELLS = st.one_of(
    st.sampled_from(ODD), st.text(max_size=4), st.floats(width=32).map(str), st.integers().map(str)
)
ROWS = st.lists(CELLS, max_size=6)
HEADERS = st.one_of(
    st.just(["time", "output", "value"]),
    st.just(["time", "A", "B"]),
    st.just(["time", "output", "value", "sd", "replicate"]),
    ROWS,
)


@st.composite
def tables(draw: st.DrawFn) -> bytes:
    delimiter = draw(st.sampled_from([",", ";", "\t", "|"]))
    rows = [draw(HEADERS), *draw(st.lists(ROWS, max_size=6))]
    end = draw(st.sampled_from(["\n", "\r\n"]))
    return end.join(delimiter.join(row) for row in rows).encode("utf-8", "surrogatepass")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "table.csv"


@settings(max_examples=800, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(content=st.one_of(tables(), st.binary(max_size=200)))
def test_a_file_is_a_table_or_one_line_of_error(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    said, observed = "", False
    try:
        observed = bool(np.isfinite(tasks_from_table(read_table(path))["y"]).any())
    except DataError as error:
        said = str(error)
    assert observed or (str(path) in said and "\n" not in said)
