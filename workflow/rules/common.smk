from pathlib import Path

from dklfm.config import Config, Plan, canonical_json, resolved, validate
from dklfm.errors import ConfigError

try:
    CONFIG = validate(Config, config, "config")
except ConfigError as error:
    raise WorkflowError(str(error)) from None

PLAN = Plan.of(CONFIG)
STAGES = {kind: PLAN.stages(kind) for kind in ("tasks", "model", "posterior", "scores", "figure")}
RESULTS = str(CONFIG.results)

# Jobs run in the environment of Snakemake itself, activated or not.
shell.prefix(f'export PATH="{Path(sys.executable).parent}:$PATH"; ')


wildcard_constraints:
    name=r"[A-Za-z0-9_.]+-[0-9a-f]{10}",


def settings(kind):
    """The canonical settings of the stage that a wildcard names; a string, so order is fixed."""
    return lambda wildcards: STAGES[kind][wildcards.name].json


def product(stage):
    """The folder of a stage's product."""
    return f"{RESULTS}/{stage.path}"


def manifests(kind):
    """The manifests of a stage's parents, which are complete when they exist."""

    def parents(wildcards):
        return [f"{product(p)}/manifest.json" for p in STAGES[kind][wildcards.name].parents]

    return parents


def names(simulated):
    """A pattern of the tasks stages that are simulated, or of those that were measured."""
    found = [n for n, s in STAGES["tasks"].items() if ("system" in s.spec) == simulated]
    return "|".join(found) or "none"


def posterior_sources(posterior):
    """The folders of model, tasks and posterior of a posterior stage."""
    return [product(stage) for stage in (*posterior.parents, posterior)]


def scored(wildcards):
    """What a set of scores is computed from."""
    return posterior_sources(STAGES["scores"][wildcards.name].parents[0])


def drawn(wildcards):
    """What a figure is drawn from: one posterior with its sources, or several models."""
    parents = STAGES["figure"][wildcards.name].parents
    if parents[0].kind == "posterior":
        return posterior_sources(parents[0])
    return [product(model) for model in parents]


def whole(sources):
    """The manifests of folders that a function of wildcards names."""
    return lambda wildcards: [f"{folder}/manifest.json" for folder in sources(wildcards)]


def figures():
    """Every figure of the config, as PDF and PNG."""
    return expand(
        f"{RESULTS}/figures/{{name}}.{{suffix}}",
        name=STAGES["figure"],
        suffix=("pdf", "png"),
    )
