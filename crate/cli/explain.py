"""`crate explain`: where the numbers of a table's row come from."""

from crate.cli.common import add_command, open_plan, table_name


def add_parser(commands) -> None:
    text = "show the runs, configurations and commits behind a table's cells"
    parser = add_command(commands, "explain", explain, text)
    parser.add_argument("table", type=table_name)
    parser.add_argument("--row", required=True, help="the row's label, or a part of it")
    parser.add_argument("--column", help="one column (default: all)")


def explain(options) -> None:
    from crate.reporting import explain as reporting

    opened = open_plan(options, anywhere=True)
    print(reporting.explain(options.table, options.row, options.column, *opened))
