"""A copy of the suite for tests that run Snakemake or `crate` in processes of their own."""

import os
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]


def copy_suite(target: Path, source: Path = ROOT) -> Path:
    """A copy of what a user runs; the embedded data are linked, not copied."""
    for name in ("workflow", "experiments"):
        shutil.copytree(source / name, target / name)
    shutil.copy(source / "Snakefile", target)
    ignored = shutil.ignore_patterns("assets", "__pycache__")
    shutil.copytree(source / "crate", target / "crate", ignore=ignored, symlinks=True)
    (target / "crate/data/assets").symlink_to(ROOT / "crate/data/assets")
    return target


def environment() -> dict[str, str]:
    hidden = ("CRATE_", "PYTHONPATH", "SNAKEMAKE_")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(hidden)}
    return {**kept, "CUDA_VISIBLE_DEVICES": ""}  # on a GPU nothing is equal bit for bit


def compiled(folder: Path, *pages: str, options: str = "") -> str:
    """What pdflatex says of LaTeX pages in an article; "" if it or booktabs is not here.

    options: of the class, as `twocolumn`.
    """
    found = shutil.which("pdflatex") and subprocess.run(
        ["kpsewhich", "booktabs.sty"], capture_output=True, check=False
    )
    if not found or found.returncode:
        return ""
    text = "\n\\clearpage\n".join(pages)
    (folder / "paper.tex").write_text(
        f"\\documentclass[{options}]{{article}}\\usepackage{{booktabs}}\\begin{{document}}\n"
        f"{text}\n\\end{{document}}\n"
    )
    words = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    wrong = [line for line in done.stdout.splitlines() if line.startswith("!")]
    assert (done.returncode, wrong) == (0, [])
    return done.stdout
