"""`crate bench`: measure this machine's speed, for `crate plan`."""

from crate.cli.common import add_command, open_plan, positive


def add_parser(commands) -> None:
    text = "measure the speed of a target's runs on this machine, for 'crate plan'"
    parser = add_command(commands, "bench", bench, text, target=True)
    parser.add_argument("--scale", help="the same as --config scale=…")
    parser.add_argument(
        "--seconds",
        type=positive,
        default=2.0,
        help="approximate time of each measurement (default: 2)",
    )
    parser.add_argument("--again", action="store_true", help="repeat existing measurements")


def bench(options) -> None:
    plan, settings = open_plan(options, anywhere=True)
    plan.runs(options.target, settings)  # reports a mistake before torch is imported
    from crate.costs import bench as measure
    from crate.launch.ranks import ranks

    with ranks(launched=False):
        measure.bench(plan, options.target, settings, seconds=options.seconds, again=options.again)
