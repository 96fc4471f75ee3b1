"""`crate report`: one page of all results."""

from crate.cli.common import add_command, open_plan


def add_parser(commands) -> None:
    text = "write one HTML page of all tables and figures with the provenance of each number"
    parser = add_command(commands, "report", report, text)
    parser.add_argument(
        "--published", action="store_true", help="of results/published in place of results"
    )


def report(options) -> None:
    from crate.reporting.report import write_report

    print(write_report(*open_plan(options, anywhere=True), published=options.published))
