"""One run from start to end in this process (`crate run`), or in each rank of a job."""

import contextlib
import dataclasses
import importlib
import shlex
import sys
import traceback
import warnings
from pathlib import Path

import yaml
from threadpoolctl import threadpool_limits

from crate.data.catalogue import get_dataset
from crate.data.datasets import check_available
from crate.environment import describe_machine
from crate.errors import RunError, Stopped, UsageError, told
from crate.launch.ranks import await_ranks, ranks
from crate.planning.plan import Plan, parent_weights
from crate.planning.settings import Settings
from crate.records import (
    RunFolder,
    file_sha256,
    git_commit,
    lock,
    read_json,
    short_hash,
    write_text,
)
from crate.runs import parse_path
from crate.tasks.base import Resolved
from crate.training.trackers import follow


class _Tee:
    """Writes to the screen and to the run's log; progress lines go to the screen only."""

    def __init__(self, screen, log):
        self.screen, self.log = screen, log

    def write(self, text: str) -> int:
        if not text.endswith("\r"):  # a progress line
            with contextlib.suppress(OSError):  # a full disk must not hide the message
                self.log.write(text)
                self.log.flush()
        return self.screen.write(text)

    def flush(self) -> None:
        self.screen.flush()

    def isatty(self) -> bool:
        return self.screen.isatty()


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A run that may start: its recipe is the planned one, and its parent is finished."""

    resolved: Resolved
    folder: RunFolder
    parent: RunFolder | None
    identity: str  # hash of configuration, code and the parent's weights


def prepare(
    path: str, plan: Plan, *, expected: str | None = None, overrides: dict | None = None
) -> Prepared:
    """Look up a run and check that it may start.

    Args:
        path: the run's folder or its metrics.json.
        expected: the identity the caller planned; another one is refused.
        overrides: changes of the recipe (tuning trials only).

    Raises:
        UsageError: the path is not a run's, its parent is not finished, or recipe or code changed
            since `expected` was planned.
    """
    run, results = parse_path(path)
    if overrides and run.trial is None:
        raise UsageError(
            "a changed model needs a name of its own in experiments/models.yaml, or a trial: "
            "results/<scale>/trials/<name>/runs/…"
        )
    resolved = plan.resolve(run, overrides)
    if expected and expected != resolved.identity:
        raise UsageError(
            f"{run}: experiments/ or crate/ changed after this was planned; start the command again"
        )
    plan.check_released(run)
    parent = None
    if run.parent is not None:
        parent = RunFolder(run.parent.folder(results))
        if not parent_weights(run, results):
            raise UsageError(f"{run}: its parent is not finished; first run {parent.metrics}")
        if not plan.is_current(run.parent, results):
            raise UsageError(
                f"{run}: its parent is from another recipe or code; first run {parent.metrics}"
            )
    # the parent's weights also decide the result; their hash is known only now
    identity = short_hash(resolved.identity + (parent_weights(run, results) or ""))
    return Prepared(resolved, RunFolder(run.folder(results)), parent, identity)


def perform(
    prepared: Prepared,
    settings: Settings,
    *,
    fresh: bool = False,
    job: dict | None = None,
    launched: bool = False,
) -> None:
    """Bring a run to its end in this process, unless a finished result is on disk.

    Args:
        fresh: train again even if a finished result of the same identity exists.
        job: what run.json records about the cluster's job.
        launched: whether a launcher of the suite started this process as one of several (ranks.py).

    Raises:
        UsageError: the data set is missing.
        Stopped: a signal ended the run; its checkpoint is saved.
        RunError: the run failed; run.json has the error.
    """
    with ranks(launched) as (rank, world):
        _perform(prepared, settings, fresh, job, rank, world)


def _perform(
    prepared: Prepared, settings: Settings, fresh: bool, job: dict | None, rank: int, world: int
) -> None:
    """As `perform`, for one of `world` processes; the first alone writes."""
    run, folder = prepared.resolved.run, prepared.folder
    main = rank == 0
    waiting = f"{run}: another process works on this run; waiting for it"
    with lock(folder.lock, waiting) if main else contextlib.nullcontext():
        finished = main and not fresh and folder.accept(prepared.identity)
        if finished:
            print(f"{run}: already finished, nothing to do", file=sys.stderr)
            if world == 1:  # else the other ranks must know
                return
        with _logging(folder) if main else contextlib.nullcontext():
            try:
                _execute(prepared, settings, rank, world, finished, job)
            except Stopped as error:
                if main:
                    folder.fail(str(error), status="stopped")
                raise
            except (RunError, UsageError) as error:
                if main:
                    folder.fail(str(error))
                raise
            except KeyboardInterrupt:
                if main:
                    folder.fail("interrupted", status="stopped")
                raise
            except Exception as error:
                message = told(error)
                if main:
                    with contextlib.suppress(OSError), folder.log.open("a") as log:
                        log.write(traceback.format_exc())
                    folder.fail(message)
                raise RunError(f"{run}: {message}; the traceback is in {folder.log}") from error


@contextlib.contextmanager
def _logging(folder: RunFolder):
    """Copy stderr to log.txt; warnings go to log.txt only."""
    try:
        log = folder.log.open("a", encoding="utf-8")
    except OSError as error:
        raise RunError(f"{folder.log}: cannot be written ({error.strerror})") from None
    screen = sys.stderr
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, category, *_, **__: log.write(
            f"{category.__name__}: {message}\n"
        )
        sys.stderr = _Tee(screen, log)
        try:
            yield
        finally:
            sys.stderr = screen
            with contextlib.suppress(OSError):  # a full disk: closing writes what is buffered
                log.close()


def _execute(
    prepared: Prepared,
    settings: Settings,
    rank: int,
    world: int,
    finished: bool,
    job: dict | None,
) -> None:
    """Run the task and record its result; rank 0 alone writes."""
    main = rank == 0
    resolved, folder, parent = prepared.resolved, prepared.folder, prepared.parent
    run, recipe = resolved.run, resolved.recipe
    if not recipe.TORCH and (finished or not main):
        return  # without torch there is nothing for the other ranks to do
    if recipe.READS_DATA:
        dataset = get_dataset(recipe.dataset)
        check_available(dataset, settings.data_root, recipe.splits(dataset))
    started = contextlib.nullcontext()
    if recipe.TORCH:
        await_ranks(rank, world)
        from crate import runtime
        from crate.models.own_operators import check_operators

        check_operators(resolved.spec)
        started = runtime.start(recipe.compute)
    with started as here:
        if here and any(here.all_reduce_max(int(finished))):  # only rank 0 looked for a result
            return
        record = _record(prepared, job) if main else {}
        if main:
            folder.start(record)
            full = {"model": resolved.config["model"], "step": recipe.model_dump(mode="json")}
            write_text(folder.config, yaml.safe_dump(full | {"seed": run.seed}, sort_keys=False))
        task = importlib.import_module(f"crate.tasks.{recipe.task}.task")
        numpy = threadpool_limits(recipe.compute.threads, user_api="blas")
        with numpy, follow(settings.log if main else "none", folder, record) as report:
            metrics, details = task.run(
                resolved,
                runtime=here,
                folder=folder,
                identity=prepared.identity,
                parent=parent and parent.weights,
                data_root=Path(settings.data_root),
            )
            report(metrics)
        if main:
            machine = here.describe() if here else describe_machine()
            folder.finish(metrics, details | {"environment": machine})
            shown = ", ".join(f"{key} {value:g}" for key, value in metrics.items())
            print(f"{run}: {shown}", file=sys.stderr)


def _record(prepared: Prepared, job: dict | None) -> dict:
    """What run.json states from the start of the run."""
    resolved, parent = prepared.resolved, prepared.parent
    run = resolved.run
    record = {
        "run": str(run),
        "scale": run.scale,
        "identity": prepared.identity,
        "config": resolved.config,
        "code": resolved.code,
        "dataset": resolved.recipe.dataset,
        "commit": git_commit(),
        "parent_weights_sha256": parent and _verified_weights(run.parent, parent),
    }
    return record | ({"job": job} if job else {})


def _verified_weights(run, folder: RunFolder) -> str:
    """sha256 of the parent's weights.

    Raises:
        RunError: they are gone, or not those its metrics were measured on.
    """
    recorded = (read_json(folder.metrics) or {}).get("weights_sha256")
    # its folder holds its children: what is deleted by hand could be more than the damage
    again = f"'crate run {shlex.quote(str(folder.folder))}' makes it again, and deletes nothing"
    if not folder.weights.is_file():
        raise RunError(f"{run}: {folder.weights} is gone; {again}")
    if file_sha256(folder.weights) != recorded:
        raise RunError(
            f"{run}: {folder.weights} is not the file its metrics were measured on; {again}"
        )
    return recorded
