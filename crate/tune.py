"""Tuning with equal effort: every model of a table tries every setting, on held-out images.

A trial is a run of its own under `results/<scale>/trials/<trial>/`, judged on the validation
split; test images are never touched. All outcomes are written to `results/<scale>/tuning.csv`.
"""

import concurrent.futures
import csv
import itertools
import re
import subprocess
import sys
from pathlib import Path

import yaml

from crate.config import Settings, merge
from crate.errors import RunError, UsageError
from crate.plan import Plan, Run
from crate.records import atomic_path, read_json

FIELDS = ["step", "setting", "model", "seed", "metric", "value"]


def nested(pairs: dict[str, str]) -> dict:
    """`{"compute.threads": "2"}` → `{"compute": {"threads": 2}}`, values read as YAML."""
    changes: dict = {}
    for key, text in pairs.items():
        try:
            value = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError):
            raise UsageError(f"{key}={text}: the value cannot be read as YAML") from None
        if isinstance(value, str) and re.fullmatch(r"[-+]?\d+\.?\d*e[-+]?\d+", value):
            value = float(value)
        for part in reversed(key.split(".")):
            value = {part: value}
        changes = merge(changes, value)
    return changes


def tune(
    table: str, step: str, grid: dict[str, list[str]], plan: Plan, settings: Settings, *, jobs: int
) -> None:
    """Try every combination of `grid` for `step`, with every model of the table and every seed.

    Parent steps run with the recipe as it stands in `experiments/`. Trials that are finished are
    not run again, so a sitting can be cut short and gone on with.
    """
    content = plan.experiments.table(table)
    chains = [c.chain for c in content.columns.values() if c.chain.split("/")[-1] == step]
    if not chains:
        used = sorted({c.chain for c in content.columns.values()})
        raise UsageError(f"table {table} has no column that ends with step '{step}': {used}")
    chain = tuple(chains[0].split("/"))
    models = list(dict.fromkeys(row.model for row in content.rows if not row.control))
    settings_tried = [
        dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())
    ]
    trials = []
    for setting, model, seed in itertools.product(settings_tried, models, settings.seeds):
        words = [f"{key}={value}" for key, value in setting.items()]
        name = f"{step}-{re.sub(r'[^A-Za-z0-9.=_-]+', '_', '-'.join(words))}"
        run = Run(settings.scale, model, seed, chain, name)
        plan.resolve(run, nested(setting))  # a misspelt key ends here, before anything runs
        trials.append((run, words))

    def attempt(trial: tuple[Run, list[str]]) -> dict:
        run, words = trial
        for ancestor in run.ancestors:
            _call(ancestor, [], settings)
        metrics = _call(run, ["--set", "evaluate=validation", *words], settings)
        print(f"{' '.join(words)}  {run}: {metrics['top1']:.2f}", file=sys.stderr, flush=True)
        return {
            "step": step,
            "setting": " ".join(words),
            "model": run.model,
            "seed": run.seed,
            "metric": "validation top1",
            "value": f"{metrics['top1']:.2f}",
        }

    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        rows = list(pool.map(attempt, trials))
    path = Path(settings.results) / settings.scale / "tuning.csv"
    _append(path, rows)
    means: dict[str, list[float]] = {}
    for row in rows:
        means.setdefault(row["setting"], []).append(float(row["value"]))
    for setting, values in sorted(means.items(), key=lambda item: -sum(item[1]) / len(item[1])):
        print(f"{sum(values) / len(values):6.2f}  mean of {len(values)} runs  {setting}")
    print(f"all outcomes: {path}")


def _call(run: Run, words: list[str], settings: Settings) -> dict:
    """Bring one run to its end in a process of its own; returns its metrics."""
    folder = run.folder(settings.results)
    command = [sys.executable, "-m", "crate", "run", str(folder), *words]
    done = subprocess.run(
        [*command, "--config", f"data_root={settings.data_root}"],
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RunError(done.stderr.strip().splitlines()[-1] if done.stderr else str(run))
    return read_json(folder / "metrics.json")["metrics"]


def _append(path: Path, rows: list[dict]) -> None:
    """Add rows to the CSV, replacing outcomes of the same trial."""
    old = []
    if path.exists():
        with path.open(newline="") as file:
            old = list(csv.DictReader(file))
    key = ("step", "setting", "model", "seed")
    merged = {tuple(str(row[k]) for k in key): row for row in [*old, *rows]}
    with atomic_path(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(merged.values())
