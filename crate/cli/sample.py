"""`crate sample`: text from a language model."""

from pathlib import Path

from crate.cli.common import RUN_IT, RUN_PATH, add_command, make_known, path, require


def add_parser(commands) -> None:
    text = "sample text from a language model, from a prompt of your own"
    parser = add_command(commands, "sample", sample, text, settings=False)
    parser.add_argument("--run", type=path, help=f"a finished run: {RUN_PATH}")
    parser.add_argument(
        "--weights",
        type=path,
        metavar="FILE",
        help="in place of --run: an official checkpoint, such as GPT-2's",
    )
    parser.add_argument("--model", help="with --weights: a name of 'crate models' or models.yaml")
    parser.add_argument("--scale", help="the scale of the weights' run (default: published sizes)")
    parser.add_argument(
        "--prompt", default="", help="how the text begins (default: as a new document)"
    )
    parser.add_argument(
        "--tokens", type=int, default=200, help="largest number of new tokens (default: 200)"
    )
    parser.add_argument(
        "--temperature",
        type=float,
        default=0.8,
        help="0 always takes the most likely token (default: 0.8)",
    )
    parser.add_argument("--top-k", type=int, metavar="K", help="sample from the K likeliest tokens")
    parser.add_argument("--seed", type=int, default=0, help="of the sampling (default: 0)")


def sample(options) -> None:
    if options.run is not None:
        require(options.run, RUN_IT)
    elif options.weights is not None:
        require(options.weights)
    from crate.explore import sample as explore

    make_known()
    request = explore.Request(
        run=options.run,
        model=options.model,
        weights=options.weights and Path(options.weights),
        prompt=options.prompt,
        tokens=options.tokens,
        temperature=options.temperature,
        top_k=options.top_k,
        seed=options.seed,
        scale=options.scale,
    )
    explore.sample(request)
