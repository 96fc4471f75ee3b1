"""Submit a job to Slurm or to this machine: what sbatch is given, and job.json.

Only this file and work.py import submitit.
"""

import contextlib
import dataclasses
import io
import math
import os
import shutil
import signal
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from shlex import quote

from crate.errors import RunError, UsageError
from crate.launch import local, slurm
from crate.launch.job import Job, time_limit
from crate.launch.run import Prepared
from crate.launch.work import Item, Work
from crate.planning.settings import Settings, Site
from crate.recipes import Compute
from crate.records import DRIVER_VARIABLE, write_json

RETRY_SECONDS = 300.0  # how long a submission is retried while the controller does not answer
PAUSES = (2.0, 60.0)  # seconds between two tries: the first, doubled up to the last
MAX_TIMEOUTS = 10**6  # submitit's own limit, out of reach: `job.MAX_STALLS` ends a run
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
WAITS = {
    "limit": (
        "the cluster takes no more jobs now ({}); waiting until it does (max_jobs of the site, now "
        "{}, is how many are submitted at once)"
    ),
    "busy": "Slurm does not answer ({}); asking again",
}
_SLURM_CONF = os.environ.get("SLURM_CONF")


def job_parameters(compute: Compute, site: Site, name: str, comment: str, runs: int = 1) -> dict:
    """submitit's parameters of a job.

    Args:
        compute: what each of its runs needs.
        comment: the job's comment in Slurm.
        runs: how many runs the job does, one after another.
    """
    minutes = min(time_limit(compute, site) * runs, math.ceil(60 * site.max_hours))
    signal_seconds = min(site.signal_seconds, 30 * minutes)
    cpus = compute.threads + compute.workers
    parameters = {
        "name": name,
        "nodes": compute.nodes,
        "tasks_per_node": compute.processes_per_node,
        "cpus_per_task": cpus,
        "timeout_min": minutes,
    }
    if site.launcher == "submitit-local":
        gpus = {"gpus_per_node": compute.gpus} if compute.gpus else {}
        return parameters | gpus  # submitit sends its signal 30 s before the limit
    options: dict = {"requeue": True}
    if compute.gpus:
        flag = f"{site.gpu_type}:{compute.gpus}" if site.gpu_type else str(compute.gpus)
        options[site.gpu_flag] = f"gpu:{flag}" if site.gpu_flag == "gres" else flag
    if site.memory:
        parameters["mem_gb"] = compute.memory_gb
    for key in ("partition", "account", "qos", "constraint"):
        if getattr(site, key):
            parameters[f"slurm_{key}"] = getattr(site, key)
    return parameters | {
        "slurm_comment": comment,
        "slurm_signal_delay_s": signal_seconds,
        "slurm_setup": site.setup or None,
        # since Slurm 22.05 srun ignores sbatch's CPUs; a dead rank must end the others
        # and the step needs the script's environment, also with the site's --export=NONE
        "slurm_srun_args": [f"--cpus-per-task={cpus}", "--kill-on-bad-exit=1", "--export=ALL"],
        "slurm_additional_parameters": options,
    }


def make_executor(folder: Path, parameters: dict, site: Site):
    """submitit's executor for one job.

    Args:
        folder: where submitit writes the job's files.
        parameters: as `job_parameters` gives them.

    Raises:
        UsageError: sbatch is not installed here, or submitit does not know an option.
        RunError: the folder cannot be written.
    """
    import submitit

    kind = "slurm" if site.launcher == "slurm" else "local"
    if kind == "slurm":
        slurm.check_slurm()
    options = {f"{kind}_max_num_timeout": MAX_TIMEOUTS}
    if site.python:
        # a path may have spaces; a command with its arguments is left as it is
        options[f"{kind}_python"] = (
            quote(site.python) if Path(site.python).exists() else site.python
        )
    try:
        executor = submitit.AutoExecutor(folder=folder, cluster=kind, **options)
        executor.update_parameters(**parameters)
    except (ValueError, NameError) as error:
        raise UsageError(f"the site's settings: {str(error).splitlines()[0]}") from None
    except OSError as error:
        raise RunError(f"{folder}: cannot be written ({error.strerror})") from None
    if kind == "slurm":
        inner = executor._executor
        make = inner._make_submission_file_text
        inner._make_submission_file_text = lambda *words: with_options(make(*words), site.sbatch)
    return executor


def with_options(script: str, options: dict[str, str | bool | None]) -> str:
    """A job script whose options of sbatch are replaced by the site's, or taken away.

    submitit writes `--requeue=False` for an option that is false, and an option twice if its own
    name has other dashes.
    """
    names = {key.lstrip("-").replace("_", "-"): value for key, value in options.items()}
    replaced = {*names, *(f"no-{name}" for name in names), *(n.removeprefix("no-") for n in names)}
    mark = "#SBATCH --"
    lines = script.splitlines()
    # sbatch reads options up to the first command
    end = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    end = max([i + 1 for i in range(end) if lines[i].startswith(mark)], default=end)
    kept = [x for x in lines[:end] if x.removeprefix(mark).split("=")[0] not in replaced]
    own = [
        f"{mark}{name}" if value is True else f"{mark}{name}={quote(value)}"
        for name, value in names.items()
        if value not in (None, False)
    ]
    return "\n".join([*kept, *own, *lines[end:]]) + "\n"


def script_text(executor) -> str:
    """The script that a Slurm executor gives to sbatch."""
    inner = executor._executor
    return inner._make_submission_file_text(inner._submitit_command_str, "")


@contextlib.contextmanager
def submission_environment() -> Iterator[None]:
    """The environment in which a job script is tested, probed and submitted, always the same.

    Without the options of the shell (SBATCH_PARTITION, …), the ranks of a job around this process,
    and its settings; with SLURM_CONF, which names the cluster.
    """
    from submitit.helpers import clean_env

    hidden = ("CRATE_SETTINGS", DRIVER_VARIABLE, "CRATE_FRESH", "CRATE_RANKS")
    with clean_env(extra_names=hidden):
        if _SLURM_CONF is not None:
            os.environ["SLURM_CONF"] = _SLURM_CONF
        try:
            yield
        finally:
            os.environ.pop("SLURM_CONF", None)


def submit_job(
    items: list[Item],
    prepared: list[Prepared],
    settings: Settings,
    root: Path,
    experiments: Path,
    stop_requested: Callable[[], bool],
) -> Job:
    """Submit one job for these runs and write it to the job.json of each.

    Args:
        items: the runs, which have the same needs.
        prepared: the same runs, looked up.
        root: the folder of all jobs.
        experiments: the folder `experiments/`.
        stop_requested: whether SIGINT or SIGTERM arrived.

    Raises:
        RunError: the cluster refuses the job, or does not answer for `RETRY_SECONDS`.
        KeyboardInterrupt: a stop was requested while the cluster did not answer.
    """
    compute = prepared[0].resolved.recipe.compute
    if settings.launcher == "submitit-local":
        compute = local.fit_to_machine(compute)
    token = f"crate-{uuid.uuid4().hex[:12]}"
    folder = root / token
    run = prepared[0].resolved.run
    name = f"crate:{run.model}:seed{run.seed}:{'/'.join(run.chain)}"
    name += f":and {len(items) - 1} more" if len(items) > 1 else ""
    parameters = job_parameters(compute, settings, name, token, len(items))
    executor = make_executor(folder, parameters, settings)
    work = Work(items, settings, folder, experiments)
    identity = prepared[0].identity
    job = Job(settings.launcher, token, str(folder), identity, None, time.time(), len(items))

    def write(job: Job) -> Job:
        for one in prepared:
            write_json(one.folder.job, dataclasses.asdict(job) | {"identity": one.identity})
        return job

    write(job)  # first: if this process is killed while it submits, the next one finds the job
    submitted = None
    try:
        with submission_environment():
            if settings.launcher == "submitit-local":
                number, born = local.submit(executor, work)
                submitted = dataclasses.replace(job, id=str(number), born=born)
            else:
                number = _submit_slurm(executor, work, job, settings.max_jobs, stop_requested)
                submitted = dataclasses.replace(job, id=number)
            return write(submitted)
    except BaseException:
        if submitted is not None:  # no process would wait for a job whose id is not on disk
            submitted.cancel()
        for one in prepared:
            one.folder.job.unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _submit_slurm(
    executor, work: Work, job: Job, max_jobs: int, stop_requested: Callable[[], bool]
) -> str:
    """Submit a job and return its id; wait out what passes: limits of jobs, a busy controller."""
    import submitit

    (pause, longest), told = PAUSES, ""
    end = time.monotonic() + RETRY_SECONDS
    while True:
        try:
            signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)  # Ctrl-C must not reach sbatch
            with contextlib.redirect_stderr(io.StringIO()) as said:  # submitit repeats each refusal
                number = executor.submit(work).job_id
            print(said.getvalue(), end="", file=sys.stderr, flush=True)  # remarks of the site
            return number
        except submitit.core.utils.FailedJobError as error:
            message = getattr(error.__cause__, "stderr", None) or str(error.__cause__ or error)
            message = message.decode() if isinstance(message, bytes) else message
            kind = slurm.refusal(message)
            message = slurm.one_line(message)
        except BlockingIOError as error:  # too many processes on this machine
            kind, message = "busy", f"sbatch cannot be started: {error.strerror}"
        except OSError as error:
            raise RunError(f"{executor.folder}: cannot be written ({error.strerror})") from None
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        passes = kind == "limit" and slurm.may_pass(message)
        end = time.monotonic() + RETRY_SECONDS if passes else end
        if kind == "final" or (not passes and time.monotonic() > end):
            raise RunError(f"the cluster refuses the job: {message}")
        if kind != told:
            print(WAITS[kind].format(message, max_jobs), file=sys.stderr, flush=True)
            told = kind
        resume = time.monotonic() + pause
        pause = min(2 * pause, longest)
        while time.monotonic() < resume:
            time.sleep(min(0.5, pause))
            if stop_requested():
                raise KeyboardInterrupt
        with contextlib.suppress(RunError):  # the job may be accepted and only the answer lost
            accepted = slurm.find_job(job.token)
            if accepted:
                slurm.cancel(accepted)
