"""The ways things go wrong, and the one line a person reads about it.

`UsageError`  the request makes no sense (exit status 2): nothing was started.
`RunError`    a run failed (exit status 1): other runs go on. `Stopped`: it can be continued.
"""

import difflib
from collections.abc import Iterable


class UsageError(Exception):
    """What was asked for makes no sense; the message is one line that says what to do instead."""


class RunError(Exception):
    """A run failed while working; the message is one line that names the step, file or value."""


class Stopped(RunError):
    """A signal ended a run between two updates; its checkpoint is saved, the next start goes on."""

    def __init__(self, message: str, number: int):
        super().__init__(message)
        self.number = number


def nearest(name: object, valid: Iterable[str]) -> str:
    """Return `"; did you mean 'x'?"`, or the valid names where none is near, or nothing."""
    names = sorted(map(str, valid))
    close = difflib.get_close_matches(str(name), names, n=1, cutoff=0.55)
    if close:
        return f"; did you mean '{close[0]}'?"
    return f"; valid: {', '.join(names)}" if 0 < len(names) <= 12 else ""


def unknown(kind: str, name: object, valid: Iterable[str], where: str = "") -> UsageError:
    """A `UsageError` for a name that does not exist: `unknown model 'crte'; did you mean …?`."""
    prefix = f"{where}: " if where else ""
    return UsageError(f"{prefix}unknown {kind} '{name}'{nearest(name, valid)}")
