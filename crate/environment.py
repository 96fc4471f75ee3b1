"""The machine and the installed packages: what run.json records of them, and what cannot work."""

import contextlib
import platform
from importlib import metadata
from pathlib import Path

from crate.errors import UsageError


def cpu_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def describe_machine() -> dict:
    """What run.json records of a step that does without torch."""
    return {"device": cpu_name(), "device_type": "cpu", "python": platform.python_version()}


def mismatch() -> str:
    """One line if the installed torch and torchvision do not belong together, else nothing."""
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


def import_torchvision() -> None:
    """Import torchvision (about 3 s), or say clearly why it does not work.

    Raises:
        UsageError: torchvision does not belong to the installed torch.
    """
    try:
        import torchvision.transforms.v2  # noqa: F401
    except (RuntimeError, ImportError) as error:
        reason = str(error).strip().split("\n")[0]
        raise UsageError(mismatch() or f"torchvision cannot be imported ({reason})") from None
