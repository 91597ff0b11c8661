"""``dklfm simulate``, ``train`` and ``config``: models of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dklfm.cli.common import Device, Folder, Out, Spec, command, read_spec

app = typer.Typer()


@app.command()
@command
def simulate(
    spec: Spec,
    out: Out,
    workers: Annotated[int, typer.Option(min=1, help="Processes of a local cluster.")] = 1,
    scheduler: Annotated[str | None, typer.Option(help="Address of a dask scheduler.")] = None,
    fitted: Annotated[
        Path | None, typer.Option(help="Product of fit, whose system replaces the settings'.")
    ] = None,
) -> None:
    """Simulate tasks from a system's prior: sections ``system`` and ``tasks``."""
    from dklfm import simulate as simulation
    from dklfm.artifacts import MANIFEST, read_json

    settings = read_spec(spec)
    if fitted is not None:
        settings["system"] = read_json(fitted / MANIFEST).get("system")
    simulation.run(settings, out, workers, scheduler)


@app.command()
@command
def train(spec: Spec, tasks: Folder, out: Out, device: Device = "cpu") -> None:
    """Train a model on simulated tasks: sections ``model`` and ``training``, and a ``seed``."""
    from dklfm import training
    from dklfm.artifacts import MANIFEST, read_json
    from dklfm.tasks import load_tasks

    settings = read_spec(spec)
    loaded = load_tasks(tasks)
    manifest = read_json(tasks / MANIFEST)
    simulation, cost = manifest.get("spec"), manifest.get("simulation_cpu_s", 0.0)
    training.run(settings, loaded, out, device, simulation=simulation, simulation_cpu_s=cost)


@app.command()
@command
def config(
    path: Annotated[Path, typer.Argument(help="A config file.")],
    schema: Annotated[
        bool, typer.Option("--schema", help="Write the JSON schema of config files there instead.")
    ] = False,
) -> None:
    """Check a config file and list what it makes."""
    from dklfm.artifacts import write_json
    from dklfm.config import Plan, json_schema, load_config

    if schema:
        write_json(path, json_schema())
        return
    plan = Plan.of(load_config(path))
    for name, paths in plan.index().items():
        typer.echo(f"{name}: " + "  ".join(paths.values()))
