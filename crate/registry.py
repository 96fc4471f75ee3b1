"""Dictionaries of the entries that a configuration may name."""

from collections.abc import Iterable, Mapping
from typing import TypeVar

from crate.errors import UsageError, unknown

Entry = TypeVar("Entry")


class Registry(dict[str, Entry]):
    """Names → entries; an unknown name is a `UsageError` with the nearest one.

    A run's code identity covers only the entries that its configuration names
    (`planning/identity.py`), so a new entry reruns nothing.

    kind: what a name stands for, for the error's text.
    """

    def __init__(self, kind: str, entries: Mapping[str, Entry]):
        super().__init__(entries)
        self.kind = kind

    def __missing__(self, name: str) -> Entry:
        raise unknown(self.kind, name, self)


# --- entries from files of one's own (crate/plugins) --------------------------------------------

_added: list[tuple[dict, str, str]] = []  # dictionary, name, module


def add(entries: dict, kind: str, name: str, entry: object, module: str) -> None:
    """Add an entry that a file of one's own defines.

    Raises:
        UsageError: the name is taken, or the file is not one that the setting `plugins` names.
    """
    if not module.startswith("crate.plugins."):
        raise UsageError(f"{kind} '{name}': name its file in the setting 'plugins'")
    if name in entries:
        raise UsageError(f"{kind} '{name}': there is one of this name; choose another")
    entries[name] = entry
    _added.append((entries, name, module))


def homes(names: Iterable[str]) -> list[str]:
    """The modules of files of one's own that define an entry of one of these names."""
    held = set(names)
    return sorted({module for _, name, module in _added if name in held})


def forget() -> None:
    """Take away what was added."""
    for entries, name, _ in _added:
        entries.pop(name, None)
    _added.clear()
