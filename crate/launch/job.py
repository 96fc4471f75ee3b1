"""A run as a job of a cluster: submit it, wait for it, and survive what happens to both.

The process that waits is the one a rule started. It imports no torch, leaves `job.json` in the
run's folder before it waits, and judges by what the job itself wrote, not by the job's state:

    <run>/job.json                         which job works on this run
    <scale>/.jobs/<token>/                 what submitit writes for the job: its script, its logs
    <scale>/.jobs/<token>/outcome.json     per run: "" if it finished, else why it failed

This is the only file that knows submitit.
"""

import contextlib
import dataclasses
import math
import os
import re
import shutil
import signal
import sys
import time
import uuid
from pathlib import Path

from crate.errors import RunError, Stopped, UsageError
from crate.launch import slurm
from crate.launch.run import Prepared, perform, prepare
from crate.planning.loader import Experiments
from crate.planning.plan import Plan
from crate.planning.settings import Settings, Site
from crate.recipes import Compute
from crate.records import RunFolder, canonical_json, lock, read_json, short_hash, write_json
from crate.runs import parse_path

STALLS = 3  # starts that ran into the time limit without one more update or picture
GONE_SECONDS = 10.0  # how long a shared file system may hide what a job wrote last
PACK_SECONDS = 3.0  # how long a pack waits for one more run
RETRY_SECONDS = 300.0  # how long a controller that does not answer is asked again
NEVER = 10**6  # submitit's own count of time-outs must not end a run; ours of stalls does
STOPS = (signal.SIGINT, signal.SIGTERM)
LOST = ("BOOT_FAIL", "NODE_FAIL", "PREEMPTED", "TIMEOUT")  # ends that are not the run's fault
SILENT = ("Unable to contact", "Socket timed out", "Connection refused", "Zero Bytes", "try again")


# --- inside the job -----------------------------------------------------------


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
        saved = _last_changes(RunFolder(run.folder(self.root / results)))
        compute = Plan(Experiments(self.experiments)).resolve(run).recipe.compute
        limit = _minutes(compute, self.settings)
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


def _last_changes(folder: RunFolder) -> list[int]:
    """When what an unfinished run goes on from was written: the same again means no progress."""
    return [path.stat().st_mtime_ns for path in folder.unfinished()]


def tell(folder: Path, path: str, error: str) -> None:
    """Note how a run of the job ended, for the processes that wait."""
    outcomes = read_json(folder / "outcome.json") or {}
    write_json(folder / "outcome.json", outcomes | {path: error})


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


# --- submitting -----------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Job:
    """job.json: the job that works on a run."""

    launcher: str
    token: str  # the job's comment: finds a job whose id could not be noted
    folder: str
    identity: str  # of the run
    id: str | None = None  # None while it is being submitted
    submitted: float = 0.0
    runs: int = 1  # how many the job does
    born: float | None = None  # start time of the controlling process (submitit-local)

    def outcome(self, path: str) -> str | None:
        """ "" if the run finished in this job, why it failed, or None while it is under way."""
        return (read_json(Path(self.folder) / "outcome.json") or {}).get(path)

    def cancel(self) -> bool:
        """Whether the order to end this job could be given."""
        if self.launcher == "slurm":
            return slurm.cancel(self.id)
        return _end_local(self)


def read_job(folder: RunFolder) -> Job | None:
    record = read_json(folder.job)
    try:
        return Job(**record) if record else None
    except TypeError:  # of another version, or not ours
        return None


def jobs_folder(results: str, scale: str, site: Site) -> Path:
    """Where the launcher keeps its own files; every node must see it."""
    base = Path(site.scratch) if site.scratch else Path(results) / scale
    return base.absolute() / ".jobs"


def _minutes(compute: Compute, site: Site) -> int:
    """Time limit of a job; a run with more hours is requeued at the limit."""
    return max(1, math.ceil(60 * min(compute.hours, site.max_hours)))


def job_parameters(compute: Compute, site: Site, name: str, comment: str, runs: int = 1) -> dict:
    """submitit's parameters for a job of `runs` runs with these needs on this site."""
    minutes = min(_minutes(compute, site) * runs, math.ceil(60 * site.max_hours))
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
        local = {"gpus_per_node": compute.gpus} if compute.gpus else {}
        return parameters | local  # its own signal comes 30 s before the limit
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


def _submit_slurm(executor, work: Work, token: str, interrupts: "_Interrupts") -> str:
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
            if interrupts.asked:
                raise KeyboardInterrupt
        with contextlib.suppress(RunError):  # it may have taken the job and lost the answer
            taken = slurm.find(token)
            if taken:
                slurm.cancel(taken)


# --- submitit-local: the same protocol without Slurm ------------------------------------


def _fit_machine(compute: Compute) -> Compute:
    """One machine's share of what was asked for; the global batch stays the same."""
    gpus = min(compute.gpus, _gpu_count())
    changes: dict = {"nodes": 1, "gpus": gpus}
    if compute.processes is None and compute.gpus:
        changes["processes"] = max(1, gpus)
    return compute.model_copy(update=changes)


def _gpu_count() -> int:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([part for part in visible.split(",") if part.strip()])
    listed = slurm.ask("nvidia-smi", "-L")
    return len((listed or "").splitlines())


def _submit_local(executor, work: Work) -> tuple[int, float]:
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


def _local_process(job: Job):
    """The controller of a local job while it lives, else None."""
    import psutil

    with contextlib.suppress(psutil.Error):
        process = psutil.Process(int(job.id))
        if process.create_time() == job.born and process.status() != psutil.STATUS_ZOMBIE:
            return process
    return None


def _end_local(job: Job) -> bool:
    import psutil

    process = _local_process(job)
    if process is None:
        return True
    everyone = [*process.children(recursive=True), process]
    for one in everyone:
        with contextlib.suppress(psutil.Error):
            one.terminate()
    _, alive = psutil.wait_procs(everyone, timeout=5)
    for one in alive:
        with contextlib.suppress(psutil.Error):
            one.kill()
    return True


# --- waiting -----------------------------------------------------------


def state_of(job: Job, queue: slurm.Queue, *, now: bool = False) -> slurm.JobState | bool | None:
    """The job's state; False if it is gone, None if that cannot be told now."""
    if job.launcher == "submitit-local":
        return slurm.JobState("RUNNING", node="this machine") if _local_process(job) else False
    jobs = queue.get(job.submitted + 1, now=now)
    return None if jobs is None else jobs.get(job.id, False)


class _Interrupts:
    """Notes SIGINT and SIGTERM instead of raising: a submission must not end half-way."""

    def __enter__(self) -> "_Interrupts":
        self.asked = False

        def note(number: int, frame: object) -> None:
            self.asked = True

        self.before = {n: signal.signal(n, note) for n in STOPS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)


class _Tail:
    """New whole lines of a growing file."""

    def __init__(self, path: Path):
        self.path = path
        self.place = path.stat().st_size if path.exists() else 0

    def show(self) -> None:
        with contextlib.suppress(OSError):
            if self.path.stat().st_size <= self.place:
                return
            with self.path.open("rb") as file:
                file.seek(self.place)
                whole, newline, _ = file.read().rpartition(b"\n")
            self.place += len(whole) + len(newline)
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
    """Bring a run to its end as a job: attach to the one that works on it, or submit one.

    Raises:
        UsageError: as `crate.launch.run.prepare`.
        RunError: the job was refused, ended without a result, or the run failed in it.
        KeyboardInterrupt: SIGINT or SIGTERM; the job is cancelled, or left as the site says.
    """
    prepared = prepare(path, plan, expected=expected, overrides=overrides)
    folder = prepared.folder
    item = Item(path, expected, overrides or {}, fresh)
    results = parse_path(path)[1]
    root = jobs_folder(results, prepared.resolved.run.scale, settings)
    waiter = _Waiter(item, prepared, plan, settings, root)
    waiting = f"{waiter.run}: another process waits for this run's job; waiting with it"
    with lock(folder.folder / ".launch.lock", waiting), _Interrupts() as waiter.interrupts:
        if not fresh and folder.accept(prepared.identity):
            print(f"{waiter.run}: already finished, nothing to do", file=sys.stderr)
            waiter.clear()
            return
        waiter.work()


class _Waiter:
    """The process that waits for one run's job."""

    interrupts: _Interrupts

    def __init__(self, item: Item, prepared: Prepared, plan: Plan, settings: Settings, root: Path):
        self.item, self.prepared, self.plan = item, prepared, plan
        self.settings, self.root = settings, root
        self.run, self.folder = prepared.resolved.run, prepared.folder
        self.queue = slurm.Queue(root, settings.poll_seconds)
        self.tail = _Tail(self.folder.log)
        self.driver = int(os.environ.get("CRATE_DRIVER", 0))

    def say(self, text: str) -> None:
        print(f"{self.run}: {text}", file=sys.stderr, flush=True)

    def work(self) -> None:
        lost, saved = 0, None
        job = self._attach()
        while True:
            if job is None:
                job = self._submit()
                self.say(f"job {job.id} submitted")
            end = self._wait(job)
            if not end:
                return
            # preempted, out of time without a signal, or its node died: go on from the checkpoint
            now = _last_changes(self.folder)
            lost = lost + 1 if now == saved else 0
            saved = now
            if lost >= STALLS:
                raise RunError(f"{self.run}: {STALLS + 1} jobs were lost in a row ({end})")
            self.say(f"job {job.id} was lost ({end}); submitting it again")
            job = None

    def _attach(self) -> Job | None:
        """The job an earlier process submitted for this very run, if it is still good."""
        job = read_job(self.folder)
        if job is None:
            return None
        if job.id is None:  # killed while it submitted
            taken = slurm.find(job.token) if job.launcher == "slurm" else None
            if taken:
                slurm.cancel(taken)
            return None
        alive = state_of(job, self.queue, now=True)
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
        small = compute.nodes * compute.tasks == 1 and compute.hours <= self.settings.pack_hours
        job = self._join_pack(compute) if self.settings.pack > 1 and small else None
        return job or self._submit_job([self.item], [self.prepared])

    def _submit_job(self, items: list[Item], prepared: list[Prepared]) -> Job:
        """Submit one job for these runs, which have the same needs; its id is in every job.json.

        Raises:
            RunError: the cluster refuses the job, or does not answer for long.
            KeyboardInterrupt: asked to stop while it did not answer.
        """
        from submitit.helpers import clean_env

        settings = self.settings
        compute = prepared[0].resolved.recipe.compute
        if settings.launcher == "submitit-local":
            compute = _fit_machine(compute)
        token = f"crate-{uuid.uuid4().hex[:12]}"
        folder = self.root / token
        run = prepared[0].resolved.run
        name = f"crate:{run.model}:seed{run.seed}:{'/'.join(run.chain)}"
        name += f":and {len(items) - 1} more" if len(items) > 1 else ""
        parameters = job_parameters(compute, settings, name, token, len(items))
        executor = make_executor(folder, parameters, settings)
        work = Work(items, settings, folder, self.plan.experiments.folder)
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
                    number, born = _submit_local(executor, work)
                    taken = dataclasses.replace(job, id=str(number), born=born)
                else:
                    number = _submit_slurm(executor, work, token, self.interrupts)
                    taken = dataclasses.replace(job, id=number)
                return note(taken)
        except BaseException:
            if taken is not None:  # its id cannot be noted (a full disk): nobody would wait for it
                taken.cancel()
            for one in prepared:
                one.folder.job.unlink(missing_ok=True)
            shutil.rmtree(folder, ignore_errors=True)
            raise

    def _join_pack(self, compute: Compute) -> Job | None:
        """Put this run on a list; whoever holds its lock submits what is on it as one job.

        None where that came to nothing: the run is no longer on the list and has no job.
        """
        packs = self.root / f"pack-{short_hash(canonical_json(compute.model_dump()))}"
        mine = packs / f"{short_hash(str(self.folder.folder.absolute()))}.json"
        self.folder.job.unlink(missing_ok=True)
        write_json(mine, dataclasses.asdict(self.item))
        while True:
            if self.interrupts.asked:
                mine.unlink(missing_ok=True)
                raise KeyboardInterrupt
            listed = mine.exists()  # before the job is looked for: it is noted first
            job = read_job(self.folder)
            if job and job.id:
                return job
            if not listed:
                return None
            with lock(packs / ".lock") as leads:
                if leads and mine.exists():
                    self._submit_pack(packs)
            time.sleep(0.2)

    def _submit_pack(self, packs: Path) -> None:
        deadline, listed = time.monotonic() + PACK_SECONDS, 0
        while True:
            waiting = sorted(packs.glob("*.json"), key=lambda p: p.stat().st_mtime_ns)
            if len(waiting) > listed:
                deadline, listed = time.monotonic() + PACK_SECONDS, len(waiting)
            if listed >= self.settings.pack or time.monotonic() > deadline:
                break
            time.sleep(0.1)
        items, prepared = [], []
        taken = waiting[: self.settings.pack]
        for path in taken:
            item = Item(**(read_json(path) or {}))
            try:
                prepared.append(
                    prepare(item.path, self.plan, expected=item.expected, overrides=item.overrides)
                )
                items.append(item)
            except UsageError:  # its own process, or its own job, says so
                continue
        try:
            if items:
                self._submit_job(items, prepared)
        finally:
            for path in taken:
                path.unlink(missing_ok=True)

    def _wait(self, job: Job) -> str:
        """Empty when the run is finished; else the state in which the job was lost."""
        shown, gone, pause = "", None, 0.1
        while True:
            self.tail.show()
            outcome = job.outcome(self.item.path)
            if outcome is not None:
                self._end(job, outcome)
                return ""
            if self.interrupts.asked:
                self._interrupted(job)
            self._check_driver(job)
            state = state_of(job, self.queue, now=gone is not None)
            if state is False:
                gone = gone or time.monotonic()
                if time.monotonic() - gone > GONE_SECONDS:
                    end = self._ended(job)
                    if end is not None:
                        return end
                    gone = None  # the controller says it is still there
            elif state is not None:
                gone = None
                if str(state) != shown:
                    shown = str(state)
                    self.say(f"job {job.id} {shown}")
            time.sleep(pause)
            pause = min(1.0, 1.3 * pause)

    def _end(self, job: Job, outcome: str) -> None:
        time.sleep(0.05)
        self.tail.show()
        self.folder.job.unlink(missing_ok=True)
        if outcome:
            raise RunError(f"{outcome} (job {job.id}, logs in {job.folder})")
        if not self.folder.accept(self.prepared.identity):
            raise RunError(f"{self.run}: job {job.id} left a result of another recipe or code")
        self._remove(job)

    def _remove(self, job: Job) -> None:
        """Delete the files of a job whose runs all ended well; what failed keeps its logs."""
        folder = Path(job.folder)
        with contextlib.suppress(OSError):
            (folder / f"read-{self.prepared.identity}").touch()
            if len(list(folder.glob("read-*"))) == job.runs:
                shutil.rmtree(folder, ignore_errors=True)

    def clear(self) -> None:
        """Delete what is left of a job that finished this run while nobody waited for it."""
        job = read_job(self.folder)
        if job and job.identity == self.prepared.identity and job.outcome(self.item.path) == "":
            self.folder.job.unlink(missing_ok=True)
            self._remove(job)

    def _ended(self, job: Job) -> str | None:
        """How a job ended that left no word: as `_wait`; None: it has not."""
        state = slurm.final_state(job.id) if job.launcher == "slurm" else "FAILED"
        if state is not None and state not in slurm.ENDED:
            return None
        self.tail.show()
        self.folder.job.unlink(missing_ok=True)
        if self.folder.accept(self.prepared.identity) and not self.item.fresh:
            self._remove(job)
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
            + (f"; it said: {_telling(last)}" if last else "")
            + f"; logs in {job.folder}"
        )

    def _interrupted(self, job: Job) -> None:
        if self.settings.on_interrupt == "leave":
            self.say(f"job {job.id} goes on; the same command attaches to it again")
        elif job.cancel():
            self.folder.job.unlink(missing_ok=True)
            self.say(f"job {job.id} cancelled")
        else:
            self.say(f"job {job.id} could not be cancelled; 'crate cancel' tries again")
        raise KeyboardInterrupt

    def _check_driver(self, job: Job) -> None:
        """Leave when the Snakemake process that started this one was killed; the job goes on."""
        if not self.driver:
            return
        try:
            os.kill(self.driver, 0)
        except ProcessLookupError:
            self.say(f"snakemake is gone; job {job.id} goes on, the same command attaches to it")
            sys.exit(1)
        except PermissionError:
            pass


def _last_lines(folder: Path) -> list[str]:
    """The end of what a job wrote before it died."""
    logs = sorted(folder.glob("*_log.err"), key=lambda path: path.stat().st_mtime)
    text = "".join(path.read_text(errors="replace") for path in logs if path.stat().st_size)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return [line for line in lines if not line.startswith("submitit ")][-8:]


def _telling(lines: list[str]) -> str:
    """The line of a log that names the cause; srun goes on to talk about the end of its tasks."""
    causes = [x for x in lines if re.search("error|no such file|killed|denied", x, re.IGNORECASE)]
    causes = [x for x in causes if not re.search(r"task \d+: |STEP|_step_signal", x)] or causes
    return (causes or lines)[-1]
