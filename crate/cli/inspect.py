"""`crate inspect`: the layers of a trained model on images of one's own."""

from pathlib import Path

from crate.cli.common import add_command, add_images, add_network, make_known, path


def add_parser(commands) -> None:
    text = "show attention, sparse codes and tokens of a model on images of your own"
    parser = add_command(commands, "inspect", inspect, text, settings=False)
    add_network(parser)
    add_images(parser)
    parser.add_argument(
        "--out", type=path, default="inspected", help="a folder (default: inspected)"
    )


def inspect(options) -> None:
    from crate.explore import inspect as explore

    make_known()
    request = explore.Request(
        weights=options.weights,
        images=options.images,
        out=Path(options.out),
        image_size=options.image_size,
        model=options.model,
        scale=options.scale,
    )
    explore.inspect(request)
