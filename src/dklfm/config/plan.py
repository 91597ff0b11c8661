"""Which products a config asks for, where each lies, and what each is made from.

A stage is named by its key, a digest of its own settings and of its parents' keys: a changed
setting gives new paths to its stage and to all that follows, and touches nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from dklfm.config.experiment import Config, Experiment, resolved
from dklfm.config.keys import canonical_json, stage_key
from dklfm.config.sections import Counts, TasksConfig

METHOD = "dklfm"


@dataclass(frozen=True)
class Stage:
    """One product of the pipeline.

    Attributes:
        kind: the folder under results/ that holds it.
        label: a readable name; it stands in the path but not in the key.
        spec: every setting that determines the product beyond its parents.
        parents: the stages that it reads.
    """

    kind: str
    label: str
    spec: dict[str, Any]
    parents: tuple[Stage, ...] = ()

    @cached_property
    def key(self) -> str:
        return stage_key(self.kind, self.spec, [parent.key for parent in self.parents])

    @property
    def name(self) -> str:
        """The readable, unique folder name."""
        return f"{self.label}-{self.key}"

    @property
    def path(self) -> str:
        """Relative to the results folder."""
        return f"{self.kind}/{self.name}"

    @property
    def json(self) -> str:
        """The canonical settings, as a rule hands them to its command."""
        return canonical_json(self.spec)

    def ancestors(self) -> Iterator[Stage]:
        """The stage and all it is made from, parents first."""
        for parent in self.parents:
            yield from parent.ancestors()
        yield self


@dataclass(frozen=True)
class Evaluation:
    """A scored set of tasks: one experiment, method and seed on one split or mesh."""

    experiment: str
    method: str
    seed: int
    split: str
    scores: Stage

    @property
    def tasks(self) -> Stage:
        return self.scores.parents[0]

    @property
    def posterior(self) -> Stage:
        return self.scores.parents[1]

    @property
    def model(self) -> Stage:
        """The trained model; methods without one have none."""
        return self.posterior.parents[0]


@dataclass(frozen=True)
class Plan:
    """Everything a config asks for."""

    config: Config
    evaluations: tuple[Evaluation, ...]
    figures: tuple[Stage, ...]

    @classmethod
    def of(cls, config: Config) -> Plan:
        evaluations: list[Evaluation] = []
        figures: list[Stage] = []
        for label, experiment in config.experiments.items():
            found = list(_evaluations(label, experiment))
            evaluations += found
            figures += _figures(label, experiment, found)
        return cls(config, tuple(evaluations), tuple(figures))

    def stages(self, kind: str) -> dict[str, Stage]:
        """The stages of one kind by their folder name."""
        ends = [e.scores for e in self.evaluations] + list(self.figures)
        return {s.name: s for end in ends for s in end.ancestors() if s.kind == kind}

    def index(self) -> dict[str, dict[str, str]]:
        """Readable names to paths, for results/index.json."""
        return {
            f"{e.experiment}/{e.method}/seed{e.seed}/{e.split}": {
                stage.kind: stage.path for stage in e.scores.ancestors()
            }
            for e in self.evaluations
        }


def simulation(
    experiment: Experiment, mesh_factor: float = 1.0, query: int | None = None
) -> dict[str, Any]:
    """The settings of a tasks stage; or of its test tasks alone, on another mesh or query grid.

    A task's random numbers depend on its seed, split and index only, so the test tasks of
    every mesh are the same forces under the same equations.
    """
    tasks: TasksConfig = experiment.tasks
    if mesh_factor != 1.0 or query is not None:
        points = max(2, round(tasks.mesh.points * mesh_factor))
        tasks = tasks.model_copy(
            update={
                "mesh": tasks.mesh.model_copy(update={"points": points}),
                "query": query or tasks.query,
                "counts": Counts(train=0, validation=0, test=tasks.counts.test),
            }
        )
    return {"system": experiment.system.spec(), "tasks": resolved(tasks)}


def _targets(label: str, experiment: Experiment) -> dict[str, Stage]:
    """The tasks to infer, by the name of their split."""
    targets = {"test": Stage("tasks", label, simulation(experiment))}
    for factor in experiment.test_meshes:
        spec = simulation(experiment, mesh_factor=factor)
        targets[f"test@{factor:g}x"] = Stage("tasks", f"{label}_mesh{factor:g}x", spec)
    for query in experiment.test_queries:
        spec = simulation(experiment, query=query)
        targets[f"test@query{query}"] = Stage("tasks", f"{label}_query{query}", spec)
    for dataset in experiment.datasets:
        targets[dataset] = Stage("tasks", dataset.replace("-", "_"), {"dataset": dataset})
    return targets


def _evaluations(label: str, experiment: Experiment) -> Iterator[Evaluation]:
    targets = _targets(label, experiment)
    simulated = targets["test"]

    def evaluation(method: str, seed: int, split: str, posterior: Stage) -> Evaluation:
        about = {
            "run": label,
            "experiment": experiment.system.name,
            "method": method,
            "prior": experiment.system.prior_label,
            "seed": seed,
            "split": split,
        }
        scores = Stage("scores", posterior.label, about, (targets[split], posterior))
        return Evaluation(label, method, seed, split, scores)

    settings = {
        "method": METHOD,
        "model": resolved(experiment.model),
        "training": resolved(experiment.training),
    }
    for seed in experiment.seeds:
        model = Stage("model", f"{label}_seed{seed}", {**settings, "seed": seed}, (simulated,))
        for split, tasks in targets.items():
            name = f"{label}_seed{seed}_{tasks.label}"
            yield evaluation(METHOD, seed, split, Stage("posterior", name, {}, (model, tasks)))
    for method in experiment.references:
        posterior = Stage("posterior", f"{label}_{method}", {"method": method}, (simulated,))
        yield evaluation(method, 0, "test", posterior)


def _figures(label: str, experiment: Experiment, evaluations: list[Evaluation]) -> Iterator[Stage]:
    first = experiment.seeds[0]
    trained = [e for e in evaluations if e.method == METHOD]
    for e in trained:
        if e.seed == first and e.split == "test":
            kind = "tasks" if len(experiment.system.axes) == 1 else "fields"
            floors = [f.posterior for f in evaluations if f.method == "mechanistic"]
            shown = (e.tasks, e.posterior, *floors)
            yield Stage("figure", f"{label}_tasks", {"figure": kind}, shown)
        if e.seed == first and e.split in experiment.datasets:
            name = f"{label}_{e.tasks.label}"
            kind = e.split.split("-")[0] if e.split != "hare-lynx" else "series"
            yield Stage("figure", name, {"figure": kind}, (e.tasks, e.posterior))
    models = {e.seed: e.model for e in trained}
    yield Stage("figure", f"{label}_learning", {"figure": "learning"}, tuple(models.values()))
