"""What goes wrong around a run is named in one line, and costs nothing that was good."""

from __future__ import annotations

import copy
import json
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dklfm.artifacts import MANIFEST, alone_in, read_json
from dklfm.errors import DataError, ModelError, WriteError
from dklfm.model import load_model
from dklfm.tasks import load_tasks
from tests.conftest import SIMULATION, TRAINING
from tests.robustness.interruptions import contents

_SMALLEST = 4096
"""Bytes that a file may have where the disk is full."""
KILLER = """
import os, signal
from dklfm.systems import Transcription

class Killer(Transcription):
    def solve(self, draws, x):
        os.kill(os.getpid(), signal.SIGKILL)
"""


def dklfm(*words: object, full_disk: bool = False) -> subprocess.CompletedProcess[str]:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (_SMALLEST, _SMALLEST))

    return subprocess.run(
        [sys.executable, "-m", "dklfm", *map(str, words)],
        preexec_fn=limit if full_disk else None,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def refused(found: subprocess.CompletedProcess[str], code: int, *says: str) -> None:
    """One line that says so, no traceback."""
    lines = [line for line in found.stderr.splitlines() if line.startswith("dklfm: ")]
    assert found.returncode == code, found.stderr
    assert "Traceback" not in found.stderr
    assert len(lines) == 1, found.stderr
    for part in says:
        assert part in lines[0]


@pytest.fixture
def copied(store: Path, tmp_path: Path) -> Path:
    """A store to be damaged."""
    return shutil.copytree(store, tmp_path / "tasks")


def chunk(folder: Path) -> Path:
    """The largest chunk of the outputs."""
    chunks = [p for p in (folder / "data.zarr" / "y").rglob("*") if p.is_file()]
    return max(chunks, key=lambda path: path.stat().st_size)


@pytest.mark.parametrize("fault", ["truncated", "deleted", "changed"])
def test_a_damaged_chunk_is_found_by_the_next_stage(
    copied: Path, model_folder: Path, tmp_path: Path, fault: str
) -> None:
    path = chunk(copied)
    held = path.read_bytes()
    if fault == "deleted":
        path.unlink()
    else:
        changed = held[: len(held) // 2]
        path.write_bytes(changed if fault == "truncated" else changed + held[: -(len(held) // 2)])
    out = tmp_path / "posterior"
    refused(dklfm("stage", "infer", model_folder, copied, out), DataError.exit_code, "data.zarr")
    assert not (out / "manifest.json").exists()


@pytest.mark.parametrize("text", ["", '{"digest": "ab', "[]", '{"digest": 3}', "\x00\x01"])
def test_a_damaged_manifest_is_found_by_the_next_stage(
    copied: Path, model_folder: Path, tmp_path: Path, text: str
) -> None:
    (copied / "manifest.json").write_text(text)
    found = dklfm("stage", "infer", model_folder, copied, tmp_path / "posterior")
    refused(found, DataError.exit_code, str(copied))


def test_damaged_weights_are_found(store: Path, model_folder: Path, tmp_path: Path) -> None:
    model = shutil.copytree(model_folder, tmp_path / "model")
    weights = model / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    found = dklfm("stage", "infer", model, store, tmp_path / "posterior")
    refused(found, ModelError.exit_code, "weights.safetensors", "damaged")


def test_a_manifest_of_a_huge_model_takes_no_memory(model_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(model_folder, tmp_path / "model")
    manifest = read_json(folder / MANIFEST)
    manifest["spec"]["model"]["encoder"] |= {"width": 1024, "layers": 1024}
    (folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(ModelError, match="far larger than its weights"):
        load_model(folder)


def test_a_full_disk_is_named_and_what_was_there_stays(
    store: Path, model_folder: Path, tmp_path: Path
) -> None:
    training = json.dumps(TRAINING)
    stages = {
        "tasks": ("simulate", json.dumps(SIMULATION)),
        "model": ("train", training, store),
        "posterior": ("stage", "infer", model_folder, store),
    }
    for name, words in stages.items():
        out = tmp_path / name
        refused(dklfm(*words, out, full_disk=True), WriteError.exit_code, str(out), "written")
        assert not (out / "manifest.json").exists()
        assert not list(out.rglob("*.half"))
        done = dklfm(*words, out)
        assert done.returncode == 0, done.stderr
        whole = contents(out)
        refused(dklfm(*words, out, full_disk=True), WriteError.exit_code, str(out), "written")
        again = dklfm(*words, out)
        assert again.returncode == 0, again.stderr
        assert contents(out) == whole


def test_a_results_folder_that_cannot_be_written_is_named(store: Path, tmp_path: Path) -> None:
    (tmp_path / "results").write_text("a file, where a folder should be")
    out = tmp_path / "results" / "model"
    found = dklfm("train", json.dumps(TRAINING), store, out)
    refused(found, WriteError.exit_code, str(out), "choose a folder that you may write to")


def test_two_runs_at_once_make_one_product(store: Path, tmp_path: Path) -> None:
    out, training = tmp_path / "model", copy.deepcopy(TRAINING)
    training["training"]["epochs"] = 100_000
    first = subprocess.Popen(
        [sys.executable, "-m", "dklfm", "train", json.dumps(training), str(store), str(out)],
        stderr=subprocess.DEVNULL,
    )
    while not (out / ".lock").exists():
        time.sleep(0.05)
        assert first.poll() is None
    second = dklfm("train", json.dumps(training), store, out)
    refused(second, WriteError.exit_code, str(out), "another process is making this product")
    first.terminate()
    assert first.wait(timeout=120) == 143
    assert [path.name for path in (out / "partial").iterdir()] == ["state.safetensors"]


def test_a_lock_ends_with_its_process(store: Path, tmp_path: Path) -> None:
    out = tmp_path / "model"
    code = f"""
import os, signal
from pathlib import Path
from dklfm.artifacts import MANIFEST, alone_in, read_json
with alone_in(Path({str(out)!r})):
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    with alone_in(out):
        pass


def test_workers_that_are_killed_are_named(tmp_path: Path) -> None:
    """As the kernel kills those that take too much memory."""
    (tmp_path / "killer.py").write_text(KILLER)
    spec = {
        "system": {"file": f"{tmp_path}/killer.py:Killer"},
        "tasks": {"counts": {"train": 2, "validation": 1, "test": 1}},
    }
    found = dklfm("simulate", json.dumps(spec), tmp_path / "tasks", "--workers", "2")
    refused(found, 2, "killed", "memory")
    assert not (tmp_path / "tasks" / "manifest.json").exists()


def test_a_shard_that_cannot_be_read_is_simulated_again(tmp_path: Path) -> None:
    out, spec = tmp_path / "tasks", copy.deepcopy(SIMULATION)
    spec["tasks"]["counts"] = {"train": 300, "validation": 6, "test": 6}
    process = subprocess.Popen(
        [sys.executable, "-m", "dklfm", "simulate", json.dumps(spec), str(out)],
        stderr=subprocess.DEVNULL,
    )
    while not list(out.glob("partial/*/shard-*.npz")):
        time.sleep(0.001)
    process.kill()
    process.wait()
    shards = list(out.glob("partial/*/shard-*.npz"))
    assert shards, "the run was faster than the signal"
    shards[0].write_bytes(shards[0].read_bytes()[:1000])
    found = dklfm("simulate", json.dumps(spec), out)
    assert found.returncode == 0
    assert "it is simulated again" in found.stderr
    whole = dklfm("simulate", json.dumps(spec), tmp_path / "whole")
    assert whole.returncode == 0
    assert contents(out) == contents(tmp_path / "whole")
    assert len(load_tasks(out)) == 312
