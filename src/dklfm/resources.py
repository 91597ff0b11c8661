"""Where the embedded data lie: measured tables, published estimates, trained weights."""

from __future__ import annotations

from pathlib import Path

from dklfm.errors import DataError

_CANDIDATES = (
    Path(__file__).parent / "resources",  # in an installed wheel
    Path(__file__).parents[2] / "resources",  # in a checkout
)


def resource_path(name: str) -> Path:
    """The path of an embedded file.

    Raises:
        DataError: if there is no such file.
    """
    for folder in _CANDIDATES:
        if (folder / name).is_file():
            return folder / name
    raise DataError(
        f"embedded file resources/{name} is missing; reinstall dklfm or restore the checkout"
    )
