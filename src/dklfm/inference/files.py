"""Files of a posterior, its table written as it is inferred."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import xarray as xr
from pyarrow import csv

from dklfm.inference.result import Inference, Stranger, report


def save(parts: Iterable[Inference], folder: Path, figure: bool = True) -> Inference:
    """Write what was inferred of one table; the files of before stay if a part fails.

    Args:
        parts: of consecutive tasks.
        folder: where to; made if missing.
        figure: draw the first tasks.

    Returns:
        The first part.

    Raises:
        ValueError: if there are no parts.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".posterior-") as name:
        scratch = Path(name)
        first, whole, strangers = _table(parts, scratch / "posterior.csv")
        whole.to_netcdf(scratch / "posterior.nc", engine="scipy")
        text = report(first, whole.sizes["task"], strangers)
        (scratch / "report.md").write_text(text, encoding="utf-8")
        if figure:
            from dklfm.figures import save as save_figure

            save_figure(first.plot(), scratch / "figure", ("png",))
        for path in sorted(scratch.iterdir()):
            os.replace(path, folder / path.name)
    return first


def _table(parts: Iterable[Inference], path: Path) -> tuple[Inference, xr.Dataset, list[Stranger]]:
    """Write the rows of each part; keep the rest in single precision."""
    first: Inference | None = None
    datasets: list[xr.Dataset] = []
    strangers: list[Stranger] = []
    writer: csv.CSVWriter | None = None
    try:
        for part in parts:
            rows = part.to_table()
            if writer is None:
                first = part
                options = csv.WriteOptions(quoting_style="needed")
                writer = csv.CSVWriter(str(path), rows.schema, write_options=options)
            writer.write_table(rows)
            datasets.append(_single(part.to_dataset()))
            strangers += part.strangers
    finally:
        if writer is not None:
            writer.close()
    if first is None:
        raise ValueError("there is nothing to write")
    whole = xr.concat(datasets, dim="task", combine_attrs="override", join="outer")
    return first, whole, strangers


def _single(data: xr.Dataset) -> xr.Dataset:
    """Doubles as single precision, but for the inputs, which other tables are joined by."""
    wide = [n for n, v in data.data_vars.items() if v.dtype == float and str(n)[0] != "x"]
    return data.assign({name: data[name].astype(np.float32) for name in wide})
