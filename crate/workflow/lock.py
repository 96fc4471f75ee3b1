"""The lock of the one Snakemake process on a results folder, and what a dead one left behind.

A driver that was killed leaves Snakemake's lock, outputs marked incomplete, and training processes
that go on. This lock ends with its process; whoever holds it may clear the leftovers, so nobody
needs `--unlock`. Outputs marked incomplete are deleted, as `--rerun-incomplete` does; the training
process then finds its finished result or its checkpoint (`crate/records.py`).
"""

import contextlib
import itertools
import os
from base64 import urlsafe_b64decode
from collections.abc import Iterator
from pathlib import Path

from crate.errors import UsageError
from crate.planning.settings import Settings
from crate.records import DRIVER_VARIABLE, lock

OLD = 946_684_800  # the year 2000; Snakemake takes a file of time 0 for one that is current
# Keeps the lock for as long as this process lives
_HELD = contextlib.ExitStack()


def become_driver(settings: Settings, workdir: str | Path = ".") -> None:
    """Take the lock of a scale's results folder and clear what a dead driver left.

    To be called before Snakemake looks at its own lock and at incomplete files.

    Raises:
        UsageError: another driver works on the folder.
        RunError: the folder cannot be written.
    """
    results = Path(settings.results)
    folder = results / settings.scale
    path = folder / ".driver.lock"
    if not _HELD.enter_context(lock(path)):
        holder = path.read_text().strip()
        raise UsageError(
            f"another snakemake (process {holder}) is at work on {folder}; "
            "wait for it, or stop it first"
        )
    os.environ[DRIVER_VARIABLE] = str(os.getpid())
    snakemake = Path(workdir) / ".snakemake"
    _clear_locks(snakemake, results, folder)
    _clear_incomplete(snakemake, folder)
    forget_outdated(snakemake, folder)


def forget_outdated(snakemake: Path, folder: Path) -> None:
    """Make the tables, figures and report that Snakemake shall make again older than all else.

    They have gaps, or were made without it, and it would take them for its own. What it recorded of
    them goes too: it makes no old file again whose inputs have the contents that it recorded.

    snakemake: its folder of records.
    """
    outdated = set()
    for marker in (folder / "metrics").glob("*.outdated"):
        patterns = [f"{part}/{marker.stem}.*" for part in ("tables", "metrics")]
        patterns += [f"figures/{name}.*" for name in marker.read_text().split()]
        patterns.append("report.html")
        for path in itertools.chain(*map(folder.glob, patterns)):
            if path.suffix not in (".log", ".outdated"):
                os.utime(path, (OLD, OLD))
                outdated.add(os.path.abspath(path))
        marker.unlink()
    for record, name in _records(snakemake / "metadata") if outdated else ():
        if os.path.abspath(name) in outdated:
            record.unlink()


def _clear_locks(snakemake: Path, results: Path, folder: Path) -> None:
    """Delete Snakemake's locks on files of this scale, unless they cover another scale too."""
    for file in (snakemake / "locks").glob("*.lock"):
        with contextlib.suppress(OSError):
            names = file.read_text().split("\n")
            this_scale = [_inside(name, folder) for name in names]
            any_scale = [_inside(name, results) for name in names]
            if any(this_scale) and this_scale == any_scale:
                file.unlink()


def _clear_incomplete(snakemake: Path, folder: Path) -> None:
    """Delete this scale's files that Snakemake marked incomplete, and the marks."""
    for mark, name in _records(snakemake / "incomplete"):
        if _inside(name, folder):
            with contextlib.suppress(OSError):
                Path(name).unlink(missing_ok=True)
                mark.unlink()


def _records(folder: Path) -> Iterator[tuple[Path, str]]:
    """Snakemake's files about outputs, each with the output's path."""
    for record in folder.glob("**/*"):
        with contextlib.suppress(OSError, ValueError):
            parts = record.relative_to(folder).parts  # a long name is cut into @part/@part/part
            name = urlsafe_b64decode("".join(part.lstrip("@") for part in parts)).decode()
            if record.is_file():
                yield record, name


def _inside(path: str, folder: Path) -> bool:
    return bool(path) and Path(os.path.normpath(path)).is_relative_to(os.path.normpath(folder))
