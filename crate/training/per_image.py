"""A resumable map over images, split between ranks.

Rank r of w takes every w-th of the images that are left, and appends a line of JSON for each to
`progress-<identity>-<rank>.jsonl` in the run's folder:

    {"picture": 3, "of": 5000, "found": {…}}        the function's result
    {"picture": 4, "of": 5000, "failed": "reason"}  the next start tries it again

A restart, with any number of ranks, reads the lines of all ranks of the same identity and continues
with the images that are left. `RunFolder.finish` deletes the files.
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


def resumable_map(
    look: Callable[[int], dict],
    count: int,
    *,
    picture: Callable[[int], str],
    runtime: Runtime,
    folder: RunFolder,
    identity: str,
    name: str,
) -> list[dict]:
    """Apply `look` to images 0 … count - 1, split between all ranks.

    Ranks synchronise before the first image, so that all read the same lines, and after the last.
    If `look` fails on an image, a warning is printed and the reason recorded in place of a result.

    Args:
        look: index of an image → its result, a dictionary of JSON values.
        picture: index of an image → its name in messages.
        name: the run's name, for the progress bar.

    Returns:
        on rank 0 the results in order, {"failed": reason} for images that failed; on other ranks
        an empty list.

    Raises:
        Stopped: a signal came; the results so far are saved.
        UsageError: raised by `look`; it would be for every image.
        RunError: lines were made with other data, results are missing or duplicate at the end,
            or more than `MOST_FAILED` of the images failed.
    """
    if runtime.main:
        _drop_others(folder, identity)
    done = _read(folder, identity, count, picture)
    left = [index for index in range(count) if "found" not in done.get(index, {})]
    runtime.all_reduce_max(0)  # a barrier: write only after all ranks have read
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
            runtime.all_reduce_max(0)  # a barrier: all ranks have written
        except RuntimeError as error:  # another rank ended: stopped like this one, or failed
            if stop.asked:
                raise _stopped(stop.asked, len(own), len(own)) from None
            reason = str(error).split("\n")[0]
            raise RunError(
                f"{folder.folder}: another process of this run ended early ({reason})"
            ) from None
    return _merged(folder, identity, count, picture) if runtime.main else []


def _drop_others(folder: RunFolder, identity: str) -> None:
    for path in folder.folder.glob("progress-*.jsonl"):
        if not path.name.startswith(f"progress-{identity}-"):
            path.unlink(missing_ok=True)


def _attempt(look: Callable[[int], dict], index: int, picture: Callable[[int], str]) -> dict:
    """The result of one image, or the reason why it failed, so that the others go on."""
    try:
        return {"found": look(index)}
    except (UsageError, MemoryError, torch.OutOfMemoryError, torch.AcceleratorError):
        raise  # would fail for other images too
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).split("\n")[0]
        if not isinstance(error, RunError):  # a RunError names the file itself
            reason = f"{picture(index)}: {type(error).__name__}: {reason}"
        print(f"warning: {reason}", file=sys.stderr)
        return {"failed": reason}


def _stopped(number: int, done: int, own: int) -> Stopped:
    return Stopped(
        f"stopped by {signal.Signals(number).name} at picture {done:,} of {own:,}; "
        "the next start resumes there",
        number,
    )


def _cut_to_whole_lines(path: Path) -> None:
    """Cut off the incomplete last line of a killed process."""
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
    """Image → its line, from the files of all ranks; a result takes precedence over a failure.

    Invalid lines are skipped. Raises `RunError` for lines made with other data, and for duplicates.
    """
    lines: dict[int, dict] = {}
    doubles: list[int] = []
    lines_of_all = f"progress-{identity}-*.jsonl"
    again = f"delete {folder.folder / lines_of_all} to start over"
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
                    f"{path}: made with {of:,} pictures, now there are {count:,}; restore the "
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
            f"{folder.folder}: {len(doubles):,} of {count:,} pictures have two results, the first "
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


MOST_FAILED = 1 / 3  # share of the images; if more fail, the run fails


def failures(results: list[dict]) -> list[str]:
    """Why images failed; `results` of `resumable_map`."""
    return [part["failed"] for part in results if "failed" in part]


def map_details(scenes: Scenes, results: list[dict], remarks: list[str]) -> dict:
    """Details for run.json: problems of the data, failures, and remarks that tables repeat."""
    failed = failures(results)
    if failed:
        remarks = [*remarks, f"{len(failed):,} of {len(results):,} pictures could not be looked at"]
    details = {"problems": list(scenes.problems), "threads": torch.get_num_threads()}
    if failed:
        details["failed"] = failed[:20]
    if remarks:
        details["remark"] = "; ".join(remarks)
    return details
