"""Jobs without Slurm (submitit-local): a controller process on this machine for each job."""

import contextlib
import os
import subprocess

from crate.errors import RunError
from crate.recipes import Compute


def fit_to_machine(compute: Compute) -> Compute:
    """The same needs on one node, with the GPUs it has; the global batch stays the same."""
    gpus = min(compute.gpus, _count_gpus())
    changes: dict = {"nodes": 1, "gpus": gpus}
    if compute.processes is None and compute.gpus:
        changes["processes"] = max(1, gpus)
    return compute.model_copy(update=changes)


def _count_gpus() -> int:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([part for part in visible.split(",") if part.strip()])
    try:
        listed = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return 0
    return len(listed.stdout.splitlines())


def submit(executor, work) -> tuple[int, float]:
    """Start a job's controller; returns its process id and start time.

    It has a session of its own, so it survives Ctrl-C and the end of this process.

    Raises:
        RunError: the controller did not start.
    """
    import psutil

    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.setsid()
        try:
            number = int(executor.submit(work).job_id)
            os.write(writer, f"{number} {psutil.Process(number).create_time()}".encode())
        finally:
            os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    with os.fdopen(reader) as file:
        answer = file.read().split()
    if len(answer) != 2:
        raise RunError("the local job could not be started")
    return int(answer[0]), float(answer[1])


def find_process(number: int, born: float):
    """The living process with this id and start time, or None; ids are used again."""
    import psutil

    with contextlib.suppress(psutil.Error):
        process = psutil.Process(number)
        if process.create_time() == born and process.status() != psutil.STATUS_ZOMBIE:
            return process
    return None


def end_process(number: int, born: float) -> None:
    """End a controller and all processes below it."""
    import psutil

    process = find_process(number, born)
    if process is None:
        return
    family = [*process.children(recursive=True), process]
    for one in family:
        with contextlib.suppress(psutil.Error):
            one.terminate()
    _, alive = psutil.wait_procs(family, timeout=5)
    for one in alive:
        with contextlib.suppress(psutil.Error):
            one.kill()
