"""From YAML to validated sections, with one-line errors that name the place and the mend."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from dklfm.config.experiment import AnySystem, Config
from dklfm.errors import ConfigError
from dklfm.systems import System
from dklfm.systems.custom import is_trusted

T = TypeVar("T")


def validate(kind: type[T] | Any, value: Any, source: str) -> T:
    """Validate plain data as a section.

    Raises:
        ConfigError: naming ``source``, the setting and what is wrong with it.
    """
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        lines = [_explain(detail, value, kind) for detail in error.errors()]
        more = f" (and {len(lines) - 1} more)" if len(lines) > 1 else ""
        raise ConfigError(f"{source}: {lines[0]}{more}") from None


def parse_system(spec: Any, source: str) -> System:
    """A system from its settings; digests of its resources in them are passed over.

    Raises:
        ConfigError: if the settings are not those of a system, or name a file of code that nobody
            has said to trust.
    """
    if isinstance(spec, str):
        spec = {"file": spec}
    if isinstance(spec, Mapping):
        file = str(spec.get("file", ""))
        if file and not is_trusted(file):
            raise ConfigError(
                f"{source}: the system is code in {file}; if you trust that file, say so: "
                f"dklfm --trust {file.rpartition(':')[0]} ..."
            )
        spec = {key: value for key, value in spec.items() if key != "resources"}
    return validate(AnySystem, spec, source)


def read_yaml(path: Path) -> Any:
    """Parse a YAML or JSON file without tags.

    Raises:
        ConfigError: if it cannot be read or parsed.
    """
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ConfigError(f"{path}: not valid YAML: nested too deeply") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"{path}: cannot be read: {reason}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "not valid YAML"
        raise ConfigError(f"{path}: not valid YAML{place}: {problem}") from None
    except ValueError as error:  # of a date or number that is none
        raise ConfigError(f"{path}: not valid YAML: {error}") from None


def load_config(path: Path) -> Config:
    """Read a config file.

    Raises:
        ConfigError: if it cannot be read or says something impossible.
    """
    return validate(Config, read_yaml(path), str(path))


def _explain(detail: ErrorDetails, value: Any, kind: Any) -> str:
    """One line: the setting's path, the problem, and a near miss where a key is unknown."""
    named = detail["type"] in ("extra_forbidden", "missing")  # the last part is then a key
    path = _real_path(detail["loc"], value, named)
    place = ".".join(path) or "the whole file"
    if detail["type"] == "extra_forbidden":
        known = _known_keys(kind, value, detail["loc"])
        near = difflib.get_close_matches(path[-1], known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else f"; known here: {', '.join(known)}"
        return f"{place}: unknown key{hint}"
    if detail["type"] == "union_tag_not_found":
        return f"{place}: needs a name; config/README.md lists the choices"
    message = detail["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    given = detail["input"]
    shown = f", got {given!r}" if isinstance(given, str | int | float | bool | None) else ""
    return f"{place}: {message}{shown}"


def _real_path(location: tuple[int | str, ...], value: Any, ends_in_key: bool) -> list[str]:
    """Drop the union tags that pydantic mixes into an error's location."""
    path: list[str] = []
    for i, part in enumerate(location):
        last_key = ends_in_key and i == len(location) - 1
        in_list = isinstance(value, list | tuple) and isinstance(part, int) and part < len(value)
        if in_list or (isinstance(value, Mapping) and part in value):
            value = value[part]
        elif not last_key:
            continue
        path.append(str(part))
    return path


def _known_keys(kind: Any, value: Any, location: tuple[int | str, ...]) -> list[str]:
    """The fields of the section in which an unknown key was found, by walking the schema."""
    schema = TypeAdapter(kind).json_schema()
    definitions = schema.get("$defs", {})

    def options(node: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        if "$ref" in node:
            return options(definitions[node["$ref"].rsplit("/", 1)[1]])
        return [s for n in node.get("oneOf", node.get("anyOf", [])) for s in options(n)] or [node]

    nodes = options(schema)
    for part in location[:-1]:
        tagged = [n for n in nodes if n.get("properties", {}).get("name", {}).get("const") == part]
        inside = [n["properties"][part] for n in nodes if part in n.get("properties", {})]
        mapped = [v for n in nodes if isinstance(v := n.get("additionalProperties"), Mapping)]
        nodes = tagged or [child for node in inside or mapped for child in options(node)] or nodes
    return sorted({key for n in nodes for key in n.get("properties", {})})


def json_schema(kind: type[BaseModel] = Config) -> dict[str, Any]:
    """The JSON schema that documents a config file and lets editors check it."""
    return kind.model_json_schema()
