"""`crate predict`: the classes of images of one's own."""

from pathlib import Path

from crate.cli.common import (
    add_command,
    add_images,
    add_network,
    add_view,
    make_known,
    path,
    positive_integer,
    read_classifier,
)


def add_parser(commands) -> None:
    text = "show the most probable classes of images of your own"
    parser = add_command(commands, "predict", predict, text, settings=False)
    add_network(parser)
    add_images(parser)
    add_view(parser)
    parser.add_argument(
        "--classes",
        type=path,
        metavar="FILE",
        help="the names of the network's classes, one a line (default: numbers from 0)",
    )
    parser.add_argument(
        "--top",
        type=positive_integer,
        default=5,
        metavar="K",
        help="show the K most probable classes (default: 5)",
    )


def predict(options) -> None:
    from crate.explore import classify

    make_known()
    request = classify.Prediction(
        classifier=classify.Classifier(**read_classifier(options)),
        images=options.images,
        classes=options.classes and Path(options.classes),
        top=options.top,
    )
    classify.predict(request)
