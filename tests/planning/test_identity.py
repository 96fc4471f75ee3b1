"""Which edits of the code rerun which runs, tried on a copy of the package."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from crate.planning import identity as module
from crate.planning import syntax
from crate.planning.loader import Experiments
from crate.planning.plan import Plan
from crate.runs import parse_path

ROOT = Path(__file__).parents[2]

# A run for each kind of step and each operator, at smoke scale: name → model, seed and chain.
RUNS = {
    "crate": "crate_base_patch32_plain/seed0/imagenet21k",
    "alpha": "crate_alpha_base_patch32/seed0/imagenet21k",
    "vit": "vit_base_patch32/seed0/imagenet21k",
    "mlp": "crate_small_patch8_mlp/seed0/imagenet21k_cpal",
    "lion": "crate_base_patch16/seed0/imagenet1k_lion",
    "probe": "crate_base_patch16/seed0/imagenet1k_lion/cifar10_probe",
    "mae": "crate_mae_base/seed0/imagenet1k_mae",
    "vit mae": "vit_mae_base/seed0/imagenet1k_mae",
    "clipa": "crate_alpha_clipa_base_patch16/seed0/datacomp1b_112",
    "zero-shot": "crate_alpha_clipa_base_patch16/seed0/datacomp1b_112/imagenet1k_zeroshot_112",
    "segmentation": "crate_alpha_base_patch32/seed0/imagenet21k/ade20k",
    "objects": "crate_base_patch8/seed0/imagenet21k_cpal/coco_maskcut_cpal",
    "attention": "crate_base_patch8/seed0/imagenet21k_cpal/voc2012_attention",
    "layerwise": "crate_small_patch16/seed0/imagenet1k_lion/imagenet1k_layerwise",
    "gpt2": "gpt2_base/seed0/openwebtext",
    "crate gpt": "crate_gpt_base/seed0/openwebtext",
    "speed": "gpt2_base/seed0/openwebtext_speed",
    "size": "crate_alpha_base_patch16/seed0/architecture",
    "throughput": "crate_alpha_base_patch16/seed0/throughput",
}
# `class_attention`, which draws the examples of autoencoders, asks for MSSA by name
MSSA = set(RUNS) - {"vit", "gpt2", "speed"}
ISTA = {"crate", "lion", "probe", "mae", "objects", "attention", "layerwise", "crate gpt"}
SPARSE = set(RUNS) - {"vit", "mlp", "gpt2", "speed"}  # with a dictionary, or InverseBlock's
TRAINED = {"crate", "alpha", "vit", "mlp", "lion", "mae", "vit mae", "clipa", "segmentation"}
TRAINED |= {"gpt2", "crate gpt"}
TEXTS = {"gpt2", "crate gpt", "speed"}


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """A copy of the package that may be edited; the identity of code reads this one."""
    copy = tmp_path_factory.mktemp("identity") / "crate"
    ignored = shutil.ignore_patterns("assets", "__pycache__")
    shutil.copytree(ROOT / "crate", copy, ignore=ignored)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(syntax, "PACKAGE", copy)
        patch.setenv("CRATE_CACHE", str(copy.parent / "cache"))
        forget()
        yield copy
    forget()


def forget():
    module._known.clear()
    for function in (*vars(module).values(), *vars(syntax).values()):
        if hasattr(function, "cache_clear"):
            function.cache_clear()


def codes() -> dict[str, str]:
    forget()
    plan = Plan(Experiments(ROOT / "experiments"))
    runs = {name: parse_path(f"results/smoke/runs/{path}")[0] for name, path in RUNS.items()}
    return {name: plan.resolve(run).code for name, run in runs.items()}


@pytest.fixture(scope="module")
def before(package) -> dict[str, str]:
    return codes()


def edited(package: Path, before: dict, *edits: tuple[str, str, str]) -> set[str]:
    """The runs whose code some edits change (file, old, new); the edits are taken back."""
    texts = {}
    try:
        for file, old, new in edits:
            path = package / file
            text = path.read_text() if path.exists() else ""
            texts.setdefault(path, text)
            assert old in text, f"{file} has no {old!r}"
            path.write_text(text.replace(old, new, 1))
        after = codes()
    finally:
        for path, text in texts.items():
            path.write_text(text)
    return {name for name in RUNS if before[name] != after[name]}


def test_hashes_are_kept_for_exactly_this_code(package, before, monkeypatch):
    module.keep()
    monkeypatch.setattr(module, "Closure", None)  # nothing is read again
    assert codes() == before
    monkeypatch.undo()
    path = package / "layers/sparse_coding.py"
    text = path.read_text()
    path.write_text(text + "\n")
    with monkeypatch.context() as patch:
        patch.setattr(module, "Closure", None)
        with pytest.raises(TypeError):
            codes()
    path.write_text(text)


def test_runs_of_other_operators_or_kinds_have_another_code(before):
    assert len(set(before.values())) == len(RUNS) - 1  # of the two below
    assert before["objects"] != before["attention"]
    assert before["clipa"] != before["zero-shot"]
    assert before["crate"] == before["lion"]  # the optimiser is a value of the configuration


@pytest.mark.parametrize(
    "edits",
    [
        # the text of an error, of a warning
        [("models/vision.py", "this model takes images", "images have to be")],
        [("tasks/stage.py", "give no update", "are too few")],
        [("tasks/stage.py", 'print(f"warning: {warning}"', 'print(f"note: {warning}"')],
        # a docstring, a comment, an annotation
        [
            (
                "layers/sparse_coding.py",
                '"""Overcomplete dictionary',
                '"""An overcomplete dictionary',
            )
        ],
        [("layers/attention.py", "import torch\n", "# a comment\n\nimport torch\n")],
        [("training/loop.py", "def spread(model: nn.Module,", "def spread(model: 'nn.Module',")],
        [("training/optim.py", "    kernels = {", "    kernels: set[int] = {")],
        # what no task uses
        [("models/zoo.py", "PATCHES = (8,", "PATCHES = (4, 8,")],
        [("data/catalogue.py", "def get_dataset", "UNUSED = 1\n\n\ndef get_dataset")],
        [("models/spec.py", "    dim: int\n", "    dim: int\n    unheard_of: int = 1\n")],
        [("recipes.py", "    clip_grad:", "    unheard_of: int = 3\n    clip_grad:")],
        [("training/progress.py", "LINE_SECONDS = 10.0", "LINE_SECONDS = 20.0")],
        [("reporting/tables.py", "import", "UNUSED = 1\nimport")],
        # an operator that no run names
        [
            (
                "layers/operators.py",
                '        "MLP": Operator(',
                '        "NEW": Operator("crate.layers.sparse_coding:MLP", dict, (), int, int),\n'
                '        "MLP": Operator(',
            )
        ],
    ],
    ids=lambda edits: f"{edits[0][0]}: {edits[0][2].strip()[:30]}",
)
def test_what_changes_no_number_reruns_nothing(package, before, edits):
    assert edited(package, before, *edits) == set()


def test_moving_a_function_to_another_module_reruns_nothing(package, before):
    """`learning_rate` goes into a module of its own; its user imports it from there."""
    text = (package / "training/optim.py").read_text()
    function = text[text.index("def learning_rate") :]
    edits = [
        ("training/optim.py", function, ""),
        (
            "training/schedule.py",
            "",
            f"import math\n\nfrom crate.recipes import Training\n\n\n{function}",
        ),
        (
            "training/loop.py",
            "from crate.training.optim import learning_rate, make_optimizer",
            "from crate.training import schedule\nfrom crate.training.optim import make_optimizer",
        ),
        ("training/loop.py", "rate = learning_rate(", "rate = schedule.learning_rate("),
    ]
    try:
        assert edited(package, before, *_in_turn(package, edits)) == set()
    finally:
        (package / "training/schedule.py").unlink(missing_ok=True)


def _in_turn(package: Path, edits: list) -> list:
    """Several edits of one file as one."""
    merged: dict[str, list] = {}
    for file, old, new in edits:
        merged.setdefault(file, []).append((old, new))
    found = []
    for file, pairs in merged.items():
        path = package / file
        whole = path.read_text() if path.exists() else ""
        text = whole
        for old, new in pairs:
            text = text.replace(old, new, 1)
        found.append((file, whole, text))
    return found


@pytest.mark.parametrize(
    ("file", "old", "new", "runs"),
    [
        ("layers/sparse_coding.py", "eta = self.step_size\n", "eta = 2 * self.step_size\n", ISTA),
        ("layers/sparse_coding.py", "sqrt(6 /", "sqrt(5 /", SPARSE),
        ("layers/attention.py", "w = self.subspaces(x)", "w = 2 * self.subspaces(x)", MSSA),
        ("layers/operators.py", "macs=lambda s: 3 * s.dim**2", "macs=lambda s: 4 * s.dim**2", ISTA),
        ("recipes.py", "round(self.epochs * per_epoch)", "int(self.epochs * per_epoch)", TRAINED),
        ("models/spec.py", '"gelu": "tanh",', '"gelu": "exact",', {"clipa", "zero-shot"}),
        ("models/language.py", "class LanguageModel(nn.Module):",
         "class LanguageModel(nn.Module):\n    __slots__ = ()", TEXTS),
        ("models/language.py", "def forward(self, ids", "def forward(self, ids_", TEXTS),
        ("training/optim.py", "0.5 * (recipe.lr", "0.6 * (recipe.lr", TRAINED),
        ("training/loop.py", "LOG_EVERY = 20", "LOG_EVERY = 10", TRAINED),
        ("tasks/probe/recipe.py", '"knn": {"penalties"}', '"knn": {"penalties", "x"}', set()),
        ("tasks/probe/recipe.py", 'needed = ["train",', 'needed = ["train", "train",', {"probe"}),
        ("tasks/objects/maskcut.py", "SMALLEST = ", "SMALLEST = 2 * ", {"objects"}),
        ("runtime.py", "first = self.rank * least", "first = 1 + self.rank * least", None),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)  # fmt: skip
def test_an_edit_reruns_what_uses_it(package, before, file, old, new, runs):
    found = edited(package, before, (file, old, new))
    if runs is None:  # what every rank uses: at least all trainings
        assert found >= TRAINED
    else:
        assert found == runs


def test_what_cannot_be_followed_is_an_error_of_the_lint(package, before):
    assert (
        subprocess.run([sys.executable, "-m", "crate.planning.identity"], cwd=ROOT).returncode == 0
    )
    path = package / "training/loop.py"
    text = path.read_text()
    old = "optimizer = make_optimizer(model, recipe)"
    assert old in text
    path.write_text(text.replace(old, f"{old}\n    getattr(recipe, folder.name)", 1))
    forget()
    closure = module.Closure([("crate.tasks.classification.task", "run")], [], frozenset())
    path.write_text(text)
    forget()
    (problem,) = (p for p in closure.problems if "loop.py" in p)
    assert "getattr with a name that is data" in problem


def test_identity_reads_files_and_imports_nothing_of_torch():
    program = (
        "import sys\n"
        "from crate.planning.identity import definition_identity\n"
        "definition_identity('crate.tasks.classification.task:run')\n"
        "assert 'torch' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == 0
