"""`crate run`: one run, in this process or as a job."""

import os
import sys

from crate.cli.common import RUN_PATH, add_command, open_plan, path


def add_parser(commands) -> None:
    text = "complete one run; its parent must be finished"
    parser = add_command(commands, "run", run, text)
    parser.add_argument("path", type=path, help=RUN_PATH)
    parser.add_argument("--identity", help="refuse to start if the run's identity is another one")
    parser.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="other values of the recipe: the run is then <step>@KEY=VALUE, in a folder of its own",
    )
    parser.add_argument("--fresh", action="store_true", help="train again even if it is finished")


def run(options) -> None:
    from crate.environment import mismatch
    from crate.launch.ranks import RANKS_VARIABLE
    from crate.launch.run import perform, prepare
    from crate.planning.variants import with_values
    from crate.sources import nested, read_words
    from crate.training.trackers import check_installed

    warning = mismatch()
    if warning:
        print(f"warning: {warning}", file=sys.stderr)
    plan, settings = open_plan(options)
    check_installed(settings.log)
    overrides = nested(read_words(options.overrides, "--set"))
    path, overrides = with_values(options.path, overrides)
    fresh = options.fresh or bool(os.environ.get("CRATE_FRESH"))
    if settings.launcher == "local":
        prepared = prepare(path, plan, expected=options.identity, overrides=overrides)
        launched = bool(os.environ.get(RANKS_VARIABLE))
        perform(prepared, settings, fresh=fresh, launched=launched)
    else:
        from crate.launch.wait import launch

        launch(path, plan, settings, options.identity, overrides, fresh)
