"""The steps of the Dockerfile, without Docker: what it copies is enough for what it runs."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from tests.workflow.small import REPOSITORY


def test_steps_of_the_dockerfile_make_an_environment_that_runs(tmp_path: Path) -> None:
    _, _, after = (REPOSITORY / "Dockerfile").read_text().partition("COPY . .\n")
    steps = [line.removeprefix("RUN ") for line in after.splitlines() if line.startswith("RUN ")]
    assert steps
    ignored = set((REPOSITORY / ".dockerignore").read_text().split())
    image = tmp_path / "dklfm"
    shutil.copytree(
        REPOSITORY,
        image,
        ignore=lambda folder, names: [
            name for name in names if str((Path(folder) / name).relative_to(REPOSITORY)) in ignored
        ],
    )
    for step in steps:
        subprocess.run(step, shell=True, check=True, cwd=image)
    path = {"PATH": f"{image / '.venv' / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    for command in (["dklfm", "models"], ["snakemake", "-n", "--configfile", "config/quick.yaml"]):
        subprocess.run(command, check=True, cwd=image, env=os.environ | path)
