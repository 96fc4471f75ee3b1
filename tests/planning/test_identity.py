"""Which edits of the code rerun which runs, tried on a copy of the package."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from crate.planning import identity as module

TASK = "crate.tasks.classification.task"
MODELS = {
    "crate": ("MSSA", "ISTA"),
    "alpha": ("MSSA", "ODL"),
    "vit": ("MHSA", "MLP"),
}


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A copy of the package that may be edited; `fingerprint` reads this one."""
    copy = tmp_path / "crate"
    shutil.copytree(
        Path(module.__file__).parent, copy, ignore=shutil.ignore_patterns("assets", "__pycache__")
    )
    monkeypatch.setattr(module, "PACKAGE", copy)
    forget()
    yield copy
    forget()


def forget():
    for function in vars(module).values():
        if hasattr(function, "cache_clear"):
            function.cache_clear()


def changed(package: Path, file: str, old: str, new: str) -> set[str]:
    """The models whose fingerprints an edit changes; the edit is taken back."""
    before = prints()
    path = package / file
    text = path.read_text()
    assert old in text, f"{file} has no {old!r}"
    path.write_text(text.replace(old, new, 1))
    after = prints()
    path.write_text(text)
    assert prints() == before
    return {name for name in MODELS if before[name] != after[name]}


def prints() -> dict[str, str]:
    forget()
    return {name: module.fingerprint(TASK, operators) for name, operators in MODELS.items()}


def test_each_model_has_its_own(package):
    assert len(set(prints().values())) == len(MODELS)


@pytest.mark.parametrize(
    "file",
    [
        "train.py",
        "models/sparse_coding.py",
        "models/vision.py",
        "data/images.py",
        "tasks/classification.py",
    ],
)
def test_comments_docstrings_and_layout_change_nothing(package, file):
    before = prints()
    old = (package / file).read_text()
    text = old.replace('"""', '"""Told otherwise. ', 1)  # the module's docstring
    text = text.replace("\nimport ", "\n\n# a comment\nimport ").replace("\ndef ", "\n\n\n\ndef ")
    assert text.count("\n") > old.count("\n") + 3
    (package / file).write_text(text)
    assert prints() == before


def test_a_functions_docstring_changes_nothing_and_its_body_does(package):
    file, line = "models/attention.py", "def _check_heads(dim: int, heads: int) -> None:\n"
    assert changed(package, file, line, f'{line}    """Heads divide the width."""\n') == set()
    assert changed(package, file, line, f"{line}    dim = dim\n") == set(MODELS)


@pytest.mark.parametrize(
    ("file", "old", "new", "models"),
    [
        ("models/sparse_coding.py", "(d.t() - d.t() @ d)", "(d.t() @ d)", {"crate"}),
        ("models/sparse_coding.py", "residual = x - F", "residual = x + F", {"alpha"}),
        ("models/sparse_coding.py", "F.gelu(", "F.relu(", {"vit"}),
        # a helper of both dictionaries
        ("models/sparse_coding.py", "math.sqrt(6 /", "math.sqrt(3 /", {"crate", "alpha"}),
        ("models/attention.py", "qkv.transpose(1, 3)", "qkv.transpose(1, -2)", {"vit"}),
        (
            "models/attention.py",
            "w = self.subspaces(x)",
            "w = -self.subspaces(x)",
            {"crate", "alpha"},
        ),
        # a helper of both attentions
        ("models/attention.py", "q.shape[-1] ** -0.5", "q.shape[-1] ** -0.4", set(MODELS)),
        ("models/transformer.py", "import ", "import math\nimport ", set(MODELS)),
        ("models/vision.py", "import ", "import cmath\nimport ", set(MODELS)),
        ("train.py", "import ", "import cmath\nimport ", set(MODELS)),
        ("optim.py", "import ", "import cmath\nimport ", set(MODELS)),
        ("data/images.py", "import ", "import cmath\nimport ", set(MODELS)),
        ("data/embedded.py", "import ", "import cmath\nimport ", set(MODELS)),
    ],
)
def test_an_edit_reruns_the_models_that_use_it(package, file, old, new, models):
    assert changed(package, file, old, new) == models


@pytest.mark.parametrize(
    "file", ["config.py", "plan.py", "models/registry.py", "tables.py", "cli.py", "progress.py"]
)
def test_an_edit_of_what_decides_no_result_reruns_nothing(package, file):
    assert changed(package, file, "\nimport ", "\nimport cmath\nimport ") == set()


@pytest.mark.parametrize("task", ["language", "language_speed"])
def test_a_language_run_depends_on_its_model_and_no_picture(task):
    modules = module.modules_of(f"crate.tasks.{task}")
    assert {"crate.models.language", "crate.data.tokenizer", "crate.training.loop"} <= set(modules)
    assert not any("images" in name or "objects" in name for name in modules)


def test_an_operator_that_does_not_exist_is_no_empty_source():
    with pytest.raises(KeyError):
        module.operator_source("ISTAA")


def test_no_module_is_forgotten():
    """What a run imports, a model built included, is hashed, or excluded on purpose."""
    program = (
        "import sys, crate.tasks.classification.task, crate.models.vision; "
        "from crate.models.registry import create_model; "
        "create_model('crate_alpha_tiny_patch32', depth=1, num_classes=2, image_size=32); "
        "print(*(name for name in sys.modules if name.split('.')[0] == 'crate'))"
    )
    root = Path(module.__file__).parents[2]
    imported = subprocess.run(
        [sys.executable, "-c", program], cwd=root, check=True, capture_output=True, text=True
    ).stdout.split()
    known = {*module.modules_of(TASK), *module.EXCLUDED, *module.OPERATOR_MODULES}
    empty = {"crate.data", "crate.tasks"}  # packages whose __init__.py says nothing
    assert all(module.module_source(name) in ("", "pass") for name in empty)
    assert set(imported) <= known | empty
    assert {"crate.models.vision", "crate.training.loop", "crate.data.images"} <= known
    assert not set(module.modules_of(TASK)) & set(module.EXCLUDED)


def test_operator_modules_use_nothing_that_is_not_hashed():
    """Their classes are hashed alone, so a helper in another module would be overlooked."""
    for name in module.OPERATOR_MODULES:
        assert module._imports(name) <= set(module.EXCLUDED)
