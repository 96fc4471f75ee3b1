"""torch and torchvision must belong together; this says so before a riddle does."""

from importlib import metadata

from crate.errors import UsageError


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
