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
    scheduler: Annotated[
        str | None, typer.Option(envvar="DKLFM_SCHEDULER", help="Address of a dask scheduler.")
    ] = None,
    fitted: Annotated[
        Path | None, typer.Option(help="Product of fit, whose system replaces the settings'.")
    ] = None,
) -> None:
    """Simulate tasks from a system's prior: sections ``system`` and ``tasks``.

    Example: `dklfm simulate '{"system": {"name": "transcription"}, "tasks": {"counts": {"train": 32, "validation": 8, "test": 8}}}' results/tasks/one`
    """
    from dklfm import simulate as simulation
    from dklfm.artifacts import MANIFEST, read_json

    settings = read_spec(spec)
    if fitted is not None:
        settings["system"] = read_json(fitted / MANIFEST).get("system")
    simulation.run(settings, out, workers, scheduler or None)


@app.command()
@command
def train(spec: Spec, tasks: Folder, out: Out, device: Device = "cpu") -> None:
    """Train a model on simulated tasks: sections ``model`` and ``training``, and a ``seed``.

    Example: `dklfm train '{"training": {"epochs": 2}, "seed": 0}' results/tasks/one results/model/one`
    """
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
def evaluate(
    model: Folder,
    tasks: Folder,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object.")] = False,
    device: Device = "cpu",
) -> None:
    """Score a trained model on the test tasks of a store that was simulated.

    Example: `dklfm evaluate results/model/one results/tasks/one`
    """
    import json

    scores = _scores(_folder(model), tasks, device)
    if as_json:
        typer.echo(json.dumps(scores))
        return
    for name, value in scores.items():
        typer.echo(f"{name:24} {value:.4g}")


@app.command()
@command
def finetune(
    model: Folder,
    tasks: Folder,
    out: Out,
    share: Annotated[
        float, typer.Option(min=0.001, max=1, help="Of the epochs that the model was trained for.")
    ] = 0.1,
    slower: Annotated[
        float, typer.Option(min=0.01, max=1, help="Factor on the learning rate that it had.")
    ] = 0.3,
    device: Device = "cpu",
) -> None:
    """Train a model on, on tasks of a narrower prior or another noise, and say what it bought.

    The tasks come from `dklfm simulate`; their test split alone is scored, before and after.

    Example: `dklfm finetune results/model/one results/tasks/one results/model/tuned`
    """
    from dklfm import training
    from dklfm.artifacts import MANIFEST, read_json
    from dklfm.config import resolved
    from dklfm.model import ModelCard
    from dklfm.tasks import load_tasks

    begun = _folder(model)
    spec = ModelCard.read(begun).spec
    epochs = max(1, round(share * spec.training.epochs))
    changes = {
        "epochs": epochs,
        "learning_rate": slower * spec.training.learning_rate,
        "validate_every": min(spec.training.validate_every, epochs),
    }
    settings = resolved(spec) | {"training": {**resolved(spec.training), **changes}}
    manifest = read_json(tasks / MANIFEST)
    training.run(
        settings,
        load_tasks(tasks),
        out,
        device,
        simulation=manifest.get("spec"),
        simulation_cpu_s=manifest.get("simulation_cpu_s", 0.0),
        start=begun,
    )
    before, after = (_scores(folder, tasks, device) for folder in (begun, out))
    typer.echo(f"{'':24} {'before':>10} {'after':>10}")
    for name in before:
        typer.echo(f"{name:24} {before[name]:10.4g} {after[name]:10.4g}")


def _folder(model: Path) -> Path:
    """Of a model, which may be one of this package's by its name."""
    from dklfm.inference import shipped

    return shipped().get(str(model), model)


def _scores(model: Path, tasks: Path, device: str) -> dict[str, float]:
    """Mean scores of the test tasks inside the domain."""
    from dklfm.config import parse_system
    from dklfm.methods import Posterior, TrainedModel
    from dklfm.model import ModelCard
    from dklfm.scores import ABOUT, score
    from dklfm.tasks import load_tasks

    card = ModelCard.read(model)
    test = load_tasks(tasks).split("test")
    found = TrainedModel.load(model, device).infer(test)
    priced = Posterior(found.data.assign_attrs(card.costs()))
    about = dict.fromkeys(ABOUT, "test")
    table = score(priced, test, parse_system(card.system, str(model)), about)
    means = table[table["split"] == "test"].groupby("metric", sort=False)["value"].mean()
    return {str(name): float(value) for name, value in means.items()}


@app.command()
@command
def config(
    path: Annotated[Path, typer.Argument(help="A config file.")],
    schema: Annotated[
        bool, typer.Option("--schema", help="Write the JSON schema of config files there instead.")
    ] = False,
) -> None:
    """Check a config file and list what it makes.

    Example: `dklfm config config/quick.yaml`
    """
    from dklfm.artifacts import write_json
    from dklfm.config import Plan, json_schema, load_config

    if schema:
        write_json(path, json_schema())
        return
    plan = Plan.of(load_config(path))
    for name, paths in plan.index().items():
        typer.echo(f"{name}: " + "  ".join(paths.values()))
