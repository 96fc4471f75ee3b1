"""`crate init`: what it makes, that it overwrites nothing, and that Snakemake works there."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from suite import ROOT, environment

from crate import cli
from crate.planning.loader import Experiments
from crate.planning.plan import Plan


@pytest.fixture
def crate(tmp_path, monkeypatch, capsys):
    """`crate("init", …)` in an empty folder: status, output, errors."""
    monkeypatch.chdir(tmp_path)

    def crate(*words: str) -> tuple[int, str, str]:
        status = cli.main(words)
        return status, *capsys.readouterr()

    return crate


def yaml_files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.glob("**/*.yaml")
    }


def test_it_makes_a_snakefile_and_two_folders_to_edit(crate, tmp_path):
    status, out, errors = crate("init", "my tables")
    assert (status, errors) == (0, "")
    assert out == (
        "made:   my tables/Snakefile  my tables/experiments/  my tables/slurm/\n"
        "next:   cd 'my tables'\n"
        "        snakemake --cores all table_ablation\n"
    )
    made = tmp_path / "my tables"
    assert sorted(path.name for path in made.iterdir()) == ["Snakefile", "experiments", "slurm"]
    for name in ("experiments", "slurm"):
        assert not (made / name).is_symlink()
        assert yaml_files(made / name) == yaml_files(ROOT / name)


def test_here_is_where_it_makes_one_without_a_folder(crate, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    status, out, _ = crate("init")
    assert status == 0
    assert out == (
        "made:   Snakefile  experiments/  slurm/\n"
        "next:   snakemake -n table_ablation\n"
        "        snakemake --cores all table_ablation\n"
    )
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert crate("plan", "ablation")[0] == 0


@pytest.mark.parametrize("name", ["Snakefile", "experiments", "slurm"])
def test_nothing_is_overwritten(crate, tmp_path, name):
    there = tmp_path / "there" / name
    there.parent.mkdir()
    there.write_text("mine")
    told = f"error: there/{name} is already there; name another folder: crate init FOLDER\n"
    assert crate("init", "there") == (2, "", told)
    assert [path.name for path in there.parent.iterdir()] == [name]
    assert there.read_text() == "mine"


def test_a_link_to_nowhere_is_not_written_through(crate, tmp_path):
    (tmp_path / "Snakefile").symlink_to("elsewhere")
    status, _, errors = crate("init")
    assert (status, errors.count("\n")) == (2, 1)
    assert errors.startswith("error: Snakefile is already there")
    assert not (tmp_path / "elsewhere").exists()


def test_where_it_cannot_write_it_says_so_in_a_line(crate, tmp_path):
    (tmp_path / "file").write_text("")
    assert crate("init", "file") == (2, "", "error: file is not a folder\n")
    told = "error: file/below: cannot be written (Not a directory)\n"
    assert crate("init", "file/below") == (2, "", told)
    assert crate("init", "$NOWHERE_AT_ALL")[0] == 2
    if os.geteuid():  # root may write everywhere
        (tmp_path / "closed").mkdir(mode=0o555)
        told = "error: closed: cannot be written (Permission denied)\n"
        assert crate("init", "closed") == (2, "", told)


def test_what_was_begun_is_taken_back(crate, tmp_path, monkeypatch):
    copyfile, copied = shutil.copyfile, []

    def full(source, target):
        copied.append(target)
        if len(copied) > 30:
            raise OSError(28, "No space left on device", str(target))
        return copyfile(source, target)

    monkeypatch.setattr(shutil, "copyfile", full)
    told = "error: mine: cannot be written (No space left on device)\n"
    assert crate("init", "mine") == (2, "", told)
    assert list((tmp_path / "mine").iterdir()) == []


def test_snakemake_plans_there_what_it_plans_in_the_checkout(crate, tmp_path):
    assert crate("init")[0] == 0
    done = subprocess.run(
        [Path(sys.executable).parent / "snakemake", "-n", "table_models", "--profile", "slurm"],
        cwd=tmp_path,
        env=environment() | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    plan = Plan(Experiments(ROOT / "experiments"))
    runs = plan.runs("table_models", plan.experiments.settings())
    assert re.search(rf"architecture +{len(runs)}$", done.stdout, flags=re.M), done.stdout


# --- without a project --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        "run results/mini/runs/crate_alpha_base_patch32/seed0/imagenet21k",
        "launch table_ablation --preflight",
        "tune ablation imagenet21k --grid lr=1",
        "collect all",
        "tables all",
        "publish",
        "jobs",
        "cancel all",
    ],
)
def test_what_needs_a_project_says_how_to_make_one(crate, tmp_path, words):
    told = "error: no folder experiments/ here; 'crate init' makes a project with one\n"
    assert crate(*words.split()) == (2, "", told)
    assert list(tmp_path.iterdir()) == []


def test_a_plan_without_a_project_is_that_of_the_package(crate, tmp_path, monkeypatch):
    status, out, errors = crate("plan", "ablation", "--scale", "paper")
    assert (status, errors.count("\n")) == (0, 1)
    assert errors.startswith("note: no folder experiments/ here, so those of the package; ")
    assert crate("models", "crate_alpha_base_patch32")[2] == ""
    monkeypatch.chdir(ROOT)
    assert crate("plan", "ablation", "--scale", "paper") == (0, out, "")


def test_the_experiments_of_the_working_folder_win(crate, tmp_path):
    assert crate("init")[0] == 0
    (tmp_path / "experiments/models.yaml").write_text("mine: {base: vit_tiny_patch16, depth: 3}\n")
    assert crate("models", "mine") == (0, "mine\n", "")


def test_a_table_that_was_not_made_here_is_the_published_one(crate, tmp_path):
    status, out, errors = crate("show", "ablation")
    assert status == 0
    published = ROOT / "results/published/mini/tables/ablation.md"
    assert out.startswith(published.read_text())
    note = "note: results/mini/tables/ablation.md is not there; this is the published table"
    assert errors.splitlines()[-1] == note
    own = tmp_path / "results/mini/tables/ablation.md"
    own.parent.mkdir(parents=True)
    own.write_text("made here")
    assert crate("show", "ablation")[1].startswith("made here\n")
    status, out, errors = crate("show", "ablation", "--config", "scale=paper")
    assert (status, out) == (2, "")
    assert "results/paper/tables/ablation.md is not there; run 'snakemake " in errors
