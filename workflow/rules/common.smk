import html
import os
import re
import shlex
from pathlib import Path

import yaml

from dklfm.config import Config, Plan, canonical_json, resolved, validate
from dklfm.errors import ConfigError

try:
    CONFIG = validate(Config, config, "config")
except ConfigError as error:
    raise WorkflowError(str(error)) from None

PLAN = Plan.of(CONFIG)
KINDS = ("fit", "tasks", "model", "posterior", "scores", "figure")
STAGES = {kind: PLAN.stages(kind) for kind in KINDS}
RESULTS = str(CONFIG.results)
# Without where tasks are simulated, which changes nothing in them.
SETTINGS = {key: value for key, value in resolved(CONFIG).items() if key != "scheduler"}
CATEGORIES = {
    **dict.fromkeys(("tasks", "fields"), "2 Forces inferred from simulated tasks"),
    **dict.fromkeys(("p53", "kni", "series"), "3 Forces inferred from measurements"),
    "calibration": "4 Are the bands honest?",
    "learning": "5 Training",
    "curve": "6 What tasks and time buy",
}


# Jobs run in the environment of Snakemake itself, activated or not, or in that of a container, trust
# the files whose systems the config names, and simulate where it says, which changes no task.
FILES = {
    e.system.source[0].rpartition(":")[0] for e in CONFIG.experiments.values() if e.system.source
}
shell.prefix(
    "printenv APPTAINER_CONTAINER > /dev/null"
    f' || export PATH="{Path(sys.executable).parent}:$PATH";'
    f" export DKLFM_TRUST={shlex.quote(os.pathsep.join(sorted(FILES)))}"
    f" DKLFM_SCHEDULER={shlex.quote(CONFIG.scheduler or '')}; "
)


wildcard_constraints:
    name=r"[A-Za-z0-9_.]+-[0-9a-f]{10}",


def settings(kind):
    """The canonical settings of the stage that a wildcard names; a string, so order is fixed."""
    return lambda wildcards: STAGES[kind][wildcards.name].json


def product(stage):
    """The folder of a stage's product; scores are a file."""
    suffix = ".csv" if stage.kind == "scores" else ""
    return f"{RESULTS}/{stage.path}{suffix}"


def manifests(kind):
    """The manifests of a stage's parents, which are complete when they exist."""

    def parents(wildcards):
        return [f"{product(p)}/manifest.json" for p in STAGES[kind][wildcards.name].parents]

    return parents


def names(kind, chosen):
    """A pattern of the stages of a kind that a rule makes."""
    return "|".join(re.escape(n) for n, s in STAGES[kind].items() if chosen(s)) or "none"


def scored(wildcards):
    """Tasks and posterior that scores are computed from."""
    return [product(stage) for stage in STAGES["scores"][wildcards.name].parents]


def drawn(wildcards):
    """What a figure is drawn from: tasks and their posterior, several models, or scores."""
    return [product(stage) for stage in STAGES["figure"][wildcards.name].parents]


def refinement(wildcards):
    """The option of a posterior that the equation itself refines."""
    spec = STAGES["posterior"][wildcards.name].spec
    return ["--refine", canonical_json(spec["refine"])] if "refine" in spec else []


def whole(sources):
    """The manifests of folders that a function of wildcards names, and files themselves."""
    return lambda wildcards: [
        path if path.endswith(".csv") else f"{path}/manifest.json" for path in sources(wildcards)
    ]


def category(wildcards):
    """Where a figure stands in the report."""
    return CATEGORIES[STAGES["figure"][wildcards.name].spec["figure"]]


def figures():
    """Every figure of the config, as PDF and PNG."""
    return expand(
        f"{RESULTS}/figures/{{name}}.{{suffix}}",
        name=STAGES["figure"],
        suffix=("pdf", "png"),
    )
