"""`crate show`: a finished table, on the screen."""

from pathlib import Path

from crate.cli.common import add_command, open_plan, table_name
from crate.errors import UsageError


def add_parser(commands) -> None:
    text = "print a table, the paths of its files and the next command"
    parser = add_command(commands, "show", show, text)
    parser.add_argument("table", type=table_name)


def show(options) -> None:
    plan, settings = open_plan(options)
    plan.experiments.table(options.table)
    path = Path(settings.results) / settings.scale / "tables" / f"{options.table}.md"
    if not path.is_file():
        raise UsageError(f"{path} is not there; run 'snakemake --cores all table_{options.table}'")
    print(path.read_text(encoding="utf-8"))
    print(f"files:  {path.with_suffix('')}.md .tex .csv")
    figure = path.parents[1] / "figures" / (plan.figure_of(options.table) or options.table)
    if figure.with_suffix(".png").is_file():
        print(f"figure: {figure}.pdf .svg .png")
    print(f"next:   snakemake --cores all table_{options.table} --config seeds=0,1,2")
