"""experiments/released.yaml: its entries, and which of the files are here."""

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from crate.checkpoints.manifest import (
    checkpoint_path,
    find,
    locate,
    manifest,
    verify_if_listed,
)
from crate.errors import RunError, UsageError
from crate.models.build import CONTRASTIVE_SIZES
from crate.models.flops import contrastive_parameter_count, parameter_count
from crate.models.zoo import resolve

ROOT = Path(__file__).parents[2]


def test_the_manifest_agrees_with_the_architectures():
    entries = manifest(ROOT / "experiments")
    assert "crate_alpha_B16.pth" in entries
    assert entries["vanilla_crate_B32_in21k.pth"].status == "withdrawn"
    for entry in entries.values():
        spec, beside = resolve(entry.model), 100_000
        if spec.kind == "contrastive":  # the file keeps MSSA's projection three times
            assert entry.classes is None
            parameters = contrastive_parameter_count(spec, **CONTRASTIVE_SIZES)
            weights, beside = 4 * (parameters + 2 * spec.depth * spec.dim**2), 300_000
        else:
            weights = 4 * parameter_count(spec, image_size=224, num_classes=entry.classes)
        assert entry.bytes is None or 0 < entry.bytes - weights < beside


@pytest.fixture
def mine(folder):
    """`mine(**entry)` adds my.pth to the manifest; returns the experiments folder."""

    def mine(name="my.pth", **changes) -> Path:
        entry = {
            "model": "crate_alpha_tiny_patch16",
            "classes": 7,
            "format": "alpha-torch",
            "source": "a friend",
        }
        path = folder / "released.yaml"
        text = yaml.safe_dump({name: entry | changes})
        path.write_text(path.read_text(encoding="utf-8") + text, encoding="utf-8")
        return folder

    return mine


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"modl": "x"}, "my.pth: unknown key 'modl'; did you mean 'model'?"),
        ({"model": "crate_alpha_tny_patch16"}, "did you mean 'crate_alpha_tiny_patch16'?"),
        (
            {"format": "torch"},
            "my.pth: format: 'torch' should be one of 'alpha-torch', 'alpha-jax', ",
        ),
        ({"sha256": "123"}, "my.pth: sha256: "),
        ({"classes": "7"}, "my.pth: classes: '7' should be"),
        ({"name": "a/my.pth"}, "a/my.pth: should be the name of a file, without its folders"),
    ],
)
def test_a_mistake_in_the_manifest_is_one_line(mine, changes, reason):
    with pytest.raises(UsageError) as caught:
        manifest(mine(**changes))
    assert str(caught.value).startswith(str(Path("experiments/released.yaml").resolve()))
    assert reason in str(caught.value)


def test_a_file_is_found_checked_and_missed(mine, tmp_path):
    folder = mine(bytes=10, sha256="0" * 64)
    asked = ("crate_alpha_tiny_patch16", 7, folder, tmp_path / "data")
    assert find(*asked) is None
    with pytest.raises(RunError, match=r"with 7 classes are not here: no .*my\.pth; download it f"):
        locate(*asked)
    path = checkpoint_path("my.pth", tmp_path / "data")
    path.parent.mkdir(parents=True)
    path.write_bytes(b"123")
    with pytest.raises(RunError, match=r"my\.pth: half-downloaded\? 3 of 10 bytes; download it"):
        find(*asked)
    path.write_bytes(b"0123456789")
    assert find(*asked) == path
    with pytest.raises(RunError, match=r"my\.pth: its sha256 is not that of the official file"):
        locate(*asked)
    assert find("crate_alpha_tiny_patch16", None, *asked[2:]) == path
    assert find("crate_alpha_tiny_patch16", 8, *asked[2:]) is None
    assert find("crate_alpha_tiny_patch8", 7, *asked[2:]) is None
    with pytest.raises(RunError, match=r"no official weights of vit_tiny_patch16 are known"):
        locate("vit_tiny_patch16", None, *asked[2:])
    with pytest.raises(RunError, match=r"weights of vit_tiny_patch16 are known; if you have some"):
        locate("vit_tiny_patch16", 8, *asked[2:])
    with pytest.raises(RunError, match=r"of crate_alpha_tiny_patch16 with 8 classes are known"):
        locate("crate_alpha_tiny_patch16", 8, *asked[2:])
    with pytest.raises(RunError, match=r"it is withdrawn; listed at model hub"):
        locate("crate_base_patch32_plain", 19_167, *asked[2:])


def test_a_file_with_the_right_sha256_is_required(mine, tmp_path):
    path = checkpoint_path("my.pth", tmp_path)
    path.parent.mkdir()
    path.write_bytes(b"0123456789")
    folder = mine(sha256=hashlib.sha256(b"0123456789").hexdigest())
    assert locate("crate_alpha_tiny_patch16", None, folder, tmp_path) == path


def test_a_file_given_by_its_path_is_compared_where_its_size_is_the_listed_one(
    mine, tmp_path, capsys
):
    path, folder = tmp_path / "my.pth", mine(bytes=10, sha256="0" * 64)
    path.write_bytes(b"0123456789")
    with pytest.raises(RunError, match=r"my\.pth: its sha256 is not that of the official file"):
        verify_if_listed(path, "crate_alpha_tiny_patch16", folder)
    with pytest.raises(UsageError, match=r"lists my\.pth as crate_alpha_tiny_patch16, not vit_"):
        verify_if_listed(path, "vit_tiny_patch16", folder)
    assert capsys.readouterr().err == ""
    path.write_bytes(b"of another model")
    verify_if_listed(path, "vit_tiny_patch16", folder)
    told = f"note: {path}: has 16 bytes, the official file 10; read as another file\n"
    assert capsys.readouterr().err == told


def test_a_file_without_classes_is_of_any(mine, tmp_path):
    folder = mine(model="crate_alpha_clipa_base_patch16", classes=None, format="clipa-torch")
    asked = ("crate_alpha_clipa_base_patch16", 1000, folder, tmp_path)
    with pytest.raises(RunError, match=r"weights of crate_alpha_clipa_base_patch16 are not here"):
        locate(*asked)
    path = checkpoint_path("my.pth", tmp_path)
    path.parent.mkdir()
    path.write_bytes(b"0123456789")
    assert find(*asked) == locate(*asked) == path


def test_a_model_of_ones_own_may_be_listed(mine):
    folder = mine(model="crate_alpha_base_patch32_ratio2")
    assert manifest(folder)["my.pth"].model == "crate_alpha_base_patch32_ratio2"


def test_looking_up_files_imports_no_torch():
    program = (
        "import sys; from crate.checkpoints.manifest import find; "
        "find('crate_alpha_base_patch16', 1000, 'experiments', 'data'); "
        "assert not {'torch', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)
