"""Tuning with equal effort: every model of a table tries every setting, on held-out images.

A trial is a run under `results/<scale>/trials/<trial>/`, evaluated on the validation split; test
images are never used. All outcomes are written to `results/<scale>/tuning.csv`.
"""

import concurrent.futures
import csv
import itertools
import re
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

from crate.data.catalogue import get_dataset
from crate.errors import RunError, UsageError, unknown
from crate.planning.plan import Plan
from crate.planning.settings import Settings
from crate.records import atomic_path, canonical_json, read_json
from crate.runs import Run
from crate.sources import merge, nested, read_words

# `step` is the name of the recipe that is tuned, `setting` what the grid changed in it, and
# `recipe` the whole configuration tried (JSON)
FIELDS = ["step", "setting", "model", "seed", "metric", "value", "recipe"]


def tune(
    table: str,
    recipe: str,
    grid: dict[str, list[str]],
    plan: Plan,
    settings: Settings,
    *,
    jobs: int,
) -> None:
    """Try every combination of `grid` for a recipe, with every model of the table and every seed.

    Ancestors of the tuned stage run with their recipes of `experiments/`. Finished trials are not
    run again, so an interrupted search can be continued.

    Raises:
        UsageError: the recipe is not in the table, reads no data, or has no validation split; a
            key or value of `grid` makes no sense.
        RunError: trials failed; the others are done and their outcomes written.
    """
    if jobs < 1:
        raise UsageError(f"--jobs must be at least 1, got {jobs}")
    content = plan.table(table)
    shown = [
        run
        for row, _, run, _ in plan.cells(content, settings.scale, [0])
        if not row.control and not plan.starts_released(run)
    ]
    stages = dict.fromkeys(
        (run.model, run.chain[: run.chain.index(recipe) + 1])
        for run in shown
        if recipe in run.chain
    )
    if not stages:
        known = {name for run in shown for name in run.chain}
        raise unknown("step", recipe, known, f"table {table}")
    tuned = plan.experiments.recipe(recipe, settings.scale)
    if not tuned.READS_DATA:
        raise UsageError(f"step '{recipe}' reads no data, so none can be held out")
    metric, dataset = tuned.METRICS[0], get_dataset(tuned.dataset)
    if "validation" not in dataset.splits:
        raise UsageError(f"step '{recipe}': {dataset.title} has no images held out to tune on")
    combinations = [
        dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())
    ]
    trials = []
    for combination, (model, chain), seed in itertools.product(
        combinations, stages, settings.seeds
    ):
        words = [f"{key}={value}" for key, value in combination.items()]
        name = f"{recipe}-{re.sub(r'[^A-Za-z0-9.=_-]+', '_', '-'.join(words))}"
        run = Run(settings.scale, model, seed, chain, name)
        # a misspelt key is an error here, before anything runs
        changes = merge({"evaluate": "validation"}, nested(read_words(words, "--grid")))
        config = plan.resolve(run, changes).config
        tried = canonical_json({key: config[key] for key in ("model", "step")})
        trials.append((run, words, tried))

    path = Path(settings.results) / settings.scale / "tuning.csv"
    means: dict[str, list[float]] = {}
    failed = []

    def attempt(trial: tuple[Run, list[str], str]) -> dict:
        run, words, _ = trial
        for ancestor in run.ancestors:
            _call(ancestor, [], settings)
        return _call(run, ["--set", "evaluate=validation", *words], settings)

    began = time.monotonic()

    def left(count: int) -> str:
        seconds = (time.monotonic() - began) / count * (len(trials) - count)
        return f"({count} of {len(trials)}, about {timedelta(seconds=round(seconds))} left)"

    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        waiting = {pool.submit(attempt, trial): trial for trial in trials}
        print(f"{len(trials)} trials, {min(jobs, len(trials))} at a time", file=sys.stderr)
        for count, done in enumerate(concurrent.futures.as_completed(waiting), 1):
            run, words, tried = waiting[done]
            setting = " ".join(words)
            row = {"step": recipe, "setting": setting, "model": run.model, "seed": run.seed}
            row |= {"metric": f"validation {metric}", "recipe": tried}
            try:
                value = done.result()[metric]
            except RunError as error:
                failed.append(setting)
                print(f"{setting}  {run}: {error}  {left(count)}", file=sys.stderr, flush=True)
                add_outcomes(path, [{**row, "value": "failed"}])
            else:
                means.setdefault(setting, []).append(value)
                print(f"{setting}  {run}: {value:.4g}  {left(count)}", file=sys.stderr, flush=True)
                add_outcomes(path, [{**row, "value": f"{value:.4g}"}])
    ranked = sorted(
        means.items(),
        key=lambda item: sum(item[1]) / len(item[1]),
        reverse=not tuned.LOWER_IS_BETTER,
    )
    for setting, values in ranked:
        note = f", {failed.count(setting)} failed" if setting in failed else ""
        print(f"{sum(values) / len(values):7.4g}  mean of {len(values)} runs{note}  {setting}")
    print(f"all outcomes: {path}")
    if failed:
        raise RunError(f"{len(failed)} of {len(trials)} trials failed")


def _call(run: Run, words: list[str], settings: Settings) -> dict:
    """Finish one run in another process; returns its metrics. Raises `RunError` if it fails."""
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
    """The outcomes in a CSV file; [] without the file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def add_outcomes(path: Path, rows: list[dict]) -> None:
    """Add outcomes to the CSV file; they replace older ones of the same trial and configuration."""
    key = ("step", "model", "seed", "recipe")
    outcomes = [*read_outcomes(path), *rows]
    merged = {tuple(str(entry[k]) for k in key): entry for entry in outcomes}
    with atomic_path(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(merged.values())
