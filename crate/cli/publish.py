"""`crate publish`: results that the repository keeps."""

from crate.cli.common import add_command, open_plan


def add_parser(commands) -> None:
    text = "copy results with their provenance to results/published"
    add_command(commands, "publish", publish, text)


def publish(options) -> None:
    from crate.reporting import publish as reporting

    for path in reporting.publish(*open_plan(options)):
        print(path)
