"""Files as people write them: delimiters, decimal commas, encodings, comments."""

from __future__ import annotations

import csv
import io
import sys
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dklfm.errors import DataError

_DELIMITERS = (",", ";", "\t", "|")
_ENCODINGS = ("utf-8-sig", "cp1252")
_FAULTS = (pd.errors.ParserError, pd.errors.ParserWarning, pd.errors.EmptyDataError)
_MISSING = frozenset(
    ("", "na", "n/a", "nan", "#n/a", "null", "none", "-", "–", ".", "?", "missing", "nd", "n.d.")
)


@dataclass(frozen=True)
class RawTable:
    """Cells as text, as they stand in the source.

    Attributes:
        cells: one row a record, blank records left out; the index is the row's number in the
            source.
        source: what to call it in errors.
        comma: whether a decimal comma is possible.
    """

    cells: pd.DataFrame
    source: str
    comma: bool = False

    def numbers(self, column: str, missing: bool = True) -> NDArray[np.float64]:
        """A column as numbers, NaN where a cell says that it holds none.

        Args:
            column: its name.
            missing: whether there may be such cells.

        Raises:
            DataError: naming the row and column of what is no number.
        """
        cells = self.cells[column]
        if cells.dtype.kind in "fiu":
            values = cells.to_numpy(dtype=float)
            wrong = np.isinf(values) | (np.isnan(values) & (not missing))
            text = cells.astype(str)
        else:
            text = cells.fillna("").astype(str).str.replace("\u00a0", " ").str.strip()
            values = pd.to_numeric(text, errors="coerce").to_numpy(dtype=float)
            if self.comma and np.isnan(values).any():
                pointed = text.where(
                    ~text.str.fullmatch(r"[-+]?\d*,\d+([eE][-+]?\d+)?"),
                    text.str.replace(",", ".", regex=False),
                )
                values = pd.to_numeric(pointed, errors="coerce").to_numpy(dtype=float)
            empty = text.str.lower().isin(_MISSING).to_numpy()
            wrong = (np.isnan(values) & ~(empty & missing)) | np.isinf(values)
        if wrong.any():
            first = int(np.argmax(wrong))
            row = self.cells.index[first]
            cell = text.iloc[first]
            hint = "; write it without separators of thousands" if "," in cell else ""
            raise DataError(
                f"{self.source}, row {row}, column {column!r}: {cell!r} is not a number{hint}"
            )
        return values

    def labels(self, column: str) -> pd.Series:
        """A column as names.

        Raises:
            DataError: naming the row of an empty one.
        """
        cells = self.cells[column]
        if cells.dtype.kind == "f" and (cells.dropna() % 1 == 0).all():
            cells = cells.astype("Int64")  # a replicate's number that missing cells made a float
        text = cells.astype("string").fillna("").str.strip()
        if (text == "").any():
            row = self.cells.index[int((text == "").to_numpy().argmax())]
            raise DataError(f"{self.source}, row {row}, column {column!r} is empty")
        return text


def read_cells(path: Path) -> RawTable:
    """Read a table of text or a Parquet file; ``-`` is standard input.

    Raises:
        DataError: if it is missing, or no such table.
    """
    if str(path) == "-":
        return _from_text(sys.stdin.buffer, "standard input")
    if path.suffix.lower() in (".xlsx", ".xls", ".ods"):
        raise DataError(f"{path} is a spreadsheet; export it as CSV, and give that")
    try:
        if path.suffix.lower() in (".parquet", ".pq"):
            return _numbered(pd.read_parquet(path), str(path), first=1)
        with path.open("rb") as handle:
            return _from_text(handle, str(path))
    except FileNotFoundError:
        raise DataError(f"{path} does not exist") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None
    except ImportError:
        raise DataError(
            f"{path}: reading Parquet needs pyarrow; install dklfm with the extra 'parquet'"
        ) from None
    except ValueError as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} cannot be read: {str(error).splitlines()[0]}") from None


def of_frame(frame: pd.DataFrame, source: str) -> RawTable:
    """A table that is in memory already; rows are counted from 1."""
    return _numbered(frame.copy(), source, first=1)


def _from_text(handle: BinaryIO, source: str) -> RawTable:
    raw = handle.read()
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
        text, encoding = raw.decode("utf-16", errors="replace"), "utf-16"
    elif raw[:4] == b"PK\x03\x04":
        raise DataError(f"{source} is a spreadsheet or an archive; export the table as CSV")
    elif b"\0" in raw:
        raise DataError(f"{source} is not a table of text")
    else:
        for encoding in _ENCODINGS:
            try:
                text = raw.decode(encoding)
                break
            except UnicodeDecodeError:
                continue
        else:
            raise DataError(f"{source} is not text in UTF-8; save it as CSV UTF-8")
    lines = text.splitlines()
    start = next((i for i, line in enumerate(lines) if _holds_something(line)), None)
    if start is None:
        raise DataError(f"{source} is empty")
    header = lines[start]
    delimiter = max(_DELIMITERS, key=header.count)
    if not header.count(delimiter):
        raise DataError(
            f"{source}, row {start + 1}: {header[:60]!r} is no header of several columns; separate "
            "them by commas, semicolons or tabs"
        )
    names = [name.strip() for name in next(csv.reader([header], delimiter=delimiter))]
    repeated = next((name for name in names if name and names.count(name) > 1), None)
    if repeated is not None:
        raise DataError(f"{source}, row {start + 1}: two columns are named {repeated!r}")
    try:
        with warnings.catch_warnings(action="error", category=pd.errors.ParserWarning):
            cells = pd.read_csv(
                io.StringIO("\n".join(lines[start:])),
                sep=delimiter,
                dtype=str,
                keep_default_na=False,
                skip_blank_lines=False,
                index_col=False,
                skipinitialspace=True,
            )
    except _FAULTS as error:
        reason = str(error).splitlines()[0].removeprefix("Error tokenizing data. C error: ")
        hint = " (decimal commas need columns separated by semicolons)" if delimiter == "," else ""
        raise DataError(
            f"{source} is not a table: below the header in row {start + 1}, {reason}{hint}"
        ) from None
    # Between commas a comma in quotes is as likely one of thousands.
    return replace(_numbered(cells, source, first=start + 2), comma=delimiter != ",")


def _holds_something(line: str) -> bool:
    return bool(line.strip(' \t,;|"')) and not line.lstrip().startswith("#")


def _numbered(cells: pd.DataFrame, source: str, first: int) -> RawTable:
    names = [str(name).strip() for name in cells.columns]
    blank = [name == "" or name.startswith("Unnamed:") for name in names]
    cells.columns = pd.Index(names)
    for i, empty in enumerate(blank):
        if empty and not _empty(cells.iloc[:, i]).all():
            raise DataError(f"{source}: column {i + 1} holds values but has no name in the header")
    cells = cells.loc[:, [not empty for empty in blank]]
    repeated = cells.columns[cells.columns.duplicated()]
    if len(repeated):
        raise DataError(f"{source}: two columns are named {repeated[0]!r}")
    cells.index = pd.RangeIndex(first, first + len(cells))
    kept = ~np.logical_and.reduce([_empty(cells[name]) for name in cells])
    comments = [
        str(value).startswith("#") and str(value).lower() != "#n/a" for value in cells.iloc[:, 0]
    ]
    return RawTable(cells[kept & ~np.array(comments, dtype=bool)], source)


def _empty(column: pd.Series) -> NDArray[np.bool_]:
    if column.dtype.kind in "fiub":
        return column.isna().to_numpy()
    return (column.fillna("").astype(str).str.strip() == "").to_numpy()
