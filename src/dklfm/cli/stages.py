"""``dklfm stage``: the stages of the pipeline, as its rules call them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dklfm.cli.common import Device, Folder, Out, Spec, command, read_spec
from dklfm.errors import DataError, DklfmError

if TYPE_CHECKING:
    import pandas as pd

app = typer.Typer(no_args_is_help=True, help="The stages of the pipeline, one by one.")


@app.command()
@command
def fit(spec: Spec, tasks: Folder, out: Out) -> None:
    """Fit a system to measurements: its prior becomes the posterior of the parameters.

    Sections ``system`` and ``tasks``, the names of those to be used (all, if there are none).

    Example: `dklfm stage fit '{"system": {"name": "transcription"}, "tasks": ["1"]}' results/tasks/p53 results/fit/p53`
    """
    from dklfm.artifacts import alone_in, write_manifest
    from dklfm.config import MechanisticConfig, canonical_json, parse_system
    from dklfm.methods import fit_system
    from dklfm.tasks import load_tasks

    settings = read_spec(spec)
    system = parse_system(settings.get("system"), "fit: system")
    chosen = load_tasks(tasks).named(settings.get("tasks", ()))
    found = fit_system(system, chosen, MechanisticConfig(samples=2048)).spec()
    digest = hashlib.sha256(canonical_json(found).encode()).hexdigest()
    with alone_in(out):
        write_manifest(out, {"stage": "fit", "spec": settings, "system": found}, digest)


@app.command()
@command
def measurements(
    dataset: Annotated[str, typer.Argument(help="Name of an embedded table.")], out: Out
) -> None:
    """Store an embedded table of measurements as tasks.

    Example: `dklfm stage measurements p53-mmgmos results/tasks/p53`
    """
    from dklfm.artifacts import alone_in, save_dataset
    from dklfm.tasks import load_embedded

    tasks = load_embedded(dataset)
    with alone_in(out):
        save_dataset(out, tasks.data, {"stage": "tasks", "spec": {"dataset": dataset}})


@app.command()
@command
def infer(
    model: Folder,
    tasks: Folder,
    out: Out,
    device: Device = "cpu",
    refine: Annotated[
        str | None, typer.Option(help="Settings of the refinement by the equation itself, JSON.")
    ] = None,
) -> None:
    """Infer the force of stored tasks: all test tasks, and a few training tasks to look at.

    Example: `dklfm stage infer results/model/one results/tasks/one results/posterior/one`
    """
    from dklfm.artifacts import alone_in
    from dklfm.config import RefinementConfig, parse_system, validate
    from dklfm.methods import Method, Refined, TrainedModel, save_posterior
    from dklfm.model import ModelCard
    from dklfm.tasks import load_tasks

    card = ModelCard.read(model)
    trained = TrainedModel.load(model, device)
    method: Method = trained
    if refine is not None:
        settings: RefinementConfig = validate(RefinementConfig, read_spec(refine), "--refine")
        method = Refined(trained, parse_system(card.system, str(model)), settings)
    with alone_in(out):
        posterior = method.infer(load_tasks(tasks).to_show())
        save_posterior(out, posterior, card.system, **card.costs())


@app.command()
@command
def reference(
    method: Annotated[
        str,
        typer.Argument(
            help="exact, mechanistic, mechanistic_known, alfi, alfi_anchored, alfi_known or "
            "deeplfm, or its settings as JSON."
        ),
    ],
    tasks: Folder,
    out: Out,
) -> None:
    """Infer the force of simulated test tasks by a method that fits each by itself.

    Example: `dklfm stage reference '{"name": "mechanistic", "tasks": 2, "samples": 64}' results/tasks/one results/posterior/floor`
    """
    import shutil

    from dklfm.artifacts import MANIFEST, alone_in, read_json
    from dklfm.config import (
        AnyReference,
        ReferenceConfig,
        canonical_json,
        parse_system,
        resolved,
        validate,
    )
    from dklfm.methods import fit_each, save_posterior
    from dklfm.methods import reference as method_of
    from dklfm.tasks import load_tasks

    given = read_spec(method) if method.lstrip().startswith("{") else method
    settings: ReferenceConfig = validate(AnyReference, given, "reference")
    manifest = read_json(tasks / MANIFEST)
    system = manifest.get("spec", {}).get("system")
    fitter = method_of(settings, parse_system(system, str(tasks)))
    chosen = load_tasks(tasks).split("test")
    chosen = chosen.take(range(min(len(chosen), settings.tasks or len(chosen))))
    # Fits are kept for these settings and tasks, however many of them are asked for.
    identity = resolved(settings) | {"tasks": None, "store": manifest.get("digest")}
    key = hashlib.sha256(canonical_json(identity).encode()).hexdigest()[:10]
    with alone_in(out):
        save_posterior(out, fit_each(fitter, chosen, out / "partial" / key), system)
        shutil.rmtree(out / "partial")


@app.command()
@command
def score(
    about: Spec,
    tasks: Folder,
    posterior: Folder,
    out: Annotated[Path, typer.Argument(help="CSV of one row a task and metric.")],
) -> None:
    """Score a posterior against the truth, task by task.

    Example: `dklfm stage score '{"run": "one", "experiment": "transcription", "method": "dklfm", "prior": "default", "seed": 0, "split": "test"}' results/tasks/one results/posterior/one results/one.csv`
    """
    from dklfm.artifacts import write_atomically
    from dklfm.methods import load_posterior
    from dklfm.scores import score as score_tasks
    from dklfm.tasks import load_tasks

    inferred, system = load_posterior(posterior)
    test = inferred.covered(load_tasks(tasks).split("test"))
    table = score_tasks(inferred, test, system, read_spec(about))
    write_atomically(out, lambda path: table.to_csv(path, index=False))


@app.command()
@command
def summarise(
    out: Annotated[Path, typer.Argument(help="CSV of one row a metric.")],
    per_task: Annotated[list[Path], typer.Argument(help="Tables made by score.")],
) -> None:
    """Gather task-wise scores into one tidy table of means, errors and medians.

    Example: `dklfm stage summarise results/scores.csv results/one.csv results/two.csv`
    """
    from dklfm.artifacts import write_atomically
    from dklfm.scores import summarise as summarise_scores

    summary = summarise_scores(_read_scores(per_task))
    write_atomically(out, lambda path: summary.to_csv(path, index=False))


def _read_scores(paths: Sequence[Path]) -> list[pd.DataFrame]:
    import pandas as pd

    for path in paths:
        if not path.is_file():
            raise DataError(f"{path} does not exist; make it with dklfm stage score")
    return [pd.read_csv(path) for path in paths]


@app.command()
@command
def table(
    scores: Annotated[Path, typer.Argument(help="Table made by summarise.")],
    stem: Annotated[Path, typer.Argument(help="Path without suffix; .csv, .md and .tex are made.")],
) -> None:
    """Write Table 1: every method of the experiments that compare several, and the paper's own.

    Example: `dklfm stage table results/scores.csv results/table1`
    """
    from dklfm import tables

    tables.save(tables.comparison(_read_scores([scores])[0]), stem)


@app.command()
@command
def figure(
    kind: Annotated[
        str, typer.Argument(help="curve, learning, calibration, tasks, fields, kni, p53, series.")
    ],
    stem: Annotated[Path, typer.Argument(help="Path without suffix; a .pdf and a .png are made.")],
    inputs: Annotated[
        list[Path],
        typer.Argument(
            help="curve: SCORES ...; learning: MODEL ...; others: TASKS POSTERIOR; "
            "fields: + REFERENCE."
        ),
    ],
) -> None:
    """Draw a figure from stored products.

    Example: `dklfm stage figure tasks results/figures/one_tasks results/tasks/one results/posterior/one`
    """
    import pandas as pd

    from dklfm import figures
    from dklfm.methods import load_posterior
    from dklfm.model import ModelCard
    from dklfm.tasks import load_tasks

    if kind == "curve":
        figures.save(figures.draw_curve(_read_scores(inputs)), stem)
        return
    if kind == "learning":
        histories = {
            ModelCard.read(path).spec.seed: pd.read_csv(path / "history.csv") for path in inputs
        }
        figures.save(figures.draw_learning(histories), stem)
        return
    allowed = (2, 3) if kind == "fields" else (2,)
    if kind not in figures.POSTERIOR_FIGURES or len(inputs) not in allowed:
        raise DklfmError(
            f"figure {kind!r} of {len(inputs)} inputs is unknown; see dklfm stage figure --help"
        )
    shown = load_tasks(inputs[0]).to_show()
    inferred, system = load_posterior(inputs[1])
    floors = [load_posterior(path)[0] for path in inputs[2:]]
    drawn = figures.POSTERIOR_FIGURES[kind](shown, inferred.at(shown), system, *floors)
    figures.save(drawn, stem)


@app.command()
@command
def record(
    config: Annotated[Path, typer.Argument(help="YAML config of a finished run.")],
    out: Annotated[Path, typer.Argument(help="Folder to keep tables and figures in.")],
) -> None:
    """Keep a run's scores, Table 1 and figures, with the commit and the machine that made them.

    Example: `dklfm stage record config/config.yaml docs/paper`
    """
    from dklfm.config import load_config
    from dklfm.record import record as keep

    keep(load_config(config), out)


@app.command()
@command
def ship(model: Folder, out: Out) -> None:
    """Copy what inference needs of a trained model, whole and verified, and nothing else.

    Example: `dklfm stage ship results/model/one results/shipped/one`
    """
    from dklfm.model import ship as copy

    copy(model, out)
