"""A whole config: named experiments, each one system with its tasks, model and training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, Union

from pydantic import AfterValidator, Field, model_validator

from dklfm.config.sections import ModelConfig, PositiveFloat, TasksConfig, TrainingConfig
from dklfm.settings import Section
from dklfm.systems import SYSTEMS, System

if TYPE_CHECKING:
    AnySystem = System
else:
    AnySystem = Annotated[Union[SYSTEMS], Field(discriminator="name")]  # noqa: UP007 - the members are a run-time tuple
Dataset = Literal["p53-mmgmos", "p53-puma2007", "hare-lynx", "kni"]
"""Embedded tables of measurements that a trained model can be applied to."""

Reference = Literal["exact", "mechanistic"]
"""Methods that need no training: told the true parameters, or integrating over their prior."""


def _label(name: str) -> str:
    if not name or not all(c.isascii() and (c.isalnum() or c == "_") for c in name):
        raise ValueError("a name may hold letters, digits and underscores only")
    return name


Label = Annotated[str, AfterValidator(_label)]


class Experiment(Section):
    """One system simulated, learnt with each seed, scored, and applied to measurements.

    ``test_meshes`` are factors on the number of mesh points an axis at which the test tasks are
    observed again, to show that the model does not depend on the resolution; ``test_queries`` are
    query nodes an axis at which their forces are inferred too. ``references`` are methods that fit
    every test task by itself.
    """

    system: AnySystem
    tasks: TasksConfig = TasksConfig()
    model: ModelConfig = ModelConfig()
    training: TrainingConfig = TrainingConfig()
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = (0,)
    test_meshes: tuple[PositiveFloat, ...] = ()
    test_queries: tuple[Annotated[int, Field(ge=2)], ...] = ()
    datasets: tuple[Dataset, ...] = ()
    references: tuple[Reference, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        counts, encoder = self.tasks.counts, self.model.encoder.name
        if encoder == "fourier" and self.tasks.mesh.spacing != "regular":
            raise ValueError(
                "the fourier encoder needs tasks.mesh.spacing: regular; "
                "the transformer takes irregular meshes"
            )
        if encoder == "fourier" and self.training.least_points is not None:
            raise ValueError(
                "the fourier encoder needs whole meshes: set training.least_points: null"
            )
        if self.tasks.extrapolate and not self.system.extrapolates:
            raise ValueError(
                f"{self.system.name} is defined on its domain only: set tasks.extrapolate: 0"
            )
        for setting in ("seeds", "test_meshes", "test_queries"):
            if len(set(getattr(self, setting))) < len(getattr(self, setting)):
                raise ValueError(f"{setting} holds a value twice")
        if 1.0 in self.test_meshes:
            raise ValueError("test_meshes holds 1, which is the mesh of the test tasks themselves")
        if self.references and self.system.name != "reaction_diffusion":
            raise ValueError("references exact and mechanistic are for reaction_diffusion")
        if not (counts.train and counts.validation and counts.test):
            raise ValueError("tasks.counts needs at least one train, validation and test task")
        return self


class Config(Section):
    """A run of the pipeline."""

    results: Path = Path("results")
    device: Annotated[str, Field(pattern=r"^(cpu|cuda(:\d+)?|auto)$")] = "cpu"
    experiments: Annotated[dict[Label, Experiment], Field(min_length=1)]


def resolved(section: Section) -> dict[str, Any]:
    """A section with every default filled in, JSON-ready."""
    return section.model_dump(mode="json")
