"""`crate segment`: objects in images of one's own."""

import argparse
from pathlib import Path

from crate.cli.common import add_command, add_images, make_known, path, require


def add_parser(commands) -> None:
    text = "find the objects in images of your own (MaskCut)"
    parser = add_command(commands, "segment", segment, text, settings=False)
    add_images(parser)
    parser.add_argument("--model", required=True, help="a name of 'crate models' or models.yaml")
    parser.add_argument(
        "--out", type=path, required=True, help="a folder for overlays and objects.json"
    )
    parser.add_argument(
        "--weights",
        type=path,
        required=True,
        metavar="FILE",
        help="the weights of a finished run, or an official checkpoint",
    )
    parser.add_argument(
        "--protocol",
        default="coco_maskcut_cpal",
        help="a recipe that finds objects (default: %(default)s)",
    )
    parser.add_argument("--scale", help="the scale of the weights' run (default: published sizes)")
    parser.add_argument("--image-size", type=int, help="side of the network's input, in pixels")
    parser.add_argument("--layer", type=int, help="block whose features are used, from 0")
    parser.add_argument("--feature", choices=("key", "query", "value", "tokens"))
    parser.add_argument("--tau", type=float, help="cosine above which two patches are connected")
    parser.add_argument("--masks", type=int, help="largest number of masks of an image")
    parser.add_argument(
        "--crf", action=argparse.BooleanOptionalAction, help="refine masks with a dense CRF"
    )


def segment(options) -> None:
    require(options.weights)
    from crate.explore import segment as explore

    make_known()
    keys = ("image_size", "layer", "feature", "tau", "masks", "crf")
    changes = {key: getattr(options, key) for key in keys if getattr(options, key) is not None}
    request = explore.Request(
        images=options.images,
        model=options.model,
        out=Path(options.out),
        weights=Path(options.weights),
        protocol=options.protocol,
        scale=options.scale,
        changes=changes,
    )
    explore.segment(request)
