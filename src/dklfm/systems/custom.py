"""Systems of one's own: a class in a Python file, named ``my_system.py:MySystem``.

Such a file is code, so it runs only where a person has named it: in a config, in settings given
to a command, or by ``dklfm --trust FILE`` (or the environment variable DKLFM_TRUST). A store or a
model that names a file does not make it run.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
import traceback
from functools import cache
from pathlib import Path

from dklfm.errors import ConfigError
from dklfm.systems.base import System

TRUST = "DKLFM_TRUST"


def _trusted() -> list[Path]:
    return [Path(part).resolve() for part in os.environ.get(TRUST, "").split(os.pathsep) if part]


def trust(file: str | Path) -> None:
    """Let systems of this file be loaded in this process and those that it starts."""
    os.environ[TRUST] = os.pathsep.join(map(str, {*_trusted(), Path(file).resolve()}))


def is_trusted(reference: str) -> bool:
    """Whether a person has named the file of ``file.py:Class``."""
    return _split(reference)[0] in _trusted()


def _split(reference: str) -> tuple[Path, str]:
    file, _, name = reference.rpartition(":")
    if not file.endswith(".py") or not name.isidentifier():
        raise ConfigError(
            f"a system of your own is named like my_system.py:MySystem, not {reference!r}"
        )
    return Path(file).resolve(), name


def load_class(reference: str) -> type[System]:
    """The class that ``file.py:Class`` names; running the file.

    Raises:
        ConfigError: if there is no such file or class, or it is no system.
    """
    file, name = _split(reference)
    try:
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}") from None
    found = _load(file, name, digest)
    found.source = (reference, digest[:16])
    return found


@cache
def _load(file: Path, name: str, digest: str) -> type[System]:
    module_name = f"dklfm_custom_{digest[:16]}"
    spec = importlib.util.spec_from_file_location(module_name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever a stranger's code raises
        del sys.modules[module_name]
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == str(file)]
        where = f", line {lines[-1]}" if lines else ""
        reason = (str(error).splitlines() or [""])[0]
        raise ConfigError(f"{file}{where}: {type(error).__name__}: {reason}") from None
    found = getattr(module, name, None)
    if not (isinstance(found, type) and issubclass(found, System)):
        raise ConfigError(f"{file} has no class {name} that is a dklfm System")
    missing = sorted(getattr(found, "__abstractmethods__", ()))
    if missing:
        raise ConfigError(f"{file}: {name} lacks {', '.join(missing)}")
    return found
