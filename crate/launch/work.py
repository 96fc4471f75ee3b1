"""What runs inside a job: its runs, one after another, and its checkpoint before a requeue.

submitit pickles a `Work`, calls it on the nodes, and calls its `checkpoint` on a signal. Only this
file and sbatch.py import submitit.
"""

import dataclasses
import os
import signal
import sys
import time
from pathlib import Path

from crate import plugins
from crate.errors import RunError, Stopped, UsageError
from crate.launch.job import MAX_STALLS, record_outcome, saved_times, time_limit
from crate.launch.run import perform, prepare
from crate.planning.loader import Experiments
from crate.planning.plan import Plan
from crate.planning.settings import Settings
from crate.records import RunFolder
from crate.runs import parse_path


@dataclasses.dataclass
class Item:
    """One run of a job."""

    path: str
    expected: str | None  # the planned identity; the run is refused if code or recipes changed
    overrides: dict
    fresh: bool  # train again even if it is finished


class Work:
    """The runs of a job, called by submitit on each of its tasks.

    Args:
        items: the runs still to do.
        folder: the job's folder, for outcome.json.
        experiments: the folder `experiments/`.
    """

    def __init__(self, items: list[Item], settings: Settings, folder: Path, experiments: Path):
        self.items = items
        self.settings_json = settings.model_dump_json()
        self.folder = folder
        self.experiments = experiments.absolute()
        self.root = Path.cwd()
        self.restarts = self.stalls = 0
        self.saved: list[int] = []  # `saved_times` at the last requeue

    def __call__(self) -> None:
        import submitit

        os.chdir(self.root)
        environment = submitit.JobEnvironment()
        launched = environment.num_tasks > 1
        if launched:
            # keep the address of the site's `setup`; the device is chosen by LOCAL_RANK
            address = {k: os.environ[k] for k in ("MASTER_ADDR",) if k in os.environ}
            distributed = submitit.helpers.TorchDistributedEnvironment()
            distributed.export(set_cuda_visible_devices=False, overwrite=True)
            os.environ.update(address)
        main = environment.global_rank == 0
        settings = self.settings
        plugins.load(settings.plugins)
        plan = Plan(Experiments(self.experiments))
        restarts = max(self.restarts, int(os.environ.get("SLURM_RESTART_COUNT", 0)))
        job = {
            "id": environment.job_id,
            "launcher": settings.launcher,
            "nodes": list(environment.hostnames),
            "restarts": restarts,
        }
        self.started = time.time()
        errors = []
        for item in list(self.items):
            error = ""
            try:
                prepared = prepare(
                    item.path, plan, expected=item.expected, overrides=item.overrides
                )
                perform(prepared, settings, fresh=item.fresh, job=job, launched=launched)
            except Stopped as stopped:
                if stopped.number != signal.SIGUSR2:
                    raise
                # on the first rank, submitit's handler pickles `checkpoint()`, requeues and exits
                signal.getsignal(signal.SIGUSR2)(signal.SIGUSR2, None)
                sys.exit(0)
            except (RunError, UsageError) as failure:
                error = str(failure)
                errors.append(error)
                print(f"failed: {error}", file=sys.stderr)
            self.items.remove(item)
            if main:
                record_outcome(self.folder, item.path, error)
        if errors:
            raise RunError("; ".join(errors))  # so that Slurm marks the job as failed

    def checkpoint(self):
        """What submitit requeues near the time limit or at a preemption; None ends the job."""
        import submitit

        item = self.items[0]
        run, results = parse_path(item.path)
        saved = saved_times(RunFolder(run.folder(self.root / results)))
        compute = Plan(Experiments(self.experiments)).resolve(run).recipe.compute
        limit = time_limit(compute, self.settings)
        # a start shorter than half the limit was preempted, which is no stall
        long = time.time() - self.started > 30 * limit
        self.stalls = self.stalls + 1 if long and saved == self.saved else 0
        self.saved = saved
        if self.stalls >= MAX_STALLS:
            error = (
                f"{run}: {MAX_STALLS} starts reached the time limit of {limit} minutes without one "
                "more update or image; raise hours of the recipe, or max_hours of the site"
            )
            record_outcome(self.folder, item.path, error)
            return None
        self.restarts += 1
        return submitit.helpers.DelayedSubmission(self)

    @property
    def settings(self) -> Settings:
        return Settings.model_validate_json(self.settings_json)


def describe_node(data_root: str, scratch: str) -> dict:
    """What a node has and sees: the job of `crate launch --preflight … --probe`.

    Args:
        data_root: the folder of all data sets, or "" if only embedded data are used.
        scratch: the folder of all jobs.
    """
    import platform

    import torch

    from crate.environment import mismatch

    return {
        "host": platform.node(),
        "python": platform.python_version(),
        "torch": torch.__version__ + (f" ({mismatch()})" if mismatch() else ""),
        "GPUs": torch.cuda.device_count(),
        "data root": _presence(data_root) if data_root else "not used",
        "scratch": _presence(scratch),
    }


def _presence(folder: str) -> str:
    return "there" if Path(folder).is_dir() else f"{folder} is not there"
