"""`crate show`: a finished table, on the screen."""

import sys
from pathlib import Path

from crate.cli.common import add_command, open_plan, table_name
from crate.errors import UsageError


def add_parser(commands) -> None:
    text = "print a table, the paths of its files and the next command"
    parser = add_command(commands, "show", show, text)
    parser.add_argument("table", type=table_name)


def show(options) -> None:
    from crate.published import published_or_packaged
    from crate.reporting.explain import config_words

    plan, settings = open_plan(options, anywhere=True)
    plan.table(options.table)
    words = config_words(plan, settings)
    if settings.scale == plan.experiments.usual_settings().scale:
        words = words.removeprefix(f"scale={settings.scale}").strip()
    make = f"snakemake --cores all table_{options.table} --config {words}".removesuffix(
        " --config "
    )
    path = Path(settings.results) / settings.scale / "tables" / f"{options.table}.md"
    if not path.is_file():
        missing, published = path, published_or_packaged(settings.results, settings.scale)
        path = published / path.relative_to(settings.results)
        if not path.is_file():
            raise UsageError(f"{missing} is not there; run '{make}'")
        print(f"note: {missing} is not there; this is the published table", file=sys.stderr)
    print(path.read_text(encoding="utf-8"))
    print(f"files:  {path.with_suffix('')}.md .tex .csv")
    figure = path.parents[1] / "figures" / (plan.figure_of(options.table) or options.table)
    drawn = [end for end in (".pdf", ".svg", ".png") if figure.with_suffix(end).is_file()]
    if drawn:
        print(f"figure: {figure}{' '.join(drawn)}")
    seeds = "seeds=0,1,2" if words else "--config seeds=0,1,2"
    print(f"next:   {make} {seeds}")
