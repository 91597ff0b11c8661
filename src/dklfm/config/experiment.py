"""A whole config: named experiments, each one system with its tasks, model and training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, Union

from pydantic import (
    AfterValidator,
    Field,
    TypeAdapter,
    ValidationError,
    WrapValidator,
    model_validator,
)

from dklfm.config.references import AnyBaseline, AnyReference, RefinementConfig
from dklfm.config.sections import (
    STREAM,
    Mesh,
    ModelConfig,
    OperatorConfig,
    PositiveFloat,
    PositiveInt,
    StoredConfig,
    StreamConfig,
    StreamModel,
    TasksConfig,
    TrainSpec,
)
from dklfm.settings import Section
from dklfm.systems import SYSTEMS, System
from dklfm.systems.custom import load_class

if TYPE_CHECKING:
    AnySystem = System
else:

    def _of_a_file(value: Any, handler: Callable[[Any], System]) -> System:
        """A system of the package by its name, or one of a person's own by its file."""
        if isinstance(value, str):
            value = {"file": value}
        if isinstance(value, Mapping) and "file" in value:
            kind = load_class(str(value["file"]))
            try:
                return kind.model_validate({k: v for k, v in value.items() if k != "file"})
            except ValidationError as error:
                detail = error.errors()[0]
                where = ".".join(map(str, detail["loc"]))
                raise ValueError(f"{where}: {detail['msg']}") from None
        return handler(value)

    AnySystem = Annotated[
        Union[SYSTEMS],  # noqa: UP007 - the members are a run-time tuple
        Field(discriminator="name"),
        WrapValidator(_of_a_file),
    ]
Dataset = Literal["p53-mmgmos", "p53-puma2007", "hare-lynx", "kni"]
"""Embedded tables of measurements that a trained model can be applied to."""


def _label(name: str) -> str:
    if not name or not all(c.isascii() and (c.isalnum() or c == "_") for c in name):
        raise ValueError("a name may hold letters, digits and underscores only")
    return name


Label = Annotated[str, AfterValidator(_label)]


class StreamedConfig(Section):
    """A model trained on a stream of tasks.

    The models of the seeds ``strangers`` (of all, if null) learn to tell tasks of their training
    from others, which takes minutes and is of use where measurements are inferred.
    """

    model: StreamModel = OperatorConfig()
    training: StreamConfig = StreamConfig()
    strangers: tuple[Annotated[int, Field(ge=0)], ...] | None = None

    @model_validator(mode="after")
    def _trainable(self) -> Self:
        TrainSpec(method=STREAM, model=self.model, training=self.training)
        return self


def mesh_label(mesh: float | Mesh) -> str:
    """How a mesh is named in splits: a factor on the points an axis, or its own."""
    return f"{mesh.spacing}{mesh.points}" if isinstance(mesh, Mesh) else f"{mesh:g}x"


class Experiment(Section):
    """One system simulated, learnt with each seed, scored, and applied to measurements.

    ``test_meshes`` are factors on the number of mesh points an axis at which the test tasks are
    observed again, to show that the model does not depend on the resolution; ``test_queries`` are
    query nodes an axis at which their forces are inferred too. ``baselines`` are black boxes
    trained on the same tasks, ``references`` methods that fit every test task by itself; an
    experiment of references alone trains nothing and has no ``seeds``. ``stream`` is a model
    trained on fresh tasks throughout; with ``counts.train`` of 0 it is the only one.
    ``test_systems`` are changes of the system under which the models are tested too, such as
    another number of genes. References fit the tasks of the splits ``references_on``; there,
    with ``refine``, the posterior of the streamed model is refined too, or else that of the model
    of stored tasks. With ``prior_from`` the system is first fitted to those measurements (to the
    ``prior_tasks`` among them, or to all), and tasks are simulated from the parameters' posterior.
    ``curve`` are numbers of training tasks that models are trained with too, as many steps as with
    the experiment's own number, to see how the error falls.
    """

    system: AnySystem
    tasks: TasksConfig = TasksConfig()
    model: ModelConfig = ModelConfig()
    training: StoredConfig = StoredConfig()
    prior_from: Dataset | None = None
    prior_tasks: tuple[str, ...] = ()
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = (0,)
    stream: StreamedConfig | None = None
    test_meshes: tuple[PositiveFloat | Mesh, ...] = ()
    test_systems: dict[Label, dict[str, Any]] = Field(default_factory=dict)
    test_queries: tuple[Annotated[int, Field(ge=2)], ...] = ()
    datasets: tuple[Dataset, ...] = ()
    baselines: tuple[AnyBaseline, ...] = ()
    references: tuple[AnyReference, ...] = ()
    references_on: tuple[str, ...] = ("test",)
    refine: RefinementConfig | None = None
    curve: tuple[PositiveInt, ...] = ()

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
        if encoder == "fourier" and self.training.reobserve:
            raise ValueError("the fourier encoder needs whole meshes: leave out training.reobserve")
        if self.tasks.extrapolate and not self.system.extrapolates:
            raise ValueError(
                f"{self.system.name} is defined on its domain only: set tasks.extrapolate: 0"
            )
        lists: dict[str, list[Any]] = {
            name: list(getattr(self, name))
            for name in ("seeds", "test_queries", "datasets", "curve", "references_on")
        }
        lists["test_meshes"] = [mesh_label(mesh) for mesh in self.test_meshes]
        lists["references"] = [reference.name for reference in self.references]
        lists["baselines"] = [baseline.name for baseline in self.baselines]
        for setting, values in lists.items():
            if len(set(values)) < len(values):
                raise ValueError(f"{setting} holds a value twice")
        if mesh_label(1.0) in lists["test_meshes"]:
            raise ValueError("test_meshes holds 1, which is the mesh of the test tasks themselves")
        if "fno" in lists["baselines"] and self.tasks.mesh.spacing != "regular":
            raise ValueError("the baseline fno needs tasks.mesh.spacing: regular")
        trains = counts.train or self.stream
        if not counts.test or (self.seeds and not (trains and counts.validation)):
            raise ValueError("tasks.counts needs at least one train, validation and test task")
        if not counts.train and (self.curve or self.baselines):
            raise ValueError("curve and baselines need stored tasks: set tasks.counts.train")
        if self.stream and not set(self.stream.strangers or ()) <= set(self.seeds):
            raise ValueError("stream.strangers names a seed that is not among seeds")
        for changes in self.test_systems.values():
            self.changed_system(changes)
        for name in self.references_on:
            if name not in self.splits:
                raise ValueError(
                    f"references_on: there is no split {name!r}; there are {', '.join(self.splits)}"
                )
        finite = "coefficients" in self.system.white_shapes()
        if self.refine and (len(self.system.axes) > 1 or not finite):
            raise ValueError(
                f"refine: {self.system.name} is no ordinary differential equation with a Gaussian "
                "process for its force; leave it out"
            )
        if not self.seeds:
            trained = ("test_meshes", "test_queries", "datasets", "curve", "baselines")
            others = (
                any(lists[setting] for setting in trained)
                or self.test_systems
                or self.stream
                or self.refine
            )
            if others or not self.references:
                raise ValueError("without seeds nothing is trained: give references, and no others")
        return self

    @property
    def splits(self) -> tuple[str, ...]:
        """The names of the splits of simulated tasks that are tested."""
        meshes = (f"test@{mesh_label(mesh)}" for mesh in self.test_meshes)
        queries = (f"test@query{query}" for query in self.test_queries)
        return ("test", *meshes, *queries, *(f"test@{name}" for name in self.test_systems))

    def changed_system(self, changes: Mapping[str, Any]) -> System:
        """The system with some settings changed.

        Raises:
            ValueError: if it is then no system.
        """
        settings = self.system.model_dump(mode="json") | dict(changes)
        return TypeAdapter[System](AnySystem).validate_python(settings)


class Config(Section):
    """A run of the pipeline.

    ``scheduler`` is the address of a dask scheduler whose workers simulate, instead of processes
    of the job itself; they must see the same files.
    """

    results: Path = Path("results")
    scheduler: Annotated[str, Field(pattern=r"^(tcp|tls|ucx)://[\w.:\[\]-]+$")] | None = None
    device: Annotated[str, Field(pattern=r"^(cpu|cuda(:\d+)?|auto)$")] = "cpu"
    experiments: Annotated[dict[Label, Experiment], Field(min_length=1)]


def resolved(section: Section) -> dict[str, Any]:
    """A section with every default filled in, JSON-ready."""
    return section.model_dump(mode="json")
