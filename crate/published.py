"""The published records of a scale: all runs in one file instead of one folder a run.

    results/published/<scale>/runs.jsonl      one line a run: {"path": "runs/…", "record": run.json}
    results/published/<scale>/training.jsonl  one line a run: {"path": …, "lines": train.jsonl}

Lines are sorted by path, so equal records give equal bytes. Other modules name a published run by
its folder, `results/published/<scale>/runs/<model>/seed<k>/<stage>/…`, which need not exist.
Planning uses this module; it imports no torch.
"""

import functools
import json
from collections.abc import Callable
from pathlib import Path

from crate.environment import PROJECT
from crate.errors import RunError
from crate.records import canonical_json, read_json, write_text

RUNS, TRAINING = "runs.jsonl", "training.jsonl"


def published_results(results: str | Path) -> Path:
    """The folder in whose scales results are published."""
    return Path(results) / "published"


def published_or_packaged(results: str | Path, scale: str) -> Path:
    """The folder to read a scale's published records in: of `results`, else the package's."""
    own, packaged = published_results(results), PROJECT / "published"
    here = (own / scale / RUNS).is_file() or not (packaged / scale / RUNS).is_file()
    return own if here else packaged


def read_record(folder: Path) -> dict:
    """The record of the run in `folder`: its published line, else its run.json; {} without either.

    Raises:
        RunError: runs.jsonl is damaged.
    """
    scale, name = _split(folder)
    return published_runs(scale).get(name) or read_json(folder / "run.json") or {}


def read_history(folder: Path) -> list[dict]:
    """A run's published training lines, else those of its train.jsonl; [] without either.

    A line that is not JSON, such as the last one of a killed run, ends the list.

    Raises:
        RunError: training.jsonl is damaged.
    """
    scale, name = _split(folder)
    if published := published_training(scale).get(name):
        return published
    path = folder / "train.jsonl"
    if not path.is_file():
        return []
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:
            break
    return lines


def record_file(folder: Path) -> Path:
    """The file that holds the record of the run in `folder`: runs.jsonl or run.json."""
    scale, name = _split(folder)
    return scale / RUNS if name in published_runs(scale) else folder / "run.json"


def published_runs(scale: Path) -> dict[str, dict]:
    """Path of a run in the folder of a scale → its published record; do not modify it.

    Raises:
        RunError: runs.jsonl is damaged.
    """
    return _read(scale / RUNS, "record", dict)


def published_training(scale: Path) -> dict[str, list[dict]]:
    """Path of a run in the folder of a scale → its published train.jsonl; do not modify it.

    Raises:
        RunError: training.jsonl is damaged.
    """
    return _read(scale / TRAINING, "lines", list)


def write_runs(scale: Path, records: dict[str, dict]) -> Path:
    """Write runs.jsonl, sorted by path; returns its path."""
    return _write(scale / RUNS, "record", records, canonical_json)


def write_training(scale: Path, histories: dict[str, list[dict]]) -> Path:
    """Write training.jsonl, sorted by path; returns its path."""
    return _write(scale / TRAINING, "lines", histories, _ordered_json)


def _split(folder: Path) -> tuple[Path, str]:
    """Split a run's folder: the scale's folder, and runs/<model>/seed<k>/<stage>/… within it."""
    for seed in (folder, *folder.parents):
        if seed.name.startswith("seed") and seed.parent.parent.name == "runs":
            scale = seed.parents[2]
            return scale, folder.relative_to(scale).as_posix()
    return folder, ""


def _ordered_json(lines: list[dict]) -> str:
    """JSON of train.jsonl's lines. Curves are drawn in the keys' order; a loss may be NaN."""
    return json.dumps(lines, separators=(",", ":"))


def _write(path: Path, key: str, values: dict, encode: Callable) -> Path:
    lines = (
        f'{{"path":{json.dumps(name)},"{key}":{encode(values[name])}}}\n' for name in sorted(values)
    )
    write_text(path, "".join(lines))
    return path


def _read(path: Path, key: str, kind: type) -> dict:
    try:
        state = path.stat()
    except OSError:
        return {}
    return _parse(path, key, kind, state.st_mtime_ns, state.st_size)


@functools.lru_cache(maxsize=8)
def _parse(path: Path, key: str, kind: type, _changed: int, _size: int) -> dict:
    """The file's lines as a dictionary, cached until its time or size changes."""
    values: dict = {}
    try:
        content = path.read_bytes()
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error.strerror or error})") from None
    for number, line in enumerate(content.splitlines(), start=1):
        try:
            entry = json.loads(line)
            name, value = entry["path"], entry[key]
        except (ValueError, KeyError, TypeError):
            name, value = None, None
        if not (isinstance(name, str) and isinstance(value, kind)):
            raise RunError(
                f"{path}, line {number}: expected a JSON object with 'path' and '{key}'; restore "
                "the file with git, or publish again"
            )
        if name in values:
            raise RunError(f"{path}, line {number}: {name} appears twice; keep one of its lines")
        values[name] = value
    return values
