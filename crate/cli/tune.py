"""`crate tune`: hyperparameter search on held-out images."""

import os

from crate.cli.common import add_command, open_plan, table_name
from crate.errors import UsageError


def add_parser(commands) -> None:
    text = "search a recipe's hyperparameters on held-out images, the same grid for each model"
    parser = add_command(commands, "tune", tune, text)
    parser.add_argument("table", type=table_name, help="its models are tried")
    parser.add_argument("step", help="the recipe that is changed")
    parser.add_argument("--grid", nargs="+", required=True, metavar="KEY=V1,V2,…")
    parser.add_argument(
        "--jobs",
        type=int,
        default=os.cpu_count() or 1,
        help="number of parallel trials (default: number of cores)",
    )


def tune(options) -> None:
    from crate.reporting import tuning

    plan, settings = open_plan(options)
    grid = {}
    for word in options.grid:
        key, equals, values = word.partition("=")
        if not equals or not key:
            raise UsageError(f"--grid: '{word}' is not KEY=V1,V2,…")
        grid[key] = values.split(",")
    tuning.tune(options.table, options.step, grid, plan, settings, jobs=options.jobs)
