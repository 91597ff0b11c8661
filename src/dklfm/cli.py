"""The ``dklfm`` command: the stages of the pipeline, one verb each."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer

from dklfm.errors import DataError, DklfmError

# Stages import what they run when they run it, so that --help and errors come at once.

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Infer the hidden force behind dynamical systems.",
)
log = logging.getLogger("dklfm")

Spec = Annotated[str, typer.Argument(help="Settings: a YAML or JSON file, or JSON text.")]
Out = Annotated[Path, typer.Argument(help="Folder of the product; made if missing.")]
Folder = Annotated[Path, typer.Argument(help="Folder of a stored product.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:N or auto.")]


def stage(function: Callable[..., None]) -> Callable[..., None]:
    """Log to standard error, set the threads of torch, print a user's mistake as one line."""

    @wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        logging.basicConfig(
            level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s"
        )
        logging.captureWarnings(True)
        try:
            function(*args, **kwargs)
        except DklfmError as error:
            typer.echo(f"dklfm: {error}", err=True)
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt:
            typer.echo("dklfm: interrupted; rerun the same command to continue", err=True)
            raise typer.Exit(130) from None

    return wrapped


def _read_spec(text: str) -> dict[str, Any]:
    import json

    from dklfm.config import read_yaml
    from dklfm.errors import ConfigError

    if text.lstrip().startswith("{"):
        try:
            spec = json.loads(text)
        except ValueError as error:
            raise ConfigError(f"the settings given as text are not JSON: {error}") from None
    else:
        spec = read_yaml(Path(text))
    if not isinstance(spec, dict):
        raise ConfigError(f"{text}: settings must be a mapping of sections")
    return spec


@app.command()
@stage
def simulate(
    spec: Spec,
    out: Out,
    workers: Annotated[int, typer.Option(min=1, help="Processes of a local cluster.")] = 1,
    scheduler: Annotated[str | None, typer.Option(help="Address of a dask scheduler.")] = None,
) -> None:
    """Simulate tasks from a system's prior: sections ``system`` and ``tasks``."""
    from dklfm import simulate as simulation

    simulation.run(_read_spec(spec), out, workers, scheduler)


@app.command()
@stage
def measurements(
    dataset: Annotated[str, typer.Argument(help="Name of an embedded table.")], out: Out
) -> None:
    """Store an embedded table of measurements as tasks."""
    from dklfm.artifacts import save_dataset
    from dklfm.tasks import load_embedded

    tasks = load_embedded(dataset)
    save_dataset(out, tasks.data, {"stage": "tasks", "spec": {"dataset": dataset}})


@app.command()
@stage
def train(spec: Spec, tasks: Folder, out: Out, device: Device = "cpu") -> None:
    """Train a model on simulated tasks: sections ``model`` and ``training``, and a ``seed``."""
    from dklfm import training
    from dklfm.artifacts import MANIFEST, read_json
    from dklfm.tasks import load_tasks

    settings = _read_spec(spec)
    loaded = load_tasks(tasks)
    manifest = read_json(tasks / MANIFEST)
    system, cost = manifest.get("spec", {}).get("system"), manifest.get("simulation_cpu_s", 0.0)
    training.run(settings, loaded, out, device, system=system, simulation_cpu_s=cost)


@app.command()
@stage
def infer(model: Folder, tasks: Folder, out: Out, device: Device = "cpu") -> None:
    """Infer the force of stored tasks: all test tasks, and a few training tasks to look at."""
    from dklfm.methods import TrainedDKLFM, save_posterior
    from dklfm.model import ModelCard
    from dklfm.tasks import load_tasks

    card = ModelCard.read(model)
    posterior = TrainedDKLFM.load(model, device).infer(load_tasks(tasks).to_show())
    save_posterior(out, posterior, card.system, card.training_cpu_s)


@app.command()
@stage
def reference(
    method: Annotated[str, typer.Argument(help="exact or mechanistic.")], tasks: Folder, out: Out
) -> None:
    """Infer the force of simulated test tasks by a method that fits each by itself."""
    from dklfm.artifacts import MANIFEST, read_json
    from dklfm.config import parse_system
    from dklfm.methods import REFERENCES, save_posterior
    from dklfm.tasks import load_tasks

    if method not in REFERENCES:
        raise DklfmError(f"no reference {method!r}; there are {', '.join(REFERENCES)}")
    system = read_json(tasks / MANIFEST).get("spec", {}).get("system")
    fitter = REFERENCES[method](parse_system(system, str(tasks)))
    save_posterior(out, fitter.infer(load_tasks(tasks).split("test")), system)


@app.command()
@stage
def score(
    about: Spec,
    tasks: Folder,
    posterior: Folder,
    out: Annotated[Path, typer.Argument(help="CSV of one row a task and metric.")],
) -> None:
    """Score a posterior against the truth, task by task."""
    from dklfm.artifacts import write_atomically
    from dklfm.methods import load_posterior
    from dklfm.scores import score as score_tasks
    from dklfm.tasks import load_tasks

    inferred, system = load_posterior(posterior)
    test = inferred.covered(load_tasks(tasks).split("test"))
    table = score_tasks(inferred, test, system, _read_spec(about))
    write_atomically(out, lambda path: table.to_csv(path, index=False))


@app.command()
@stage
def summarise(
    out: Annotated[Path, typer.Argument(help="CSV of one row a metric.")],
    per_task: Annotated[list[Path], typer.Argument(help="Tables made by score.")],
) -> None:
    """Gather task-wise scores into one tidy table of means, errors and medians."""
    import pandas as pd

    from dklfm.artifacts import write_atomically
    from dklfm.scores import summarise as summarise_scores

    for path in per_task:
        if not path.is_file():
            raise DataError(f"{path} does not exist; make it with dklfm score")
    summary = summarise_scores(pd.read_csv(path) for path in per_task)
    write_atomically(out, lambda path: summary.to_csv(path, index=False))


@app.command()
@stage
def figure(
    kind: Annotated[str, typer.Argument(help="learning, or tasks, fields, kni, p53, series.")],
    stem: Annotated[Path, typer.Argument(help="Path without suffix; a .pdf and a .png are made.")],
    inputs: Annotated[
        list[Path],
        typer.Argument(help="learning: MODEL ...; others: TASKS POSTERIOR; fields: + REFERENCE."),
    ],
) -> None:
    """Draw a figure from stored products."""
    import pandas as pd

    from dklfm import figures
    from dklfm.methods import load_posterior
    from dklfm.model import ModelCard
    from dklfm.tasks import load_tasks

    if kind == "learning":
        histories = {
            ModelCard.read(path).spec.seed: pd.read_csv(path / "history.csv") for path in inputs
        }
        figures.save(figures.draw_learning(histories), stem)
        return
    allowed = (2, 3) if kind == "fields" else (2,)
    if kind not in figures.POSTERIOR_FIGURES or len(inputs) not in allowed:
        raise DklfmError(
            f"figure {kind!r} of {len(inputs)} inputs is unknown; see dklfm figure --help"
        )
    shown = load_tasks(inputs[0]).to_show()
    inferred, system = load_posterior(inputs[1])
    floors = [load_posterior(path)[0] for path in inputs[2:]]
    drawn = figures.POSTERIOR_FIGURES[kind](shown, inferred.at(shown), system, *floors)
    figures.save(drawn, stem)


@app.command()
@stage
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
