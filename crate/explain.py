"""Where a cell of a table comes from: its runs, their configurations, commits and devices."""

import shlex

from crate.config import Settings
from crate.data.registry import get_dataset
from crate.errors import UsageError, unknown
from crate.plan import Plan
from crate.records import read_json
from crate.tables import MARKS, Cell


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
        folder = run.folder(settings.results)
        record = read_json(folder / "run.json") or {}
        # published runs have their run.json only, which holds the result too
        result = read_json(folder / "metrics.json") or record.get("result") or {}
        metrics = result.get("metrics", {})
        value = metrics.get(metric)
        paper = row.paper.get(column_key)
        status = record.get("status", "missing")
        cell = Cell(value, 0.0, 1, "ok") if value is not None else Cell(0.0, 0.0, 0, "missing")
        lines += [
            "",
            f"{column.label} · seed {run.seed}: {cell.text(column)} {column.unit}".rstrip(),
        ]
        if paper is not None:
            lines.append(f"  paper     {paper.value} ({paper.source}, mark {paper.mark})")
        lines.append(f"  run       {folder}")
        for step in [*run.ancestors, run]:
            resolved = plan.resolve(step)
            data = get_dataset(resolved.step.dataset).title
            lines.append(f"  step      {step.step}: {data}, {_summary(resolved.config['step'])}")
        lines.append(f"  model     {_summary(plan.resolve(run).config['model'])}")
        if status == "missing":
            lines.append(f"  status    {MARKS['missing'][1]}")
        else:
            lines.append(
                f"  status    {status}{': ' + record['error'] if 'error' in record else ''}"
            )
            environment = record.get("environment", {})
            lines.append(f"  code      commit {record.get('commit') or 'unknown'}")
            lines.append(f"            fingerprint {record.get('code')}")
            lines.append(
                f"  device    {environment.get('device', 'unknown')}, "
                f"{environment.get('autocast', '')} ({environment.get('autocast_reason', '')}), "
                f"torch {environment.get('torch', '')}"
            )
            lines.append(
                f"  time      {record.get('started')} to {record.get('ended')}, "
                f"training {record.get('train_seconds', 0)} s"
            )
            if not plan.is_current(run, settings.results):
                lines.append("  note      experiments/ or crate/ changed since; a rerun is due")
        lines.append(
            f"  rerun     snakemake --cores all {folder}/metrics.json --force "
            f"--config {_config_words(plan, settings)}"
        )
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
