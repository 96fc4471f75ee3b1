"""`crate inspect`: the layers of a finished run's model on images of one's own."""

from pathlib import Path

from crate.cli.common import RUN_PATH, add_command, make_known, path


def add_parser(commands) -> None:
    text = "show attention, sparse codes and tokens of a run's model on images of your own"
    parser = add_command(commands, "inspect", inspect, text, settings=False)
    parser.add_argument("run", type=path, help=f"a finished run: {RUN_PATH}")
    parser.add_argument(
        "images", type=path, nargs="+", metavar="image", help="files of any format and size"
    )
    parser.add_argument(
        "--out", type=path, default="inspected", help="a folder (default: inspected)"
    )
    parser.add_argument(
        "--image-size",
        type=int,
        help="side of the network's input, in pixels (default: the run's)",
    )


def inspect(options) -> None:
    from crate.explore import inspect as explore

    make_known()
    request = explore.Request(options.run, options.images, Path(options.out), options.image_size)
    explore.inspect(request)
