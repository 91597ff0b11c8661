"""Tidy tables of measured time courses, as Tasks."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr

from dklfm.errors import DataError
from dklfm.tasks.schema import SPLITS, Tasks

_PARSER_FAULTS = (pd.errors.ParserError, pd.errors.ParserWarning, pd.errors.EmptyDataError)
QUERY_POINTS = 121
"""Nodes of the even grid on which the force of a measured time course is inferred."""


def read_table(path: Path) -> pd.DataFrame:
    """Read a tidy CSV with columns time, output, value and optionally sd and replicate.

    Raises:
        DataError: naming the row and column that cannot be used.
    """
    try:
        with warnings.catch_warnings(action="error", category=pd.errors.ParserWarning):
            table = pd.read_csv(
                path, dtype=str, keep_default_na=False, skip_blank_lines=False, index_col=False
            )
    except FileNotFoundError:
        raise DataError(f"{path} does not exist") from None
    except (OSError, UnicodeDecodeError, *_PARSER_FAULTS) as error:
        raise DataError(f"{path} is not a CSV table: {str(error).splitlines()[0]}") from None
    table = table[(table != "").any(axis=1)]  # blank rows count in a row's number, no more
    missing = [name for name in ("time", "output", "value") if name not in table]
    if missing:
        raise DataError(
            f"{path} lacks the column {missing[0]!r}; it needs time, output, value and may have "
            "sd and replicate"
        )
    if "replicate" not in table:
        table["replicate"] = "1"
    for column in ("time", "value", *(["sd"] if "sd" in table else [])):
        table[column] = _numbers(table[column], path)
    if table.empty:
        raise DataError(f"{path} has no rows")
    return table


def _numbers(column: pd.Series, path: Path) -> pd.Series:
    numbers = pd.to_numeric(column.str.strip().replace("", "nan"), errors="coerce")
    wrong = numbers.isna() & ~column.str.strip().str.lower().isin(["", "nan", "na"])
    wrong |= np.isinf(numbers)
    if column.name == "time":
        wrong |= numbers.isna()
    if wrong.any():
        row = int(wrong.index[wrong][0])
        raise DataError(
            f"{path}, row {row + 2}, column {column.name!r}: {column[row]!r} is not a number"
        )
    return numbers


def tasks_from_table(table: pd.DataFrame, source: str) -> Tasks:
    """One task per replicate, on the union of its outputs' times.

    Args:
        table: as :func:`read_table` gives it.
        source: what to call the table in errors.

    Raises:
        DataError: if times repeat or decrease within an output of a replicate.
    """
    outputs = list(dict.fromkeys(table["output"]))
    frames = []
    for (replicate, output), group in table.groupby(["replicate", "output"], sort=False):
        steps = np.diff(group["time"])
        if (steps <= 0).any():
            row = int(group.index[int(np.argmax(steps <= 0)) + 1]) + 2
            fault = "repeats a time" if (steps == 0).any() else "goes back in time"
            raise DataError(
                f"{source}, row {row}: output {output!r} of replicate {replicate!r} {fault}; "
                "each output needs increasing times"
            )
    for _, group in table.groupby("replicate", sort=False):
        values = group.pivot(index="time", columns="output", values="value")
        frames.append(values.reindex(columns=outputs).sort_index())
    longest = max(map(len, frames))

    def padded(frame: pd.DataFrame) -> np.ndarray:
        block = np.full((len(outputs), longest), np.nan)
        block[:, : len(frame)] = frame.to_numpy().T
        return block

    x = np.full((len(frames), longest, 1), np.nan)
    for i, frame in enumerate(frames):
        x[i, : len(frame), 0] = frame.index
    span = [np.linspace(frame.index[0], frame.index[-1], QUERY_POINTS) for frame in frames]
    data = {
        "x": (("task", "point", "axis"), x),
        "y": (("task", "output", "point"), np.stack([padded(frame) for frame in frames])),
        "x_query": (("task", "query", "axis"), np.stack(span)[..., None]),
        "split": (("task",), np.full(len(frames), SPLITS.index("test"), dtype=np.int8)),
    }
    if "sd" in table:
        sd = [
            group.pivot(index="time", columns="output", values="sd")
            .reindex(columns=outputs)
            .sort_index()
            for _, group in table.groupby("replicate", sort=False)
        ]
        data["y_sd"] = (("task", "output", "point"), np.stack([padded(frame) for frame in sd]))
    coords = {"output": outputs, "task": [str(r) for r in dict.fromkeys(table["replicate"])]}
    return Tasks(xr.Dataset(data, coords=coords)).checked()
