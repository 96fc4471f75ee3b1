"""`crate explain`: the runs behind a cell of a table, with recipes, commits, devices and times."""

import dataclasses
import shlex
from datetime import datetime

from crate.data.catalogue import dataset_names, get_dataset
from crate.errors import UsageError, unknown
from crate.models.spec import ModelSpec
from crate.planning.plan import Plan
from crate.planning.settings import Settings
from crate.published import record_file
from crate.recipes import Training
from crate.records import RunFolder, canonical_json
from crate.reporting.cells import MARKS, number
from crate.reporting.collect import Result, ancestry, look_up
from crate.runs import Run
from crate.tasks import recipe_types


def explain(table: str, label: str, key: str | None, plan: Plan, settings: Settings) -> str:
    """The runs behind the cells of one row, or behind one cell, as text.

    Raises:
        UsageError: an unknown table, row or column, with the nearest name.
        RunError: the published records are damaged.
    """
    content = plan.table(table)
    labels = [row.label for row in content.rows]
    chosen = [row for row in content.rows if row.label == label] or [
        row for row in content.rows if label.lower() in row.label.lower()
    ]
    if len(chosen) != 1:
        written = plan.experiments.table(table).rows
        hidden = [row for row in written if row.label == label and row not in content.rows]
        if hidden:
            scales = " and ".join(hidden[0].scales) or settings.scale
            raise UsageError(
                f"table {table}: the row '{label}' is not shown with these settings, but at scale "
                f"{scales}"
            )
        if not chosen:
            raise unknown("row", label, labels, f"table {table}")
        raise UsageError(
            f"table {table}: '{label}' may be " + " or ".join(f"'{row.label}'" for row in chosen)
        )
    if key is not None and key not in content.columns:
        raise unknown("column", key, content.columns, f"table {table}")
    row = chosen[0]
    lines = [f"{content.title}: {row.label}"]
    for row_, column_key, run, metric in plan.cells(content, settings.scale, settings.seeds):
        if row_ is not row or key not in (None, column_key):
            continue
        column = content.columns[column_key]
        result = look_up(run, metric, plan, settings)
        value = result.value
        if value is None:  # a value of an older recipe or code is shown, with a note
            value = (result.record.get("result") or {}).get("metrics", {}).get(metric)
        shown = (
            MARKS[result.status][0] if value is None else f"{number(value, column)} {column.unit}"
        )
        paper = row.paper.get(column_key)
        lines += ["", f"{column.label} · seed {run.seed}: {shown}".rstrip()]
        if paper is not None:
            lines.append(f"  paper     {paper.value} ({paper.source}, mark {paper.mark})")
        facts = describe_run(run, result, plan, settings)
        lines += [f"  {what:<9} {text}" for what, text in facts]
    if len(lines) == 1:
        lines += ["", "an empty cell: the table has no run for it"]
    return "\n".join(lines)


def describe_run(run: Run, result: Result, plan: Plan, settings: Settings) -> list[tuple[str, str]]:
    """Facts about one run as (what, text): recipes, model, status, code, device, time, rerun.

    The recipes are those recorded for the run and its ancestors; today's for one without a record.
    """
    record = result.record
    lines = [("run", result.folder.as_posix())]
    if record and (kept_in := record_file(result.folder)).parent != result.folder:
        lines.append(("record", f"a line of {kept_in.as_posix()}"))
    for stage, of_stage in ancestry(run, result):
        config = _recorded(of_stage.record, stage, plan)
        summary = _summary(config["step"])
        name = config["step"]["dataset"]
        data = get_dataset(name).title if name in dataset_names() else name
        lines.append(("step", f"{stage.stage}: {data}{', ' if summary else ''}{summary}"))
        if changed := _of_scale(stage, plan):
            lines.append(("", f"of scale {stage.scale}, not as published: {', '.join(changed)}"))
    lines.append(("model", _summary(config["model"])))
    if result.status == "unavailable" or not record:
        lines.append(("status", result.note or MARKS[result.status][1]))
    else:
        status = str(record.get("status"))
        if status == "running":
            now = "killed" if result.status == "stopped" else "under way"
            status = ", ".join(filter(None, [now, RunFolder(result.folder).latest()]))
        if "error" in record:
            status += f": {record['error']}"
        if result.value is not None and MARKS[result.status][1]:
            status += f"; {MARKS[result.status][1]}"
        lines.append(("status", status))
        lines.append(("code", f"commit {record.get('commit') or 'unknown'}"))
        lines.append(("", f"fingerprint {record.get('code')}"))
        environment = record.get("environment", {})
        device = environment.get("device", "unknown")
        if "torch" in environment:
            device += (
                f", {environment['autocast']} ({environment.get('autocast_reason', '')}), "
                f"torch {environment['torch']}"
            )
        lines.append(("device", device))
        lasted, trained = wall_seconds(record), record.get("train_seconds")
        took = [f"{lasted:.0f} s"] if lasted is not None else []
        resumed = ", earlier processes included" if trained and trained > (lasted or 0) else ""
        took += [f"training {trained} s{resumed}"] if trained else []
        when = f"{record.get('started')} to {record.get('ended')}"
        lines.append(("time", ", ".join([when, *took])))
        stale = result.status in ("missing", "stopped", "failed")
        if stale and not plan.is_current(run, settings.results):
            lines.append(("note", "experiments/ or crate/ changed since; a rerun is due"))
    if result.status != "unavailable":
        target = run.folder(settings.results) / "metrics.json"
        words = f"{shlex.quote(str(target))} --force --config {config_words(plan, settings)}"
        lines.append(("rerun", f"snakemake --cores all {words}"))
    return lines


def _of_scale(run: Run, plan: Plan) -> list[str]:
    """The keys of a stage's recipe that its scale sets to other values than those of `paper`."""
    here, published = (plan.experiments.recipe(run.stage, name) for name in (run.scale, "paper"))
    return [
        key
        for key in type(here).model_fields
        if key not in ("compute", "dataset") and getattr(here, key) != getattr(published, key)
    ]


def wall_seconds(record: dict) -> float | None:
    """From the start to the end of a run's last process; None while it has no end."""
    try:
        started, ended = (datetime.fromisoformat(record[key]) for key in ("started", "ended"))
    except (KeyError, TypeError, ValueError):
        return None
    return (ended - started).total_seconds()


def _recorded(record: dict, run: Run, plan: Plan) -> dict:
    """A run's recorded configuration, ordered as the schemas are; today's if it has none."""
    past = record.get("config")
    if not past:
        return plan.resolve(run).config
    model = [field.name for field in dataclasses.fields(ModelSpec)]
    schemas = [Training, *recipe_types().values()]
    step = [name for schema in schemas for name in schema.model_fields]
    order = {"model": model, "step": step}
    return {
        part: {key: past[part][key] for key in (*order[part], *past[part]) if key in past[part]}
        for part in order
    }


def config_words(plan: Plan, settings: Settings) -> str:
    """The words after `--config` for the settings that differ from experiments/config.yaml."""
    usual = plan.experiments.usual_settings()
    changed = []
    for key in ("data_root", "results", "plugins", "rows", "set"):
        value = getattr(settings, key)
        if value != getattr(usual, key):
            written = value if isinstance(value, str) else canonical_json(value)
            changed.append(f"{key}={written}")
    return shlex.join([f"scale={settings.scale}", *changed])


def _summary(values: dict) -> str:
    return ", ".join(f"{k} {v}" for k, v in values.items() if k not in ("task", "dataset"))
