"""`crate tables`: from metrics to tables and figures."""

import os

from crate.cli.common import add_command, open_plan


def add_parser(commands) -> None:
    text = "write tables (and figures) from collected metrics"
    parser = add_command(commands, "tables", tables, text, target=True)
    parser.add_argument(
        "--partial", action="store_true", help="collect first, and mark failed and missing runs"
    )


def tables(options) -> None:
    from crate.records import DRIVER_VARIABLE
    from crate.reporting.collect import collect, mark_outdated
    from crate.reporting.tables import write_table

    plan, settings = open_plan(options)
    for name in plan.target_tables(options.target):
        if options.partial:
            collect(name, plan, settings, partial=True)
        if options.partial or not options.target.startswith("figure_"):
            write_table(name, plan, settings)
        if DRIVER_VARIABLE not in os.environ:
            mark_outdated(name, plan, settings)
    for figure in plan.target_figures(options.target):
        from crate.reporting.figures import write_figure

        write_figure(figure, plan, settings)
