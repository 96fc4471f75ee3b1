"""`crate plan`: the runs of a target and what they cost."""

from crate.cli.common import add_command, open_plan, positive


def add_parser(commands) -> None:
    text = "show the runs of a target and estimate what they cost"
    parser = add_command(commands, "plan", plan, text, target=True)
    parser.add_argument("--scale", help="the same as --config scale=…")
    parser.add_argument(
        "--device",
        default="a100",
        help="a100, h100, …, or the name or file of a measurement by 'crate bench' "
        "(default: %(default)s)",
    )
    parser.add_argument("--watts", type=positive, help="the device's power, to estimate energy")
    parser.add_argument("--runs", action="store_true", help="list each run of several tables too")


def plan(options) -> None:
    from crate.costs.budget import describe, read_device

    opened, settings = open_plan(options, anywhere=True)
    device = read_device(options.device, settings.results, options.watts)
    print(describe(opened, options.target, settings, device, each_run=options.runs))
