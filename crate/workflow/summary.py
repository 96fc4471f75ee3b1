"""What a command of Snakemake would run, by kind; and after a failure or Ctrl-C, what is left."""

import collections
import logging
import shlex

from tabulate import tabulate

from crate.planning.plan import Plan
from crate.planning.settings import Settings
from crate.records import RunFolder, read_json
from crate.runs import Run
from crate.workflow.command import asks_for_more

# State of a run → its words in the summary
STATES = {
    "new": "new",
    "changed": "other recipe or code",
    "parent": "parent runs again",
    "stopped": "stopped, goes on",
    "failed": "failed, again",
}
MOST_LISTED = 30  # jobs of a dry run; more are only counted


def states_of(plan: Plan, settings: Settings, targets: list[str]) -> dict[Run, str]:
    """Each run of some targets, ancestors first, with a key of `STATES`, or "finished"."""
    states: dict[Run, str] = {}
    for target in targets:
        for run in plan.runs(target, settings):
            if run not in states:
                states[run] = _state(run, states, plan, settings)
    return states


def _state(run: Run, before: dict[Run, str], plan: Plan, settings: Settings) -> str:
    folder = RunFolder(run.folder(settings.results))
    status = (read_json(folder.record) or {}).get("status")
    if status == "failed":
        return "failed"
    if status is None and not folder.metrics.is_file():
        return "new"
    if not plan.is_current(run, settings.results):
        return "changed"
    if status != "complete":
        return "stopped"
    if run.parent is not None and before.get(run.parent, "finished") != "finished":
        return "parent"
    return "finished"


def describe_plan(states: dict[Run, str], plan: Plan) -> str:
    """The runs that would start, counted by kind and reason; how many are finished."""
    due = {run: state for run, state in states.items() if state != "finished"}
    finished = len(states) - len(due)
    if not due:
        return f"all {len(states):,} runs are finished"
    columns = [state for state in STATES if state in due.values()]
    kinds: dict[str, collections.Counter] = {}
    for run, state in due.items():
        kinds.setdefault(plan.resolve(run).recipe.task, collections.Counter())[state] += 1
    rows = [[kind, sum(of.values()), *(of[c] or "" for c in columns)] for kind, of in kinds.items()]
    headers = ["kind of run", "to do", *map(STATES.get, columns)]
    unlisted = "; snakemake -np lists them" if len(due) > MOST_LISTED else ""
    total = f"{len(due):,} runs to do, {finished:,} finished{unlisted}"
    return f"{tabulate(rows, headers)}\n{total}"


def list_few_jobs(count: int) -> None:
    """Leave the list of jobs out of a dry run that has many: `describe_plan` counts them.

    count: of runs. Not with -p or --verbose.
    """
    if count <= MOST_LISTED or asks_for_more():
        return
    from snakemake.logging import logger
    from snakemake_interface_logger_plugins.common import LogEvent

    def is_no_job(record: logging.LogRecord) -> bool:
        return getattr(record, "event", None) not in (LogEvent.JOB_INFO, LogEvent.SHELLCMD)

    logger.addFilter(is_no_job)


def describe_end(plan: Plan, settings: Settings, targets: list[str], words: list[str]) -> str:
    """The runs that did not finish, each with its cause and log, and the command that goes on.

    words: of the command that ends here.
    """
    states = states_of(plan, settings, targets)
    lines, waiting = [], 0
    for run, state in states.items():
        folder = RunFolder(run.folder(settings.results))
        record = read_json(folder.record) or {}
        if state in ("failed", "stopped"):
            cause = record.get("error") or "killed"
            lines.append(f"  {state}: {run}: {cause}\n    log: {folder.log}")
        elif state != "finished":
            waiting += 1
    kept = sum(state == "finished" for state in states.values())
    begun = f"{kept} of {len(states)} runs are finished, {len(lines)} failed or were stopped"
    resumed = "finished runs are kept, and stopped ones go on from their checkpoints"
    return "\n".join(
        [
            f"{begun}, {waiting} did not begin" + (":" if lines else ""),
            *lines,
            f"to go on ({resumed}):",
            f"  {shlex.join(words)}",
        ]
    )
