"""What clusters are told of the jobs, and a run through a queue that is a shell script."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.workflow.small import REPOSITORY, snakemake

LOCAL = {"all", "scores", "table", "index", "figure"}
RESOURCES = {"mem_mb", "runtime"}
QUEUE = """\
#!/bin/sh
echo "$@" >> asked.txt
for script in "$@"; do :; done
setsid sh "$script" > /dev/null 2>&1 &
echo $!
"""


def planned(printed: str) -> dict[str, set[str]]:
    """The names of the resources of every rule of a dry run."""
    blocks = re.findall(r"^(?:local)?rule (\w+):\n((?:    .*\n)+)", printed, re.MULTILINE)
    return {
        rule: set(re.findall(r"(\w+)=", re.findall(r"^    resources: (.*)$", block, re.M)[0]))
        for rule, block in blocks
        if rule not in LOCAL
    }


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_rule_of_a_cluster_says_what_it_needs(tmp_path: Path, device: str) -> None:
    rules = planned(snakemake(tmp_path, "--dry-run", "--config", f"device={device}"))
    assert set(rules) == {
        "fit", "infer", "measurements", "reference", "score", "simulate", "train",
    }  # fmt: skip
    for rule, resources in rules.items():
        assert resources >= RESOURCES, rule
        assert ("gpu" in resources) == (rule in ("train", "infer")), rule


def test_any_scheduler_with_a_command_to_submit_runs_the_jobs(tmp_path: Path) -> None:
    script = tmp_path / "queue.sh"
    script.write_text(QUEUE)
    script.chmod(0o755)
    asked = f"{script} {{threads}} {{resources.mem_mb}} {{resources.runtime}} {{resources.gpu}}"
    snakemake(
        tmp_path,
        *("--workflow-profile", str(REPOSITORY / "profiles" / "generic"), "--latency-wait", "5"),
        *("--cluster-generic-submit-cmd", asked, "--until", "measurements"),
    )
    lines = (tmp_path / "asked.txt").read_text().splitlines()
    assert [line.split()[:4] for line in lines] == [["1", "2000", "10", "0"]] * 2
    assert len(list((tmp_path / "results" / "tasks").glob("p53_*/manifest.json"))) == 2


def test_where_tasks_are_simulated_changes_nothing_in_what_is_to_do(finished: Path) -> None:
    printed = snakemake(finished, "--dry-run", "--config", "scheduler=tcp://127.0.0.1:8786")
    assert "Nothing to be done" in printed
