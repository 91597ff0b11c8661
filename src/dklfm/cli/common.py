"""What every command shares: its options, its log, and one line for a user's mistake."""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer

from dklfm.errors import DklfmError

Spec = Annotated[str, typer.Argument(help="Settings: a YAML or JSON file, or JSON text.")]
Out = Annotated[Path, typer.Argument(help="Folder of the product; made if missing.")]
Folder = Annotated[Path, typer.Argument(help="Folder of a stored product.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:N or auto.")]


class _Terminated(KeyboardInterrupt):
    """A scheduler asks for an end."""


def _terminate(*_: object) -> None:
    raise _Terminated


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Log to standard error, set the threads of torch, print a user's mistake as one line."""

    @wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        logging.basicConfig(
            level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s"
        )
        logging.captureWarnings(True)
        signal.signal(signal.SIGTERM, _terminate)
        try:
            function(*args, **kwargs)
        except DklfmError as error:
            typer.echo(f"dklfm: {error}", err=True)
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt as interrupt:
            typer.echo("dklfm: interrupted; rerun the same command to continue", err=True)
            raise typer.Exit(143 if isinstance(interrupt, _Terminated) else 130) from None

    return wrapped


def read_spec(text: str) -> dict[str, Any]:
    import json

    from dklfm.config import read_yaml
    from dklfm.errors import ConfigError
    from dklfm.systems.custom import trust

    if text.lstrip().startswith("{"):
        try:
            spec = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"the settings given as text are not JSON: {error}") from None
    else:
        spec = read_yaml(Path(text))
    if not isinstance(spec, dict):
        raise ConfigError(f"{text}: settings must be a mapping of sections")
    system = spec.get("system")
    named = system.get("file") if isinstance(system, dict) else system
    if isinstance(named, str):  # who wrote the settings named the file
        trust(named.rpartition(":")[0])
    return spec
