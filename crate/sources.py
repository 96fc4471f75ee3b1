"""Reads YAML and KEY=VALUE words, and remembers the file and line of each value.

Numbers are YAML 1.2's, in decimal digits: `010` is 10; `1_0`, `1:30`, `0x1F`, `on` and `2026-01-01`
are text. Keys are names, as they are written. `schema.py` checks what is read here.
"""

import functools
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from yaml.composer import Composer

from crate.errors import UsageError

MAX_DIGITS = 300  # of a number; more is a mistake, and beyond 4,300 Python refuses to read them
LONGEST_NAME, LONGEST_PATH = 255, 2048  # bytes; a path leaves room for what is made below it


class Place(NamedTuple):
    """Where a value was written: a file and its line, or an option such as `--config`."""

    source: str
    line: int | None = None

    def __str__(self) -> str:
        return self.source if self.line is None else f"{self.source}: line {self.line}"


class Mapping(dict):
    """A dictionary that knows the place of each key, and the text of each unquoted value."""

    def __init__(self, pairs: Iterable = ()):
        super().__init__(pairs)
        self.places: dict[str, Place] = dict(getattr(pairs, "places", {}))
        self.texts: dict[str, str] = dict(getattr(pairs, "texts", {}))

    def take(self, key: str, value: Any, source: dict, source_key: str | None = None) -> None:
        """Set a value, with the place and text that `source` knows of it."""
        self[key] = value
        for mine, theirs in ((self.places, "places"), (self.texts, "texts")):
            mine.pop(key, None)
            known = getattr(source, theirs, {})
            if (source_key or key) in known:
                mine[key] = known[source_key or key]

    def without(self, *keys: str) -> "Mapping":
        kept = Mapping(self)
        for key in keys:
            kept.pop(key, None)
        return kept


class Items(list):
    """A list that knows the place of each item, and the text of each unquoted one."""

    def __init__(self, items: Iterable = ()):
        super().__init__(items)
        self.places: dict[int, Place] = dict(getattr(items, "places", {}))
        self.texts: dict[int, str] = dict(getattr(items, "texts", {}))


# libyaml, if PyYAML was built with it, reads experiments/ eight times as fast. Its own composer
# crashes on deep nesting, so PyYAML's is used.
_LOADERS = (Composer, yaml.CSafeLoader) if yaml.__with_libyaml__ else (yaml.SafeLoader,)


class _Loader(*_LOADERS):
    """Safe YAML with the plain values of YAML 1.2, in which a duplicate key is an error."""

    yaml_implicit_resolvers: dict = {}

    def __init__(self, text: str, source: str, lines: bool):
        _LOADERS[-1].__init__(self, text)
        Composer.__init__(self)
        self.source, self.lines = source, lines

    def place(self, node: yaml.Node) -> Place:
        return Place(self.source, node.start_mark.line + 1 if self.lines else None)


_PLAIN = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?[0-9]+", list("-+0123456789")),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
    "merge": (r"<<", ["<"]),
}
for _name, (_pattern, _first) in _PLAIN.items():
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_name}", re.compile(rf"^(?:{_pattern})$"), _first
    )


def _fail(problem: str, node: yaml.Node) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


def _mapping(loader: _Loader, node: yaml.MappingNode) -> Mapping:
    seen = set()
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise _fail("a key must be a name", key)
        if key.value in seen:
            raise _fail(f"duplicate key '{key.value}'; keep one", key)
        seen.add(key.value)
    loader.flatten_mapping(node)
    mapping = Mapping()
    for key, value in node.value:
        mapping[key.value] = loader.construct_object(value, deep=True)
        mapping.places[key.value] = loader.place(key)
        mapping.texts.pop(key.value, None)
        _keep_text(mapping, key.value, value)
    return mapping


def _sequence(loader: _Loader, node: yaml.SequenceNode) -> Items:
    items = Items(loader.construct_object(each, deep=True) for each in node.value)
    for index, each in enumerate(node.value):
        items.places[index] = loader.place(each)
        _keep_text(items, index, each)
    return items


def _keep_text(content: Mapping | Items, key: str | int, node: yaml.Node) -> None:
    if isinstance(node, yaml.ScalarNode) and not node.style and node.value:
        content.texts[key] = node.value


def _integer(loader: _Loader, node: yaml.ScalarNode) -> int:
    if len(node.value) > MAX_DIGITS:
        raise _fail(f"a number of {len(node.value)} characters", node)
    return int(node.value)


def _float(loader: _Loader, node: yaml.ScalarNode) -> float:
    return float(re.sub(r"(?i)\.(inf|nan)", r"\1", node.value))


for _tag, _construct in (
    ("map", _mapping),
    ("seq", _sequence),
    ("int", _integer),
    ("float", _float),
):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_tag}", _construct)


def _load(text: str, source: str, *, lines: bool) -> tuple[Any, yaml.Node | None]:
    """The value of a YAML text, and its node. Raises as PyYAML, or `RecursionError`."""
    loader = _Loader(text, source, lines)
    try:
        node = loader.get_single_node()
        return (None, None) if node is None else (loader.construct_document(node), node)
    finally:
        loader.dispose()


@functools.lru_cache(maxsize=512)
def _document(text: str, source: str) -> Any:
    """A file's content; nobody changes it. A process that is forked finds what was read before."""
    return _load(text, source, lines=True)[0]


def read_yaml(path: Path) -> Mapping:
    """Read a YAML mapping; an empty one from an empty file.

    Raises:
        UsageError: the file cannot be read or is not a mapping; names file and line.
    """
    try:
        content = _document(path.read_text(encoding="utf-8"), str(path))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path}: not UTF-8 text") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f"line {mark.line + 1}: " if mark else ""
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or error
        raise UsageError(f"{path}: {line}{problem}") from None
    except RecursionError:
        raise UsageError(f"{path}: nested too deeply") from None
    content = Mapping() if content is None else content
    if not isinstance(content, Mapping):
        raise UsageError(f"{path}: must be a mapping of names to values")
    return content


def read_words(words: Sequence[str], option: str) -> Mapping:
    """Words KEY=VALUE of a command line, each value read as YAML; `@x` and `a: b` are text.

    Raises:
        UsageError: a word is not KEY=VALUE, or its list, mapping or quotes do not end; the message
            names the option.
    """
    content = Mapping()
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not key:
            raise UsageError(f"{option}: '{word}' is not KEY=VALUE")
        try:
            value, node = _load(text, option, lines=False) if text.strip() else (text, None)
        except (yaml.YAMLError, RecursionError):
            if text.strip()[0] in "[{\"'":
                raise UsageError(
                    f"{option}: {word[:80]}: the value cannot be read as YAML"
                ) from None
            value, node = text, None
        if isinstance(value, dict) and text.strip()[0] != "{":  # a colon in a name
            value, node = text, None
        content[key] = value
        content.places[key] = Place(option)
        content.texts.pop(key, None)
        if isinstance(node, yaml.ScalarNode):
            _keep_text(content, key, node)
    return content


def nested(content: Mapping) -> Mapping:
    """`{"compute.threads": 2}` → `{"compute": {"threads": 2}}`."""
    whole = Mapping()
    for key in content:
        *outer, last = key.split(".")
        part = Mapping()
        part.take(last, content[key], content, key)
        for name in reversed(outer):
            part = Mapping({name: part})
            part.places[name] = content.places.get(key, Place(""))
        whole = merge(whole, part)
    return whole


def merge(base: dict, delta: dict) -> Mapping:
    """`base` updated by `delta`: nested dictionaries merge, other values replace."""
    merged = Mapping(base)
    for key, value in delta.items():
        both = isinstance(merged.get(key), dict) and isinstance(value, dict)
        merged.take(key, merge(merged[key], value) if both else value, delta)
    return merged


def place_of(content: Any, keys: Iterable[str | int]) -> tuple[Place | None, list[str | int]]:
    """Of nested `keys`, the innermost place that is known, and the keys that are in `content`."""
    place, found = None, []
    for key in keys:
        if not isinstance(content, Mapping | Items | dict | list) or not _has(content, key):
            break
        place = getattr(content, "places", {}).get(key, place)
        found.append(key)
        content = content[key]
    return place, found


def _has(content: dict | list, key: str | int) -> bool:
    return key in content if isinstance(content, dict) else key in range(len(content))


def expand_path(text: str) -> str:
    """A folder or file as a person writes it, with `~` and `$VARIABLE` replaced.

    Raises:
        ValueError: it is empty or too long, or names an unknown variable or user.
    """
    for name in _variables(text):
        if not os.environ.get(name):
            raise ValueError(f"'{text}': the environment variable {name} is not set")
    path = os.path.expanduser(os.path.expandvars(text))
    if not path.strip():
        raise ValueError("is empty; name a folder")
    if path.startswith("~"):
        raise ValueError(
            f"'{text}': there is no user {path.split('/')[0][1:]}; write ./~ for a name"
        )
    if not path.isprintable():
        raise ValueError(f"{text!r} has a character that cannot be printed")
    parts = [len(os.fsencode(part)) for part in path.split("/")]
    if max(parts) > LONGEST_NAME or len(os.fsencode(path)) > LONGEST_PATH:
        limits = f"{LONGEST_NAME} bytes for a name and {LONGEST_PATH:,} for a path"
        raise ValueError(f"'{path[:40]}…' is longer than {limits}")
    return os.path.normpath(path)


def _variables(text: str) -> Iterator[str]:
    for match in re.finditer(r"\$(?:(\w+)|\{([^}]*)\})", text, re.ASCII):
        yield match[1] or match[2] or ""
