"""What Slurm knows of our jobs: the only file that runs squeue, scontrol, sacct and scancel.

sacct may be missing. If the controller does not answer, a state is `None` (unknown), never "gone".
"""

import contextlib
import dataclasses
import getpass
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Literal

from crate.errors import RunError, UsageError
from crate.records import lock, read_json, write_json

# Final states of a job
ENDED = (
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY",
    "PREEMPTED", "TIMEOUT",
)  # fmt: skip

# Refusals of sbatch that pass, by Slurm's words (src/common/slurm_errno.c). A limit of submitted
# jobs passes when a job ends; of other limits, such as of time or size, no job becomes smaller.
SUBMIT_LIMIT = re.compile(r"\b(QOS|Assoc|Max|Grp)\w*Submit\w*", re.IGNORECASE)
OTHER_LIMIT = re.compile(r"\b(QOS|Assoc|Max|Grp)(?!\w*Submit)\w*(Limit|Per\w+)\b")
SHARED_LIMIT = re.compile(r"Grp|PerAccount", re.IGNORECASE)
UNNAMED_LIMIT = "job submit limit"  # one of several causes, where Slurm names none
BUSY = re.compile(
    r"unable to contact|timed out|connection (refused|reset|failure)|zero bytes were transmitted"
    r"|try again|temporarily una|standby mode|message (receive|send) failure|rate limit|back-?off"
    r"|(no route to|unreachable|down).{0,9}\bhost|network is unreachable|transport endpoint"
    r"|broken pipe|i/o error writing|slurm ?ctld.{0,20}(busy|shutting down)|controller.{0,9}busy",
    re.IGNORECASE,
)


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
    """Raise `UsageError` if sbatch is not installed on this machine."""
    if not shutil.which("sbatch"):
        raise UsageError("no sbatch here; run this on a login node, or set launcher=local")


def ask(*words: str) -> str | None:
    """Output of a Slurm command; None if it is missing, fails, or does not answer in a minute."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def queued_jobs() -> dict[str, JobState] | None:
    """This user's pending, running and completing jobs by id; None if Slurm does not answer."""
    output = ask("squeue", "-h", "-u", getpass.getuser(), "-o", "%i|%T|%r|%N|%M|%k")
    if output is None:
        return None
    lines = [line.split("|", 5) for line in output.splitlines()]
    jobs = {line[0]: JobState(*line[1:]) for line in lines if len(line) == 6}
    return {i: job for i, job in jobs.items() if job.state not in ENDED}


def final_state(job: str) -> str | None:
    """A job's last state from the controller, else from the accounting; None if unknown."""
    output = ask("scontrol", "--oneliner", "show", "job", job) or ""
    match = re.search(r"\bJobState=(\S+)", output)
    if match:
        return match[1]
    output = ask("sacct", "-X", "-n", "-P", "-j", job, "-o", "State") or ""
    return output.strip().splitlines()[-1].split()[0] if output.strip() else None


def find_job(comment: str) -> str | None:
    """Id of the queued or running job with this comment, if there is one.

    Raises:
        RunError: the controller does not answer.
    """
    jobs = queued_jobs()
    if jobs is None:
        raise RunError("Slurm does not answer (squeue); a job may be under way, so none is started")
    return next((i for i, job in jobs.items() if job.comment == comment), None)


def cancel(job: str) -> bool:
    """Cancel a job; False if Slurm did not accept the order."""
    return ask("scancel", job) is not None


class Queue:
    """The user's queue, cached in a file that all waiting processes share.

    The first process that finds the file old asks Slurm, so the controller's load does not grow
    with the number of runs.

    Args:
        folder: where the file lies.
        seconds: age at which it is old.
    """

    def __init__(self, folder: Path, seconds: float):
        self.path = folder / "queue.json"
        self.seconds = seconds

    def jobs(self, since: float, *, now: bool = False) -> dict[str, JobState] | None:
        """The jobs by id, or None if no answer is newer than `since` (seconds since the epoch).

        With `now`, ask Slurm.
        """
        cached = read_json(self.path) or {"time": 0.0, "jobs": {}}
        if now or abs(time.time() - cached["time"]) > self.seconds:
            with lock(self.path.with_suffix(".lock")) as held:
                time_asked = time.time()
                jobs = queued_jobs() if held or now else None
                if jobs is not None:
                    listed = {i: dataclasses.asdict(job) for i, job in jobs.items()}
                    cached = {"time": time_asked, "jobs": listed}
                    with contextlib.suppress(RunError):  # a full disk: nothing is shared
                        write_json(self.path, cached)
        if cached["time"] < since:
            return None
        return {i: JobState(**job) for i, job in cached["jobs"].items()}


def partitions() -> dict[str, dict] | None:
    """Partition → time limit, number of nodes, generic resources; None if Slurm does not answer."""
    output = ask("sinfo", "-h", "-o", "%R|%l|%D|%G|%c|%m")
    if output is None:
        return None
    by_name: dict[str, dict] = {}
    for line in output.splitlines():
        name, limit, nodes, gres, cpus, memory = line.split("|")
        entry = by_name.setdefault(name, {"limit": limit, "nodes": 0, "gres": set()})
        entry["nodes"] += int(nodes)
        entry["gres"] |= {gres} - {"(null)"}
        entry |= {"cpus": cpus, "memory_mb": memory}
    return by_name


def accounts() -> list[str] | None:
    """This user's accounts in small letters, as Slurm keeps them; None without accounting."""
    output = ask(
        "sacctmgr", "-n", "-P", "show", "assoc", f"user={getpass.getuser()}", "format=account"
    )
    return None if output is None else sorted(set(output.split()))


def may_pass(message: str) -> bool:
    """Whether a job's end may lift a limit: one of ours, or of the account's other users."""
    return bool(SHARED_LIMIT.search(message)) or queued_jobs() != {}


def refusal(message: str) -> Literal["limit", "busy", "final"]:
    """What a refusal of sbatch means: a limit of submitted jobs, a busy controller, or the end."""
    if SUBMIT_LIMIT.search(message):
        return "limit"
    if UNNAMED_LIMIT in message and not OTHER_LIMIT.search(message):
        return "limit" if queued_jobs() else "final"
    return "busy" if BUSY.search(message) else "final"


def test_script(path: Path) -> str:
    """Why `sbatch --test-only` refuses a script; "" if it would accept it."""
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


def one_line(output: str) -> str:
    """The error lines of a Slurm command's output in one line, without the command's name."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if "error:" in line] or lines or ["it printed nothing"]
    return "; ".join(re.sub(r"^\w+: (error: )?", "", line) for line in errors)
