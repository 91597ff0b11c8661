"""The small pipeline on a real Slurm, which the tests start and stop."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from dklfm import simulate
from dklfm.artifacts import dataset_digest
from dklfm.tasks import load_tasks
from tests.conftest import SIMULATION
from tests.workflow import slurm
from tests.workflow.small import REPOSITORY, output, start

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(slurm.missing() is not None, reason=str(slurm.missing())),
]
SPEC = SIMULATION | {
    "tasks": SIMULATION["tasks"] | {"counts": {"train": 400, "validation": 6, "test": 6}}
}
"""Several shards."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with slurm.cluster(tmp_path_factory.mktemp("slurm")):
        yield


def cancel_one(rule: str, run: subprocess.Popen[str]) -> str:
    """Cancel the first job of a rule that is seen at work."""
    while run.poll() is None:
        for number, comment in slurm.jobs("RUNNING").items():
            if comment.startswith(f"rule_{rule}_"):
                slurm.tell("scancel", number)
                return number
        time.sleep(0.2)
    pytest.fail(f"no job of the rule {rule} was seen:\n{run.communicate()[0]}")


def comparable(folder: Path) -> pd.DataFrame:
    """Scores, without those that say how long something took."""
    scores = pd.read_csv(folder / "results" / "scores.csv")
    return scores[~scores["metric"].str.contains("cpu")].reset_index(drop=True)


def test_pipeline_gives_the_scores_of_a_local_run_though_a_job_is_cancelled(
    cluster: None, finished: Path, tmp_path: Path
) -> None:
    run = start(
        tmp_path,
        *("--workflow-profile", str(REPOSITORY / "profiles" / "slurm")),
        # The test's Slurm has no accounting; and it is not as busy as a real one.
        *("--slurm-status-command", "squeue", "--slurm-no-account", "--latency-wait", "5"),
        *("--slurm-init-seconds-before-status-checks", "2", "--seconds-between-status-checks", "1"),
    )
    cancelled = cancel_one("train", run)
    printed = output(run)
    assert f"'{cancelled}' failed, SLURM status is: 'CANCELLED'" in printed
    assert set(slurm.jobs("CANCELLED")) == {cancelled}
    by_rule = pd.Series(slurm.jobs("COMPLETED")).str.extract(r"rule_([a-z]+)_")[0].value_counts()
    assert by_rule.to_dict() == {
        "simulate": 6, "measurements": 2, "fit": 1, "train": 4, "infer": 9, "reference": 5,
        "score": 14,
    }  # fmt: skip
    pd.testing.assert_frame_equal(comparable(tmp_path), comparable(finished))


def test_simulation_is_spread_over_an_array_of_dask_workers(cluster: None, tmp_path: Path) -> None:
    place = tmp_path / "scheduler.json"
    scheduler = subprocess.Popen(
        [
            *(sys.executable, "-m", "distributed.cli.dask_scheduler", "--scheduler-file", place),
            *("--host", "127.0.0.1", "--port", "0", "--no-dashboard"),
        ]
    )
    try:
        worker = f"{sys.executable} -m distributed.cli.dask_worker --no-dashboard --nthreads 1"
        wrapped = f"{worker} --scheduler-file {place}"
        slurm.tell("sbatch", "--array", "1-2", "--chdir", str(tmp_path), "--wrap", wrapped)
        while not place.exists():
            assert scheduler.poll() is None
            time.sleep(0.1)
        address = json.loads(place.read_text())["address"]
        command = ("simulate", json.dumps(SPEC), str(tmp_path / "spread"))
        subprocess.run(
            [sys.executable, "-m", "dklfm", *command],
            check=True,
            env=os.environ | {"DKLFM_SCHEDULER": address},
        )
    finally:
        scheduler.terminate()
        scheduler.wait()
    spread = load_tasks(tmp_path / "spread")
    here = simulate.run(SPEC, tmp_path / "here")
    assert dataset_digest(spread.data) == dataset_digest(here.data)
