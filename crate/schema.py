"""Strict YAML: every key and type is checked; an error is one line that names file and key.

Schemas themselves are in `recipes.py`, `planning/` and `tasks/<kind>/recipe.py`.
"""

import functools
import re
from pathlib import Path
from typing import Any

import pydantic
import yaml
from yaml.composer import Composer

from crate.errors import UsageError, nearest


class Strict(pydantic.BaseModel):
    """A frozen schema without unknown keys or conversions (the text "3" is not the number 3)."""

    model_config = pydantic.ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        allow_inf_nan=False,
        serialize_by_alias=True,  # keys as they stand in files
    )


# libyaml, if PyYAML was built with it, reads experiments/ eight times as fast. Its own composer
# crashes on deep nesting, so PyYAML's is used.
_LOADERS = (Composer, yaml.CSafeLoader) if yaml.__with_libyaml__ else (yaml.SafeLoader,)


class _Loader(*_LOADERS):
    """Safe YAML in which `1e-3` is a number and a duplicate key is an error."""

    def __init__(self, stream: str):
        _LOADERS[-1].__init__(self, stream)
        Composer.__init__(self)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def _unique_mapping(loader: _Loader, node: yaml.MappingNode) -> dict:
    keys: list = []
    for key_node, _ in node.value:
        key = loader.construct_object(key_node)
        if key in keys:
            raise yaml.constructor.ConstructorError(
                None, None, f"duplicate key '{key}'; keep one", key_node.start_mark
            )
        keys.append(key)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor("tag:yaml.org,2002:map", _unique_mapping)


def read_yaml(path: Path) -> dict:
    """Read a YAML mapping; {} from an empty file.

    Raises:
        UsageError: the file cannot be read or is not a mapping; names file and line.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path}: not UTF-8 text") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f"line {mark.line + 1}: " if mark else ""
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or error
        raise UsageError(f"{path}: {line}{problem}") from None
    except ValueError as error:  # for example an impossible date: 2024-13-45
        raise UsageError(f"{path}: {error}") from None
    except RecursionError:
        raise UsageError(f"{path}: nested too deeply") from None
    content = {} if content is None else content
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise UsageError(f"{path}: must be a mapping of names to values")
    return content


def load_value(text: str) -> Any:
    """Parse a command line's value as YAML. Raises `ValueError` if it is not valid YAML."""
    try:
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(str(error)) from None


def read_value(text: str) -> Any:
    """Parse a command line's value as YAML, as Snakemake does; invalid YAML stays text."""
    try:
        return load_value(text) if text.strip() else text
    except ValueError:
        return text


def parse(schema: type[Strict], content: dict, where: str | Path) -> Any:
    """`content` as an instance of `schema`; errors name `where`.

    Raises:
        UsageError: a wrong key or value; names the nearest valid key, or what was expected.
    """
    try:
        return schema.model_validate(content)
    except pydantic.ValidationError as error:
        errors = error.errors()
        # a misspelt key gives two errors, unknown and missing: report the unknown one
        first = next((e for e in errors if e["type"] == "extra_forbidden"), errors[0])
        raise UsageError(f"{where}: {_explain(schema, first)}") from None


@functools.cache
def keys_of(schema: type[Strict]) -> dict[str, None]:
    """The keys of a schema as YAML spells them (aliases), in the schema's order."""
    return dict.fromkeys(field.alias or name for name, field in schema.model_fields.items())


def _explain(schema: type[Strict], error: dict) -> str:
    """One pydantic error in plain words."""
    location = [str(part) for part in error["loc"]]
    key = ".".join(location)
    if error["type"] == "extra_forbidden":
        return f"unknown key '{key}'{nearest(location[-1], _fields_at(schema, location[:-1]))}"
    if error["type"] == "missing":
        return f"the key '{key}' is missing"
    message = error["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    if error["type"] == "value_error":
        return f"{key}: {message}" if key else message
    return f"{key}: {error['input']!r} should be {message}"


def _fields_at(schema: Any, location: list[str]) -> list[str]:
    """The valid keys at a place inside a schema, followed through lists, dicts and options."""
    for part in location:
        fields = getattr(schema, "model_fields", None)
        if fields is None or part not in fields:
            continue  # a list index or a dictionary's key: `schema` is already the element type
        schema = fields[part].annotation
        for _ in range(3):
            arguments = [a for a in getattr(schema, "__args__", ()) if a is not type(None)]
            schema = arguments[-1] if arguments else schema
    return list(keys_of(schema)) if hasattr(schema, "model_fields") else []


def merge(base: dict, delta: dict) -> dict:
    """`base` updated by `delta`: nested dictionaries merge, other values replace."""
    merged = dict(base)
    for key, value in delta.items():
        both = isinstance(merged.get(key), dict) and isinstance(value, dict)
        merged[key] = merge(merged[key], value) if both else value
    return merged
