"""The wheel, installed beside nothing: its files, the commands in an empty folder, a project."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from suite import ROOT, environment

from crate.models.build import create_model
from crate.planning.loader import Experiments
from crate.weights import save_tensors

pytestmark = pytest.mark.slow

# What lies beside the package, and where a wheel has it
BESIDE = {
    "Snakefile": "Snakefile",
    "workflow": "workflow",
    "experiments": "experiments",
    "slurm": "slurm",
    "results/published": "published",
}


def run(words: list, folder: Path, **variables: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        words,
        cwd=folder,
        env=environment() | variables,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """A folder in which the wheel is installed, built from a copy of the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    checkout, target = folder / "checkout", folder / "site"
    ignored = shutil.ignore_patterns("__pycache__", "report.html")
    shutil.copytree(ROOT / "crate", checkout / "crate", symlinks=True)
    for name in BESIDE:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, checkout / name, ignore=ignored)
    for name in ("Snakefile", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, checkout)
    (checkout / "results/published/mini/report.html").write_text("made of the rest")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    words = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, checkout]
    done = run([*pip, *words], folder)
    assert done.returncode == 0, done.stderr
    done = run([*pip, "install", "--no-deps", "--target", target, *folder.glob("*.whl")], folder)
    assert done.returncode == 0, done.stderr
    shutil.rmtree(checkout)
    return target


def files(path: Path) -> set[Path]:
    """Those of a folder, or a file itself; not the report that is made of the others."""
    found = {each.relative_to(path) for each in (path, *path.rglob("*")) if each.is_file()}
    return {each for each in found if each.name != "report.html"}


def test_it_has_every_file_that_lies_beside_the_package(site):
    for name, packaged in BESIDE.items():
        assert files(site / "crate/project" / packaged) == files(ROOT / name)
    assert {path.name for path in (site / "crate/project").iterdir()} == set(BESIDE.values())
    assert not any(path.is_symlink() for path in site.rglob("*"))
    assert not (site / "crate/project/published/mini/report.html").exists()


# --- in an empty folder ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def empty(tmp_path_factory) -> Path:
    """A folder with nothing but a person's own pictures and weights."""
    folder = tmp_path_factory.mktemp("empty")
    pixels = np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)
    for name in ("photo.jpg", "photos/cat/a.png", "photos/dog/b.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / name)
    vision = create_model("crate_tiny_patch16", num_classes=2, image_size=224)
    save_tensors(vision.state_dict(), folder / "vision.safetensors")
    spec = Experiments(ROOT / "experiments").spec("crate_gpt_base", "smoke")
    sizes = {"dim": spec.dim, "depth": spec.depth, "heads": spec.heads}
    language = create_model("crate_gpt_base", vocab_size=257, block_size=32, **sizes)
    save_tensors(language.state_dict(), folder / "language.safetensors")
    return folder


MODEL = "--model crate_tiny_patch16"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("plan all", "runs at scale mini"),
        ("plan ablation --scale paper", "hours"),
        ("models crate_alpha_base_patch32", "crate_alpha_base_patch32"),
        ("show ablation", "| + residual (CRATE-alpha) "),
        ("report --published", "results/published/mini/report.html"),
        ("explain ablation --row decoupled --config frozen=true", "from the records in results"),
        ("weights list", "crate_alpha_CLIPA_L14.pth"),
        (f"evaluate vision.safetensors {MODEL} --data photos", "top-1"),
        (f"predict vision.safetensors photo.jpg {MODEL}", "photo.jpg"),
        (f"inspect vision.safetensors photo.jpg {MODEL} --image-size 64 --out seen", "seen/index"),
        (f"segment photo.jpg --weights vision.safetensors {MODEL} --out found", "objects.json"),
        ("sample --weights language.safetensors --model crate_gpt_base --scale smoke", ""),
    ],
)
def test_a_command_that_needs_no_project_works(site, empty, words, told):
    done = run([site / "bin/crate", *words.split()], empty, PYTHONPATH=str(site))
    assert done.returncode == 0, done.stderr
    assert told in done.stdout
    assert str(ROOT) not in done.stdout + done.stderr


def test_what_is_not_here_is_said_in_a_line(site, empty):
    for words, status, told in (
        ("data check imagenet1k", 1, "failed: ImageNet-1K is not at data/imagenet1k/train: "),
        ("data check imagnet1k", 2, "error: unknown data set 'imagnet1k'; did you mean "),
        ("plan table_ablatoin --scale paper", 2, "error: unknown target 'table_ablatoin'; did "),
        ("tables all", 2, "error: no folder experiments/ here; 'crate init' makes a project"),
    ):
        done = run([site / "bin/crate", *words.split()], empty, PYTHONPATH=str(site))
        assert (done.returncode, done.stdout) == (status, "")
        assert done.stderr.splitlines()[-1].startswith(told)


# --- in a project ---------------------------------------------------------------------------------

IDENTITIES = """
import json
from crate.planning.loader import Experiments
from crate.planning.plan import Plan

experiments = Experiments()
plan, found = Plan(experiments), {}
for scale in experiments.scales:
    for run in plan.runs("all", experiments.settings({"scale": scale})):
        resolved = plan.resolve(run)
        path = run.folder("").as_posix()
        found[path] = [resolved.config_json, resolved.code, resolved.identity]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def project(site, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("project") / "my tables"
    words = [site / "bin/crate", "init", folder]
    done = run(words, folder.parent, PYTHONPATH=str(site))
    assert done.returncode == 0, done.stderr
    return folder


def test_runs_have_the_identities_of_the_checkout(site, project):
    words = [sys.executable, "-c", IDENTITIES]
    installed, here = run(words, project, PYTHONPATH=str(site)), run(words, ROOT)
    assert (installed.returncode, here.returncode) == (0, 0), installed.stderr + here.stderr
    assert json.loads(installed.stdout) == json.loads(here.stdout)
    assert len(json.loads(here.stdout)) > 600


def snakemake(site: Path, project: Path, *words: str) -> subprocess.CompletedProcess:
    binary = Path(sys.executable).parent / "snakemake"
    return run([binary, *words], project, PYTHONPATH=str(site))


def test_snakemake_makes_a_run_and_reports_a_mistake_in_a_line(site, project):
    run_path = "results/smoke/runs/crate_base_patch32_plain/seed0/imagenet21k/metrics.json"
    scale = ["--config", "scale=smoke"]
    done = snakemake(site, project, "--cores", "2", run_path, *scale)
    assert done.returncode == 0, done.stderr
    assert json.loads((project / run_path).read_text())["metrics"]["images"] == 512
    record = json.loads((project / run_path).with_name("run.json").read_text())
    assert record["commit"] == "unknown: the code is a copy, no checkout of its own"
    done = snakemake(site, project, "-n", run_path, *scale)
    assert "Nothing to be done" in done.stdout + done.stderr
    done = snakemake(site, project, "-n", "report", *scale)
    assert re.search(r"^report +1$", done.stdout, flags=re.M), done.stderr
    done = snakemake(site, project, "-n", "table_ablaton")
    told = "error: unknown target 'table_ablaton'; did you mean 'table_ablation'?"
    assert (done.returncode, done.stderr.splitlines()[-1]) == (2, told)


def test_published_numbers_stand_in_for_what_was_not_run(site, project):
    words = ["--cores", "2", "table_imagenet", "--config", "frozen=true"]
    done = snakemake(site, project, *words)
    assert done.returncode == 0, done.stderr
    assert re.search(r"\d [‡§]", (project / "results/mini/tables/imagenet.md").read_text())
    assert not (project / "results/mini/runs").exists()


def test_a_project_without_experiments_is_none(site, tmp_path):
    run([site / "bin/crate", "init", "."], tmp_path, PYTHONPATH=str(site))
    shutil.rmtree(tmp_path / "experiments")
    done = snakemake(site, tmp_path, "-n", "all")
    told = "error: no folder experiments/ here; 'crate init' makes a project with one"
    assert (done.returncode, done.stderr.splitlines()[-1]) == (2, told)
