"""What is asked of Slurm or of submitit-local for a job, and its submission.

This file and `work.py` are the only ones that know submitit.
"""

import contextlib
import dataclasses
import math
import os
import shutil
import signal
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from crate.errors import RunError, UsageError
from crate.launch import local, slurm
from crate.launch.job import Job, time_limit
from crate.launch.run import Prepared
from crate.launch.work import Item, Work
from crate.planning.settings import Settings, Site
from crate.recipes import Compute
from crate.records import write_json

RETRY_SECONDS = 300.0  # how long a controller that does not answer is asked again
NEVER = 10**6  # submitit's own count of time-outs must not end a run; ours of stalls does
STOPS = (signal.SIGINT, signal.SIGTERM)
SILENT = ("Unable to contact", "Socket timed out", "Connection refused", "Zero Bytes", "try again")


def job_parameters(compute: Compute, site: Site, name: str, comment: str, runs: int = 1) -> dict:
    """submitit's parameters for a job of `runs` runs with these needs on this site."""
    minutes = min(time_limit(compute, site) * runs, math.ceil(60 * site.max_hours))
    signal_seconds = min(site.signal_seconds, 30 * minutes)
    cpus = compute.threads + compute.workers
    parameters = {
        "name": name,
        "nodes": compute.nodes,
        "tasks_per_node": compute.tasks,
        "cpus_per_task": cpus,
        "timeout_min": minutes,
    }
    if site.launcher == "submitit-local":
        gpus = {"gpus_per_node": compute.gpus} if compute.gpus else {}
        return parameters | gpus  # its own signal comes 30 s before the limit
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
        # since 22.05 srun does not take over sbatch's CPUs; one dead rank must end the others
        "slurm_srun_args": [f"--cpus-per-task={cpus}", "--kill-on-bad-exit=1"],
        "slurm_additional_parameters": options | site.sbatch,
    }


def make_executor(folder: Path, parameters: dict, site: Site):
    """submitit's executor for one job.

    Raises:
        UsageError: no Slurm here, or an option that submitit does not know.
    """
    import submitit

    kind = "slurm" if site.launcher == "slurm" else "local"
    if kind == "slurm":
        slurm.check_slurm()
    options = {f"{kind}_max_num_timeout": NEVER}
    if site.python:
        options[f"{kind}_python"] = site.python
    try:
        executor = submitit.AutoExecutor(folder=folder, cluster=kind, **options)
        executor.update_parameters(**parameters)
    except (ValueError, NameError) as error:
        raise UsageError(f"slurm/site.yaml: {str(error).splitlines()[0]}") from None
    except OSError as error:
        raise RunError(f"{folder}: cannot be written ({error.strerror})") from None
    return executor


@contextlib.contextmanager
def _slurm_conf():
    """Keep SLURM_CONF, which names the cluster; `clean_env` hides all that begins with SLURM_."""
    if _SLURM_CONF is not None:
        os.environ["SLURM_CONF"] = _SLURM_CONF
    try:
        yield
    finally:
        os.environ.pop("SLURM_CONF", None)


_SLURM_CONF = os.environ.get("SLURM_CONF")


def _submit_slurm(executor, work: Work, token: str, stop_requested: Callable[[], bool]) -> str:
    """Id of the submitted job; asks again while the controller does not answer."""
    import submitit

    end = time.monotonic() + RETRY_SECONDS
    while True:
        try:
            signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)  # Ctrl-C must not reach sbatch
            return executor.submit(work).job_id
        except submitit.core.utils.FailedJobError as error:
            said = str(error.__cause__ or error)
            said = getattr(error.__cause__, "stderr", None) or said
            said = said.decode() if isinstance(said, bytes) else said
        except OSError as error:
            raise RunError(f"{executor.folder}: cannot be written ({error.strerror})") from None
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
        if not any(words in said for words in SILENT) or time.monotonic() > end:
            raise RunError(f"the cluster refuses the job: {slurm.one_line(said)}")
        print(f"Slurm does not answer ({slurm.one_line(said)}); asking again", file=sys.stderr)
        for _ in range(10):
            time.sleep(1)
            if stop_requested():
                raise KeyboardInterrupt
        with contextlib.suppress(RunError):  # it may have taken the job and lost the answer
            taken = slurm.find(token)
            if taken:
                slurm.cancel(taken)


def submit_job(
    items: list[Item],
    prepared: list[Prepared],
    settings: Settings,
    root: Path,
    experiments: Path,
    stop_requested: Callable[[], bool],
) -> Job:
    """Submit one job for these runs, which have the same needs; its id is in every job.json.

    Args:
        root: the folder of all jobs (`crate.launch.job.jobs_folder`).
        experiments: the folder `experiments/`.
        stop_requested: whether this process was asked to stop.

    Raises:
        RunError: the cluster refuses the job, or does not answer for long.
        KeyboardInterrupt: asked to stop while it did not answer.
    """
    from submitit.helpers import clean_env

    compute = prepared[0].resolved.recipe.compute
    if settings.launcher == "submitit-local":
        compute = local.fit_machine(compute)
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

    def note(job: Job) -> Job:
        for one in prepared:
            write_json(one.folder.job, dataclasses.asdict(job) | {"identity": one.identity})
        return job

    note(job)  # first: a process killed while it submits must find its job again
    taken = None
    # another process's ranks and this one's settings are not the job's
    hidden = ("CRATE_SETTINGS", "CRATE_DRIVER", "CRATE_FRESH")
    try:
        with clean_env(extra_names=hidden), _slurm_conf():
            if settings.launcher == "submitit-local":
                number, born = local.submit_local(executor, work)
                taken = dataclasses.replace(job, id=str(number), born=born)
            else:
                number = _submit_slurm(executor, work, token, stop_requested)
                taken = dataclasses.replace(job, id=number)
            return note(taken)
    except BaseException:
        if taken is not None:  # its id cannot be noted (a full disk): nobody would wait for it
            taken.cancel()
        for one in prepared:
            one.folder.job.unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        raise
