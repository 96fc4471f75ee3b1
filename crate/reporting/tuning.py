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

from crate.data.catalogue import get_dataset
from crate.errors import RunError, UsageError, unknown
from crate.planning.plan import Plan
from crate.planning.settings import Settings
from crate.records import atomic_path, canonical_json, read_json
from crate.runs import Run
from crate.schema import load_value, merge

# `recipe` is the whole configuration tried (JSON); `setting` only what the grid changed
FIELDS = ["step", "setting", "model", "seed", "metric", "value", "recipe"]


def nested(pairs: dict[str, str]) -> dict:
    """`{"compute.threads": "2"}` → `{"compute": {"threads": 2}}`, values read as YAML."""
    changes: dict = {}
    for key, text in pairs.items():
        try:
            value = load_value(text)
        except ValueError:
            raise UsageError(f"{key}={text}: the value cannot be read as YAML") from None
        for part in reversed(key.split(".")):
            value = {part: value}
        changes = merge(changes, value)
    return changes


def tune(
    table: str,
    recipe: str,
    grid: dict[str, list[str]],
    plan: Plan,
    settings: Settings,
    *,
    jobs: int,
) -> None:
    """Try every combination of `grid` for `step`, with every model of the table and every seed.

    Parent steps run with the recipe as it stands in `experiments/`. Trials that are finished are
    not run again, so a sitting can be cut short and gone on with.
    """
    if jobs < 1:
        raise UsageError(f"--jobs must be at least 1, got {jobs}")
    content = plan.experiments.table(table)
    shown = [
        run
        for row, _, run, _ in plan.cells(content, settings.scale, [0])
        if not row.control and not plan.released(run)
    ]
    wanted = dict.fromkeys(
        (run.model, run.chain[: run.chain.index(recipe) + 1])
        for run in shown
        if recipe in run.chain
    )
    if not wanted:
        used = {name for run in shown for name in run.chain}
        raise unknown("step", recipe, used, f"table {table}")
    tried = plan.experiments.recipe(recipe, settings.scale)
    if not tried.READS_DATA:
        raise UsageError(f"step '{recipe}' reads no data that could be held out")
    metric, dataset = tried.METRICS[0], get_dataset(tried.dataset)
    if "validation" not in dataset.splits:
        raise UsageError(f"step '{recipe}': {dataset.title} has no images held out to tune on")
    settings_tried = [
        dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())
    ]
    trials = []
    for setting, (model, chain), seed in itertools.product(settings_tried, wanted, settings.seeds):
        words = [f"{key}={value}" for key, value in setting.items()]
        name = f"{recipe}-{re.sub(r'[^A-Za-z0-9.=_-]+', '_', '-'.join(words))}"
        run = Run(settings.scale, model, seed, chain, name)
        # a misspelt key ends here, before anything runs
        changes = merge({"evaluate": "validation"}, nested(setting))
        config = plan.resolve(run, changes).config
        recipe = canonical_json({key: config[key] for key in ("model", "step")})
        trials.append((run, words, recipe))

    path = Path(settings.results) / settings.scale / "tuning.csv"
    means: dict[str, list[float]] = {}
    failed = []

    def attempt(trial: tuple[Run, list[str], str]) -> dict:
        run, words, _ = trial
        for ancestor in run.ancestors:
            _call(ancestor, [], settings)
        return _call(run, ["--set", "evaluate=validation", *words], settings)

    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        waiting = {pool.submit(attempt, trial): trial for trial in trials}
        for done in concurrent.futures.as_completed(waiting):
            run, words, recipe = waiting[done]
            setting = " ".join(words)
            row = {"step": recipe, "setting": setting, "model": run.model, "seed": run.seed}
            row |= {"metric": f"validation {metric}", "recipe": recipe}
            try:
                value = done.result()[metric]
            except RunError as error:
                failed.append(setting)
                print(f"{setting}  {run}: {error}", file=sys.stderr, flush=True)
                add_outcomes(path, [{**row, "value": "failed"}])
            else:
                means.setdefault(setting, []).append(value)
                print(f"{setting}  {run}: {value:.4g}", file=sys.stderr, flush=True)
                add_outcomes(path, [{**row, "value": f"{value:.4g}"}])
    ranked = sorted(
        means.items(),
        key=lambda item: sum(item[1]) / len(item[1]),
        reverse=not tried.LOWER_IS_BETTER,
    )
    for setting, values in ranked:
        note = f", {failed.count(setting)} failed" if setting in failed else ""
        print(f"{sum(values) / len(values):7.4g}  mean of {len(values)} runs{note}  {setting}")
    print(f"all outcomes: {path}")
    if failed:
        raise RunError(f"{len(failed)} of {len(trials)} trials failed")


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


def read_outcomes(path: Path) -> list[dict]:
    """The outcomes in a CSV; none where there is no file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def add_outcomes(path: Path, rows: list[dict]) -> None:
    """Add outcomes to the CSV, in the place of older ones of the same trial and recipe."""
    key = ("step", "model", "seed", "recipe")
    outcomes = [*read_outcomes(path), *rows]
    merged = {tuple(str(entry[k]) for k in key): entry for entry in outcomes}
    with atomic_path(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(merged.values())
