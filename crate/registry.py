"""Dictionaries of the entries that a configuration may name."""

from collections.abc import Mapping
from typing import TypeVar

from crate.errors import unknown

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
