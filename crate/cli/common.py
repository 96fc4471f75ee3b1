"""What commands share: adding a parser, the options of many commands, opening the plan.

Command files import at their top only this file, `crate.errors` and the standard library, so that
`crate --help` starts quickly; what a command needs is imported when it runs.
"""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from crate.errors import UsageError

if TYPE_CHECKING:
    from crate.planning.plan import Plan
    from crate.planning.settings import Settings

RUN_PATH = "results/<scale>/runs/<model>/seed<k>/<step>/…"


def add_command(
    commands,
    name: str,
    function: Callable[[argparse.Namespace], None],
    text: str,
    *,
    target: bool = False,
    settings: bool = True,
) -> argparse.ArgumentParser:
    """Add the parser of a command.

    Args:
        commands: what `ArgumentParser.add_subparsers` returned.
        function: does the work.
        text: one line for `--help`.
        target: whether the command takes a target.
        settings: whether the command takes --config.
    """
    parser = commands.add_parser(name, help=text, description=text)
    parser.set_defaults(command=function)
    if target:
        parser.add_argument(
            "target",
            type=path,
            help="all, a table ([table_]<name>), figure_<name> or the path of a run",
        )
    if settings:
        parser.add_argument(
            "--config",
            nargs="+",
            default=[],
            metavar="KEY=VALUE",
            help="settings, as Snakemake takes them: scale=mini seeds=0,1 data_root=… results=…",
        )
    return parser


def table_name(text: str) -> str:
    """The name of a table, given with or without `table_`, for argparse's `type`."""
    return text.removeprefix("table_")


def add_network(parser: argparse.ArgumentParser) -> None:
    """Add the options of commands that show a network images: its weights and image size."""
    parser.add_argument(
        "weights",
        type=path,
        help=f"a finished run ({RUN_PATH}) or a file of weights, ours or official",
    )
    parser.add_argument(
        "--model",
        help="of a file, a name of 'crate models' (default: as the file or "
        "experiments/released.yaml says)",
    )
    parser.add_argument("--scale", help="of a file, its run's scale (default: published sizes)")
    parser.add_argument(
        "--image-size",
        type=positive_integer,
        metavar="PX",
        help="side of the network's input (default: the weights' own)",
    )


def add_images(parser: argparse.ArgumentParser) -> None:
    """Add the images that a command looks at."""
    parser.add_argument(
        "images", type=path, nargs="+", metavar="image", help="files of any format and size"
    )


def add_view(parser: argparse.ArgumentParser) -> None:
    """Add how commands of classifiers scale images, after `add_network`."""
    parser.add_argument(
        "--resize",
        type=positive_integer,
        metavar="PX",
        help="shorter side before the centre is cut out (default: 8/7 of --image-size: 256 "
        "for 224)",
    )
    parser.add_argument(
        "--interpolation",
        choices=("bilinear", "bicubic", "lanczos"),
        default="bilinear",
        help="of the scaling (default: %(default)s)",
    )


def read_classifier(options: argparse.Namespace) -> dict:
    """The options of `add_network` and `add_view`, as arguments of `Classifier`."""
    keys = ("weights", "model", "scale", "image_size", "resize", "interpolation")
    return {key: getattr(options, key) for key in keys}


def positive_integer(text: str) -> int:
    """A whole number from 1, for argparse's `type`."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 1")
    return int(text)


def positive(text: str) -> float:
    """A positive, finite number, for argparse's `type`."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def path(text: str) -> str:
    """A file or folder with `~` and `$VARIABLE` replaced, for argparse's `type`.

    The shell does the same, but not behind `--out=` or in quotes. A file of that very name wins.

    Raises:
        UsageError: it is empty or too long, or names an unknown variable or user.
    """
    from crate.sources import expand_path

    try:
        return text if os.path.lexists(text) else expand_path(text)
    except ValueError as error:
        raise UsageError(f"a path on the command line: {error}") from None


def require(path: str, advice: str = "") -> None:
    """Raise `UsageError` where a file or folder is not there, before torch is imported."""
    if not os.path.lexists(path):
        raise UsageError(f"{path}: no such file or folder{advice}")


RUN_IT = "; check the path, or run it"


def make_known() -> None:
    """Make what `experiments/` declares of one's own known to a command that opens no plan."""
    from crate.planning.loader import Experiments

    Experiments().settings()


def open_plan(
    options: argparse.Namespace, site: str | None = None, *, anywhere: bool = False
) -> "tuple[Plan, Settings]":
    """The plan, and the settings from these sources, the first that sets a key winning:

    the command's --config, the workflow that started this process, the site's file, config.yaml.

    anywhere: whether the package's experiments do, for want of a project in the working folder.
    """
    import json

    from crate.environment import EXPERIMENTS, PROJECT
    from crate.planning.loader import Experiments
    from crate.planning.plan import Plan
    from crate.planning.settings import SETTINGS_VARIABLE
    from crate.sources import merge, read_words, read_yaml

    experiments = Experiments(None if anywhere else EXPERIMENTS)
    if experiments.folder == PROJECT / "experiments":
        note = (
            f"no folder {EXPERIMENTS}/ here, so those of the package; 'crate init' makes a project"
        )
        print(f"note: {note}", file=sys.stderr)
    try:
        handed_down = dict(json.loads(os.environ.get(SETTINGS_VARIABLE, "{}")))
    except ValueError:
        raise UsageError(
            f"the environment variable {SETTINGS_VARIABLE} is not a JSON object"
        ) from None
    own = read_words(options.config, "--config")
    scale = getattr(options, "scale", None)
    if scale is not None and own.setdefault("scale", scale) != scale:
        raise UsageError(f"--scale {scale} and --config scale={own['scale']} exclude each other")
    at_site = {} if site is None else read_yaml(Path(site))
    settings = experiments.settings(merge(merge(at_site, handed_down), own))
    return Plan(experiments, settings), settings
