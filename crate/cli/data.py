"""`crate data`: check and prepare data sets."""

import sys

from crate.cli.common import add_command, path
from crate.errors import RunError


def add_parser(commands) -> None:
    text = "check and prepare data sets"
    group = commands.add_parser("data", help=text, description=text)
    commands = group.add_subparsers(metavar="command", required=True)
    for name, function, line in (
        ("check", check, "report which files of a data set are complete and which are missing"),
        ("prepare", prepare, "download or unpack a data set, and index it"),
    ):
        parser = add_command(commands, name, function, line, settings=False)
        parser.add_argument("name", help="a data set")
        parser.add_argument(
            "--data-root",
            type=path,
            help="the folder of all data sets (default: as config.yaml says)",
        )
        if name == "check":
            parser.add_argument(
                "--thorough", action="store_true", help="decode all pictures and maps (hours)"
            )


def check(options) -> None:
    from crate.data.check import check
    from crate.data.datasets import advice

    dataset, data_root = _open(options)
    complete, problems = check(dataset, data_root, thorough=options.thorough)
    print("\n".join(complete), end="\n" if complete else "")
    for line in problems:
        print(line, file=sys.stderr)
    if problems:
        raise RunError(f"{dataset.title} is not complete: {advice(dataset, data_root)}")


def prepare(options) -> None:
    from crate.data.prepare import prepare

    print("\n".join(prepare(*_open(options))))


def _open(options) -> tuple:
    """The data set and the folder of all data sets, from the option or config.yaml."""
    from crate.data.catalogue import get_dataset
    from crate.planning.loader import Experiments

    given = {"data_root": options.data_root} if options.data_root else {}
    data_root = Experiments().settings(given).data_root  # first: sets of one's own become known
    return get_dataset(options.name), data_root
