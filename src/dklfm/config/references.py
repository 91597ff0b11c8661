"""Methods that a model is compared with, as they are named in a config."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from dklfm.config.sections import PositiveFloat, PositiveInt
from dklfm.settings import Section


class _Reference(Section):
    """``tasks``: how many test tasks are fitted, the first ones; all of them if null."""

    tasks: PositiveInt | None = None


class ExactConfig(_Reference):
    """Gaussian conditioning with the true parameters; for linear equations."""

    name: Literal["exact"] = "exact"


class MechanisticConfig(_Reference):
    """The equation itself, told the prior; or told the true parameters, in ``_known``.

    The mode of the posterior is sought from the best of ``starts`` draws of the prior; ``samples``
    importance weights correct the Laplace approximation there, or with the sampler ``emcee`` so
    many draws of a Markov chain: slower, and the check on the former (extra ``sampling``).
    """

    name: Literal["mechanistic", "mechanistic_known"] = "mechanistic"
    starts: PositiveInt = 16
    sampler: Literal["importance", "emcee"] = "importance"
    samples: PositiveInt = 512


class AlfiConfig(_Reference):
    """Variational inducing points for the force, through a differentiable solver.

    All parameters are free, or some ``_anchored`` at the truth to fix the force's scale, or all
    ``_known``.
    """

    name: Literal["alfi", "alfi_anchored", "alfi_known"] = "alfi"
    inducing: PositiveInt = 22
    """Inducing points an axis."""
    iterations: PositiveInt = 200
    learning_rate: PositiveFloat = 0.05
    samples: PositiveInt = 8
    """Force samples a step."""


class DeepLFMConfig(_Reference):
    """A deep Gaussian process of random features of the equation dy/dt + γy = u.

    ``features`` is the number of random frequencies for each input of a layer, ``samples`` the
    number of Monte Carlo samples of the hidden units in a step: 100 both, as in the authors' demo.
    """

    name: Literal["deeplfm"] = "deeplfm"
    layers: PositiveInt = 2
    """The last one gives the outputs."""
    width: PositiveInt = 5
    """Units of a hidden layer."""
    features: PositiveInt = 100
    samples: PositiveInt = 100
    iterations: PositiveInt = 400
    learning_rate: PositiveFloat = 0.03


class RefinementConfig(Section):
    """The equation itself, told the prior, from where a trained model's answer leads.

    ``samples`` sets of parameters, in opposite pairs, around the mode that is found there are
    weighted by the equation's posterior.
    """

    samples: Annotated[int, Field(ge=2)] = 32


class BaselineConfig(Section):
    """A black box trained like the model itself, on the same tasks, with the first seed.

    ``epochs`` are the experiment's own if null.
    """

    name: Literal["neural_process", "fno"]
    epochs: PositiveInt | None = None


def _bare_name(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


ReferenceConfig = ExactConfig | MechanisticConfig | AlfiConfig | DeepLFMConfig
AnyReference = Annotated[
    Annotated[ReferenceConfig, Field(discriminator="name")], BeforeValidator(_bare_name)
]
"""In YAML: ``mechanistic`` or ``{name: mechanistic, tasks: 64}``."""
AnyBaseline = Annotated[BaselineConfig, BeforeValidator(_bare_name)]
"""Likewise: ``neural_process`` or ``{name: fno, epochs: 60}``."""
