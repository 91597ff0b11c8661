"""A mass on a spring, pushed by a force that nobody saw: m x'' + c x' + k x = f(t), with m = 1."""

from typing import ClassVar, Literal

from dklfm.settings import Distribution, LogNormal, Uniform
from dklfm.systems import ForcedODE


class Oscillator(ForcedODE):
    """A damped oscillator, at rest until the force begins; only its position is measured."""

    name: Literal["oscillator"] = "oscillator"
    force_name: ClassVar[str] = "driving force"
    states: ClassVar[tuple[str, ...]] = ("position", "velocity")
    observed: ClassVar[tuple[str, ...]] = ("position",)
    varying: ClassVar[tuple[str, ...]] = ("stiffness", "damping")
    unit: ClassVar[str] = "s"

    stiffness: Distribution = LogNormal(median=4.0, spread=0.2)
    damping: Distribution = Uniform(low=0.3, high=1.0)

    def derivative(self, states, force, parameters):
        pull = parameters["stiffness"] * states["position"]
        drag = parameters["damping"] * states["velocity"]
        return {"position": states["velocity"], "velocity": force - drag - pull}
