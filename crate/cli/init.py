"""`crate init`: a folder of one's own in which Snakemake makes the tables."""

import contextlib
import os
import shlex
import shutil
from pathlib import Path

from crate.cli.common import add_command, path
from crate.errors import UsageError

# The rules stay in the package, so that an update of the package brings theirs.
SNAKEFILE = """\
# Makes the tables of experiments/ by the rules of the installed package; rules of your own may
# follow. Targets: all, report, table_<name>, figure_<name>, figure_training (behind every table;
# figure_training_<table>: one), or the path of a single run. Settings follow the targets:
#     snakemake --cores all table_ablation --config scale=mini seeds=0,1,2
from crate.environment import PROJECT


include: f"{PROJECT}/Snakefile"
"""
COPIED = ("experiments", "slurm")  # to edit


def add_parser(commands) -> None:
    text = "make a project: a folder with experiments/ and slurm/ to edit, and a Snakefile"
    parser = add_command(commands, "init", init, text, settings=False)
    parser.add_argument(
        "folder",
        type=path,
        nargs="?",
        default=".",
        help="a new one, or one without these (default: this one)",
    )


def init(options) -> None:
    folder = Path(options.folder)
    made = make_project(folder)
    commands = ["snakemake -n table_ablation", "snakemake --cores all table_ablation"]
    if folder != Path():
        commands = [f"cd {shlex.quote(options.folder)}", commands[1]]
    print(f"made:   {'  '.join(made)}")
    print("next:   " + "\n        ".join(commands))


def make_project(folder: Path) -> list[str]:
    """Make a project's files in `folder`, which may exist without them; returns their paths.

    Raises:
        UsageError: one of them is there already, or cannot be written; then nothing is made.
    """
    from crate.environment import PROJECT

    targets = [folder / name for name in ("Snakefile", *COPIED)]
    for target in targets:
        if os.path.lexists(target):
            raise UsageError(f"{target} is already there; name another folder: crate init FOLDER")
    if os.path.lexists(folder) and not folder.is_dir():
        raise UsageError(f"{folder} is not a folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in COPIED:
            _copy(PROJECT / name, folder / name)
        targets[0].write_text(SNAKEFILE, encoding="utf-8")
    except OSError as error:
        for target in targets:
            with contextlib.suppress(OSError):
                shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)
        raise UsageError(f"{folder}: cannot be written ({error.strerror})") from None
    return [f"{target}{'/' * target.is_dir()}" for target in targets]


def _copy(source: Path, target: Path) -> None:
    """Copy YAML files without their modes: the package's may be read-only, and these are edited."""
    for file in sorted(source.glob("**/*.yaml")):
        copy = target / file.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)
