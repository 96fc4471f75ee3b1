"""`crate weights`: official checkpoints in, weights of finished runs out."""

from pathlib import Path

from crate.cli.common import RUN_IT, RUN_PATH, add_command, make_known, path, require
from crate.errors import UsageError


def add_parser(commands) -> None:
    text = "convert official checkpoints to our weights, and finished runs to files for others"
    group = commands.add_parser("weights", help=text, description=text)
    commands = group.add_subparsers(metavar="command", required=True)

    text = "list the known official checkpoints and which of them are on disk"
    parser = add_command(commands, "list", list_known, text, settings=False)
    parser.add_argument(
        "--data-root", type=path, help="the folder of all data sets (default: as config.yaml says)"
    )

    text = "convert an official checkpoint (of PyTorch, safetensors or .npz) to our weights"
    parser = add_command(commands, "import", import_file, text, settings=False)
    parser.add_argument("file", type=path)
    parser.add_argument("--model", required=True, help="a name of 'crate models' or models.yaml")
    parser.add_argument("--out", type=path, required=True, help="the .safetensors file to write")
    parser.add_argument(
        "--take",
        metavar="PLACE",
        help="where in the file the weights stand, if in several places: model, model_ema, …",
    )

    text = "export the weights of a finished run for other programs"
    parser = add_command(commands, "export", export, text, settings=False)
    parser.add_argument("path", type=path, help=RUN_PATH)
    parser.add_argument("--to", required=True, help="safetensors, onnx or torch-official")
    parser.add_argument("--out", type=path, required=True, help="the file to write")


def list_known(options) -> None:
    from tabulate import tabulate

    from crate.checkpoints.manifest import checkpoint_path, manifest, presence
    from crate.environment import experiments_folder
    from crate.planning.loader import Experiments

    given = {"data_root": options.data_root} if options.data_root else {}
    data_root = Experiments().settings(given).data_root
    entries = manifest(experiments_folder())
    rows = [
        [
            name,
            entry.model or "none of ours",
            f"{entry.classes:,}" if entry.classes else "",
            f"{entry.bytes:,}" if entry.bytes else "unknown",
            entry.sha256 or "unknown",
            entry.status,
            presence(checkpoint_path(name, data_root), entry),
        ]
        for name, entry in entries.items()
    ]
    headers = ["file", "model", "classes", "bytes", "sha256", "status", "here"]
    alignment = ("left", "left", "right", "right", "left", "left", "left")
    print(tabulate(rows, headers, disable_numparse=True, colalign=alignment))
    print()
    for name, entry in entries.items():
        print(f"{name}: {entry.source}{'; ' if entry.note else ''}{entry.note}")
    print(f"\nlooked for in {checkpoint_path('', data_root)}/; nothing is downloaded for you")


def import_file(options) -> None:
    from crate.checkpoints.manifest import verify_if_listed
    from crate.environment import experiments_folder
    from crate.planning.loader import Experiments

    file, out = Path(options.file), Path(options.out)
    spec = Experiments().spec(options.model, None)
    if out.suffix != ".safetensors":
        raise UsageError(f"--out {out}: should end in .safetensors")
    require(options.file)
    verify_if_listed(file, options.model, experiments_folder())
    from crate.checkpoints.export import import_official

    print(import_official(file, options.model, spec, out, take=options.take))


def export(options) -> None:
    require(options.path, RUN_IT)
    from crate.checkpoints.export import export_run

    make_known()
    print(export_run(options.path, options.to, Path(options.out)))
