"""Where a cell of a table comes from: its runs, their configurations, commits and devices."""

import shlex

from crate.collect import look_up
from crate.config import Settings
from crate.data.registry import get_dataset
from crate.errors import UsageError, unknown
from crate.plan import Plan
from crate.tables import MARKS, number


def explain(table: str, label: str, key: str | None, plan: Plan, settings: Settings) -> str:
    """Everything behind the cells of one row (or one cell), as text.

    Raises:
        UsageError: an unknown table, row or column, with the nearest name.
    """
    content = plan.experiments.table(table)
    labels = [row.label for row in content.rows]
    chosen = [row for row in content.rows if row.label == label] or [
        row for row in content.rows if label.lower() in row.label.lower()
    ]
    if len(chosen) != 1:
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
        found = look_up(run, metric, plan, settings)
        folder, record = found.folder, found.record
        value = found.value
        if value is None:  # of an older recipe or code: told all the same, with a note
            value = (record.get("result") or {}).get("metrics", {}).get(metric)
        shown = (
            MARKS[found.status][0] if value is None else f"{number(value, column)} {column.unit}"
        )
        paper = row.paper.get(column_key)
        lines += ["", f"{column.label} · seed {run.seed}: {shown}".rstrip()]
        if paper is not None:
            lines.append(f"  paper     {paper.value} ({paper.source}, mark {paper.mark})")
        lines.append(f"  run       {folder}")
        for step in run.lineage:
            resolved = plan.resolve(step)
            data = get_dataset(resolved.step.dataset).title
            summary = _summary(resolved.config["step"])
            lines.append(f"  step      {step.step}: {data}{', ' if summary else ''}{summary}")
        lines.append(f"  model     {_summary(plan.resolve(run).config['model'])}")
        if found.status == "unavailable" or not record:
            lines.append(f"  status    {found.note or MARKS[found.status][1]}")
        else:
            told = f": {record['error']}" if "error" in record else ""
            if found.value is not None and MARKS[found.status][1]:
                told += f"; {MARKS[found.status][1]}"
            lines.append(f"  status    {record.get('status')}{told}")
            environment = record.get("environment", {})
            lines.append(f"  code      commit {record.get('commit') or 'unknown'}")
            lines.append(f"            fingerprint {record.get('code')}")
            device = environment.get("device", "unknown")
            if "torch" in environment:
                device += (
                    f", {environment['autocast']} ({environment.get('autocast_reason', '')}), "
                    f"torch {environment['torch']}"
                )
            lines.append(f"  device    {device}")
            trained = record.get("train_seconds")
            lines.append(
                f"  time      {record.get('started')} to {record.get('ended')}"
                + (f", training {trained} s" if trained else "")
            )
            if found.status in ("missing", "failed") and not plan.is_current(run, settings.results):
                lines.append("  note      experiments/ or crate/ changed since; a rerun is due")
        if found.status != "unavailable":
            lines.append(
                f"  rerun     snakemake --cores all {run.folder(settings.results)}/metrics.json "
                f"--force --config {_config_words(plan, settings)}"
            )
    if len(lines) == 1:
        lines += ["", "an empty cell: nothing is measured here"]
    return "\n".join(lines)


def _config_words(plan: Plan, settings: Settings) -> str:
    """What `--config` must say for the settings of a single run that config.yaml has otherwise."""
    usual = plan.experiments.settings()
    changed = [
        f"{key}={getattr(settings, key)}"
        for key in ("data_root", "results")
        if getattr(settings, key) != getattr(usual, key)
    ]
    return shlex.join([f"scale={settings.scale}", *changed])


def _summary(values: dict) -> str:
    return ", ".join(f"{k} {v}" for k, v in values.items() if k not in ("task", "dataset"))
