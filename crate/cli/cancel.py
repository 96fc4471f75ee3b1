"""`crate cancel`: cancel jobs."""

from crate.cli.common import add_command, open_plan


def add_parser(commands) -> None:
    add_command(commands, "cancel", cancel, "cancel the jobs of a run, a table or all", target=True)


def cancel(options) -> None:
    from crate.launch.jobs import cancel_jobs

    print("\n".join(cancel_jobs(options.target, *open_plan(options))))
