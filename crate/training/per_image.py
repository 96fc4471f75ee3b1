"""A set of pictures worked through one by one, by several processes, that survives a kill.

Rank r of w takes every w-th of the pictures that are left, and appends a line of JSON for each to
`progress-<identity>-<rank>.jsonl` in the run's folder:

    {"picture": 3, "of": 5000, "found": {…}}           what was made of it
    {"picture": 4, "of": 5000, "failed": "its reason"}  a next start tries it again

A start, with whatever number of ranks, reads the lines of all ranks of this identity and goes on
with the rest. The lines go when the run's metrics are written (`RunFolder.finish`).
"""

import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from crate.data.scenes import Scenes
from crate.errors import RunError, Stopped, UsageError
from crate.records import RunFolder
from crate.runtime import Runtime, stop_signals
from crate.training.progress import Progress


def work_through(
    look: Callable[[int], dict],
    count: int,
    *,
    picture: Callable[[int], str],
    runtime: Runtime,
    folder: RunFolder,
    identity: str,
    name: str,
) -> list[dict]:
    """Apply `look` to pictures 0 … count - 1, over all ranks.

    Ranks meet before the first picture (all must see the same lines) and after the last; between,
    each goes its way. A picture that `look` fails on is a warning; its reason stands in its place.

    Args:
        look: from a picture's number, what was made of it, ready for JSON.
        picture: what a message calls a picture.
        name: of the run.

    Returns:
        on rank 0 what `look` returned, or {"failed": reason}, by picture; elsewhere an empty list.

    Raises:
        Stopped: a signal came; what was done is kept.
        UsageError: as `look` does, which would for every picture.
        RunError: a line is of other data, or pictures are missing or double in the end, or more
            than `MOST_FAILED` of them failed.
    """
    if runtime.main:
        _drop_others(folder, identity)
    done = _read(folder, identity, count, picture)
    left = [index for index in range(count) if "found" not in done.get(index, {})]
    runtime.all_reduce_max(0)  # nobody writes before all have read
    own = left[runtime.rank :: runtime.world]
    path = folder.progress(identity, runtime.rank)
    before, failed = count - len(left), 0
    progress = Progress(name, total=count, unit="pictures", enabled=runtime.main and bool(own))
    progress.resume(before)
    with stop_signals() as stop:
        try:
            if own:
                _cut_to_whole_lines(path)
                with path.open("a", encoding="utf-8") as file:
                    for number, index in enumerate(own, start=1):
                        line = {"picture": index, "of": count} | _attempt(look, index, picture)
                        failed += "failed" in line
                        file.write(json.dumps(line, separators=(",", ":")) + "\n")
                        file.flush()
                        note = f"{failed:,} failed" if failed else ""
                        progress.update(min(before + number * runtime.world, count), note)
                        if stop.asked and number < len(own):
                            raise _stopped(stop.asked, number, len(own))
        except OSError as error:
            raise RunError(f"{path}: cannot be written ({error.strerror or error})") from None
        try:
            runtime.all_reduce_max(0)  # all have written
        except RuntimeError as error:  # a rank is gone: stopped, as this one, or failed
            if stop.asked:
                raise _stopped(stop.asked, len(own), len(own)) from None
            reason = str(error).split("\n")[0]
            raise RunError(f"another process of this run ended early ({reason})") from None
    return _merged(folder, identity, count, picture) if runtime.main else []


def _drop_others(folder: RunFolder, identity: str) -> None:
    for path in folder.folder.glob("progress-*.jsonl"):
        if not path.name.startswith(f"progress-{identity}-"):
            path.unlink(missing_ok=True)


def _attempt(look: Callable[[int], dict], index: int, picture: Callable[[int], str]) -> dict:
    """One picture, or why it failed: hours of work on the others must not be lost by it."""
    try:
        return {"found": look(index)}
    except (UsageError, MemoryError, torch.OutOfMemoryError, torch.AcceleratorError):
        raise  # not this picture's fault
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).split("\n")[0]
        if not isinstance(error, RunError):  # which names the file itself
            reason = f"{picture(index)}: {type(error).__name__}: {reason}"
        print(f"warning: {reason}", file=sys.stderr)
        return {"failed": reason}


def _stopped(number: int, done: int, own: int) -> Stopped:
    return Stopped(
        f"stopped by {signal.Signals(number).name} at picture {done:,} of {own:,}; "
        "the next start goes on from there",
        number,
    )


def _cut_to_whole_lines(path: Path) -> None:
    """Cut off what a killed process left of its last line, so that the next starts a line."""
    if path.exists():
        content = path.read_bytes()
        if whole := content.rfind(b"\n") + 1:
            with path.open("rb+") as file:
                file.truncate(whole)
        else:
            path.unlink()


def _read(
    folder: RunFolder, identity: str, count: int, picture: Callable[[int], str]
) -> dict[int, dict]:
    """Picture → its line, of all ranks; one that was found goes before one that failed.

    What is no whole line is left out. Raises `RunError` for lines of other data, and for doubles.
    """
    lines: dict[int, dict] = {}
    doubles: list[int] = []
    lines_of_all = f"progress-{identity}-*.jsonl"
    again = f"delete {folder.folder / lines_of_all} to start anew"
    for path in sorted(folder.folder.glob(lines_of_all)):
        try:
            content = path.read_bytes()
            texts = content[: content.rfind(b"\n") + 1].splitlines()
        except OSError as error:
            raise RunError(f"{path}: cannot be read ({error.strerror})") from None
        for text in texts:
            try:
                line = json.loads(text)
                index, of = line["picture"], line["of"]
                whole = type(index) is int and type(of) is int and {"found", "failed"} & set(line)
            except (ValueError, KeyError, TypeError, RecursionError):
                continue
            if not whole:
                continue
            if of != count:
                raise RunError(
                    f"{path}: was made of {of:,} pictures, now there are {count:,}; restore the "
                    f"data, or {again}"
                )
            if not 0 <= index < count:
                continue
            if "found" in line and "found" in lines.get(index, {}):
                doubles.append(index)
            if "found" in line or index not in lines:
                lines[index] = line
    if doubles:
        raise RunError(
            f"{folder.folder}: {len(doubles):,} of {count:,} pictures are there twice, the first "
            f"is {picture(doubles[0])}; {again}"
        )
    return lines


def _merged(
    folder: RunFolder, identity: str, count: int, picture: Callable[[int], str]
) -> list[dict]:
    lines = _read(folder, identity, count, picture)
    missing = [index for index in range(count) if index not in lines]
    if missing:
        raise RunError(
            f"{folder.folder}: {len(missing):,} of {count:,} pictures are missing, the first is "
            f"{picture(missing[0])}; start the run again"
        )
    merged = [lines[index].get("found", lines[index]) for index in range(count)]
    reasons = failures(merged)
    if len(reasons) > MOST_FAILED * count:
        raise RunError(
            f"{len(reasons):,} of {count:,} pictures failed, the first: {reasons[0]}; the next "
            "start tries them again"
        )
    return merged


MOST_FAILED = 1 / 3  # of the pictures; with more there is no result


def failures(found: list[dict]) -> list[str]:
    """Why pictures failed, of what `work_through` returned."""
    return [part["failed"] for part in found if "failed" in part]


def report(scenes: Scenes, found: list[dict], remarks: list[str]) -> dict:
    """What run.json records of the pictures, with the remarks that a table has to repeat."""
    failed = failures(found)
    if failed:
        remarks = [*remarks, f"{len(failed):,} of {len(found):,} pictures could not be looked at"]
    details = {"problems": list(scenes.problems), "threads": torch.get_num_threads()}
    if failed:
        details["failed"] = failed[:20]
    if remarks:
        details["remark"] = "; ".join(remarks)
    return details
