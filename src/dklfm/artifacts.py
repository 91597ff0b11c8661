"""Products on disk: written whole or not at all, and verified against a manifest when read.

A product is a folder ``<kind>/<label>-<key>/`` holding its payload and, written last,
``manifest.json`` with the settings that made it. Without a manifest a product does not exist:
zarr reads a missing chunk as NaN without a word, so nothing else is proof of wholeness.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from filelock import FileLock, Timeout

from dklfm.errors import DataError, WriteError

if TYPE_CHECKING:
    from torch import Tensor

MANIFEST = "manifest.json"
_LOCK = ".lock"
_HALF_WRITTEN = ".half"
_RECORDED_PACKAGES = ("dklfm", "numpy", "scipy", "torch", "gpytorch", "xarray", "zarr")


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Make a folder if it is missing, and let no other process make a product there meanwhile.

    The lock ends with the process, however that ends. What a killed one left half-written is
    removed.

    Raises:
        WriteError: if another process is at work there, or the folder cannot be written to.
    """
    lock = FileLock(folder / _LOCK)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise WriteError(
            f"{folder}: another process is making this product; wait for it to end, or stop it"
        ) from None
    except OSError as error:
        raise _unwritable(folder, error) from None
    try:
        for left in folder.glob(".*" + _HALF_WRITTEN):
            _remove(left)
        yield
    finally:
        lock.release()


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary sibling, then move it to ``path``.

    An existing file is replaced in one step; an existing folder is removed first, so that for a
    moment there is none. A failing ``write`` leaves what was there untouched. What killed processes
    left half-written in its place is removed.

    Raises:
        WriteError: if the disk is full, or the folder cannot be written to.
    """
    host = f".{path.name}.{platform.node()}"
    sibling = path.with_name(f"{host}.{os.getpid()}.{uuid.uuid4().hex[:8]}{_HALF_WRITTEN}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in path.parent.glob(f"{glob.escape(host)}.*{_HALF_WRITTEN}"):
            process = left.name.split(".")[-3]
            if process.isdecimal() and not _is_alive(int(process)):
                _remove(left)
        write(sibling)
        if path.is_dir():
            shutil.rmtree(path)
        os.replace(sibling, path)
    except OSError as error:
        raise _unwritable(path, error) from None
    finally:
        _remove(sibling)


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file atomically.

    Raises:
        WriteError: as :func:`write_atomically`.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    def write(sibling: Path) -> None:
        try:
            save_file(dict(tensors), sibling, dict(metadata) if metadata else None)
        except SafetensorError as error:
            code = errno.ENOSPC if f"os error {errno.ENOSPC}" in str(error) else errno.EIO
            raise OSError(code, str(error)) from None

    write_atomically(path, write)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    elif path.exists():
        path.unlink()


def _unwritable(path: Path, error: OSError) -> WriteError:
    reason = error.strerror or str(error)
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    mend = "make room" if full else "choose a folder that you may write to"
    return WriteError(f"{path} cannot be written: {reason}; {mend} and rerun")


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    write_atomically(path, lambda p: p.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON atomically."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        DataError: if the file is missing or is not a JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path} does not exist; run the stage that makes it") from None
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read as JSON ({error}); delete it and rerun") from None
    if not isinstance(value, dict):
        raise DataError(f"{path} must hold a JSON object; delete it and rerun")
    return value


def write_manifest(folder: Path, payload: Mapping[str, Any], digest: str) -> None:
    """Declare a product whole: the payload's description, its digest, and who wrote it."""
    packages = {}
    for name in _RECORDED_PACKAGES:
        try:
            packages[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    write_json(folder / MANIFEST, {**payload, "digest": digest, "packages": packages})


def dataset_digest(dataset: xr.Dataset) -> str:
    """sha256 over names, dimensions, types and values, not over the stored bytes."""
    sha = hashlib.sha256()
    for name in sorted(map(str, dataset.variables)):
        values = np.ascontiguousarray(dataset[name].values)
        sha.update(f"{name}{dataset[name].dims}{values.shape}".encode())
        text = values.dtype.kind in "OUT"  # strings have many in-memory forms
        sha.update("\0".join(map(str, values.flat)).encode() if text else values.tobytes())
    return sha.hexdigest()


def save_dataset(folder: Path, dataset: xr.Dataset, description: Mapping[str, Any]) -> None:
    """Store a dataset as ``data.zarr`` with a manifest.

    Raises:
        WriteError: if the disk is full, or the folder cannot be written to.
    """
    (folder / MANIFEST).unlink(missing_ok=True)
    for name, variable in dataset.variables.items():
        if variable.dtype.kind == "U":  # zarr has no stable form for fixed-length strings
            dataset = dataset.assign_coords({name: variable.astype(object)})
    write_atomically(
        folder / "data.zarr",
        lambda path: dataset.to_zarr(path, mode="w", consolidated=False, zarr_format=3),
    )
    payload = {**description, "sizes": {str(k): v for k, v in dataset.sizes.items()}}
    write_manifest(folder, payload, dataset_digest(dataset))


def load_dataset(folder: Path) -> xr.Dataset:
    """Read a stored dataset into memory and verify it.

    Raises:
        DataError: if the store is missing, cannot be read, or differs from its manifest.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} does not exist; run the stage that makes it")
    manifest = read_json(folder / MANIFEST)
    try:
        with warnings.catch_warnings():  # Snakemake leaves a time stamp in every folder it makes
            warnings.filterwarnings("ignore", "Object at .snakemake_timestamp")
            dataset = xr.open_zarr(folder / "data.zarr", consolidated=False, chunks=None).load()
    except Exception as error:  # zarr and its codecs raise many types for a damaged store
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"{folder}/data.zarr cannot be read ({reason}); delete the folder and rerun"
        ) from None
    if dataset_digest(dataset) != manifest.get("digest"):
        raise DataError(
            f"{folder}/data.zarr is damaged: its contents differ from {MANIFEST}; "
            "delete the folder and rerun"
        )
    # A store lists its arrays as the file system does, which is not the same everywhere.
    return dataset[sorted(map(str, dataset.data_vars))]
