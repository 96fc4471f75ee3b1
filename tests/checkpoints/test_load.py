"""`create_model(name, pretrained=PATH)`: ours and official files, at any sizes; clear refusals."""

import pytest
import torch

from crate.checkpoints.convert import to_official
from crate.errors import RunError, UsageError
from crate.models import create_model
from crate.weights import save_tensors

pytestmark = pytest.mark.usefixtures("one_thread")
SMALL = {"dim": 24, "heads": 3, "depth": 2}
VISION = "crate_alpha_base_patch16"


@pytest.fixture
def model():
    torch.manual_seed(0)
    return create_model(VISION, num_classes=7, image_size=32, **SMALL)


def write(state, path, form):
    """A state dict as a file of some form."""
    if form == "safetensors":
        save_tensors(state, path)
    elif form == "bare":
        torch.save(state, path)
    elif form == "older":
        torch.save(state, path, _use_new_zipfile_serialization=False)
    else:  # as training scripts leave it
        wrapped = {f"module._orig_mod.{key}": value for key, value in state.items()}
        torch.save({"epoch": 3, "model": wrapped, "optimizer": {"state": {0: torch.ones(3)}}}, path)
    return path


@pytest.mark.parametrize("form", ["safetensors", "bare", "older", "wrapped"])
@pytest.mark.parametrize("official", [False, True])
def test_every_form_gives_the_model_that_was_saved(model, tmp_path, form, official):
    state = to_official(model.state_dict(), model.spec) if official else model.state_dict()
    path = write(state, tmp_path / "a.pth", form)
    loaded = create_model(VISION, pretrained=path, **SMALL)
    assert loaded.state_dict().keys() == model.state_dict().keys()
    images = torch.randn(2, 3, 32, 32)
    assert loaded(images).shape == (2, 7)  # the file's classes and size, not the defaults
    torch.testing.assert_close(loaded.eval()(images), model.eval()(images), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("vit_tiny_patch16", {"num_classes": 3, "image_size": 32}),
        ("crate_base_patch16", {"num_classes": 3, "image_size": 32}),  # a linear stem
        ("crate_gpt_base", {"vocab_size": 40, "block_size": 16}),
        ("crate_mae_base", {"image_size": 32}),
        (
            "crate_alpha_clipa_base_patch16",
            {"image_size": 32, "vocab_size": 40, "context_length": 8},
        ),
    ],
)
def test_every_kind_of_model(name, sizes, tmp_path):
    small = dict(SMALL)
    if "clipa" in name:
        small |= {"embed_dim": 12, "text_dim": 24, "text_depth": 1, "text_heads": 3}
    saved = create_model(name, **sizes, **small)
    path = write(saved.state_dict(), tmp_path / "a.pth", "wrapped")
    loaded = create_model(name, pretrained=path, **small)
    assert type(loaded) is type(saved)
    for key, value in saved.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key


def test_sizes_that_are_given_replace_the_files(model, tmp_path):
    path = write(model.state_dict(), tmp_path / "a.pth", "bare")
    loaded = create_model(VISION, pretrained=path, num_classes=5, image_size=64, **SMALL)
    assert loaded(torch.randn(1, 3, 64, 64)).shape == (1, 5)
    ours, theirs = loaded.state_dict(), model.state_dict()
    differing = {key for key in ours if ours[key].shape != theirs[key].shape}
    assert differing == {"head.weight", "head.bias", "positions"}
    assert torch.equal(ours["blocks.1.norm1.weight"], theirs["blocks.1.norm1.weight"])
    assert torch.equal(ours["positions"][:, 0], theirs["positions"][:, 0])  # the class token's


@pytest.mark.parametrize(
    ("name", "change", "options", "reason"),
    [
        (VISION, {}, {"dim": 36}, "'class_token' has shape (1, 1, 24), this model needs"),
        (VISION, {}, {"depth": 3}, "its weights have no 'blocks.2."),
        (VISION, {}, {"depth": 1}, "its weights have 'blocks.1."),
        ("crate_alpha_base_patch8", {}, {}, "patches of 16 px, expected 8"),
        ("crate_alpha_gpt_base", {}, {}, "no 'token_embedding.weight'"),
        (VISION, {"positions": torch.ones(1, 4, 24)}, {}, "'positions' has shape (1, 4, 24)"),
    ],
)
def test_weights_of_another_model_are_refused(model, tmp_path, name, change, options, reason):
    path = write(model.state_dict() | change, tmp_path / "a.pth", "bare")
    with pytest.raises(UsageError) as caught:
        create_model(name, pretrained=path, **SMALL | options)
    assert str(caught.value).startswith(f"{path}: ")
    assert str(caught.value).count(str(path)) == 1
    assert reason in str(caught.value)


def test_what_cannot_be_read_is_said(model, tmp_path):
    with pytest.raises(UsageError, match=r"none\.pth: no such file"):
        create_model(VISION, pretrained=tmp_path / "none.pth")
    path = write(model.state_dict(), tmp_path / "a.pth", "bare")
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(RunError, match=r"a\.pth: is cut short or damaged"):
        create_model(VISION, pretrained=path, **SMALL)
    state = model.state_dict() | {"norm.weight": torch.full((24,), torch.nan)}
    with pytest.raises(RunError, match=r"a\.pth: 'norm\.weight' holds values that are not finite"):
        create_model(VISION, pretrained=write(state, path, "bare"), **SMALL)


@pytest.mark.parametrize(
    ("word", "meant"),
    [("img_size", "image_size"), ("drop_path_rate", "drop_path"), ("n_classes", "num_classes")],
)
def test_other_libraries_names_of_arguments_are_known(word, meant):
    with pytest.raises(UsageError, match=f"unknown model setting '{word}'; did you mean '{meant}'"):
        create_model(VISION, **{word: 1})
