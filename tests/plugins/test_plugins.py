"""Operators and data sets from files of one's own: refused, run, identified, and unpickled."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from suite import ROOT, copy_suite, environment

from crate import cli, plugins
from crate.data.catalogue import get_dataset
from crate.errors import UsageError
from crate.layers.operators import FEEDFORWARD
from crate.models.build import create_model
from crate.models.flops import macs, parameter_count
from crate.planning import identity, syntax
from crate.planning.loader import Experiments
from crate.planning.plan import Plan
from crate.records import read_json
from crate.runs import parse_path

PAGE = (ROOT / "docs/own_code.md").read_text()
BLOCKS = re.findall(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', PAGE, flags=re.M | re.S)
FILES = {title: text for _, title, text in BLOCKS if title}
CONFIG, OPERATOR, DOTS = "experiments/config.yaml", "my_operator.py", "my_dots.py"
RUN = "results/smoke/runs/crate_soft_base_patch32/seed0/imagenet21k"
OTHER = "results/smoke/runs/crate_alpha_base_patch32/seed0/imagenet21k"
SMALL = {"dim": 32, "depth": 2, "heads": 2, "patch_size": 7}
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def nothing_stays(monkeypatch):
    monkeypatch.setenv(plugins.VARIABLE, "")
    yield
    plugins.load([])


@pytest.fixture
def page(folder):
    """The files of the page but for config.yaml, and pictures, in the working directory."""
    for name, text in FILES.items():
        if name != CONFIG:
            append(name, text)
    draw_dots()
    return folder


def append(name: str, text: str) -> None:
    with Path(name).open("a") as file:
        file.write(text)


def draw_dots() -> None:
    labels = np.arange(110) % 2
    pixels = np.random.RandomState(0).randint(0, 90, (110, 16, 16)) + 160 * labels[:, None, None]
    Path("data/dots").mkdir(parents=True)
    np.savez("data/dots/pictures.npz", pixels=pixels.astype(np.uint8), labels=labels)


def identities(*paths: str, files=(OPERATOR,)) -> list[tuple[str, str]]:
    """Code and configuration of runs, everything read anew."""
    plugins.load([])
    identity._known.clear()
    for function in (*vars(identity).values(), *vars(syntax).values()):
        if hasattr(function, "cache_clear"):
            function.cache_clear()
    experiments = Experiments(Path("experiments"))
    experiments.settings({"plugins": list(files)})
    resolved = [Plan(experiments).resolve(parse_path(path)[0]) for path in paths]
    return [(each.code, each.config_json) for each in resolved]


def test_an_operator_is_planned_trained_and_counted(page, capsys):
    words = ["--config", f"plugins={OPERATOR}"]
    assert cli.main(["plan", RUN, *words]) == 0
    spec = Experiments(page).spec("crate_soft_base_patch32", "smoke")
    sizes = {"image_size": 28, "num_classes": 10}
    count = parameter_count(spec, **sizes)
    assert f" {count / 1e6:.2f} " in capsys.readouterr().out
    fields = {k: getattr(spec, k) for k in ("dim", "depth", "heads", "patch_size", "feedforward")}
    model = create_model("crate_alpha_base_patch32", **sizes, **fields)
    assert sum(parameter.numel() for parameter in model.parameters()) == count
    assert cli.main(["run", RUN, *words]) == 0
    metrics = read_json(Path(RUN) / "metrics.json")["metrics"]
    assert metrics["flops"] == 2 * macs(spec, **sizes)


def test_without_the_setting_the_operator_is_unknown(page, capsys):
    assert cli.main(["plan", RUN]) == 2
    assert "unknown feedforward 'soft'" in capsys.readouterr().err
    append(CONFIG, FILES[CONFIG])
    assert cli.main(["plan", RUN]) == 0
    assert cli.main(["plan", RUN, "--config", "plugins=[]"]) == 2
    assert "soft" not in FEEDFORWARD


@pytest.mark.parametrize("key", ["reference", "parameters", "macs"])
def test_what_is_incomplete_is_refused_before_anything_starts(page, capsys, key):
    path = Path(OPERATOR)
    text, found = re.subn(rf"^    {key}=.*\n", "", path.read_text(), flags=re.M)
    assert found == 1
    path.write_text(text)
    for command in ("plan", "run"):
        assert cli.main([command, RUN, "--config", f"plugins={OPERATOR}"]) == 2
        told = capsys.readouterr().err
        assert f"{path.absolute()}: feedforward 'soft': '{key}' is missing: " in told
        assert told.count("\n") == 1
    assert not Path("results").exists()


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("min=0)", "min=0.001)", "feedforward 'soft': differs from its reference by up to 0.001"),
        ("parameters=lambda s: s.dim**2", "parameters=lambda s: s.dim", "has 1,024 parameters"),
        ("z @ module", "z[:1] @ module", r"gives \(2, 5, 32\), its reference \(2, 1, 32\)"),
        ("z @ module.linear", "z @ module.line", "cannot be compared with its reference .*line"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_refused_before_it_trains(page, capsys, old, new, told):
    path = Path(OPERATOR)
    assert path.read_text().count(old) == 1
    path.write_text(path.read_text().replace(old, new))
    assert cli.main(["run", RUN, "--config", f"plugins={OPERATOR}"]) == 2
    assert re.search(told, capsys.readouterr().err)
    assert not (Path(RUN) / "train.jsonl").exists()


@pytest.mark.parametrize(
    ("value", "content", "told"),
    [
        ("gone.py", None, "plugins: .*/gone.py is not there"),
        ("notes.txt", "", "plugins: notes.txt should be a Python file"),
        ("my-file.py", "", "plugins: my-file.py should be a Python file"),
        ("bad.py", "def x(:\n", "bad.py: line 1: invalid syntax"),
        ("bad2.py", "import no_such_module", "cannot be imported .*No module named 'no_such_mod"),
        ("same.py", FILES[OPERATOR].replace('"soft"', '"ODL"'), "'ODL': there is one of this name"),
        ("other.py", FILES[DOTS], "data set 'dots': 'labels', or 'scenes', should be the file's"),
        (DOTS, FILES[DOTS].replace('"dots"', '"coco"'), "the suite has a data set 'coco'"),
        (DOTS, FILES[DOTS].replace("def read", "def look"), "'look' should be called 'read'"),
        ("pets.py", FILES[DOTS].replace("my_dots", "pets"), "the suite has a reader 'pets'"),
        ("[a/x.py, b/x.py]", "", "plugins: two files are called x.py; rename one"),
    ],
)
def test_a_wrong_file_is_refused_in_one_line(folder, capsys, value, content, told):
    if content is not None:
        for name in value.strip("[]").split(", "):
            Path(name).parent.mkdir(exist_ok=True)
            Path(name).write_text(content)
    assert cli.main(["plan", OTHER, "--config", f"plugins={value}"]) == 2
    error = capsys.readouterr().err
    assert re.search(told, error), error
    assert error.count("\n") == 1
    assert "soft" not in FEEDFORWARD
    plugins.load([])
    with pytest.raises(UsageError):
        get_dataset("dots")


def test_registering_outside_such_a_file_is_refused():
    source = FILES[OPERATOR].replace("from torch import nn", "from torch import nn\n__name__ = 'x'")
    with pytest.raises(UsageError, match="'soft': name its file in the setting 'plugins'"):
        exec(source, {"__name__": "x"})


# Edits of the file, and whether they make the run that uses it stale.
EDITS = {
    "nothing": ("import", "import", False),
    "docstring": ("The equation as one writes it", "An equation", False),
    "comment": ("# for figures", "# of the codes", False),
    "class": ("F.softshrink(self.linear(x)", "F.softshrink(2 * self.linear(x)", True),
    "reference": ("clamp(min=0)", "clamp_min(0)", True),
    "closed form": ("macs=lambda s: s.dim**2", "macs=lambda s: s.dim", True),
    "options": ('"sparsity": s.sparsity', '"sparsity": 2 * s.sparsity', True),
}


@pytest.mark.parametrize("edit", EDITS)
def test_an_edit_reruns_what_uses_the_file(page, edit):
    old, new, stale = EDITS[edit]
    path = Path(OPERATOR)
    mine, other = identities(RUN, OTHER)
    assert other == identities(OTHER, files=())[0]  # the file changes no other run
    assert path.read_text().count(old) >= 1
    path.write_text(path.read_text().replace(old, new, 1))
    after, still = identities(RUN, OTHER)
    assert (after != mine) == stale
    assert after[1] == mine[1]
    assert still == other


def test_a_call_at_the_top_level_and_a_file_beside_it_count(page):
    """`register(…)(Class)` in place of a decorator, its options from another file."""
    text = Path(OPERATOR).read_text()
    start, end = text.index("@register"), text.index("class Soft")
    call = text[start + 1 : end].rstrip() + "(SoftThresholding)\n"
    call = call.replace('"sparsity": s.sparsity', '"sparsity": scaled(s)')
    text = text[:start] + text[end:] + "\n\n" + call
    text = text.replace(
        "from torch import nn\n", "from torch import nn\nfrom crate.plugins.beside import scaled\n"
    )
    Path(OPERATOR).write_text(text)
    Path("beside.py").write_text("def scaled(s):\n    return s.sparsity\n")
    before = identities(RUN)
    Path(OPERATOR).write_text(text.replace("macs=lambda s: s.dim**2", "macs=lambda s: 9"))
    assert identities(RUN) != before
    Path(OPERATOR).write_text(text)
    assert identities(RUN) == before
    Path("beside.py").write_text("def scaled(s):\n    return 3 * s.sparsity\n")
    assert identities(RUN) != before


def test_the_place_of_the_file_does_not_matter(page):
    before = identities(RUN)
    Path("elsewhere").mkdir()
    Path(OPERATOR).rename(f"elsewhere/{OPERATOR}")
    assert identities(RUN, files=[f"elsewhere/{OPERATOR}"]) == before


def test_a_data_set_is_prepared_checked_and_trained_on(page, capsys):
    append(CONFIG, FILES[CONFIG])
    assert cli.main(["data", "check", "dots"]) == 1  # 110 pictures, the entry says 100
    assert "110 images, Dots has 100" in capsys.readouterr().err
    run = "results/smoke/runs/crate_base_patch16/seed0/dots"
    assert cli.main(["run", run]) == 0
    assert read_json(Path(run) / "metrics.json")["metrics"]["images"] == 10
    resolved = identities(run, OTHER, files=[DOTS])
    text = Path(DOTS).read_text()
    Path(DOTS).write_text(text.replace('file["pixels"]', '255 - file["pixels"]'))
    after = identities(run, OTHER, files=[DOTS])
    assert after[0] != resolved[0]
    assert after[1] == resolved[1]


def test_what_it_defines_is_unpickled_in_another_process(page):
    """As a loader's process does, which knows the files from the environment alone."""
    plugins.load([OPERATOR])
    module = FEEDFORWARD["soft"].load()(8, sparsity=0.1)
    torch.save(module, "module.pt")
    program = (
        "import pickle, torch; m = torch.load('module.pt', weights_only=False)\n"
        "from crate.layers.operators import FEEDFORWARD\n"
        "assert type(m) is FEEDFORWARD['soft'].load(), type(m)\n"
        "print(type(m).__module__)"
    )
    variables = environment() | {"PYTHONPATH": str(ROOT)}
    known = {plugins.VARIABLE: os.environ[plugins.VARIABLE]}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=variables | known, capture_output=True, text=True)
    assert done.stdout == "crate.plugins.my_operator\n", done.stderr
    assert subprocess.run(command, env=variables, capture_output=True).returncode == 1


LOADER = """
import torch
from torch.utils.data import DataLoader
from crate import plugins
from crate.data.batches import Reader
if __name__ == "__main__":
    plugins.load(["my_reader.py"])
    from crate.plugins.my_reader import Twice
    options = {"num_workers": 1, "multiprocessing_context": "spawn"}
    print([int(x) for x in DataLoader(Reader(Twice()), sampler=range(4), **options)])
"""


@pytest.mark.slow
def test_loader_processes_that_start_anew_know_the_file(page):
    Path("my_reader.py").write_text(
        "class Twice:\n    def __call__(self, k):\n        return 2 * k\n"
    )
    Path("load.py").write_text(LOADER)
    done = subprocess.run(
        [sys.executable, "load.py"], env=environment() | {"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout == "[0, 2, 4, 6]\n", done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["local", "submitit-local"])
def test_the_page_can_be_carried_out(tmp_path, monkeypatch, launcher):
    """All commands of the page at smoke; also with each run in a job."""
    monkeypatch.chdir(copy_suite(tmp_path))
    draw_dots()
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    ran = []
    for _, title, block in BLOCKS:
        if title:
            append(title, block)
            continue
        for line in block.splitlines():
            words = line.removeprefix("$ ").replace("/mini/", "/smoke/").split()
            settings = ["scale=smoke", f"launcher={launcher}", "poll_seconds=0.2"]
            if "--config" not in words:
                words.append("--config")
            done = subprocess.run(
                [sys.executable, "-m", *words, *settings], env=environment() | {"PATH": path},
                capture_output=True, text=True, timeout=300,
            )  # fmt: skip
            assert done.returncode == 0, done.stdout + done.stderr
            ran.append(words[0])
    assert ran == ["crate", "snakemake", "crate"]
    assert read_json(Path(RUN) / "metrics.json")["metrics"]["images"] > 0
    dots = read_json(Path("results/smoke/runs/crate_base_patch16/seed0/dots/metrics.json"))
    assert dots["metrics"]["images"] == 10
