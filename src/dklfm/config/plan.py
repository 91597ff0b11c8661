"""Which products a config asks for, where each lies, and what each is made from.

A stage is named by its key, a digest of its own settings and of its parents' keys: a changed
setting gives new paths to its stage and to all that follows, and touches nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from dklfm.config.experiment import Config, Experiment, mesh_label, resolved
from dklfm.config.keys import canonical_json, stage_key
from dklfm.config.references import BaselineConfig
from dklfm.config.sections import (
    MODEL_SECTIONS,
    STREAM,
    Counts,
    Mesh,
    StoredConfig,
    TasksConfig,
)
from dklfm.systems import System

METHOD, REFINED = "dklfm", "dklfm_refined"


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
    def model(self) -> Stage | None:
        """The trained model; methods that fit tasks by themselves have none."""
        found = self.posterior.parents[0]
        return found if found.kind == "model" else None


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
    experiment: Experiment,
    mesh: float | Mesh | None = None,
    query: int | None = None,
    system: System | None = None,
    train: int | None = None,
) -> dict[str, Any]:
    """The settings of a tasks stage.

    With ``mesh`` (its own, or a factor on the points an axis), ``query`` or ``system``, of the
    test tasks alone, on another mesh or query grid or under another system; with ``train``, of its
    validation tasks and so many training tasks. A task's random numbers depend on its seed, split
    and index only, so the test tasks of every mesh are the same forces under the same equations,
    and fewer training tasks are the first of more.
    """
    tasks: TasksConfig = experiment.tasks
    if train is not None:
        counts = Counts(train=train, validation=tasks.counts.validation, test=0)
        tasks = tasks.model_copy(update={"counts": counts})
    elif any(change is not None for change in (mesh, query, system)):
        if not isinstance(mesh, Mesh):
            points = max(2, round(tasks.mesh.points * (mesh or 1.0)))
            mesh = tasks.mesh.model_copy(update={"points": points})
        tasks = tasks.model_copy(
            update={
                "mesh": mesh,
                "query": query or tasks.query,
                "counts": Counts(train=0, validation=0, test=tasks.counts.test),
            }
        )
    return {"system": (system or experiment.system).spec(), "tasks": resolved(tasks)}


def shortened(training: StoredConfig, tasks: int, fewer: int) -> StoredConfig:
    """Settings that take as many steps with ``fewer`` (or more) tasks as with ``tasks``."""
    share = math.ceil(tasks / training.batch_size) / math.ceil(fewer / training.batch_size)
    lengths = {
        name: max(1, round(share * getattr(training, name)))
        for name in ("epochs", "validate_every")
    }
    return training.model_copy(update=lengths)


def _for_black_box(training: StoredConfig, baseline: BaselineConfig) -> StoredConfig:
    """The model's own settings, as far as the black box takes them."""
    changes: dict[str, Any] = {"epochs": baseline.epochs or training.epochs}
    if baseline.name == "fno":
        changes |= {"least_points": None, "most_points": None, "least_window": None}
        changes["reobserve"] = False
    return training.model_copy(update=changes)


def _targets(label: str, experiment: Experiment) -> dict[str, Stage]:
    """The tasks to infer, by the name of their split."""
    measured = {
        dataset: Stage("tasks", dataset.replace("-", "_"), {"dataset": dataset})
        for dataset in (*experiment.datasets, experiment.prior_from)
        if dataset is not None
    }
    fitted: tuple[Stage, ...] = ()
    if experiment.prior_from is not None:
        source = measured[experiment.prior_from]
        spec = {"system": experiment.system.spec(), "tasks": list(experiment.prior_tasks)}
        fitted = (Stage("fit", f"{label}_{source.label}", spec, (source,)),)

    def simulated(suffix: str, **changes: Any) -> Stage:
        return Stage("tasks", f"{label}{suffix}", simulation(experiment, **changes), fitted)

    targets = {"test": simulated("")}
    for mesh in experiment.test_meshes:
        name = mesh_label(mesh)
        targets[f"test@{name}"] = simulated(f"_mesh{name}", mesh=mesh)
    for query in experiment.test_queries:
        targets[f"test@query{query}"] = simulated(f"_query{query}", query=query)
    for name, changes in experiment.test_systems.items():
        changed = experiment.changed_system(changes)
        targets[f"test@{name}"] = simulated(f"_{name}", system=changed)
    for train in experiment.curve:
        targets[f"train{train}"] = simulated(f"_train{train}", train=train)
    return targets | {dataset: measured[dataset] for dataset in experiment.datasets}


def _evaluations(label: str, experiment: Experiment) -> Iterator[Evaluation]:
    targets = _targets(label, experiment)
    simulated = targets["test"]
    prior = "fitted to " + experiment.prior_from if experiment.prior_from else None

    def evaluation(method: str, seed: int, split: str, posterior: Stage) -> Evaluation:
        about = {
            "run": label,
            "experiment": experiment.system.name,
            "method": method,
            "prior": prior or experiment.system.prior_label,
            "seed": seed,
            "split": split,
        }
        tasks = posterior.parents[-1]
        scores = Stage("scores", posterior.label, about, (tasks, posterior))
        return Evaluation(label, method, seed, split, scores)

    train = experiment.tasks.counts.train
    routes: list[tuple[str, str, dict[str, Any]]] = []
    if train:
        settings = {
            "method": METHOD,
            "model": resolved(experiment.model),
            "training": resolved(experiment.training),
        }
        routes.append((METHOD, label, settings))
    strangers: tuple[int, ...] = ()
    if experiment.stream is not None:
        streamed = {"method": STREAM, **resolved(experiment.stream)}
        chosen = streamed.pop("strangers")
        strangers = experiment.seeds if chosen is None else tuple(chosen)
        routes.append((STREAM, f"{label}_stream", streamed))
    fewer = {f"train{size}": size for size in experiment.curve}
    for method, named, spec in routes:
        for seed in experiment.seeds:
            seeded = {**spec, "seed": seed}
            if method == STREAM and seed not in strangers:
                seeded["strangers"] = False
            model = Stage("model", f"{named}_seed{seed}", seeded, (simulated,))
            for split, tasks in targets.items():
                if split not in fewer:
                    name = f"{named}_seed{seed}_{tasks.label}"
                    posterior = Stage("posterior", name, {}, (model, tasks))
                    yield evaluation(method, seed, split, posterior)
                elif method == METHOD:
                    training = resolved(shortened(experiment.training, train, fewer[split]))
                    of_fewer = {**spec, "training": training, "seed": seed}
                    name = f"{tasks.label}_seed{seed}"
                    short = Stage("model", name, of_fewer, (tasks,))
                    posterior = Stage("posterior", name, {}, (short, simulated))
                    yield evaluation(method, seed, f"test@{split}", posterior)
            if experiment.refine is not None and method == routes[-1][0]:
                for split in experiment.references_on:
                    about = {"refine": resolved(experiment.refine)}
                    name = f"{named}_refined_seed{seed}_{targets[split].label}"
                    posterior = Stage("posterior", name, about, (model, targets[split]))
                    yield evaluation(REFINED, seed, split, posterior)
    for baseline in experiment.baselines:
        method, seed = baseline.name, experiment.seeds[0]
        spec = {
            "method": method,
            "model": resolved(MODEL_SECTIONS[method]()),
            "training": resolved(_for_black_box(experiment.training, baseline)),
            "seed": seed,
        }
        name = f"{label}_{method}_seed{seed}"
        model = Stage("model", name, spec, (simulated,))
        yield evaluation(method, seed, "test", Stage("posterior", name, {}, (model, simulated)))
    for reference in experiment.references:
        spec = {"reference": resolved(reference)}
        for split in experiment.references_on:
            tasks = targets[split]
            posterior = Stage("posterior", f"{tasks.label}_{reference.name}", spec, (tasks,))
            yield evaluation(reference.name, 0, split, posterior)


def _figures(label: str, experiment: Experiment, evaluations: list[Evaluation]) -> Iterator[Stage]:
    if not experiment.seeds:
        return
    first = experiment.seeds[0]
    if experiment.curve:
        inside = [e for e in evaluations if e.split == "test" or "@train" in e.split]
        scores = tuple(e.scores for e in inside if e.method != STREAM)
        yield Stage("figure", f"{label}_curve", {"figure": "curve"}, scores)
    for method in (METHOD, STREAM):
        named = label if method == METHOD else f"{label}_stream"
        trained = [e for e in evaluations if e.method == method]
        models = {e.seed: e.posterior.parents[0] for e in trained if e.split == "test"}
        for e in trained:
            if e.seed == first and e.split == "test":
                kind = "tasks" if len(experiment.system.axes) == 1 else "fields"
                floors = [
                    f.posterior
                    for f in evaluations
                    if (f.method, f.split) == ("mechanistic", "test")
                ]
                shown = (e.tasks, e.posterior, *(floors if kind == "fields" else ()))
                yield Stage("figure", f"{named}_tasks", {"figure": kind}, shown)
                honest = (e.tasks, e.posterior)
                yield Stage("figure", f"{named}_calibration", {"figure": "calibration"}, honest)
            if e.seed == first and e.split in experiment.datasets:
                name = f"{named}_{e.tasks.label}"
                kind = e.split.split("-")[0] if e.split != "hare-lynx" else "series"
                yield Stage("figure", name, {"figure": kind}, (e.tasks, e.posterior))
        if models:
            looked = tuple(models.values())
            yield Stage("figure", f"{named}_learning", {"figure": "learning"}, looked)
