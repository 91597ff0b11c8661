"""The sections of a config: what is simulated, which model, how it is trained."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    TypeAdapter,
    ValidationInfo,
    field_validator,
    model_validator,
)

from dklfm.settings import Constant, Noise, Section, positive

Count = Annotated[int, Field(ge=0, le=1_000_000)]
PositiveInt = Annotated[int, Field(ge=1, le=1_000_000)]
Size = Annotated[int, Field(ge=1, le=1024)]
"""Of a part of a network."""
PositiveFloat = Annotated[float, Field(gt=0)]
LaterSwitch = Annotated[bool, Field(exclude_if=lambda chosen: not chosen)]
"""Left out of what is resolved unless it is on: keys of models that never heard of it stay."""


class Counts(Section):
    """How many tasks each split holds, fixed at simulation."""

    train: Count = 256
    validation: Count = 64
    test: Count = 128

    @property
    def total(self) -> int:
        return self.train + self.validation + self.test


class Mesh(Section):
    """Where a task is observed.

    ``regular``: an even grid over the domain with ``points`` nodes an axis.
    ``irregular``: ``points`` uniform random locations, drawn anew for each task.
    """

    spacing: Literal["regular", "irregular"] = "irregular"
    points: Annotated[int, Field(ge=2, le=2000)] = 30


class TasksConfig(Section):
    """Which tasks are simulated from a system, and with how much noise.

    ``noise`` is the standard deviation of the noise on an output as a share of that output's
    own standard deviation over the task; ``force_noise`` is absolute. ``query`` is the number
    of nodes an axis of the even grid on which noise-free truth is stored; the grid reaches
    ``extrapolate`` times the domain's length beyond it on either side.
    """

    seed: Annotated[int, Field(ge=0)] = 0
    counts: Counts = Counts()
    mesh: Mesh = Mesh()
    query: Annotated[int, Field(ge=2, le=2000)] = 61
    extrapolate: Annotated[float, Field(ge=0, le=5)] = 0.0
    noise: Annotated[Noise, AfterValidator(positive)] = Constant(value=0.02)
    force_noise: Annotated[float, Field(ge=0)] = 0.02


def _divided(width: int, heads: int) -> None:
    """Refuse heads of attention that a width is not a multiple of."""
    if heads and width % heads:
        raise ValueError(f"width {width} must be a multiple of heads {heads}")


class _AttentionConfig(Section):
    width: Size = 64
    layers: Size = 2
    heads: Size = 4
    frequencies: Size = 6

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        _divided(self.width, self.heads)
        return self


class TransformerConfig(_AttentionConfig):
    """Self-attention over the points of an output; any mesh."""

    name: Literal["transformer"] = "transformer"


class FourierConfig(Section):
    """Fourier neural operator over the points of an output; full regular meshes only."""

    name: Literal["fourier"] = "fourier"
    width: Size = 64
    layers: Size = 3
    modes: Size = 8


class KernelConfig(Section):
    """The networks NN_f, NN_h, NN_c and the base kernel.

    ``amplitudes`` > 0 multiplies the base kernel by a·a'/amplitudes with learned signed vectors a,
    so that the force may be anticorrelated with an output; 0 is the paper's form.
    ``concatenate_inputs`` feeds x to the base kernel beside the network's coordinates.
    ``differential`` makes the force a learnt differential operator, up to the second order, of the
    process that the outputs are read from.
    """

    base: Literal["rbf", "periodic"] = "rbf"
    width: Size = 64
    blocks: Size = 2
    coordinates: Size = 16
    amplitudes: Annotated[int, Field(ge=0, le=256)] = 4
    concatenate_inputs: bool = False
    differential: LaterSwitch = False

    @model_validator(mode="after")
    def _smooth(self) -> Self:
        if self.differential and self.base != "rbf":
            raise ValueError("differential needs base: rbf")
        return self


class FourierFeaturesConfig(Section):
    """Sines and cosines of x at log-spaced frequencies, in cycles over the domain."""

    name: Literal["fourier"] = "fourier"
    frequencies: Size = 5
    lowest: PositiveFloat = 0.25
    highest: PositiveFloat = 2.0


class PeriodFeaturesConfig(Section):
    """Harmonics of a period that the encoder infers for each task, as a share of the domain.

    Nothing else of x is fed to the networks, so that they go on periodically beyond the domain.
    """

    name: Literal["period"] = "period"
    harmonics: Size = 3
    shortest: PositiveFloat = 0.2
    longest: PositiveFloat = 0.7

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.shortest < self.longest:
            raise ValueError("shortest must be below longest")
        return self


class ModelConfig(Section):
    """The deep kernel latent force model.

    ``exchangeable`` outputs have one law and may be of any number; others are told apart by their
    place. ``noise`` states the likelihood of the outputs: ``homoscedastic``, one learned variance
    for all; ``relative``, a learned share of each observed output's variance; ``given``, the
    standard deviations that come with the tasks plus a learned homoscedastic excess. With several
    ``members``, so many networks are trained side by side, and their mixture is the answer.
    """

    embedding: Size = 32
    encoder: Annotated[TransformerConfig | FourierConfig, Field(discriminator="name")] = (
        TransformerConfig()
    )
    kernel: KernelConfig = KernelConfig()
    features: Annotated[
        FourierFeaturesConfig | PeriodFeaturesConfig, Field(discriminator="name")
    ] = FourierFeaturesConfig()
    output_mean: Literal["zero", "network"] = "network"
    noise: Literal["homoscedastic", "relative", "given"] = "relative"
    # Left out of what is resolved unless they differ from what they are here: see LaterSwitch.
    exchangeable: Annotated[bool, Field(exclude_if=lambda chosen: chosen)] = True
    members: Annotated[int, Field(ge=1, le=32, exclude_if=lambda count: count == 1)] = 1


class NeuralProcessConfig(_AttentionConfig):
    """A black box: attention over all observations of a task, and of queries to them; any mesh."""


class FourierRegressorConfig(Section):
    """A black box: a Fourier neural operator from all outputs to the force; regular meshes only."""

    width: Size = 32
    layers: Size = 2
    modes: Size = 8


class OperatorConfig(Section):
    """The amortised posterior: functions on a grid of ``nodes`` an axis; any mesh, missing values.

    Observations come onto the grid by a Gaussian process of ``lengthscale``, a share of the domain;
    with ``modes`` also by the best linear estimate in so many modes of the outputs, whose joint
    law with the force is learnt from simulated tasks to second order.
    ``exchangeable`` outputs have one law and may be of any number; others are told apart by their
    place, which ``modes`` need. ``coordinates`` are those of the deep kernel of the residual.
    """

    name: Literal["operator"] = "operator"
    nodes: Annotated[int, Field(ge=4, le=256)] = 32
    lengthscale: PositiveFloat = 0.12
    width: Size = 64
    layers: Size = 4
    heads: Size = 4
    frequencies: Size = 4
    coordinates: Size = 8
    # Left out of what is resolved unless there are any: see LaterSwitch.
    modes: Annotated[int, Field(ge=0, le=1024, exclude_if=lambda count: not count)] = 0
    exchangeable: bool = False
    output_weight: Annotated[float, Field(ge=0)] = 0.05
    joint_weight: Annotated[float, Field(ge=0)] = 0.1

    @model_validator(mode="after")
    def _sensible(self) -> Self:
        _divided(self.width, self.heads)
        if self.modes and self.exchangeable:
            raise ValueError("modes are of outputs that are told apart: set exchangeable: false")
        return self


class SolutionConfig(Section):
    """A solution operator by least squares, and posteriors by Gauss-Newton on it.

    Each output has so many positive ``parameters`` of its own. The weights of its modes are linear
    in products of up to ``degree`` of these and their logarithms with ``response_modes`` components
    of what the force stands for. The force's weights follow one of so many Gaussian ``laws``, under
    each of which as many ``iterations`` lead from the network's answer to the mode. With any
    ``samples`` the parameters are drawn about the modes so often, and the draws weighted.
    """

    parameters: Annotated[int, Field(ge=1, le=8)] = 3
    degree: Annotated[int, Field(ge=1, le=4)] = 3
    response_modes: Annotated[int, Field(ge=1, le=64)] = 24
    laws: Annotated[int, Field(ge=1, le=32)] = 8
    iterations: Annotated[int, Field(ge=1, le=200)] = 20
    # Left out of what is resolved unless there are any: see LaterSwitch.
    samples: Annotated[
        int, Field(ge=0, le=4096, multiple_of=2, exclude_if=lambda count: not count)
    ] = 0


class LinearisedConfig(Section):
    """The amortised posterior by conditioning on an equation that a network makes linear; any mesh.

    Each output is a combination of ``modes``, the force of ``force_modes``, both learnt from
    simulated tasks on an even grid of ``nodes`` an axis; ``unknowns`` more numbers stand for what
    else is unknown of all outputs together, ``own_unknowns`` for what is of each by itself. The
    network, ``width`` wide with ``layers`` blocks, linearises in as many ``passes``, each of which
    sees what the last one found; with ``adaptive_prior`` it also says which forces are to be
    expected, as by their lengthscale. ``exchangeable`` outputs have one law and may be of any
    number; each sees the mean of all, and attends to them with as many ``heads`` as there are.
    Others are told apart by their place. With a ``solution`` operator the network's answer is where
    iteration begins.
    """

    name: Literal["linearised"] = "linearised"
    nodes: Annotated[int, Field(ge=4, le=256)] = 61
    modes: Annotated[int, Field(ge=3, le=256)] = 16
    force_modes: Annotated[int, Field(ge=1, le=256)] = 18
    unknowns: Annotated[int, Field(ge=0, le=256)] = 14
    # Left out of what is resolved unless there are any: see LaterSwitch.
    own_unknowns: Annotated[int, Field(ge=0, le=64, exclude_if=lambda count: not count)] = 0
    width: Size = 256
    layers: Size = 4
    heads: Annotated[int, Field(ge=0, le=1024)] = 8
    passes: Size = 1
    exchangeable: bool = False
    adaptive_prior: LaterSwitch = False
    solution: Annotated[SolutionConfig | None, Field(exclude_if=lambda chosen: chosen is None)] = (
        None
    )
    output_weight: Annotated[float, Field(ge=0)] = 0.05
    joint_weight: Annotated[float, Field(ge=0)] = 0.0

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        if self.exchangeable:
            _divided(self.width, self.heads)
        return self


class GreenConfig(Section):
    """The amortised posterior of an equation that is linear in its force; any mesh.

    Force and outputs are combinations of ``force_modes`` and ``modes``, products of functions of
    each axis on a grid of Chebyshev ``nodes``. How those of the outputs follow from the force's is
    learnt from simulated tasks: it is polynomial in the equation's positive parameters, of the
    ``degrees`` by their names, and ``proportional`` to one of them, if one is named.
    ``lengthscales`` are the parameters that the force's covariance depends on, one an axis. A
    network, ``width`` wide with ``layers`` blocks, infers the parameters; from there at most so
    many ``iterations`` lead to the mode of their posterior, and two rounds of ``samples`` are
    averaged.
    """

    name: Literal["green"] = "green"
    nodes: Annotated[int, Field(ge=4, le=256)] = 37
    modes: Annotated[int, Field(ge=3, le=512)] = 200
    force_modes: Annotated[int, Field(ge=1, le=512)] = 256
    degrees: dict[str, Annotated[int, Field(ge=1, le=16)]] = Field(min_length=1, max_length=4)
    proportional: str | None = None
    lengthscales: tuple[str, ...] = Field(min_length=1, max_length=2)
    width: Size = 256
    layers: Size = 3
    iterations: Annotated[int, Field(ge=1, le=200)] = 12
    samples: Annotated[int, Field(ge=8, le=4096)] = 16

    @property
    def parameters(self) -> tuple[str, ...]:
        """The names of all, in the order of the embedding."""
        first = () if self.proportional is None else (self.proportional,)
        return (*first, *self.degrees, *self.lengthscales)

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        if len(set(self.parameters)) < len(self.parameters):
            raise ValueError(
                "a parameter is named twice in proportional, degrees and lengthscales: "
                + ", ".join(self.parameters)
            )
        return self

    @model_validator(mode="after")
    def _representable(self) -> Self:
        most = self.nodes ** len(self.lengthscales)
        for name in ("modes", "force_modes"):
            if getattr(self, name) > most:
                raise ValueError(f"{name} must be at most {most}, as many as the grid has nodes")
        return self


class TrainingConfig(Section):
    """Optimisation of the marginal likelihood (Eq. 4) by ``optimiser`` under a one-cycle rate.

    Each step sees a random subset of ``least_points`` to ``most_points`` points (all, if the first
    is null; without an upper bound, if the second is) and of at least ``least_outputs`` outputs.
    With ``least_window`` the encoder sees only a random window of at least that share of the first
    axis, while the likelihood covers all points: the model learns to go on beyond what it was
    shown. ``reflect_axes`` and ``negate`` turn each task at random into its mirror image along
    those axes, or change the sign of its force and outputs: for equations that are symmetric so.
    ``conditional_weight`` adds that multiple of −log p(f|y). Weights are averaged over steps with
    the decay ``average`` (0 for none); the averages kept are those of the best validation
    log p(f|y), looked at every ``validate_every`` epochs.
    """

    epochs: PositiveInt = 200
    batch_size: PositiveInt = 32
    # Left out of what is resolved unless it is another: see LaterSwitch.
    optimiser: Annotated[
        Literal["adamw", "soap"], Field(exclude_if=lambda chosen: chosen == "adamw")
    ] = "adamw"
    learning_rate: PositiveFloat = 2e-3
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    clip_norm: PositiveFloat = 1.0
    average: Annotated[float, Field(ge=0, lt=1)] = 0.99
    least_points: PositiveInt | None = 10
    most_points: PositiveInt | None = None
    least_outputs: PositiveInt | None = 2
    least_window: Annotated[float, Field(gt=0, le=1)] | None = None
    reflect_axes: tuple[Annotated[int, Field(ge=0)], ...] = ()
    negate: bool = False
    conditional_weight: Annotated[float, Field(ge=0)] = 0.0
    validate_every: PositiveInt = 5

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        least, most = self.least_points, self.most_points
        if most is not None and (least is None or least > most):
            raise ValueError(f"most_points {most} needs least_points at or below it, got {least}")
        return self


class StoredConfig(TrainingConfig):
    """Training on tasks that are stored.

    With ``reobserve`` every epoch observes them anew: at as many random points of the query grid,
    with fresh noise.
    """

    reobserve: LaterSwitch = False


class StreamConfig(TrainingConfig):
    """Training on tasks that are simulated afresh for each epoch and never stored.

    ``tasks`` are those of an epoch, each observed ``observations`` times: at other points, with
    other noise. Epochs take their ``meshes`` in turn; without any, the mesh is that of the
    validation tasks. Operator and linearised models are judged by the truth at ``queries`` random
    points of the query grid (all, if null). They have no use for ``least_window``,
    ``reflect_axes``, ``negate`` and ``conditional_weight``. With ``few_outputs`` a step sees few
    outputs as often as many: each doubling of their number from ``least_outputs`` on alike.
    """

    tasks: PositiveInt = 256
    few_outputs: LaterSwitch = False
    # Left out of what is resolved unless there are several: see LaterSwitch.
    observations: Annotated[int, Field(ge=1, le=1024, exclude_if=lambda count: count == 1)] = 1
    meshes: tuple[Mesh, ...] = ()
    queries: PositiveInt | None = None


class KernelRouteConfig(ModelConfig):
    """The kernel route with an encoder for a stream of tasks; any mesh.

    The encoder also sees the outputs smoothed by a Gaussian process of ``lengthscale``, a share of
    the domain, and lets outputs attend to one another in ``across`` layers. ``exchangeable`` as for
    the operator.
    """

    name: Literal["kernel_route"] = "kernel_route"
    encoder: TransformerConfig = TransformerConfig()
    lengthscale: PositiveFloat = 0.12
    across: Size = 2
    exchangeable: bool = False


STREAM = "dklfm_stream"
TrainedMethod = Literal["dklfm", "dklfm_stream", "neural_process", "fno"]
StreamModel = Annotated[
    OperatorConfig | LinearisedConfig | GreenConfig | KernelRouteConfig,
    Field(discriminator="name"),
    BeforeValidator(lambda value: {"name": "operator"} if value == {} else value),
]
AnyModel = (
    ModelConfig
    | KernelRouteConfig
    | OperatorConfig
    | LinearisedConfig
    | GreenConfig
    | NeuralProcessConfig
    | FourierRegressorConfig
)
MODEL_SECTIONS: dict[str, Any] = {
    "dklfm": ModelConfig,
    "dklfm_stream": StreamModel,
    "neural_process": NeuralProcessConfig,
    "fno": FourierRegressorConfig,
}
"""The section that ``model`` is, by the name of the method."""


class TrainSpec(Section):
    """Everything that determines a trained model, given its tasks.

    With ``strangers`` a streamed model learns to tell tasks of its training from others.
    """

    method: TrainedMethod = "dklfm"
    model: AnyModel = Field(default_factory=dict, validate_default=True)
    training: StreamConfig | StoredConfig = Field(default_factory=dict, validate_default=True)
    seed: int = 0
    # Left out of what is resolved unless it is off: see LaterSwitch.
    strangers: Annotated[bool, Field(exclude_if=lambda chosen: chosen)] = True

    @field_validator("model", mode="before")
    @classmethod
    def _model_of_the_method(cls, value: Any, info: ValidationInfo) -> AnyModel:
        section = MODEL_SECTIONS[info.data.get("method", "dklfm")]
        return TypeAdapter[AnyModel](section).validate_python(value)

    @field_validator("training", mode="before")
    @classmethod
    def _training_of_the_method(
        cls, value: Any, info: ValidationInfo
    ) -> StreamConfig | StoredConfig:
        section = StreamConfig if info.data.get("method") == STREAM else StoredConfig
        return section.model_validate(value)

    @model_validator(mode="after")
    def _nothing_unheard(self) -> Self:
        if isinstance(self.model, OperatorConfig | LinearisedConfig | GreenConfig):
            fresh = StreamConfig()
            for setting in ("least_window", "reflect_axes", "negate", "conditional_weight"):
                if getattr(self.training, setting) != getattr(fresh, setting):
                    raise ValueError(
                        f"{self.model.name} has no use for training.{setting}: leave it out, or "
                        "take model.name: kernel_route"
                    )
        return self

    @model_validator(mode="after")
    def _whole_meshes(self) -> Self:
        for setting in ("least_points", "least_window"):
            if self.method == "fno" and getattr(self.training, setting) is not None:
                raise ValueError(f"fno needs whole meshes: set training.{setting}: null")
        stored = self.training
        if self.method == "fno" and isinstance(stored, StoredConfig) and stored.reobserve:
            raise ValueError("fno needs whole meshes: leave training.reobserve out")
        return self
