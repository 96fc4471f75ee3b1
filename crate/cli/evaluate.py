"""`crate evaluate`: the accuracy of a classifier on images of one's own."""

import os
from pathlib import Path

from crate.cli.common import (
    add_command,
    add_network,
    add_view,
    make_known,
    path,
    positive_integer,
    read_classifier,
)


def add_parser(commands) -> None:
    text = "measure a classifier's top-1 and top-5 accuracy on a folder of images"
    parser = add_command(commands, "evaluate", evaluate, text, settings=False)
    add_network(parser)
    parser.add_argument(
        "--data",
        type=path,
        required=True,
        metavar="FOLDER",
        help="a folder of folders of images, one a class",
    )
    add_view(parser)
    parser.add_argument(
        "--classes",
        type=path,
        metavar="FILE",
        help="a name a line: the network's classes in order (then FOLDER may have some of them), "
        "or some of FOLDER's (default: the folders, sorted)",
    )
    parser.add_argument(
        "--restrict",
        action="store_true",
        help="choose among FOLDER's classes only, as for ImageNet-A and -R (default: among all)",
    )
    parser.add_argument("--batch-size", type=positive_integer, default=64, help="(default: 64)")
    parser.add_argument(
        "--workers", type=int, help="processes that read images (default: one a core, at most 8)"
    )


def evaluate(options) -> None:
    from crate.explore import classify

    workers = options.workers
    if workers is None:
        workers = min(8, os.cpu_count() or 1)
    make_known()
    request = classify.Evaluation(
        classifier=classify.Classifier(**read_classifier(options)),
        data=Path(options.data),
        classes=options.classes and Path(options.classes),
        restrict=options.restrict,
        batch_size=options.batch_size,
        workers=max(0, workers),
    )
    classify.evaluate(request)
