"""The command line `crate …`, one file a command; may import every other room.

Exit status: 0 done; 1 a run failed; 2 the request makes no sense, with one line that says why.
"""

import argparse
import os
import sys
from collections.abc import Sequence

from crate import __version__
from crate.cli import (
    bench,
    cancel,
    collect,
    data,
    evaluate,
    explain,
    init,
    inspect,
    jobs,
    launch,
    models,
    plan,
    predict,
    publish,
    report,
    run,
    sample,
    segment,
    show,
    tables,
    tune,
    weights,
)
from crate.errors import RunError, UsageError

# In the order of `crate --help`
COMMANDS = (
    init, run, launch, jobs, cancel, plan, bench, explain, collect, tables, show, report, publish,
    tune, models, evaluate, predict, segment, inspect, sample, data, weights,
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status; mistakes and failures print one line."""
    try:
        options = make_parser().parse_args(arguments)
        options.command(options)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except RunError as error:
        print(f"failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `crate models | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands; `options.command` is the function that does the work."""
    parser = argparse.ArgumentParser(
        prog="crate", description="Regenerate the tables of the CRATE papers."
    )
    parser.add_argument("--version", action="version", version=f"crate {__version__}")
    commands = parser.add_subparsers(metavar="command", required=True)
    for module in COMMANDS:
        module.add_parser(commands)
    return parser
