"""The files of a run, and when a run counts as complete.

    metrics.json          metrics and the sha256 of the weights; written last, atomically:
                          it exists if and only if the run is complete
    run.json              provenance: identity, configuration, code, environment, times, status
    config.yaml           the whole configuration, for people
    train.jsonl           one line per logged optimizer step
    weights.safetensors   the final weights
    checkpoint-<id>.pt    state of unfinished training; only a run of the same identity resumes it
    progress-<id>-<rank>.jsonl  results so far of an unfinished evaluation, one line an image
    features-<weights>-<key>.safetensors  the network's features of a split, for its probes
    examples.npz          a few images with the network's outputs, for a figure
    log.txt               printed output, and tracebacks
    .lock                 held by the process that works here; released when it dies
    events.out.tfevents.…, tracking.json  files of trackers (crate/training/trackers.py)
    job.json              the cluster job that works here (crate/launch/job.py)

This module imports no torch.
"""

import contextlib
import fcntl
import hashlib
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from crate.errors import RunError

# Snakemake's process number, in the environment of the processes that it starts
DRIVER_VARIABLE = "CRATE_DRIVER"


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces, so that equal values give equal hashes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success, flush it to disk and rename it to `path`.

    Raises:
        RunError: the folder cannot be written or the disk is full; `path` is then unchanged.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())  # mkstemp's 0600 would lock out the user's group
        temporary.replace(path)
    except OSError as error:
        raise RunError(f"{path}: cannot be written ({error.strerror or error})") from None
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_text(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n")


def read_json(path: Path) -> dict | None:
    """The JSON object at `path`; None if the file is missing or holds anything else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):  # the last: nested too deep
        return None
    return value if isinstance(value, dict) else None


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def git_commit(folder: Path = Path(__file__).parent) -> str:
    """The commit of the checkout whose `crate/` a folder is, with `+changes` where it has any.

    "unknown: …" says why it is not known.
    """
    # set in a hook, for example; they would name another repository
    others = ("GIT_DIR", "GIT_WORK_TREE", "GIT_COMMON_DIR", "GIT_INDEX_FILE", "GIT_NAMESPACE")
    environment = {key: value for key, value in os.environ.items() if key not in others}
    environment["LC_ALL"] = "C"

    def git(*words: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            ["git", *words],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )

    try:
        top = git("rev-parse", "--show-toplevel")
        if "dubious ownership" in top.stderr:
            return "unknown: git does not read another user's checkout (safe.directory)"
        if top.returncode or not os.path.samefile(top.stdout.rstrip("\n"), folder.parent):
            return "unknown: the code is a copy, no checkout of its own"
        commit = git("rev-parse", "--verify", "HEAD")
        if commit.returncode:
            return "unknown: the checkout has no commit"
        changes = git("status", "--porcelain", "--untracked-files=no")
        changed = "+changes" if changes.stdout else ""
        return commit.stdout.strip() + ("+unknown" if changes.returncode else changed)
    except FileNotFoundError:
        return "unknown: git is not installed"
    except (OSError, subprocess.SubprocessError) as error:
        return f"unknown: git does not answer ({type(error).__name__})"


@contextlib.contextmanager
def lock(path: Path, waiting: str | None = None) -> Iterator[bool]:
    """Hold an exclusive lock that the operating system releases when this process dies.

    Yields True once it is held. If another process holds it: with `waiting`, print that text once
    and wait; without, yield False.

    Raises:
        RunError: the lock file cannot be written or locked.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+")
    except OSError as error:
        raise RunError(f"{path}: cannot be written ({error.strerror})") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if not isinstance(error, BlockingIOError):
                raise RunError(f"{path}: cannot be locked ({error.strerror})") from None
            if waiting is None:
                yield False
                return
            file.seek(0)
            holder = file.read().strip() or "unknown"
            print(f"{waiting} (process {holder})", file=sys.stderr, flush=True)
            while True:  # not a blocking flock: a signal must be able to end the wait
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    time.sleep(0.2)
        with contextlib.suppress(OSError):  # the lock holds even if the disk is full
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
        yield True


class RunFolder:
    """The files of one run."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.metrics = folder / "metrics.json"
        self.record = folder / "run.json"
        self.config = folder / "config.yaml"
        self.history = folder / "train.jsonl"
        self.weights = folder / "weights.safetensors"
        self.examples = folder / "examples.npz"
        self.log = folder / "log.txt"
        self.lock = folder / ".lock"
        self.job = folder / "job.json"
        self.follower: Callable[[dict], None] | None = None  # gets `append`ed lines (trackers.py)

    def checkpoint(self, identity: str) -> Path:
        return self.folder / f"checkpoint-{identity}.pt"

    def progress(self, identity: str, rank: int) -> Path:
        return self.folder / f"progress-{identity}-{rank}.jsonl"

    def unfinished(self) -> list[Path]:
        """The files from which an unfinished run resumes."""
        patterns = ("checkpoint-*.pt", "progress-*.jsonl")
        return sorted(path for pattern in patterns for path in self.folder.glob(pattern))

    def start(self, record: dict) -> None:
        """Record that this run began; drop metrics and history that it does not resume."""
        self.metrics.unlink(missing_ok=True)
        if not self.checkpoint(record["identity"]).exists():  # nothing to resume
            self.history.unlink(missing_ok=True)
        for leftover in self.folder.glob(".*.tmp"):  # its process was killed while writing
            leftover.unlink(missing_ok=True)
        write_json(self.record, {**record, "status": "running", "started": now()})

    def append(self, line: dict) -> None:
        """Append a line to train.jsonl."""
        with self.history.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        if self.follower is not None:
            self.follower(line)

    def fail(self, error: str, status: str = "failed") -> None:
        """Record in run.json and log.txt why the run failed, or was "stopped"; tables show it."""
        with contextlib.suppress(OSError), self.log.open("a", encoding="utf-8") as log:
            log.write(f"{error}\n" if status == "stopped" else f"{status}: {error}\n")
        record = read_json(self.record) or {}
        write_json(self.record, {**record, "status": status, "error": error, "ended": now()})

    def stopped(self) -> bool:
        """Whether the run began, has no result, and is not under way: it was stopped or killed.

        A job of the cluster counts as under way as long as job.json is there.
        """
        status = (read_json(self.record) or {}).get("status")
        if status == "running" and not self.job.exists():
            with lock(self.lock) as free:  # a killed process holds it no more
                return free
        return status == "stopped"

    def latest(self) -> str:
        """The epoch, or update, and loss of the last line of train.jsonl; "" without one."""
        try:
            *_, last = self.history.read_text(encoding="utf-8").splitlines()
            line = json.loads(last)
            return f"epoch {line['epoch']:.2f}, update {line['step']:,}, loss {line['loss']:.3f}"
        except (OSError, ValueError, KeyError):
            return ""

    def finish(self, metrics: dict[str, Any], details: dict[str, Any]) -> None:
        """Record the result: run.json first, metrics.json last; then delete checkpoints.

        Raises:
            RunError: a metric is not finite, or a file cannot be written.
        """
        for name, value in metrics.items():
            if not math.isfinite(value):
                raise RunError(f"{self.folder}: the metric {name} is {value}, not a finite number")
        result = {"metrics": metrics}
        if self.weights.exists():
            result["weights_sha256"] = file_sha256(self.weights)
        record = read_json(self.record) or {}
        record |= {"status": "complete", "ended": now(), "result": result} | details
        write_json(self.record, record)
        write_json(self.metrics, result)
        self._drop_unfinished()

    def accept(self, identity: str) -> bool:
        """Restore metrics.json from a complete run.json of the same identity; False if none is.

        Snakemake deletes outputs that it did not see finished, for example when its driver was
        killed and the trainer continued. The result is still here and need not be computed again.
        """
        record = read_json(self.record)
        if not record or record.get("status") != "complete" or record.get("identity") != identity:
            return False
        expected = record["result"].get("weights_sha256")
        if expected and not (self.weights.exists() and file_sha256(self.weights) == expected):
            return False
        write_json(self.metrics, record["result"])
        self._drop_unfinished()
        return True

    def _drop_unfinished(self) -> None:
        for path in self.unfinished():
            path.unlink(missing_ok=True)
