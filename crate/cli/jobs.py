"""`crate jobs`: the jobs of a results folder."""

from crate.cli.common import add_command, open_plan


def add_parser(commands) -> None:
    text = "list the jobs: state, node, elapsed time, progress, restarts"
    add_command(commands, "jobs", jobs, text)


def jobs(options) -> None:
    from crate.launch.jobs import list_jobs

    _, settings = open_plan(options)
    print(list_jobs(settings))
