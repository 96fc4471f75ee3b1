"""The process that waits for a run's job: attach to the job or submit one, and see how it ended.

It imports no torch. How a job fares is read from outcome.json, then from squeue, then from scontrol
or sacct.
"""

import contextlib
import os
import re
import shutil
import signal
import sys
import time
from pathlib import Path

from crate.errors import RunError
from crate.launch import slurm
from crate.launch.job import MAX_STALLS, Job, job_state, jobs_folder, read_job, saved_times
from crate.launch.pack import Pack
from crate.launch.run import Prepared, prepare
from crate.launch.sbatch import STOP_SIGNALS, submit_job
from crate.launch.work import Item
from crate.planning.plan import Plan
from crate.planning.settings import Settings
from crate.recipes import Compute
from crate.records import DRIVER_VARIABLE, canonical_json, lock, read_json, short_hash
from crate.runs import parse_path

GONE_SECONDS = 10.0  # how late a job's last writes may appear on a shared file system
# Final states after which the run is submitted again
LOST = ("BOOT_FAIL", "NODE_FAIL", "PREEMPTED", "TIMEOUT")

CAUSE = "error|no such file|killed|denied|^failed: "


class Interrupts:
    """Records SIGINT and SIGTERM instead of raising, so that a submission is never cut short."""

    def __enter__(self) -> "Interrupts":
        self.received = False

        def record(number: int, frame: object) -> None:
            self.received = True

        self.before = {n: signal.signal(n, record) for n in STOP_SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)


class Tail:
    """Prints the new whole lines of a growing file to stderr."""

    def __init__(self, path: Path):
        self.path = path
        self.offset = path.stat().st_size if path.exists() else 0

    def show(self) -> None:
        with contextlib.suppress(OSError):
            if self.path.stat().st_size <= self.offset:
                return
            with self.path.open("rb") as file:
                file.seek(self.offset)
                whole, newline, _ = file.read().rpartition(b"\n")
            self.offset += len(whole) + len(newline)
            if newline:
                print(whole.decode(errors="replace"), file=sys.stderr, flush=True)


def launch(
    path: str,
    plan: Plan,
    settings: Settings,
    expected: str | None = None,
    overrides: dict | None = None,
    fresh: bool = False,
) -> None:
    """Bring a run to its end in a job: attach to the job that works on it, or submit one.

    Args:
        path: the run's folder or its metrics.json.
        expected: the planned identity; another one is refused.
        overrides: changes of the recipe (tuning trials only).
        fresh: train again even if a finished result of the same identity exists.

    Raises:
        UsageError: as `crate.launch.run.prepare`.
        RunError: the job was refused, ended without a result, or the run failed in it.
        KeyboardInterrupt: SIGINT or SIGTERM; `on_interrupt` of the site says whether the job is
            cancelled.
    """
    prepared = prepare(path, plan, expected=expected, overrides=overrides)
    folder = prepared.folder
    item = Item(path, expected, overrides or {}, fresh)
    results = parse_path(path)[1]
    root = jobs_folder(results, prepared.resolved.run.scale, settings)
    waiter = Waiter(item, prepared, plan, settings, root)
    waiting = f"{waiter.run}: another process waits for this run's job; waiting with it"
    with lock(folder.folder / ".launch.lock", waiting), Interrupts() as waiter.interrupts:
        if not fresh and folder.accept(prepared.identity):
            print(f"{waiter.run}: already finished, nothing to do", file=sys.stderr)
            waiter.remove_finished()
            return
        waiter.complete()


class Waiter:
    """Waits for one run's job."""

    interrupts: Interrupts

    def __init__(self, item: Item, prepared: Prepared, plan: Plan, settings: Settings, root: Path):
        self.item, self.prepared, self.plan = item, prepared, plan
        self.settings, self.root = settings, root
        self.run, self.folder = prepared.resolved.run, prepared.folder
        self.queue = slurm.Queue(root, settings.poll_seconds)
        self.tail = Tail(self.folder.log)
        self.driver = int(os.environ.get(DRIVER_VARIABLE, 0))

    def say(self, text: str) -> None:
        print(f"{self.run}: {text}", file=sys.stderr, flush=True)

    def complete(self) -> None:
        """Attach or submit, and wait; submit again if the job is lost. Raises as `launch`."""
        lost, saved = 0, None
        job = self._attach()
        while True:
            if job is None:
                job = self._submit()
                self.say(f"job {job.id} submitted")
            end = self._wait(job)
            if not end:
                return
            # preempted, out of time without a signal, or the node died: resume from the checkpoint
            now = saved_times(self.folder)
            lost = lost + 1 if now == saved else 0
            saved = now
            if lost >= MAX_STALLS:
                raise RunError(f"{self.run}: {MAX_STALLS + 1} jobs were lost in a row ({end})")
            self.say(f"job {job.id} was lost ({end}); submitting it again")
            job = None

    def _attach(self) -> Job | None:
        """The job that an earlier process submitted, if it still works on the same identity."""
        job = read_job(self.folder)
        if job is None:
            return None
        if job.id is None:  # the process was killed while it submitted
            accepted = slurm.find_job(job.token) if job.launcher == "slurm" else None
            if accepted:
                slurm.cancel(accepted)
            return None
        alive = job_state(job, self.queue, now=True)
        if job.identity != self.prepared.identity or job.launcher != self.settings.launcher:
            if alive is not False:
                self.say(f"job {job.id} works on another recipe or code; cancelling it")
                job.cancel()
            return None
        if alive is False or job.outcome(self.item.path) is not None:
            return None
        self.say(f"attached to job {job.id}")
        return job

    def _submit(self) -> Job:
        compute = self.prepared.resolved.recipe.compute
        small = (
            compute.nodes * compute.processes_per_node == 1
            and compute.hours <= self.settings.pack_hours
        )
        job = self._join_pack(compute) if self.settings.pack > 1 and small else None
        return job or self._submit_job([self.item], [self.prepared])

    def _submit_job(self, items: list[Item], prepared: list[Prepared]) -> Job:
        experiments = self.plan.experiments.folder
        return submit_job(
            items, prepared, self.settings, self.root, experiments, self._stop_requested
        )

    def _join_pack(self, compute: Compute) -> Job | None:
        folder = self.root / f"pack-{short_hash(canonical_json(compute.model_dump()))}"
        limit = self.settings.pack
        pack = Pack(folder, limit, self.plan, self._submit_job, self._stop_requested)
        return pack.join(self.item, self.folder)

    def _wait(self, job: Job) -> str:
        """Wait for the job's end; returns "" if the run is finished, else the lost job's state."""
        shown, gone, pause = "", None, 0.1
        while True:
            self.tail.show()
            outcome = job.outcome(self.item.path)
            if outcome is not None:
                self._finish(job, outcome)
                return ""
            if self.interrupts.received:
                self._interrupted(job)
            self._check_driver(job)
            state = job_state(job, self.queue, now=gone is not None)
            if state is False:
                gone = gone or time.monotonic()
                if time.monotonic() - gone > GONE_SECONDS:
                    end = self._judge(job)
                    if end is not None:
                        return end
                    gone = None  # according to the controller the job has not ended
            elif state is not None:
                gone = None
                if str(state) != shown:
                    shown = str(state)
                    self.say(f"job {job.id} {shown}")
            time.sleep(pause)
            pause = min(1.0, 1.3 * pause)

    def _finish(self, job: Job, outcome: str) -> None:
        """Act on the outcome that the job wrote."""
        time.sleep(0.05)  # the last lines of the log follow the outcome
        self.tail.show()
        self.folder.job.unlink(missing_ok=True)
        if outcome:
            raise RunError(f"{outcome} (job {job.id}, logs in {job.folder})")
        if not self.folder.accept(self.prepared.identity):
            raise RunError(f"{self.run}: job {job.id} left a result of another recipe or code")
        self._remove_files(job)

    def _remove_files(self, job: Job) -> None:
        """Delete the job's folder once all its runs succeeded; a failed run keeps the logs."""
        folder = Path(job.folder)
        with contextlib.suppress(OSError):
            (folder / f"read-{self.prepared.identity}").touch()
            if len(list(folder.glob("read-*"))) == job.runs:
                shutil.rmtree(folder, ignore_errors=True)

    def remove_finished(self) -> None:
        """Delete the files of a job that finished this run while no process waited."""
        job = read_job(self.folder)
        if job and job.identity == self.prepared.identity and job.outcome(self.item.path) == "":
            self.folder.job.unlink(missing_ok=True)
            self._remove_files(job)

    def _judge(self, job: Job) -> str | None:
        """As `_wait`, for a job that left the queue with no outcome; None if it has not ended."""
        state = slurm.final_state(job.id) if job.launcher == "slurm" else "FAILED"
        if state is not None and state not in slurm.ENDED:
            return None
        self.tail.show()
        self.folder.job.unlink(missing_ok=True)
        if self.folder.accept(self.prepared.identity) and not self.item.fresh:
            self._remove_files(job)
            return ""
        record = read_json(self.folder.record) or {}
        stopped = record.get("status") == "stopped" and record.get("job", {}).get("id") == job.id
        if state in LOST or (stopped and state == "FAILED"):
            return state
        last = _last_lines(Path(job.folder))
        for line in last:
            print(f"  job {job.id}: {line}", file=sys.stderr)
        what = "was cancelled" if state == "CANCELLED" else "ended without a result"
        what += "" if state in (None, "CANCELLED") else f" ({state})"
        raise RunError(
            f"{self.run}: job {job.id} {what}"
            + (f"; it said: {_cause(last)}" if last else "")
            + f"; logs in {job.folder}"
        )

    def _interrupted(self, job: Job) -> None:
        """Cancel the job or leave it, as the site says, and raise `KeyboardInterrupt`."""
        if self.settings.on_interrupt == "leave":
            self.say(f"job {job.id} goes on; the same command attaches to it again")
        elif job.cancel():
            self.folder.job.unlink(missing_ok=True)
            self.say(f"job {job.id} cancelled")
        else:
            self.say(f"job {job.id} could not be cancelled; 'crate cancel' tries again")
        raise KeyboardInterrupt

    def _check_driver(self, job: Job) -> None:
        """Exit if the Snakemake process that started this one was killed; the job goes on."""
        if self._driver_gone():
            self.say(f"snakemake is gone; job {job.id} goes on, the same command attaches to it")
            sys.exit(1)

    def _driver_gone(self) -> bool:
        try:
            if self.driver:
                os.kill(self.driver, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass
        return False

    def _stop_requested(self) -> bool:
        """Whether to give up while there is no job yet."""
        return self.interrupts.received or self._driver_gone()


def _last_lines(folder: Path) -> list[str]:
    """The last lines of a job's stderr."""
    logs = sorted(folder.glob("*_log.err"), key=lambda path: path.stat().st_mtime)
    text = "".join(path.read_text(errors="replace") for path in logs if path.stat().st_size)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return [line for line in lines if not line.startswith("submitit ")][-8:]


def _cause(lines: list[str]) -> str:
    """The line of a log that names the cause; srun's messages about its tasks come after it."""
    causes = [x for x in lines if re.search(CAUSE, x, re.IGNORECASE)]
    causes = [x for x in causes if not re.search(r"task \d+: |STEP|_step_signal", x)] or causes
    return (causes or lines)[-1]
