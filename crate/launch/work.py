"""What runs inside a job: its runs one after another, and what is requeued when time is short.

submitit pickles a `Work` and calls it on the nodes.
"""

import dataclasses
import os
import signal
import sys
import time
from pathlib import Path

from crate.errors import RunError, Stopped, UsageError
from crate.launch.job import STALLS, last_changes, tell, time_limit
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
    expected: str | None  # identity it was planned with; an edit since then is refused
    overrides: dict
    fresh: bool


class Work:
    """What a job does: some runs, one after another. submitit pickles it and calls it."""

    def __init__(self, items: list[Item], settings: Settings, folder: Path, experiments: Path):
        self.items = items
        self.settings_json = settings.model_dump_json()
        self.folder = folder
        self.experiments = experiments.absolute()
        self.root = Path.cwd()
        self.restarts = self.stalls = 0
        self.saved: list[int] = []

    def __call__(self) -> None:
        import submitit

        os.chdir(self.root)
        environment = submitit.JobEnvironment()
        if environment.num_tasks > 1:
            # the site's `setup` may name another address; we pick the device by LOCAL_RANK
            address = {k: os.environ[k] for k in ("MASTER_ADDR",) if k in os.environ}
            distributed = submitit.helpers.TorchDistributedEnvironment()
            distributed.export(set_cuda_visible_devices=False, overwrite=True)
            os.environ.update(address)
        main = environment.global_rank == 0
        settings = self.settings
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
                perform(prepared, settings, fresh=item.fresh, job=job)
            except Stopped as stopped:
                if stopped.number != signal.SIGUSR2:
                    raise
                # submitit's handler: on the first rank it saves `checkpoint()`, requeues, exits
                signal.getsignal(signal.SIGUSR2)(signal.SIGUSR2, None)
                sys.exit(0)
            except (RunError, UsageError) as failure:
                error = str(failure)
                errors.append(error)
                print(f"failed: {error}", file=sys.stderr)
            self.items.remove(item)
            if main:
                tell(self.folder, item.path, error)
        if errors:
            raise RunError("; ".join(errors))  # Slurm shall call the job failed

    def checkpoint(self):
        """What is requeued when the time limit is near or the job is preempted; None gives up."""
        import submitit

        item = self.items[0]
        run, results = parse_path(item.path)
        saved = last_changes(RunFolder(run.folder(self.root / results)))
        compute = Plan(Experiments(self.experiments)).resolve(run).recipe.compute
        limit = time_limit(compute, self.settings)
        long = time.time() - self.started > 30 * limit  # a preemption comes at any time
        self.stalls = self.stalls + 1 if long and saved == self.saved else 0
        self.saved = saved
        if self.stalls >= STALLS:
            error = (
                f"{run}: {STALLS} starts reached the time limit of {limit} minutes without one "
                "more update or picture; raise hours of the step, or max_hours of the site"
            )
            tell(self.folder, item.path, error)
            return None
        self.restarts += 1
        return submitit.helpers.DelayedSubmission(self)

    @property
    def settings(self) -> Settings:
        return Settings.model_validate_json(self.settings_json)


def _seen(folder: str) -> str:
    return "there" if Path(folder).is_dir() else f"{folder} is not there"


def probe(data_root: str, scratch: str) -> dict:
    """What a node sees: the job that `crate launch --preflight … --probe` submits.

    An empty `data_root` means that only embedded data are used.
    """
    import platform

    import torch

    from crate.environment import mismatch

    return {
        "host": platform.node(),
        "python": platform.python_version(),
        "torch": torch.__version__ + (f" ({mismatch()})" if mismatch() else ""),
        "GPUs": torch.cuda.device_count(),
        "data root": _seen(data_root) if data_root else "not used",
        "scratch": _seen(scratch),
    }
