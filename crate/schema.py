"""Strict schemas: every key and type is checked; an error is one line with file, line and key.

Schemas themselves are in `recipes.py`, `planning/` and `tasks/<kind>/recipe.py`.
"""

import functools
import re
import reprlib
import types
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

import pydantic

from crate.errors import UsageError, nearest
from crate.sources import Items, Mapping, place_of


class Strict(pydantic.BaseModel):
    """A frozen schema without unknown keys or conversions (the text "3" is not the number 3)."""

    model_config = pydantic.ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        allow_inf_nan=False,
        serialize_by_alias=True,  # keys as they stand in files
    )

    LARGEST: ClassVar[dict[str, float]] = {}  # field → its largest number, where 10¹² is too much

    @pydantic.field_validator("*", mode="before")
    @classmethod
    def _no_absurd_number(cls, value: Any, info: pydantic.ValidationInfo) -> Any:
        largest = cls.LARGEST.get(info.field_name, 10**12)
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, int | float) and largest < abs(number) < float("inf"):
                raise ValueError(f"{_shown(number)} should be at most {largest:,}")
        return value


def parse(schema: type[Strict], content: dict, where: str | Path) -> Any:
    """`content` as an instance of `schema`.

    A field of text gets an unquoted number as it was written: 0471 and 1e5 are names there.

    Raises:
        UsageError: a wrong key or value; names its file and line (`where`, if they are not known),
            and the nearest valid key or what was expected.
    """
    content = _as_written(schema, content)
    try:
        return schema.model_validate(content)
    except pydantic.ValidationError as error:
        errors = error.errors()
        # a misspelt key gives two errors, unknown and missing: report the unknown one
        first = next((e for e in errors if e["type"] == "extra_forbidden"), errors[0])
        location, message = _explain(schema, content, first)
        raise blame(content, location, where, message) from None


def blame(
    content: dict, location: Iterable[str | int], where: str | Path, message: str
) -> UsageError:
    """A `UsageError` that names the file and line of a value; `where`, if they are not known.

    where: the file, perhaps with the name of an entry (`released.yaml: a.pth`).
    """
    place, _ = place_of(content, location)
    if place is None:
        return UsageError(f"{where}: {message}")
    _, within, entry = str(where).partition(f"{place.source}: ")
    return UsageError(f"{place}: {f'{entry}: ' if within else ''}{message}")


def _as_written(annotation: Any, value: Any, text: str | None = None) -> Any:
    """`value`, in which what should be text is the text of the file; null stays null."""
    if isinstance(annotation, type) and issubclass(annotation, Strict):
        if not isinstance(value, Mapping):
            return value
        fields = {f.alias or name: f.annotation for name, f in annotation.model_fields.items()}
        of = {key: fields.get(key) for key in value}
    elif isinstance(value, Mapping | Items):
        kinds = [kind for kind in _options(annotation) if typing.get_origin(kind) in (dict, list)]
        inner = typing.get_args(kinds[0])[-1] if kinds else None
        of = dict.fromkeys(value if isinstance(value, Mapping) else range(len(value)), inner)
    else:
        wanted = text is not None and value is not None and str in _options(annotation)
        return text if wanted and type(value) not in _options(annotation) else value
    changed = type(value)(value)
    for key, kind in of.items():
        changed[key] = _as_written(kind, value[key], value.texts.get(key))
    return changed


def _options(annotation: Any) -> tuple:
    """The types that an annotation allows: those of a union, else itself."""
    if typing.get_origin(annotation) is typing.Annotated:
        annotation = typing.get_args(annotation)[0]
    union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    return typing.get_args(annotation) if union else (annotation,)


@functools.cache
def keys_of(schema: type[Strict]) -> dict[str, None]:
    """The keys of a schema as YAML spells them (aliases), in the schema's order."""
    return dict.fromkeys(field.alias or name for name, field in schema.model_fields.items())


class _Repr(reprlib.Repr):
    """Values in messages, cut to a length that can be read."""

    maxstring = maxother = maxlong = 80
    repr_Mapping, repr_Items = reprlib.Repr.repr_dict, reprlib.Repr.repr_list


def _shown(value: Any) -> str:
    if type(value) is int and value.bit_length() > 1000:  # Python refuses to print the longest
        return "a number of hundreds of digits"
    return _Repr().repr(value)


def _explain(schema: type[Strict], content: dict, error: dict) -> tuple[list, str]:
    """The key of one pydantic error, and the error in plain words."""
    # behind the keys of the content, pydantic names members of a union
    _, location = place_of(content, error["loc"])
    if error["type"] == "missing":
        location = list(error["loc"])
    key = ".".join(map(str, location))
    if error["type"] == "extra_forbidden":
        valid = _fields_at(schema, location[:-1])
        return location, f"unknown key '{key}'{nearest(location[-1], valid)}"
    if error["type"] == "missing":
        return location, f"the key '{key}' is missing"
    message = error["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    if error["type"] != "value_error":
        return location, f"{key}: {_shown(error['input'])} should be {message}"
    if key and not isinstance(error["input"], dict):
        return location, f"{key}: {message}"
    # several keys contradict each other: the line of the one that the message names first
    inner = functools.reduce(lambda part, name: part[name], location, content)
    named = [name for name in re.findall(r"'(\w+)'", message) if name in inner]
    return [*location, *named[:1]], f"{key}: {message}" if key else message


def _fields_at(schema: Any, location: list) -> list[str]:
    """The valid keys at a place inside a schema, followed through lists, dicts and options."""
    for part in map(str, location):
        fields = getattr(schema, "model_fields", None)
        if fields is None or part not in fields:
            continue  # a list index or a dictionary's key: `schema` is already the element type
        schema = fields[part].annotation
        for _ in range(3):
            arguments = [a for a in getattr(schema, "__args__", ()) if a is not type(None)]
            schema = arguments[-1] if arguments else schema
    return list(keys_of(schema)) if hasattr(schema, "model_fields") else []
