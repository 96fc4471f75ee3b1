"""RandAugment of CRATE-alpha's code: each operation at level 9, and the law of what is drawn.

The figures (shares, grey levels) were measured on the authors' code with TensorFlow.
"""

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter, ImageOps

from crate.data.embedded import photos
from crate.data.rand_augment import FILL, OPERATIONS, rand_augment_of_crate_alpha

pytestmark = pytest.mark.usefixtures("one_thread")


def photographs(size: int = 224) -> list[torch.Tensor]:
    images = [Image.fromarray(photo).convert("RGB") for photo in photos().values()]
    return [tensor(image.resize((size, size), Image.Resampling.BILINEAR)) for image in images]


def tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def pil(picture: torch.Tensor) -> Image.Image:
    return Image.fromarray(picture.permute(1, 2, 0).numpy())


PHOTO = photographs()[0]
RAMP = torch.arange(256, dtype=torch.uint8).view(1, 16, 16).expand(3, -1, -1).contiguous()


def ramp(name: str, level: float = 9.0, sign: int = 1) -> list[int]:
    """What an operation makes of the grey values 0 to 255."""
    return OPERATIONS[name](RAMP, level, sign)[0].flatten().tolist()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Invert", [255 - v for v in range(256)]),
        ("Posterize", [v // 128 * 128 for v in range(256)]),  # int(9 / 10 × 4) = 3 of 4 bits lost
        ("Solarize", [v if v < 26 else 255 - v for v in range(256)]),  # 256 − int(230.4)
        ("SolarizeAdd", [v + 99 if v < 128 else v for v in range(256)]),  # int(0.9 × 110)
        # factor 1 + 0.9 × 0.9 = 1.81: away from black
        ("Brightness", [min(255, int(1.81 * v)) for v in range(256)]),
        ("AutoContrast", list(range(256))),
        ("Color", list(range(256))),  # grey stays grey
    ],
)
def test_values_at_level_9(name, expected):
    found = ramp(name)
    # a product that is whole may fall on either side of it in float32
    assert np.abs(np.array(found) - expected).max() <= (1 if name == "Brightness" else 0)


def test_fainter_brightness_and_contrast():
    factor = 1 - 0.81
    assert np.abs(np.array(ramp("Brightness", sign=-1)) - factor * np.arange(256)).max() < 1.001
    # contrast blends with 224 × 224 / 256 = 196, whatever the picture
    expected = 196 + factor * (np.arange(256) - 196)
    assert np.abs(np.array(ramp("Contrast", sign=-1)) - expected).max() < 1.001
    stronger = (196 + 1.81 * (np.arange(256) - 196)).clip(0, 255)
    assert np.abs(np.array(ramp("Contrast")) - stronger).max() < 1.001
    # the factor is never below 0.1: level 12 would give 1 − 1.08
    assert max(ramp("Brightness", level=12.0, sign=-1)) == 25


@pytest.mark.parametrize(("level", "values"), [(7.4, 4), (7.5, 2), (9.9, 2), (10.5, 2)])
def test_posterize_keeps_one_bit_from_level_7_5(level, values):
    assert len(set(ramp("Posterize", level))) == values


def test_equalize_autocontrast_and_sharpness_are_pillows():
    image = pil(PHOTO)
    assert torch.equal(OPERATIONS["Equalize"](PHOTO, 9, 1), tensor(ImageOps.equalize(image)))
    dull = (PHOTO // 2 + 30).to(torch.uint8)
    stretched = OPERATIONS["AutoContrast"](dull, 9, 1).int()
    assert (stretched - tensor(ImageOps.autocontrast(pil(dull))).int()).abs().max() <= 1
    smooth = tensor(image.filter(ImageFilter.SMOOTH)).float()
    expected = (smooth + 0.19 * (PHOTO.float() - smooth)).clamp(0, 255)
    found = OPERATIONS["Sharpness"](PHOTO, 9, -1).float()
    assert (found - expected)[:, 1:-1, 1:-1].abs().max() < 1.9  # both cut off and round
    assert torch.equal(found[:, 0], PHOTO[:, 0].float())
    flat = torch.full((3, 8, 8), 77, dtype=torch.uint8)
    for name in ("Equalize", "AutoContrast", "Sharpness", "Color"):
        assert torch.equal(OPERATIONS[name](flat, 9, 1), flat)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(
    ("name", "matrix"),
    [
        ("ShearX", lambda s: (1, 0.27 * s, 0, 0, 1, 0)),
        ("ShearY", lambda s: (1, 0, 0, 0.27 * s, 1, 0)),
        ("TranslateX", lambda s: (1, 0, 90 * s, 0, 1, 0)),  # pixels of 224
        ("TranslateY", lambda s: (1, 0, 0, 0, 1, 90 * s)),
    ],
)
def test_movements_are_pillows_about_the_corner(name, matrix, sign):
    a, b, c, d, e, f = matrix(sign)
    # Pillow's coordinates are those of pixel corners, half a pixel from TensorFlow's
    moved = (
        pil(PHOTO)
        .convert("RGBA")
        .transform(
            (224, 224),
            Image.Transform.AFFINE,
            (a, b, c + 0.5 - (a + b) / 2, d, e, f + 0.5 - (d + e) / 2),
            Image.Resampling.BILINEAR,
        )
    )
    theirs = tensor(moved)
    ours = OPERATIONS[name](PHOTO, 9.0, sign)
    inside = (theirs[3] == 255).float()
    inside = -torch.nn.functional.max_pool2d(-inside[None], 5, 1, 2)[0] == 1  # without the border
    assert inside.float().mean() > 0.3
    assert (ours.int() - theirs[:3].int()).abs()[:, inside].max() <= 1
    uncovered = theirs[3] == 0
    assert uncovered.float().mean() > 0.1
    assert (torch.tensor(FILL) == ours[:, uncovered].T).all()


def test_rotation_is_pillows():
    theirs = pil(PHOTO).rotate(27, Image.Resampling.BILINEAR)
    ours = OPERATIONS["Rotate"](PHOTO, 9.0, 1)
    if (ours.int() - tensor(theirs).int())[:, 80:144, 80:144].abs().max() > 1:
        theirs = pil(PHOTO).rotate(-27, Image.Resampling.BILINEAR)
    middle = (slice(None), slice(60, 164), slice(60, 164))
    assert (ours.int() - tensor(theirs).int())[middle].abs().max() <= 1
    assert (ours[:, 0, 0] == torch.tensor(FILL)).all()


def test_a_movement_by_nothing_changes_nothing():
    for name in ("Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY"):
        assert torch.equal(OPERATIONS[name](PHOTO, 0.0, 1), PHOTO)
    grey = PHOTO[:1]
    for name, operation in OPERATIONS.items():
        assert operation(grey, 9.0, 1).shape == grey.shape, name


def test_the_law_of_what_is_drawn():
    """27 to 34 % of pictures come out unchanged; the mean change is about 40 grey levels."""
    pictures = photographs()
    generator = torch.Generator().manual_seed(0)
    changes = []
    for trial in range(600):
        picture = pictures[trial % len(pictures)]
        augmented = rand_augment_of_crate_alpha(picture, 2, 9, generator)
        changes.append((augmented.float() - picture.float()).abs().mean().item())
    unchanged = np.mean([change == 0 for change in changes])
    assert 0.26 < unchanged < 0.35
    assert np.mean(changes) == pytest.approx(40, abs=4)


def test_operations_levels_and_signs_are_drawn_alike(monkeypatch):
    drawn: list[tuple[str, float, int]] = []

    def recorder(name):
        return lambda picture, level, sign: drawn.append((name, level, sign)) or picture

    monkeypatch.setattr(
        "crate.data.rand_augment.OPERATIONS", {name: recorder(name) for name in OPERATIONS}
    )
    generator, trials = torch.Generator().manual_seed(0), 3000
    for _ in range(trials):
        rand_augment_of_crate_alpha(PHOTO, 2, 9, generator)
    names, levels, signs = map(np.array, zip(*drawn, strict=True))
    assert len(drawn) / (2 * trials) == pytest.approx(0.5, abs=0.03)  # each with probability 1/2
    counts = [np.mean(names == name) for name in OPERATIONS]
    assert counts == pytest.approx([1 / 15] * 15, abs=0.02)
    assert np.mean(levels) == pytest.approx(9, abs=0.03)
    assert np.std(levels) == pytest.approx(0.5, abs=0.02)
    assert np.mean(signs == 1) == pytest.approx(0.5, abs=0.03)
