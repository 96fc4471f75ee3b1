"""What Slurm knows of our jobs: the only file that calls squeue, scontrol, sacct and scancel.

Works without sacct. A controller that does not answer is no news: `None`, never "gone".
"""

import contextlib
import dataclasses
import getpass
import re
import shutil
import subprocess
import time
from pathlib import Path

from crate.errors import RunError, UsageError
from crate.records import lock, read_json, write_json

# States of a job that will not come back by itself
ENDED = (
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY",
    "PREEMPTED", "TIMEOUT",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class JobState:
    """A line of squeue."""

    state: str
    reason: str = ""
    node: str = ""
    elapsed: str = ""
    comment: str = ""

    def __str__(self) -> str:
        if self.state == "PENDING":
            return f"queued ({self.reason})" if self.reason not in ("", "None") else "queued"
        words = self.state.lower().replace("_", " ")
        return f"{words} on {self.node}" if self.node else words


def check_slurm() -> None:
    """Raises `UsageError` where no job can be submitted."""
    if not shutil.which("sbatch"):
        raise UsageError("there is no sbatch here: run this on a login node, or launcher=local")


def ask(*words: str) -> str | None:
    """Output of a Slurm command; None where it is missing, fails, or does not answer."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def queued_jobs() -> dict[str, JobState] | None:
    """Every job of this user that is pending, running or ending, by id."""
    told = ask("squeue", "-h", "-u", getpass.getuser(), "-o", "%i|%T|%r|%N|%M|%k")
    if told is None:
        return None
    lines = [line.split("|", 5) for line in told.splitlines()]
    jobs = {line[0]: JobState(*line[1:]) for line in lines if len(line) == 6}
    return {i: job for i, job in jobs.items() if job.state not in ENDED}


def final_state(job: str) -> str | None:
    """A job's state as the controller, or else the accounting, remembers it; None: unknown."""
    told = ask("scontrol", "--oneliner", "show", "job", job) or ""
    match = re.search(r"\bJobState=(\S+)", told)
    if match:
        return match[1]
    told = ask("sacct", "-X", "-n", "-P", "-j", job, "-o", "State") or ""
    return told.strip().splitlines()[-1].split()[0] if told.strip() else None


def find(comment: str) -> str | None:
    """Id of the job that carries a comment.

    Raises:
        RunError: the controller does not answer.
    """
    jobs = queued_jobs()
    if jobs is None:
        raise RunError("Slurm does not answer (squeue); a job may be under way, so none is started")
    return next((i for i, job in jobs.items() if job.comment == comment), None)


def cancel(job: str) -> bool:
    """Whether Slurm took the order."""
    return ask("scancel", job) is not None


class Queue:
    """The user's queue, asked for once in a while by whichever waiting process comes first.

    All processes that wait share the answer through a file, so that the controller's load does
    not grow with the number of runs.
    """

    def __init__(self, folder: Path, seconds: float):
        self.path = folder / "queue.json"
        self.seconds = seconds

    def get(self, since: float, *, now: bool = False) -> dict[str, JobState] | None:
        """The jobs, from an answer not older than `since` (seconds since the epoch); else None.

        With `now`, ask Slurm itself.
        """
        told = read_json(self.path) or {"time": 0.0, "jobs": {}}
        if now or abs(time.time() - told["time"]) > self.seconds:
            with lock(self.path.with_suffix(".lock")) as held:
                asked = time.time()
                jobs = queued_jobs() if held or now else None
                if jobs is not None:
                    listed = {i: dataclasses.asdict(job) for i, job in jobs.items()}
                    told = {"time": asked, "jobs": listed}
                    with contextlib.suppress(RunError):  # a full disk: each asks for itself
                        write_json(self.path, told)
        if told["time"] < since:
            return None
        return {i: JobState(**job) for i, job in told["jobs"].items()}


def partitions() -> dict[str, dict] | None:
    """Partition → its time limit, nodes, and generic resources; None where Slurm is silent."""
    told = ask("sinfo", "-h", "-o", "%R|%l|%D|%G|%c|%m")
    if told is None:
        return None
    found: dict[str, dict] = {}
    for line in told.splitlines():
        name, limit, nodes, gres, cpus, memory = line.split("|")
        entry = found.setdefault(name, {"limit": limit, "nodes": 0, "gres": set()})
        entry["nodes"] += int(nodes)
        entry["gres"] |= {gres} - {"(null)"}
        entry |= {"cpus": cpus, "memory_mb": memory}
    return found


def accounts() -> list[str] | None:
    """Accounts this user may charge; None on a cluster without accounting."""
    told = ask(
        "sacctmgr", "-n", "-P", "show", "assoc", f"user={getpass.getuser()}", "format=account"
    )
    return None if told is None else sorted(set(told.split()))


def test_script(path: Path) -> str:
    """What `sbatch --test-only` says against a script; empty where it would be accepted."""
    try:
        done = subprocess.run(
            ["sbatch", "--test-only", str(path)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return "" if done.returncode == 0 else one_line(done.stderr)


def one_line(said: str) -> str:
    """The sentence that matters of what a Slurm command prints."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [line for line in lines if "error:" in line] or lines or ["it said nothing"]
    return "; ".join(re.sub(r"^\w+: (error: )?", "", line) for line in errors)
