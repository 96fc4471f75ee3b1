"""Folders; facts of the machine for run.json; checks of the installed packages."""

import contextlib
import functools
import importlib.util
import os
import platform
from importlib import metadata
from pathlib import Path
from types import ModuleType

from crate.errors import UsageError, reason_of

# The folder of recipes, scales and tables, of the project in the working folder.
EXPERIMENTS = Path(os.environ.get("CRATE_EXPERIMENTS", "experiments"))
PACKAGE = Path(__file__).parent
# What lies beside the package in a checkout, which this folder links to; a wheel has the files.
PROJECT = PACKAGE / "project"


def cache_folder() -> Path:
    """What is made once and kept on this machine lies here; it may be deleted at any time."""
    if named := os.environ.get("CRATE_CACHE"):
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "crate"


def experiments_folder() -> Path:
    """The `experiments/` that commands read which need no project: here, else of the package."""
    here = EXPERIMENTS.is_dir() or "CRATE_EXPERIMENTS" in os.environ
    return EXPERIMENTS if here else PROJECT / "experiments"


def cpu_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def describe_machine() -> dict:
    """Facts of the machine that run.json records of a run that needs no torch."""
    return {"device": cpu_name(), "device_type": "cpu", "python": platform.python_version()}


def mismatch() -> str:
    """One line if torch and torchvision are missing or of different builds, else ""."""
    try:
        torch, vision = metadata.version("torch"), metadata.version("torchvision")
    except metadata.PackageNotFoundError as error:
        return f"{error.name} is not installed; run 'make setup'"
    torch_build, vision_build = (v.partition("+")[2] for v in (torch, vision))
    if torch_build != vision_build:
        return (
            f"torch {torch} and torchvision {vision} come from different builds, and torchvision "
            'will fail with "operator torchvision::nms does not exist"; install both from the '
            "same place ('make setup' does)"
        )
    return ""


@functools.cache
def open_clip_part(name: str) -> ModuleType:
    """One module of open_clip (its loss, tokenizer, prompts), without the rest of the package.

    Importing the whole of `open_clip` takes 5 s or more, for models that are not used here.

    Raises:
        UsageError: open_clip is not installed, or has no such module.
    """
    package = importlib.util.find_spec("open_clip")  # does not import it
    if package is None:
        raise UsageError("open_clip_torch is not installed; run 'make setup'")
    path = Path(package.submodule_search_locations[0]) / f"{name}.py"
    if not path.is_file():
        raise UsageError(f"the installed open_clip has no {path.name}; run 'make setup'")
    spec = importlib.util.spec_from_file_location(f"open_clip.{name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def import_torchvision() -> None:
    """Import torchvision (about 3 s).

    Raises:
        UsageError: torchvision cannot be imported, or was built for another torch.
    """
    try:
        import torchvision.transforms.v2  # noqa: F401
    except (RuntimeError, ImportError) as error:
        reason = reason_of(error)
        raise UsageError(mismatch() or f"torchvision cannot be imported ({reason})") from None
