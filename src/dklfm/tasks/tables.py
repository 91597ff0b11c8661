"""Tables of measured time courses, as Tasks."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from dklfm.errors import DataError
from dklfm.tasks.reading import RawTable, of_frame, read_cells
from dklfm.tasks.schema import SPLITS, Tasks

QUERY_POINTS = 121
"""Nodes of the even grid on which the force of a measured time course is inferred."""
MOST_OUTPUTS = 200
TIME, SPACE_TIME = ("time",), ("position", "time")
"""The inputs of a table: of ordinary equations, and of fields."""
_SYNONYMS = {
    "time": ("time", "t", "times", "hour", "hours", "h", "min", "minutes", "day", "days"),
    "position": ("position", "x", "place", "location"),
    "output": ("output", "gene", "protein", "species", "name", "target", "probe", "variable"),
    "value": ("value", "values", "y", "expression", "measurement", "level", "intensity", "signal"),
    "sd": ("sd", "std", "stdev", "sigma", "standard deviation"),
    "replicate": ("replicate", "rep", "replica"),
    "task": ("task", "experiment", "condition", "sample"),
}


@dataclass(frozen=True)
class Table:
    """Observations, one a row, and what was understood on the way to them.

    Attributes:
        rows: columns task, replicate, output, the inputs, value, and sd (NaN where unknown);
            sorted by time. A missing value is NaN.
        inputs: the names of the inputs.
        source: what to call the table in errors.
        notes: one sentence each.
    """

    rows: pd.DataFrame
    inputs: tuple[str, ...]
    source: str
    notes: tuple[str, ...] = ()


def read_table(path: Path, inputs: tuple[str, ...] = TIME) -> Table:
    """Read a CSV or Parquet table, tidy or wide; ``-`` is standard input.

    Tidy: a row an observation, columns time, output, value and optionally position, sd, replicate
    and task. Wide: a row a time, a column an output, and optionally columns like ``NAME sd``.

    Raises:
        DataError: naming the row and column that cannot be used.
    """
    return _understood(read_cells(path), inputs)


def table_from_dataframe(frame: pd.DataFrame, inputs: tuple[str, ...] = TIME) -> Table:
    """The same from a table in memory, whose rows errors count from 1."""
    return _understood(of_frame(frame, "the data frame"), inputs)


def _understood(raw: RawTable, inputs: tuple[str, ...]) -> Table:
    columns, notes = _columns(raw, inputs)
    if raw.cells.empty:
        raise DataError(f"{raw.source} has no rows below its header")
    missing = [name for name in inputs if name not in columns]
    if missing:
        raise DataError(
            f"{raw.source} lacks the column {missing[0]!r}; it needs {', '.join(inputs)}, output, "
            f"value (or a column an output), and has {', '.join(map(repr, raw.cells.columns))}"
        )
    rows = pd.DataFrame(index=raw.cells.index)
    for name in ("task", "replicate"):
        rows[name] = raw.labels(columns[name]) if name in columns else "1"
    for name in inputs:
        rows[name] = raw.numbers(columns[name], missing=False)
    if ("output" in columns) != ("value" in columns):
        lacking = "value" if "output" in columns else "output"
        raise DataError(
            f"{raw.source} lacks the column {lacking!r}: tidy tables need output and value, and "
            f"there are {', '.join(map(repr, raw.cells.columns))}"
        )
    if "output" in columns:
        rows["output"] = raw.labels(columns["output"])
        rows["value"] = raw.numbers(columns["value"])
        rows["sd"] = raw.numbers(columns["sd"]) if "sd" in columns else np.nan
    else:
        rows = _melted(raw, rows, set(columns.values()))
    valued = rows["value"].notna()
    if not valued.any():
        raise DataError(f"{raw.source} has no values")
    unknown = valued & rows["sd"].isna()
    if int(unknown.sum()) == int(valued.sum()):
        unknown[:] = False  # a table without deviations
    for wrong, fault in (
        (rows["sd"] < 0, "a standard deviation is negative"),
        (unknown, "a value has no standard deviation, though others have"),
    ):
        if wrong.any():
            row = rows.index[int(wrong.to_numpy().argmax())]
            raise DataError(f"{raw.source}, row {row}: {fault}")
    rows, repeated = _distinct(rows, inputs, raw.source)
    notes = (*notes, *repeated)
    rows["row"] = rows.index
    rows = rows.sort_values(list(reversed(inputs)), kind="stable", ignore_index=True)
    return Table(rows, inputs, raw.source, notes)


def _columns(raw: RawTable, inputs: Sequence[str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """Which column holds what, by canonical names; units in brackets do not matter."""
    known = [*inputs, *(name for name in _SYNONYMS if name not in SPACE_TIME)]
    headers = [str(name) for name in raw.cells.columns]
    bare = {name: re.split(r"[(\[]", name.lower())[0].strip(" _") for name in headers}
    found: dict[str, str] = {}
    notes = []
    for canonical in known:
        alike = [name for synonym in _SYNONYMS[canonical] for name in bare if bare[name] == synonym]
        if len(alike) > 1 and (canonical in inputs or bare[alike[0]] == bare[alike[1]]):
            raise DataError(
                f"{raw.source}: columns {alike[0]!r} and {alike[1]!r} could each be the {canonical}"
            )
        if alike:
            found[canonical] = alike[0]
            if bare[alike[0]] != canonical:
                notes.append(f"column {alike[0]!r} was read as {canonical}")
    if ("output" in found) != ("value" in found):
        # A wide table may have an output called "protein", "signal" and so on.
        odd = found["output"] if "output" in found else found["value"]
        canonical = "output" if "output" in found else "value"
        if bare[odd] != canonical:
            del found[canonical]
            found.pop("sd", None)
            notes = [note for note in notes if not note.startswith(f"column {odd!r}")]
    unused = [name for name in bare if name not in found.values()]
    if "output" in found and unused:
        notes.append(f"not used: columns {', '.join(map(repr, unused))}")
    return found, tuple(notes)


def _melted(raw: RawTable, rows: pd.DataFrame, used: set[str]) -> pd.DataFrame:
    """A row an observation, from a column an output."""
    columns = [str(name) for name in raw.cells if name not in used]
    deviations: dict[str, str] = {}
    for name in columns:
        for ending in (" sd", "_sd", ".sd", " std", "_std"):
            stem = name[: -len(ending)]
            if name.lower().endswith(ending) and stem in columns:
                deviations[stem] = name
    outputs = [name for name in columns if name not in deviations.values()]
    if not outputs:
        raise DataError(f"{raw.source} has no column of values beside its times")
    parts = []
    for name in outputs:
        sd = raw.numbers(deviations[name]) if name in deviations else np.nan
        parts.append(rows.assign(output=name, value=raw.numbers(name), sd=sd))
    return pd.concat(parts)


def _distinct(
    rows: pd.DataFrame, inputs: Sequence[str], source: str
) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Without rows that say the same again."""
    place = ["task", "replicate", "output", *inputs]
    missing = rows["value"].isna()
    places = pd.MultiIndex.from_frame(rows[place])
    told = places.isin(places[~missing.to_numpy()]) | rows.duplicated(place).to_numpy()
    rows = rows[~(missing & told)]
    again = rows.duplicated(place)
    if not again.any():
        return rows, ()
    alike = rows.duplicated([*place, "value", "sd"])
    other = again & ~alike
    if other.any():
        second = int(other.to_numpy().argmax())
        row = rows.iloc[second]
        same = (rows[place] == row[place]).all(axis=1).to_numpy()
        before = int(same.argmax())
        raise DataError(
            f"{source}, rows {rows.index[before]} and {rows.index[second]}: output "
            f"{row['output']!r} at {', '.join(f'{name} {row[name]:g}' for name in inputs)} has two "
            "values; tell repeated measurements apart in a column 'replicate'"
        )
    return rows[~again], (f"{int(alike.sum())} repeated rows were counted once",)


def tasks_from_table(table: Table) -> Tasks:
    """One task per task and replicate of the table, on the union of its outputs' inputs.

    Raises:
        DataError: if there are too few observations to infer anything from.
    """
    rows, inputs = table.rows, list(table.inputs)
    outputs = list(dict.fromkeys(rows.sort_values("row", kind="stable")["output"]))
    if len(outputs) > MOST_OUTPUTS:
        raise DataError(
            f"{table.source} has {len(outputs)} outputs, more than {MOST_OUTPUTS}; give the time "
            "courses that one force drives"
        )
    output = pd.Index(outputs).get_indexer(rows["output"])
    named = pd.MultiIndex.from_frame(rows[["task", "replicate"]])
    distinct = pd.MultiIndex.from_frame(
        rows.sort_values("row", kind="stable")[["task", "replicate"]].drop_duplicates()
    )
    task = distinct.get_indexer(named)
    places = pd.DataFrame({"task": task}).join(rows[inputs])
    unique = places.drop_duplicates().sort_values(["task", *reversed(inputs)], ignore_index=True)
    counts = unique.groupby("task").size().to_numpy()
    column = np.arange(len(unique)) - np.repeat(np.cumsum(counts) - counts, counts)
    where = pd.MultiIndex.from_frame(unique).get_indexer(pd.MultiIndex.from_frame(places))

    x = np.full((len(distinct), counts.max(), len(inputs)), np.nan)
    x[unique["task"], column] = unique[inputs].to_numpy()
    y = np.full((len(distinct), len(outputs), counts.max()), np.nan)
    sd = y.copy()
    y[task, output, column[where]] = rows["value"]
    sd[task, output, column[where]] = rows["sd"]
    data = {
        "x": (("task", "point", "axis"), x),
        "y": (("task", "output", "point"), y),
        "x_query": (("task", "query", "axis"), _grid(x)),
        "split": (("task",), np.full(len(x), SPLITS.index("test"), dtype=np.int8)),
        "replicate": (("task",), distinct.get_level_values("replicate").to_numpy(dtype=object)),
        "experiment": (("task",), distinct.get_level_values("task").to_numpy(dtype=object)),
    }
    if rows["sd"].notna().any():
        data["y_sd"] = (("task", "output", "point"), sd)
    coords = {"output": outputs, "task": _labels(distinct)}
    return Tasks(xr.Dataset(data, coords=coords)).checked()


def _labels(distinct: pd.MultiIndex) -> list[str]:
    """Short unique names: replicates alone of a single task, tasks alone of single replicates."""
    tasks, replicates = (list(distinct.get_level_values(name)) for name in ("task", "replicate"))
    if len(set(tasks)) == 1:
        return replicates
    if len(set(tasks)) == len(tasks):
        return tasks
    return [f"{task}/{replicate}" for task, replicate in zip(tasks, replicates, strict=True)]


def _grid(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Even query points over the span of each task's times; its own points for fields."""
    if x.shape[-1] > 1:
        return x.copy()
    share = np.linspace(0, 1, QUERY_POINTS)[:, None]
    low, high = np.nanmin(x, axis=1, keepdims=True), np.nanmax(x, axis=1, keepdims=True)
    return low + (high - low) * share
