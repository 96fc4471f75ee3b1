"""Jobs without Slurm: the same protocol with processes of this machine (submitit-local)."""

import contextlib
import os
import subprocess

from crate.errors import RunError
from crate.recipes import Compute


def fit_machine(compute: Compute) -> Compute:
    """One machine's share of what was asked for; the global batch stays the same."""
    gpus = min(compute.gpus, count_gpus())
    changes: dict = {"nodes": 1, "gpus": gpus}
    if compute.processes is None and compute.gpus:
        changes["processes"] = max(1, gpus)
    return compute.model_copy(update=changes)


def count_gpus() -> int:
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


def submit_local(executor, work) -> tuple[int, float]:
    """Process id and start time of a controller in a session of its own, so that Ctrl-C here and
    the end of this process do not reach it."""
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
        said = file.read().split()
    if len(said) != 2:
        raise RunError("the local job could not be started")
    return int(said[0]), float(said[1])


def find_process(number: int, born: float):
    """The process with this id and start time while it lives, else None."""
    import psutil

    with contextlib.suppress(psutil.Error):
        process = psutil.Process(number)
        if process.create_time() == born and process.status() != psutil.STATUS_ZOMBIE:
            return process
    return None


def end_process(number: int, born: float) -> None:
    """End a local job with all its processes, if it still lives."""
    import psutil

    process = find_process(number, born)
    if process is None:
        return
    everyone = [*process.children(recursive=True), process]
    for one in everyone:
        with contextlib.suppress(psutil.Error):
            one.terminate()
    _, alive = psutil.wait_procs(everyone, timeout=5)
    for one in alive:
        with contextlib.suppress(psutil.Error):
            one.kill()
