"""Products are written whole or not at all, and damage to them is found when they are read."""

from __future__ import annotations

import errno
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from dklfm.artifacts import (
    MANIFEST,
    alone_in,
    dataset_digest,
    load_dataset,
    read_json,
    save_dataset,
    write_atomically,
    write_json,
)
from dklfm.errors import DataError, WriteError


def dataset() -> xr.Dataset:
    values = np.random.default_rng(0).standard_normal((3, 50))
    values[1, 4] = np.nan
    return xr.Dataset(
        {"y": (("task", "point"), values)}, coords={"task": ["a", "b", "c"]}, attrs={"unit": "h"}
    )


def chunk(folder: Path) -> Path:
    return next(path for path in (folder / "data.zarr" / "y" / "c").rglob("*") if path.is_file())


def lose_chunk(folder: Path) -> None:
    chunk(folder).unlink()


def flip_bytes(folder: Path) -> None:
    stored = bytearray(chunk(folder).read_bytes())
    middle = len(stored) // 2
    stored[middle : middle + 8] = bytes(byte ^ 0xFF for byte in stored[middle : middle + 8])
    chunk(folder).write_bytes(stored)


def truncate_chunk(folder: Path) -> None:
    chunk(folder).write_bytes(chunk(folder).read_bytes()[:20])


def lose_store(folder: Path) -> None:
    (folder / "data.zarr" / "zarr.json").unlink()


def lose_manifest(folder: Path) -> None:
    (folder / MANIFEST).unlink()


def truncate_manifest(folder: Path) -> None:
    text = (folder / MANIFEST).read_text()
    (folder / MANIFEST).write_text(text[: len(text) // 2])


def manifest_without_digest(folder: Path) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    del manifest["digest"]
    (folder / MANIFEST).write_text(json.dumps(manifest))


def test_stored_dataset_is_read_back_the_same(tmp_path: Path) -> None:
    save_dataset(tmp_path, dataset(), {"stage": "tasks"})
    loaded = load_dataset(tmp_path)
    xr.testing.assert_equal(loaded, dataset())
    assert loaded.attrs == {"unit": "h"}


def test_order_of_what_is_read_is_that_of_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"reference_{i}" for i in range(8)]
    save_dataset(tmp_path, dataset().assign({n: ("point", np.arange(50)) for n in names}), {})
    opened = xr.open_zarr

    def listed_otherwise(*args: Any, **options: Any) -> xr.Dataset:
        found = opened(*args, **options)
        return found[sorted(map(str, found.data_vars), reverse=True)]

    monkeypatch.setattr(xr, "open_zarr", listed_otherwise)
    assert list(load_dataset(tmp_path).data_vars) == [*names, "y"]


def test_manifest_states_description_sizes_and_writers(tmp_path: Path) -> None:
    save_dataset(tmp_path, dataset(), {"stage": "tasks"})
    manifest = read_json(tmp_path / MANIFEST)
    assert manifest["stage"] == "tasks"
    assert manifest["sizes"] == {"task": 3, "point": 50}
    assert {"dklfm", "numpy", "torch"} <= set(manifest["packages"])


@pytest.mark.parametrize(
    "damage",
    [
        lose_chunk,
        flip_bytes,
        truncate_chunk,
        lose_store,
        lose_manifest,
        truncate_manifest,
        manifest_without_digest,
    ],
)
def test_damage_is_found_and_its_place_named(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    folder = tmp_path / "product"
    save_dataset(folder, dataset(), {})
    damage(folder)
    with pytest.raises(DataError) as caught:
        load_dataset(folder)
    assert str(folder) in str(caught.value)
    assert "rerun" in str(caught.value) or "run the stage" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="absent does not exist; run the stage"):
        load_dataset(tmp_path / "absent")


def test_saving_again_replaces_the_product(tmp_path: Path) -> None:
    save_dataset(tmp_path, dataset(), {})
    save_dataset(tmp_path, dataset().isel(task=[0]) * 2, {})
    xr.testing.assert_equal(load_dataset(tmp_path), dataset().isel(task=[0]) * 2)


@pytest.mark.parametrize(
    "changed",
    [
        dataset().assign(y=dataset()["y"] + 1e-15),
        dataset().rename(y="z"),
        dataset().rename(point="query"),
        dataset().assign(y=dataset()["y"].astype("float32")),
        dataset().assign_coords(task=["a", "b", "d"]),
        dataset().isel(task=[0, 1]),
    ],
    ids=["value", "name", "dimension", "type", "coordinate", "size"],
)
def test_digest_sees_every_change(changed: xr.Dataset) -> None:
    assert dataset_digest(changed) != dataset_digest(dataset())


def test_digest_does_not_see_how_strings_are_held() -> None:
    as_objects = dataset().assign_coords(task=dataset()["task"].astype(object))
    assert dataset_digest(as_objects) == dataset_digest(dataset())


def write_and_fail(path: Path) -> None:
    path.write_text("half")
    raise OSError("disk full")


def test_failing_writer_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, write_and_fail)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_failing_writer_leaves_the_old_folder_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "part").write_text("old")

    def fail(sibling: Path) -> None:
        sibling.mkdir()
        write_and_fail(sibling / "part")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(folder, fail)
    assert (folder / "part").read_text() == "old"
    assert list(tmp_path.iterdir()) == [folder]


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_writes_is_not(
    tmp_path: Path,
) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    killed, living = (
        tmp_path / f".file.txt.{platform.node()}.{process}.0a1b2c3d.half"
        for process in (dead.pid, os.getpid())
    )
    elsewhere = tmp_path / f".file.txt.another-host.{dead.pid}.0a1b2c3d.half"
    for path in (killed, living, elsewhere):
        path.write_text("ha")
    write_atomically(tmp_path / "file.txt", lambda p: p.write_text("whole") and None)
    assert sorted(tmp_path.iterdir()) == sorted([tmp_path / "file.txt", living, elsewhere])
    with alone_in(tmp_path):
        assert not living.exists()
        assert not elsewhere.exists()


def test_one_product_is_made_by_one_process(tmp_path: Path) -> None:
    with alone_in(tmp_path / "product"):
        second = alone_in(tmp_path / "product")
        with pytest.raises(WriteError, match="another process is making this product"):
            second.__enter__()
        with alone_in(tmp_path / "other"):
            pass
    with alone_in(tmp_path / "product"):
        pass


@pytest.mark.parametrize(
    ("code", "says"),
    [(errno.ENOSPC, "make room and rerun"), (errno.EROFS, "a folder that you may write to")],
)
def test_what_cannot_be_written_is_one_clear_error(tmp_path: Path, code: int, says: str) -> None:
    def fail(_: Path) -> None:
        raise OSError(code, os.strerror(code))

    with pytest.raises(WriteError, match=f"file.txt cannot be written: .*{says}"):
        write_atomically(tmp_path / "file.txt", fail)
    (tmp_path / "a").write_text("a file, where a folder should be")
    with pytest.raises(WriteError, match="cannot be written"):
        write_atomically(tmp_path / "a" / "b", lambda p: p.write_text("") and None)
    with pytest.raises(WriteError, match="cannot be written"):
        alone_in(tmp_path / "a").__enter__()


def test_successful_writer_replaces_file_and_folder_without_leftovers(tmp_path: Path) -> None:
    path = tmp_path / "new" / "thing"
    write_atomically(path, lambda p: p.mkdir())
    write_atomically(path, lambda p: p.write_text("whole") and None)
    assert path.read_text() == "whole"
    assert list(path.parent.iterdir()) == [path]


def test_json_is_read_back_the_same(tmp_path: Path) -> None:
    value = {"b": [1, 2.5], "a": None}
    write_json(tmp_path / "value.json", value)
    assert read_json(tmp_path / "value.json") == value


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", '"text"'])
def test_file_that_is_no_json_object_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(DataError, match=r"bad\.json .*delete it and rerun"):
        read_json(path)
