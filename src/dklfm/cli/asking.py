"""``dklfm infer``, ``check``, ``models`` and ``systems``: for those who have data."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dklfm.cli.common import Device, command
from dklfm.errors import DataError

if TYPE_CHECKING:
    from dklfm.inference import Inference, Model
    from dklfm.inference.result import Stranger
    from dklfm.tasks import Tasks

app = typer.Typer()
STRANGE = 7
"""Exit code of ``infer --strict`` where tasks look unlike the training."""
_CHUNK = 1024
"""Tasks inferred at once: memory does not grow with a table's length."""
log = logging.getLogger("dklfm")

Table = Annotated[
    Path,
    typer.Argument(
        help="CSV, Parquet, NetCDF or a zarr store of tasks; - is CSV from standard input.",
        allow_dash=True,
    ),
]
ModelName = Annotated[
    str, typer.Option("--model", help="A name that dklfm models lists, or a trained folder.")
]
Json = Annotated[bool, typer.Option("--json", help="Print a JSON object instead of text.")]


@app.command()
@command
def infer(
    table: Table,
    model: ModelName = "transcription",
    at: Annotated[
        str | None,
        typer.Option(help="Where: how many even times, times like 0,1.5,3, or a file of times."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the results; named after the table by default.")
    ] = None,
    refine: Annotated[
        bool, typer.Option(help="Let the equation itself correct the answer.")
    ] = False,
    anchor: Annotated[
        list[str] | None,
        typer.Option(help="A gene's known parameters, GENE:s=1,d=0.8; needs --refine."),
    ] = None,
    rescale: Annotated[bool, typer.Option(help="Fit time and outputs to the training's.")] = True,
    figure: Annotated[bool, typer.Option(help="Draw the first tasks.")] = True,
    strict: Annotated[
        bool, typer.Option(help="Exit with 7 if a task is unlike those of the training.")
    ] = False,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Infer the hidden force of measured time courses.

    The table is tidy (time, output, value and optionally sd, replicate, task) or has a column an
    output. Writes posterior.csv, posterior.nc, figure.png and report.md.

    Example: `dklfm infer resources/p53/expression_mmgmos.csv --model transcription --out p53`
    """
    from dklfm.inference import load
    from dklfm.inference.files import save
    from dklfm.inference.model import anchors_of
    from dklfm.inference.result import report

    asked = _places(at)
    anchors = anchors_of(anchor or [])
    trained = load(model, device)
    tasks, notes = _read(table, trained.inputs)
    folder = out or Path(f"{'table' if str(table) == '-' else table.stem}-posterior")
    options = {"refine": refine, "anchors": anchors, "rescale": rescale}
    strangers: list[Stranger] = []

    def parts() -> Iterator[Inference]:
        for found in _inferred(trained, tasks, asked, **options):
            strangers.extend(found.strangers)
            yield found

    first = save(parts(), folder, figure)
    for note in notes:
        log.info("%s", note)
    if as_json:
        about = {"out": str(folder), "tasks": len(tasks), "outputs": list(tasks.outputs)}
        about |= {"strange": _named(strangers), "notes": [*notes, *first.notes]}
        typer.echo(json.dumps(about))
    else:
        typer.echo(report(first, len(tasks), strangers))
        typer.echo(f"written to {folder}/")
    if strict and strangers:
        raise typer.Exit(STRANGE)


@app.command()
@command
def check(table: Table, model: ModelName = "transcription", as_json: Json = False) -> None:
    """Say how a table is understood, and whether a model knows the like of it.

    Example: `dklfm check resources/p53/expression_mmgmos.csv`
    """
    import numpy as np

    from dklfm.inference import load
    from dklfm.model.trust import P_VALUES

    trained = load(model)
    tasks, notes = _read(table, trained.inputs)
    strangers: list[Stranger] = []
    said: list[str] = []
    known = False
    for found in _inferred(trained, tasks, 1):
        strangers += found.strangers
        known = P_VALUES[0] in found.posterior.data
        said = said or list(found.notes)
    seen = np.isfinite(tasks["y"])
    padding = ~np.isfinite(tasks["x"]).all(axis=-1)
    about: dict[str, Any] = {
        "tasks": len(tasks),
        "outputs": list(tasks.outputs),
        "observations": int(seen.sum()),
        "missing": int((~seen).sum() - padding.sum() * len(tasks.outputs)),
        "noise": "stated" if "y_sd" in tasks else "estimated",
        "strange": _named(strangers),
        "notes": [*notes, *said],
    }
    if as_json:
        typer.echo(json.dumps(about))
        return
    typer.echo(
        f"{about['tasks']} time courses of {len(tasks.outputs)} outputs "
        f"({', '.join(tasks.outputs[:12])}{', ...' if len(tasks.outputs) > 12 else ''}): "
        f"{about['observations']} observations, {about['missing']} missing, noise {about['noise']}"
    )
    for note in about["notes"]:
        typer.echo(f"- {note}")
    if not known:
        typer.echo(f"{model} does not know what its own tasks look like")
    elif strangers:
        names = ", ".join(found.name for found in strangers)
        typer.echo(f"unlike the tasks that {model} was trained on: {names}")
    else:
        typer.echo(f"like the tasks that {model} was trained on")


@app.command()
@command
def design(
    table: Table,
    model: ModelName = "transcription",
    at: Annotated[
        str | None, typer.Option(help="Candidates: how many even times, times, or a file of them.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for design.csv and a figure.")] = None,
    best: Annotated[int, typer.Option(min=1, help="How many to print.")] = 5,
    as_json: Json = False,
) -> None:
    """Rank where one more observation would narrow the force most.

    Example: `dklfm design resources/p53/expression_mmgmos.csv --at 25`
    """
    import pandas as pd

    from dklfm.artifacts import write_atomically
    from dklfm.figures import save as save_figure
    from dklfm.inference import load
    from dklfm.inference.design import design as rank

    trained = load(model)
    tasks, _ = _read(table, trained.inputs)
    found = rank(trained, tasks, _places(at))
    tables = [one.ranked().assign(task=one.task) for one in found]
    if out is not None:
        whole = pd.concat(tables)
        write_atomically(out / "design.csv", lambda path: whole.to_csv(path, index=False))
        save_figure(found[0].plot(), out / "design")
    shown = pd.concat([ranked.head(best) for ranked in tables])
    if as_json:
        typer.echo(shown.to_json(orient="records"))
    else:
        typer.echo(shown.to_string(index=False, float_format="{:.3g}".format))


@app.command()
@command
def models(as_json: Json = False) -> None:
    """List the trained models of this package.

    Example: `dklfm models`
    """
    from dklfm.inference import shipped
    from dklfm.model import ModelCard

    found = {name: ModelCard.read(folder) for name, folder in shipped().items()}
    if as_json:
        typer.echo(json.dumps({name: card.model_dump(mode="json") for name, card in found.items()}))
        return
    for name, card in found.items():
        prior = card.system.get("prior", {}).get("name", "default")
        typer.echo(
            f"{name}: {card.spec.method} of {card.system.get('name')} (prior {prior}), trained on "
            f"{card.training_tasks} simulated tasks in {card.training_cpu_s / 60:.0f} CPU minutes"
        )


systems = typer.Typer(no_args_is_help=True, help="Systems, and checks of one's own.")
app.add_typer(systems, name="systems")


@systems.command("check")
@command
def check_one(
    system: Annotated[
        str, typer.Argument(help="my_system.py:MySystem, or the name of a built-in one.")
    ],
) -> None:
    """Test that a system keeps the promises that inference relies on.

    Example: `dklfm systems check docs/tutorial/oscillator.py:Oscillator`
    """
    from dklfm.config import parse_system
    from dklfm.systems import custom
    from dklfm.systems.checking import check_system

    if ".py" in system:
        custom.trust(system.rpartition(":")[0])
    spec: Any = {"file": system} if ".py" in system else {"name": system}
    faults = 0
    for promise, fault in check_system(parse_system(spec, system)):
        typer.echo(f"{'FAULT' if fault else 'ok   '}  {promise}{': ' + fault if fault else ''}")
        faults += bool(fault)
    if faults:
        raise DataError(f"{system} breaks {faults} of its promises")


@systems.command("list")
@command
def list_systems(as_json: Json = False) -> None:
    """List the systems that configs can name.

    Example: `dklfm systems list`
    """
    from dklfm.systems import SYSTEMS

    about = {
        str(kind.model_fields["name"].default): (kind.__doc__ or "").strip().splitlines()[0]
        for kind in SYSTEMS
    }
    if as_json:
        typer.echo(json.dumps(about))
        return
    for name, what in about.items():
        typer.echo(f"{name}: {what}")


def _named(strangers: list[Stranger]) -> dict[str, dict[str, float]]:
    """For JSON: by name, how often simulated tasks look stranger."""
    return {found.name: dict(zip(found._fields[1:], found[1:], strict=True)) for found in strangers}


def _inferred(model: Model, tasks: Tasks, at: Any, **options: Any) -> Iterator[Inference]:
    """In parts, with progress if there are several."""
    from dklfm.progress import progress

    parts = model.parts(tasks, at, _CHUNK, **options)
    total = math.ceil(len(tasks) / _CHUNK)
    return progress(parts, "infer", total) if total > 1 else parts


def _places(at: str | None) -> int | list[float] | None:
    """Where to infer, as a number of places or a list.

    Raises:
        DataError: if it is neither, nor a file of numbers.
    """
    if at is None:
        return None
    if at.isdigit():
        return int(at)
    text, source = at, "--at"
    if Path(at).is_file():
        text, source = Path(at).read_text(encoding="utf-8-sig"), at
    cells = [cell.strip() for line in text.splitlines() for cell in line.split(",")]
    if cells and not _is_number(cells[0]):
        cells = cells[1:]  # a header
    try:
        found = [float(cell) for cell in cells if cell]
    except ValueError:
        raise DataError(f"{source}: {text[:40]!r} holds no list of times") from None
    if not found:
        raise DataError(f"{source}: {text[:40]!r} is no number of times, list of times, or file")
    return found


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _read(table: Path, inputs: tuple[str, ...]) -> tuple[Tasks, tuple[str, ...]]:
    """Tasks of a file, and what was understood.

    Raises:
        DataError: if it cannot be used.
    """
    from dklfm.tasks import Tasks, load_tasks, read_table, tasks_from_table

    if table.is_dir():
        return load_tasks(table), ()
    if table.suffix == ".nc":
        import xarray as xr

        try:
            data = xr.load_dataset(table, engine="scipy")
        except Exception as error:  # what scipy raises for a damaged file is of many types
            raise DataError(f"{table} cannot be read as NetCDF 3: {error}") from None
        return Tasks(data).checked(), ()
    read = read_table(table, inputs)
    return tasks_from_table(read), read.notes
