"""What this Snakemake process was asked: its targets, mode, settings, and what cannot work here."""

import contextlib
import functools
import json
import os
import sys
from pathlib import Path
from typing import Any

from crate.errors import UsageError
from crate.planning.settings import SETTINGS_VARIABLE
from crate.sources import Mapping, merge, read_words, read_yaml

# Modes of Snakemake that start no job and must change nothing
PASSIVE = (
    "dryrun", "lint", "summary", "detailed_summary", "dag", "rulegraph", "filegraph", "d3dag",
    "list_rules", "list_target_rules", "list_changes", "list_input_changes", "touch", "report",
    "print_compilation", "list_untracked", "cleanup_metadata", "unlock", "archive",
)  # fmt: skip
EXECUTORS = (None, "local", "dryrun", "touch")


@functools.cache
def _command_line():
    """This process's command line as Snakemake parses it; None inside another program."""
    from snakemake.cli import args_to_api, parse_args

    frame = sys._getframe()  # it hands the options to no workflow; to parse them again takes 0.4 s
    while frame := frame.f_back:
        if frame.f_code is args_to_api.__code__ and "args" in frame.f_locals:
            return frame.f_locals["args"]
    script = Path(sys.argv[0])
    if "snakemake" not in (script.stem, script.parent.name):
        return None  # sys.argv has no targets
    with (
        contextlib.suppress(SystemExit, Exception),
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stderr(nowhere),
    ):
        return parse_args(sys.argv[1:])[1]
    return None


def command_targets() -> list[str]:
    """The targets of this process's command line."""
    return list(getattr(_command_line(), "targets", None) or [])


def is_passive() -> bool:
    """Whether this Snakemake process starts no job."""
    options = _command_line()
    return any(getattr(options, name, None) not in (None, False) for name in PASSIVE)


def is_dry_run() -> bool:
    return bool(getattr(_command_line(), "dryrun", False))


def asks_for_more() -> bool:
    """Whether the command asks for shell commands (-p) or --verbose output."""
    options = _command_line()
    return bool(getattr(options, "printshellcmds", False) or getattr(options, "verbose", False))


def command_settings(workflow: Any) -> dict:
    """The settings of the site's file and of --config.

    Read again here: Snakemake has read `0471` as a number, and forgotten files and lines. Without
    --configfile the site's file is the one beside the profile, which Snakemake does not read.
    """
    if not workflow.is_main_process:  # started by our own driver, which has read everything
        return json.loads(os.environ.get(SETTINGS_VARIABLE, "{}"))
    content = Mapping()
    for path in workflow.config_settings.configfiles or _site_files():
        content = merge(content, read_yaml(_from_here(path)))
    words = workflow.config_settings.config_args or []
    return merge(content, read_words(words, "--config"))


def _site_files() -> list[Path]:
    """`site.yaml` in the folders of the profiles."""
    from snakemake.cli import get_profile_dir

    profiles = getattr(_command_line(), "profile", None) or []
    folders = [found[0] for found in map(get_profile_dir, profiles) if found]
    return [path for folder in folders if (path := folder / "site.yaml").is_file()]


def _from_here(path: Path) -> Path:
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def check_supported(workflow: Any) -> None:
    """Raise `UsageError` for an option of Snakemake with which the workflow cannot do its work."""
    options = _command_line()
    executor = getattr(options, "executor", None)
    named = os.environ.get("SNAKEMAKE_PROFILE")
    if executor not in EXECUTORS:
        asked = f" (SNAKEMAKE_PROFILE={named})" if named else ""
        raise UsageError(
            f"the executor '{executor}'{asked} makes each rule a job, but here every run submits a "
            "job of its own; use --profile slurm"
        )
    backend = workflow.workflow_settings.persistence_backend.item_to_choice()
    if backend != "file":
        raise UsageError(
            f"--persistence-backend {backend}: what a killed Snakemake leaves in a database "
            "cannot be cleared; leave the option out"
        )
