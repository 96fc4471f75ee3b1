"""Errors whose message is one line for the user: it names file, key or run, and what to do.

`UsageError`  the request is invalid (exit status 2); nothing was started.
`RunError`    a run failed (exit status 1); other runs continue.
`Stopped`     a `RunError`: a signal stopped the run, and the next start resumes it.
"""

import difflib
from collections.abc import Iterable


class UsageError(Exception):
    """The request is invalid; the message is one line that says what to do instead."""


class RunError(Exception):
    """A run failed; the message is one line that names the run, file or value."""


class Stopped(RunError):
    """A signal stopped a run between two updates or images; what it did is saved.

    number: of the signal.
    """

    def __init__(self, message: str, number: int):
        super().__init__(message)
        self.number = number


def cause_of(error: BaseException) -> BaseException:
    """The innermost error that led to one: torch's compiler and libraries wrap the real one."""
    for _ in range(20):  # a chain may loop
        inner = (
            getattr(error, "inner_exception", None) or error.__cause__
        )  # of torch.compile; of all
        if isinstance(error, BaseExceptionGroup):
            inner = error.exceptions[0]
        if not isinstance(inner, BaseException) or type(inner).__name__ == "_RemoteTraceback":
            return error
        error = inner
    return error


def reason_of(error: BaseException) -> str:
    """Why something failed, in one line: what the innermost error says."""
    cause = cause_of(error)
    return getattr(cause, "strerror", None) or _line(cause) or type(cause).__name__


def told(error: BaseException) -> str:
    """The kind of the innermost error, and what it says, in one line."""
    cause = cause_of(error)
    return f"{type(cause).__name__}: {_line(cause)}"


def _line(error: BaseException) -> str:
    """What an error says that means something: of another process's error, not its traceback."""
    lines = [line for line in str(error).splitlines() if line.strip(" \"'")]
    traces = [k for k, line in enumerate(lines) if "Traceback (most recent call last)" in line]
    if traces:
        lines = [line for line in lines[traces[-1] + 1 :] if not line.startswith(" ")]
    first, second, *_ = (*map(str.strip, lines), "", "")
    first = first.removeprefix(f"{type(error).__name__}: ")
    if first.endswith(":") and second:
        first = f"{first} {second}"
    return "" if first == "None" else first


def nearest(name: object, valid: Iterable[str]) -> str:
    """An error's ending: `"; did you mean 'x'?"`, else up to 12 valid names, or the nearest 3."""
    names = sorted(map(str, valid))
    close = difflib.get_close_matches(str(name), names, n=1, cutoff=0.55)
    if close:
        return f"; did you mean '{close[0]}'?"
    if len(names) <= 12:
        return f"; valid: {', '.join(names)}" if names else ""
    some = difflib.get_close_matches(str(name), names, n=3, cutoff=0)
    return f"; the nearest of {len(names):,} names: {', '.join(some)}"


def unknown(kind: str, name: object, valid: Iterable[str], where: str = "") -> UsageError:
    """A `UsageError` for a name that does not exist: `unknown model 'crte'; did you mean …?`."""
    prefix = f"{where}: " if where else ""
    shown = text if len(text := str(name)) <= 100 else f"{text[:100]}…"
    return UsageError(f"{prefix}unknown {kind} '{shown}'{nearest(shown, valid)}")
