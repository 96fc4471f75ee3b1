"""`crate collect`: from runs to metrics."""

from crate.cli.common import add_command, open_plan, table_name


def add_parser(commands) -> None:
    text = "read the results of a table's runs into metrics/<table>.csv"
    parser = add_command(commands, "collect", collect, text)
    parser.add_argument(
        "table",
        type=table_name,
        help="a table's name; all joins the collected tables into metrics.csv",
    )


def collect(options) -> None:
    from crate.reporting import collect as reporting

    plan, settings = open_plan(options)
    if options.table == "all":
        reporting.write_joined_metrics(plan, settings.results, settings.scale)
    else:
        reporting.collect(options.table, plan, settings)
