"""`crate inspect`: pictures in, maps and one page out; models of every kind; clear refusals."""

import dataclasses
import html.parser
import io
import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from crate.checkpoints.convert import to_official
from crate.cli import main
from crate.data.augment import normalise
from crate.data.catalogue import get_dataset
from crate.explore.drawings import CODES, GAP, LABEL, TEXT, draw_attention, draw_codes
from crate.explore.inspect import _square, look
from crate.explore.pictures import open_picture
from crate.models.build import build, build_autoencoder, build_contrastive, build_language
from crate.records import RunFolder, file_sha256, write_json
from crate.runs import Run
from crate.weights import save_weights

pytestmark = pytest.mark.usefixtures("one_thread")
STEP = {
    "crate_mae_base": "imagenet1k_mae",
    "crate_gpt_base": "openwebtext",
    "crate_alpha_clipa_large_patch14": "datacomp1b",
}


@pytest.fixture
def finished(plan):
    """`finished(model)`: the folder of a run at smoke with weights as they are initialised."""

    def finished(name, change=lambda state: state):
        run = Run("smoke", name, 0, (STEP.get(name, "imagenet1k_lion"),))
        resolved, folder = plan.resolve(run), RunFolder(run.folder("results"))
        torch.manual_seed(0)
        if resolved.spec.causal:
            model = build_language(resolved.spec, vocab_size=257, block_size=32)
        elif resolved.spec.decoder != "none":
            model = build_autoencoder(resolved.spec, image_size=28)
        elif resolved.spec.embed_dim:
            sizes = {"vocab_size": 50, "context_length": 8}
            model = build_contrastive(resolved.spec, image_size=28, **sizes)
        else:
            model = build(resolved.spec, num_classes=10, image_size=28)
        folder.folder.mkdir(parents=True)
        save_weights(model, folder)
        result = {"metrics": {"top1": 1.0}, "weights_sha256": file_sha256(folder.weights)}
        spec = dataclasses.asdict(resolved.spec)
        record = {"status": "complete", "dataset": "fashion_mnist_tiny", "config": {"model": spec}}
        write_json(folder.record, record)
        write_json(folder.metrics, result)
        return model, str(folder.folder)

    return finished


@pytest.fixture
def picture(tmp_path):
    """A file: grey left of the middle square and right of it, colours inside."""
    pixels = np.full((40, 80, 3), 128, np.uint8)
    pixels[:, 20:60] = np.random.RandomState(0).randint(0, 256, (40, 40, 3))
    Image.fromarray(pixels).save(tmp_path / "a picture.png")
    return tmp_path / "a picture.png"


class Page(html.parser.HTMLParser):
    """What a page refers to, and the cells of its tables."""

    def __init__(self, text):
        super().__init__()
        self.sources, self.cells, self.opened, self.tag = [], [], [], None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tag = tag
        self.opened.append(tag)
        self.sources += [value for key, value in attributes if key in ("src", "href")]

    def handle_data(self, data):
        if self.tag == "td":
            self.cells.append(data)


@pytest.mark.parametrize(
    "name",
    [
        "crate_base_patch8", "crate_alpha_base_patch8", "vit_small_patch8", "crate_tiny_patch8_mlp",
        "crate_tiny_patch8_mhsa", "crate_mae_base", "crate_alpha_clipa_large_patch14",
    ],
)  # fmt: skip
def test_every_kind_of_vision_model_is_shown(name, finished, picture, capsys):
    _, run = finished(name)
    assert main(["inspect", run, str(picture), "--out", "seen"]) == 0
    parts = ["attention", "codes", "tokens"]
    if name.startswith("vit") or name.endswith("mlp"):
        parts.remove("codes")
    found = sorted(path.name for path in picture.parent.joinpath("seen").iterdir())
    assert found == [*(f"a picture-{part}.png" for part in parts), "index.html"]
    text = picture.parent.joinpath("seen/index.html").read_text(encoding="utf-8")
    page = Page(text)
    assert len(page.sources) == 1 + len(parts)  # the picture as it is seen, too
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert not {"script", "link", "iframe"} & set(page.opened)
    columns = 4 + ("codes" in parts)
    assert len(page.cells) == 2 * (1 + columns)  # two layers
    assert "index.html" in capsys.readouterr().out


def test_what_is_seen_is_what_the_model_records(finished):
    model, _ = finished("crate_alpha_base_patch8")
    square = np.random.RandomState(1).randint(0, 256, (28, 28, 3)).astype(np.uint8)
    dataset = get_dataset("fashion_mnist_tiny")
    seen = look(model.eval(), square, dataset)
    images = normalise(torch.from_numpy(square).permute(2, 0, 1)[None], dataset)
    with torch.no_grad():
        records = model.layer_records(images)
    for layer, record in enumerate(records):
        rows = record["attention"][0, :, 0, 1:].reshape(2, 7, 7).numpy()
        np.testing.assert_allclose(seen["attention"][layer], rows, rtol=1e-5)
        assert (seen["codes"][layer] == (record["codes"][0] != 0).numpy()).all()
        before = model.embed(images) if layer == 0 else records[layer - 1]["output"]
        block = model.blocks[layer]
        keys = block.attention.subspaces(block.norm1(before))[0, 1:]
        torch.testing.assert_close(seen["keys"][layer], keys)


def test_tiles_are_where_their_layer_and_head_say():
    maps = [np.zeros((3, 4, 4)) for _ in range(2)]
    maps[1][2, 0, 3] = 1.0  # layer 2, head 3, the upper right patch
    drawn = np.asarray(draw_attention(maps)).astype(int)
    yellow = (drawn[..., 0] > 200) & (drawn[..., 2] < 100)
    rows, columns = np.nonzero(yellow)
    tile = 96 + GAP
    assert (rows.min(), rows.max()) == (TEXT + GAP + tile, TEXT + GAP + tile + 23)
    assert (columns.min(), columns.max()) == (LABEL + 2 * tile + 72, LABEL + 2 * tile + 95)


def test_codes_show_the_share_of_what_is_used():
    support = np.zeros((5, 8), bool)
    support[:, 5] = True  # used by all: it comes first
    support[4, 0] = True
    drawn = np.asarray(draw_codes([support]))[TEXT + GAP :, LABEL:]
    panel = drawn[: CODES[1], : CODES[0], 0] < 128
    assert panel.mean() == pytest.approx(6 / 40)
    assert panel[:, : CODES[0] // 8].all()
    wide = np.zeros((5, 4 * CODES[0]), bool)
    wide[:, ::2] = True
    drawn = np.asarray(draw_codes([wide]))[TEXT + GAP :, LABEL:][: CODES[1], : CODES[0], 0]
    assert np.abs(drawn[:, : CODES[0] // 2].astype(int) - 30).max() == 0  # sorted: half is dark
    assert drawn[:, CODES[0] // 2 :].min() == 255


@pytest.mark.parametrize("form", ["safetensors", "state_dict", "official"])
def test_a_file_of_weights_is_shown_as_its_run_is(finished, picture, form):
    model, run = finished("crate_alpha_base_patch8")
    assert main(["inspect", run, str(picture), "--out", "seen"]) == 0
    file = f"{run}/weights.safetensors"
    if form != "safetensors":
        file = "mine.pth"
        state = model.state_dict()
        torch.save(to_official(state, model.spec) if form == "official" else state, file)
    words = ["inspect", file, "--model", "crate_alpha_base_patch8", "--scale", "smoke"]
    assert main([*words, str(picture), "--out", "too"]) == 0
    codes = [np.asarray(Image.open(f"{out}/a picture-codes.png")) for out in ("seen", "too")]
    assert codes[0].shape == codes[1].shape
    text = picture.parent.joinpath("too/index.html").read_text(encoding="utf-8")
    assert "weights of crate_alpha_base_patch8" in text
    assert "trained on" not in text  # the file does not say


def test_the_weights_of_a_run_are_the_run(finished, picture):
    _, run = finished("crate_alpha_base_patch8")
    assert main(["inspect", f"{run}/weights.safetensors", str(picture), "--out", "seen"]) == 0
    text = picture.parent.joinpath("seen/index.html").read_text(encoding="utf-8")
    assert "crate_alpha_base_patch8 seed0 imagenet1k_lion" in text
    assert "trained on Fashion-MNIST" in text


def test_the_middle_square_is_seen_at_the_size_asked_for(finished, picture):
    _, run = finished("crate_base_patch8")
    Image.open(picture).crop((20, 0, 60, 40)).save("square.png")
    words = ["inspect", run, str(picture), "square.png", "--out", "seen", "--image-size", "40"]
    assert main(words) == 0
    whole, square = (
        np.asarray(Image.open(f"seen/{name}-attention.png")) for name in ("a picture", "square")
    )
    assert (whole == square).all()


def test_refusals_are_one_line_and_good_pictures_are_done(finished, picture, capsys):
    _, run = finished("crate_base_patch8")
    _, text = finished("crate_gpt_base")
    picture.with_name("no.png").write_text("no picture")
    for words, status, told in (
        ([text, str(picture)], 2, "a language model, which sees no pictures"),
        ([run, "none.png"], 1, "none.png: cannot be read as an image (No such file or directory)"),
        ([run, "no.png"], 1, "no.png: cannot be read as an image (its format is unknown)"),
        ([run.replace("lion", "loin"), str(picture)], 2, "there is no such folder"),
        (["none.pth", str(picture)], 2, "none.pth: no such file, and not the path of a run"),
        ([str(picture), str(picture)], 2, "does not say whose weights it holds; name it: --model"),
        ([run, str(picture), "--model", "crate_base_patch8"], 2, "a run has its model"),
        ([run, str(picture), "--scale", "smoke"], 2, "--scale goes with --model"),
        (
            [f"{run}/weights.safetensors", str(picture), "--model", "crate_base_patch8"],
            2,
            "not the weights of crate_base_patch8: ",
        ),
        ([run, str(picture), "--image-size", "30"], 2, "30 is not divisible by patch_size 4"),
        ([run, str(picture), "--out", "no.png"], 1, "cannot be written"),
    ):
        assert main(["inspect", *words]) == status
        error = capsys.readouterr().err
        assert told in error
        assert error.count("\n") == 1
    assert main(["inspect", run, "no.png", str(picture), "--out", "seen"]) == 1
    assert "failed: 1 of 2 pictures could not be inspected" in capsys.readouterr().err
    assert picture.parent.joinpath("seen/index.html").exists()


def test_names_of_any_bytes_are_shown_as_text(finished, picture, monkeypatch):
    """Markup is escaped; what is no UTF-8 is neither an error nor written."""
    _, run = finished("vit_small_patch8")
    strange = os.fsdecode(b'<b>&amp; "x" \xc3\xa9 \xff.png')
    shutil.copyfile(picture, strange)
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")  # strict, as a terminal's is
    monkeypatch.setattr("sys.stdout", out)
    assert main(["inspect", run, strange, "--out", "seen"]) == 0
    text = picture.parent.joinpath("seen/index.html").read_text(encoding="utf-8")
    assert "<h2>&lt;b&gt;&amp;amp; &quot;x&quot; é ?.png</h2>" in text
    assert "<b>" not in text


def test_names_are_unique_and_no_given_picture_is_overwritten(finished, picture, tmp_path):
    _, run = finished("vit_small_patch8")
    (tmp_path / "b").mkdir()
    own = tmp_path / "b" / "a picture-tokens.png"
    for copy in (own, tmp_path / "b" / "a picture.png"):
        shutil.copyfile(picture, copy)
    before = own.read_bytes()
    given = [str(picture), str(own), str(own.with_name("a picture.png"))]
    assert main(["inspect", run, *given, "--out", "b"]) == 0
    assert own.read_bytes() == before
    names = sorted(path.name for path in own.parent.glob("*-attention.png"))
    assert names == [
        "a picture-2-attention.png", "a picture-3-attention.png", "a picture-tokens-attention.png",
    ]  # fmt: skip


def test_a_line_of_pixels_is_a_picture(tmp_path):
    """Scaled to the network's size before it is cut, it would take gigabytes."""
    line = np.zeros((1, 30_000, 3), np.uint8)
    line[:, 15_000:] = 255
    Image.fromarray(line).save(tmp_path / "line.png")
    square = _square(open_picture(tmp_path / "line.png"), 28)
    assert square.shape == (28, 28, 3)
    assert (square[:, 0] < 20).all()
    assert (square[:, -1] > 235).all()
    assert (np.diff(square.astype(int), axis=1) >= 0).all()  # from the one to the other


def test_a_phone_opens_the_page(finished, picture, tmp_path, page):
    """It asks for nothing else; wide maps scroll, in their own size, and the page does not."""
    _, run = finished("crate_base_patch8")
    long = picture.with_name("x" * 200 + ".png")
    picture.rename(long)
    assert main(["inspect", run, str(long), "--out", "seen"]) == 0
    page.resize(390, 844)
    page.open(tmp_path / "seen" / "index.html")
    asked = [address for address in page.requests if not address.startswith("data:")]
    assert [address.rsplit("/", 1)[1] for address in asked] == ["index.html"]
    assert "crate_base_patch8 seed0 imagenet1k_lion" in page.run("document.body.innerText")
    assert page.run("document.documentElement.scrollWidth") == 390
    sizes = "[...document.images].map(i => [i.width, i.naturalWidth])"
    shown = page.run(sizes)
    assert len(shown) == 4
    assert all(width == whole > 0 for width, whole in shown)
    assert page.errors == []
