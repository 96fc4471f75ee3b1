"""The table of layouts: each has an entry, and one more entry is all that a new layout needs."""

import subprocess
import sys

import pytest
import torch
import yaml

from crate.checkpoints.convert import convert, to_official
from crate.checkpoints.layouts import LAYOUTS
from crate.checkpoints.layouts.base import Layout, Part, affine, read_sizes, transpose
from crate.checkpoints.manifest import manifest
from crate.errors import UsageError
from crate.models.build import build
from crate.models.zoo import MODELS, resolve

SMALL = {"dim": 8, "heads": 2, "depth": 1}


def toy_parts(spec, tokens, num_classes):
    """A ViT of one block, linear maps as (in, out) and all layers in one list."""
    d, p, hidden = spec.dim, spec.patch_size, spec.mlp_ratio * spec.dim
    parts = {
        "toy.class": Part("class_token", (d,), lambda w: w[None, None], lambda w: w[0, 0]),
        "toy.places": Part("positions", (1, tokens, d)),
    }
    parts |= affine("toy.patches", "patch_embedding.projection", d, 3, p, p)
    for name, here, outputs, inputs in (
        ("qkv", "attention.qkv", 3 * d, d),
        ("out", "attention.projection", d, d),
        ("fc1", "feedforward.hidden", hidden, d),
        ("fc2", "feedforward.output", d, hidden),
    ):
        parts |= affine(f"toy.{name}", f"blocks.0.{here}", outputs, inputs)
        weight = Part(f"blocks.0.{here}.weight", (inputs, outputs), transpose)
        parts[f"toy.{name}.weight"] = weight
    for number in (1, 2):
        parts |= affine(f"toy.norm{number}", f"blocks.0.norm{number}", d)
    return parts | affine("toy.norm", "norm", d) | affine("toy.head", "head", num_classes, d)


TOY = Layout(
    name="toy-vit",
    kind="vision",
    sign="toy.class",
    fits=lambda spec: spec.attention == "MHSA" and spec.feedforward == "MLP",
    parts=toy_parts,
    sized_by={"tokens": "toy.places", "num_classes": "toy.head.weight"},
    exported=True,
)


@pytest.fixture
def toy(monkeypatch):
    monkeypatch.setitem(LAYOUTS, TOY.name, TOY)


def test_a_new_layout_is_one_entry(toy, folder):
    torch.manual_seed(0)
    spec = resolve("vit_tiny_patch16", **SMALL)
    model = build(spec, num_classes=5, image_size=48)
    ours = model.state_dict()
    official = to_official(ours, spec)
    assert official["toy.qkv.weight"].shape == (8, 24)
    back = convert({"state_dict": official}, spec)
    assert back.keys() == ours.keys()
    assert all(torch.equal(back[key], value) for key, value in ours.items())
    with pytest.raises(UsageError, match=r"'toy\.class' is of the toy-vit layout \(a vision model"):
        convert(official, resolve("crate_base_patch16"))
    entry = {"model": "vit_tiny_patch16", "format": "toy-vit", "source": "a friend"}
    with (folder / "released.yaml").open("a") as file:
        yaml.safe_dump({"toy.pth": entry}, file)
    assert manifest(folder)["toy.pth"].format == "toy-vit"


def test_without_its_entry_it_is_an_unknown_file():
    spec = resolve("vit_tiny_patch16", **SMALL)
    with pytest.raises(UsageError, match="no official CRATE code has this architecture"):
        to_official(build(spec, num_classes=5, image_size=48).state_dict(), spec)
    with pytest.raises(UsageError, match=r"it has none of conv1\.weight, "):
        convert({"toy.class": torch.zeros(8)}, spec)


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_has_its_sign_and_its_sizes(name):
    layout = LAYOUTS[name]
    assert layout.name == name
    having = [spec for spec in MODELS.values() if layout.has(spec)]
    assert having
    for spec in having:
        parts = layout.expected(spec, {})
        assert layout.sign in parts
        assert set(layout.sized_by.values()) <= set(parts)
        shapes = {key: part.shape for key, part in parts.items()}
        assert layout.expected(spec, shapes).keys() == parts.keys()
        assert read_sizes(spec, shapes, layout.sized_by) == read_sizes(spec, {}, layout.sized_by)


def test_at_most_one_layout_of_an_architecture_is_exported():
    for spec in MODELS.values():
        assert sum(layout.exported and layout.has(spec) for layout in LAYOUTS.values()) <= 1


def test_the_table_imports_no_torch():
    program = (
        "import sys; import crate.checkpoints.layouts; "
        "assert not {'torch', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
