"""A copy of the suite for tests that run Snakemake or `crate` in processes of their own."""

import os
import shutil
from pathlib import Path

ROOT = Path(__file__).parents[1]


def copy_suite(target: Path, source: Path = ROOT) -> Path:
    """A copy of what a user runs; the embedded data are linked, not copied."""
    for name in ("workflow", "experiments"):
        shutil.copytree(source / name, target / name)
    shutil.copy(source / "Snakefile", target)
    ignored = shutil.ignore_patterns("assets", "__pycache__")
    shutil.copytree(source / "crate", target / "crate", ignore=ignored)
    (target / "crate/data/assets").symlink_to(ROOT / "crate/data/assets")
    return target


def environment() -> dict[str, str]:
    hidden = ("CRATE_", "PYTHONPATH", "SNAKEMAKE_")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(hidden)}
    return {**kept, "CUDA_VISIBLE_DEVICES": ""}  # on a GPU nothing is equal bit for bit
