"""Whether a system keeps the promises of the protocol: what inference and the pipeline rely on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from scipy.stats import ks_2samp

from dklfm.systems.base import Array, Draw, System, stack

_DRAWS, _POINTS = 200, 9
_CHANCE = 1e-4
"""A test of equal laws fails by chance so rarely."""


class Finding(NamedTuple):
    """One promise, and what breaks it; empty if nothing does."""

    promise: str
    fault: str


def check_system(system: System) -> Iterator[Finding]:
    """Every promise in turn; an exception in the system's own code is a fault too."""
    for promise, look in _PROMISES.items():
        try:
            with np.errstate(all="ignore"):  # what is not finite is a finding, not a warning
                fault = look(system)
        except Exception as error:  # whatever another's code raises
            fault = f"{type(error).__name__}: {error}"
        yield Finding(promise, fault or "")


def _draws(system: System, count: int = 8, seed: int = 0) -> Draw:
    rng = np.random.default_rng(seed)
    return stack([system.draw(rng) for _ in range(count)])


def _inputs(system: System, tasks: int, points: int = _POINTS) -> Array:
    rng = np.random.default_rng(1)
    x = np.stack([rng.uniform(a.low, a.high, (tasks, points)) for a in system.axes], -1)
    return x[:, np.argsort(x[0, :, 0])] if x.shape[-1] > 1 else np.sort(x, axis=1)


def _white(system: System, count: int) -> dict[str, Array]:
    rng = np.random.default_rng(2)
    return {name: rng.standard_normal((count, *s)) for name, s in system.white_shapes().items()}


def _draws_stack(system: System) -> str | None:
    draws = _draws(system)
    missing = [name for name in system.parameters if name not in draws]
    return f"draw() lacks the parameter {missing[0]}" if missing else None


def _seeds_repeat(system: System) -> str | None:
    one, two = _draws(system), _draws(system)
    same = all(np.array_equal(one[name], two[name]) for name in one)
    return None if same else "draw() uses other random numbers than those of its generator"


def _solutions_have_their_shapes(system: System) -> str | None:
    draws, x = _draws(system), _inputs(system, 8)
    found = system.solve(draws, x)
    for name, shape in (("force", (8, _POINTS)), ("outputs", (8, len(system.outputs), _POINTS))):
        values = getattr(found, name)
        if values.shape != shape:
            return f"solve() gives {name} of shape {values.shape}, not {shape}"
        if not np.isfinite(values).all():
            return f"solve() gives {name} that are not finite"
        if not np.ptp(values) > 0:
            return f"solve() gives {name} that never vary"
    return None


def _no_mesh_matters(system: System) -> str | None:
    draws, x = _draws(system), _inputs(system, 8)
    whole, part = system.solve(draws, x), system.solve(draws, x[:, ::2])
    gap = np.abs(whole.outputs[..., ::2] - part.outputs).max() / np.abs(whole.outputs).max()
    return None if gap < 1e-6 else f"outputs change by {gap:.1g} when other points are left out"


def _no_neighbour_matters(system: System) -> str | None:
    draws, x = _draws(system), _inputs(system, 8)
    alone = system.solve({name: value[2:3] for name, value in draws.items()}, x[2:3])
    gap = np.abs(system.solve(draws, x).outputs[2:3] - alone.outputs).max()
    return None if gap < 1e-6 * np.abs(alone.outputs).max() else "a task depends on its batch"


def _white_variables_have_the_same_law(system: System) -> str | None:
    try:
        shapes = system.white_shapes()
    except NotImplementedError:
        return None  # such a system has no mechanistic reference, and is told so there
    if not shapes:
        return "white_shapes() is empty"
    drawn, made = _draws(system, _DRAWS), system.from_white(_white(system, _DRAWS))
    if made.keys() != drawn.keys():
        return f"from_white() gives {sorted(made)}, draw() {sorted(drawn)}"
    for name in drawn:
        first, second = (np.asarray(d[name]).reshape(_DRAWS, -1)[:, 0] for d in (drawn, made))
        if np.ptp(first) > 0 and ks_2samp(first, second).pvalue < _CHANCE:
            return f"{name} has another law in from_white() than in draw()"
    return None


def _derivatives_are_right(system: System) -> str | None:
    try:
        if "coefficients" not in system.white_shapes():
            return None
    except NotImplementedError:
        return None
    draws, x = dict(system.from_white(_white(system, 2))), _inputs(system, 2)
    known, plain = system.linearise(draws, x), System.linearise(system, draws, x)
    scale = np.abs(plain.output_gradient).max()
    gap = np.abs(known.output_gradient - plain.output_gradient).max()
    return None if gap <= 1e-3 * scale else f"linearise() is off by {gap / scale:.1g}"


def _settings_are_json(system: System) -> str | None:
    settings = system.spec()
    if settings.get("name") in (None, ""):
        return "the system has no name"
    rebuilt = type(system).model_validate(
        {name: value for name, value in settings.items() if name not in ("file", "resources")}
    )
    return None if rebuilt == system else "the system made from its own settings is another one"


_PROMISES: dict[str, Callable[[System], str | None]] = {
    "its settings say all of it": _settings_are_json,
    "draws have fixed shapes and hold the parameters": _draws_stack,
    "the same seed gives the same draw": _seeds_repeat,
    "solutions are finite, and shaped task x output x point": _solutions_have_their_shapes,
    "a point's value does not depend on the other points": _no_mesh_matters,
    "a task's value does not depend on the other tasks": _no_neighbour_matters,
    "white variables give the prior's law": _white_variables_have_the_same_law,
    "derivatives by the force are right": _derivatives_are_right,
}
