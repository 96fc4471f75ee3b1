"""RandAugment as CRATE-alpha's JAX code applies it in fine-tuning: its `randaug(2, 9)`.

Two operations are drawn, each of the fifteen as likely. Each is applied with probability 1/2, at a
level drawn from a normal distribution of mean 9 and deviation 0.5, on a scale that ends at 10. A
higher level changes a picture more. Signs are drawn; pixels that a movement uncovers become FILL.
After arXiv 1909.13719; the law is that of UCSC-VLAA/CRATE-alpha, transforms/autoaugment.py, which
forked it from TensorFlow's EfficientNet code. Its quirks are kept where they are said below.

    picture (C, H, W) uint8, C = 3, or 1 of a grey picture
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

MOST = 10.0  # the level that the scale ends at
DEVIATION = 0.5  # of the level
FILL = (124.0, 116.0, 104.0)
LUMA = (0.2989, 0.587, 0.114)  # TensorFlow's weights of red, green and blue in grey

# Translations reach 100 pixels of the 224 of the published recipe; the same share at other sizes.
TRANSLATION = 100 / 224

# What contrast blends with. The published function means the mean grey value, but divides the
# number of pixels by 256: 196 for each picture of 224 × 224.
CONTRAST_GREY = 224 * 224 // 256


def rand_augment_of_crate_alpha(
    picture: Tensor, operations: int, level: float, generator: torch.Generator
) -> Tensor:
    """`operations` operations at about `level` (0 to 10), decided by `generator`."""
    names = list(OPERATIONS)
    for _ in range(operations):
        name = names[int(torch.randint(len(names), (), generator=generator))]
        drawn = level + DEVIATION * float(torch.randn((), generator=generator))
        sign = 1 if torch.rand((), generator=generator) < 0.5 else -1
        if torch.rand((), generator=generator) < 0.5:
            picture = OPERATIONS[name](picture, drawn, sign)
    return picture


# --- operations: (picture, level, sign) → picture ------------------------------------------------


def autocontrast(picture: Tensor, level: float, sign: int) -> Tensor:
    """Stretches each channel to 0 … 255."""
    values = picture.float()
    low, high = values.amin((1, 2), keepdim=True), values.amax((1, 2), keepdim=True)
    scale = 255 / (high - low).clamp(min=1)
    return torch.where(high > low, _whole(values * scale - low * scale), picture)


def equalize(picture: Tensor, level: float, sign: int) -> Tensor:
    """Makes the histogram of each channel flat."""
    return torch.stack([_equalized(channel) for channel in picture])


def _equalized(channel: Tensor) -> Tensor:
    counts = torch.bincount(channel.flatten().long(), minlength=256)
    step = (counts.sum() - counts[counts.nonzero()[-1]]) // 255
    if not step:
        return channel
    table = (counts.cumsum(0) + step // 2) // step
    table = torch.cat([table.new_zeros(1), table[:-1]]).clamp(0, 255)
    return table[channel.long()].to(torch.uint8)


def invert(picture: Tensor, level: float, sign: int) -> Tensor:
    return 255 - picture


def posterize(picture: Tensor, level: float, sign: int) -> Tensor:
    """Keeps 4 bits of each value, fewer at higher levels: one bit from level 7.5."""
    lost = min(7, 4 + max(0, int(level / MOST * 4)))  # TensorFlow shifts a byte by 7 bits at most
    return (picture >> lost) << lost


def solarize(picture: Tensor, level: float, sign: int) -> Tensor:
    """Inverts values from a threshold on, which is 26 at level 9."""
    threshold = 256 - min(256, int(level / MOST * 256))
    return torch.where(picture.int() < threshold, picture, 255 - picture)


def solarize_add(picture: Tensor, level: float, sign: int) -> Tensor:
    """Brightens values below 128, by 99 at level 9."""
    added = picture.int() + min(128, int(level / MOST * 110))
    return torch.where(picture < 128, added.clamp(0, 255).to(torch.uint8), picture)


def color(picture: Tensor, level: float, sign: int) -> Tensor:
    """Towards grey, or away from it."""
    return _blend(_grey(picture).expand_as(picture), picture, level, sign)


def contrast(picture: Tensor, level: float, sign: int) -> Tensor:
    """Towards CONTRAST_GREY, or away from it."""
    return _blend(torch.full_like(picture, CONTRAST_GREY), picture, level, sign)


def brightness(picture: Tensor, level: float, sign: int) -> Tensor:
    """Towards black, or away from it."""
    return _blend(torch.zeros_like(picture), picture, level, sign)


def sharpness(picture: Tensor, level: float, sign: int) -> Tensor:
    """Towards Pillow's SMOOTH filter, or away from it; the outermost pixels stay."""
    kernel = torch.tensor([[1.0, 1, 1], [1, 5, 1], [1, 1, 1]], device=picture.device) / 13
    smooth = picture.clone()
    values = F.conv2d(picture.float()[:, None], kernel[None, None])[:, 0]
    smooth[:, 1:-1, 1:-1] = _whole(values)
    return _blend(smooth, picture, level, sign)


def rotate(picture: Tensor, level: float, sign: int) -> Tensor:
    """About the middle, by 27 degrees at level 9."""
    angle = torch.tensor(sign * level / MOST * 30).deg2rad()
    height, width = picture.shape[1:]
    cos, sin = float(angle.cos()), float(angle.sin())
    right = (width - 1 - cos * (width - 1) + sin * (height - 1)) / 2
    down = (height - 1 - sin * (width - 1) - cos * (height - 1)) / 2
    return _moved(picture, [[cos, -sin, right], [sin, cos, down]])


def shear_x(picture: Tensor, level: float, sign: int) -> Tensor:
    """Rows, in proportion to their distance from the top, by 0.27 pixels each at level 9."""
    return _moved(picture, [[1, sign * level / MOST * 0.3, 0], [0, 1, 0]])


def shear_y(picture: Tensor, level: float, sign: int) -> Tensor:
    """Columns, in proportion to their distance from the left."""
    return _moved(picture, [[1, 0, 0], [sign * level / MOST * 0.3, 1, 0]])


def translate_x(picture: Tensor, level: float, sign: int) -> Tensor:
    """By 90 of 224 pixels at level 9."""
    shift = sign * level / MOST * TRANSLATION * picture.shape[2]
    return _moved(picture, [[1, 0, shift], [0, 1, 0]])


def translate_y(picture: Tensor, level: float, sign: int) -> Tensor:
    """As `translate_x`, downwards or upwards."""
    shift = sign * level / MOST * TRANSLATION * picture.shape[1]
    return _moved(picture, [[1, 0, 0], [0, 1, shift]])


OPERATIONS: dict[str, Callable[[Tensor, float, int], Tensor]] = {
    "AutoContrast": autocontrast,
    "Equalize": equalize,
    "Invert": invert,
    "Rotate": rotate,
    "Posterize": posterize,
    "Solarize": solarize,
    "SolarizeAdd": solarize_add,
    "Color": color,
    "Contrast": contrast,
    "Brightness": brightness,
    "Sharpness": sharpness,
    "ShearX": shear_x,
    "ShearY": shear_y,
    "TranslateX": translate_x,
    "TranslateY": translate_y,
}


# --- what they share ----------------------------------------------------------------------------


def _whole(values: Tensor) -> Tensor:
    """float → uint8: TensorFlow cuts decimals off, it does not round."""
    return values.clamp(0, 255).to(torch.uint8)


def _grey(picture: Tensor) -> Tensor:
    """(1, H, W); TensorFlow scales with half a grey value more than there is, then cuts off."""
    if len(picture) == 1:
        return picture
    weights = torch.tensor(LUMA, device=picture.device).view(3, 1, 1)
    return _whole((picture.float() / 255 * weights).sum(0, keepdim=True) * 255.5)


def _blend(degenerate: Tensor, picture: Tensor, level: float, sign: int) -> Tensor:
    """degenerate + f · (picture − degenerate), where f is 1 ± 0.9 · level / 10, at least 0.1."""
    factor = max(0.1, 1 + sign * level / MOST * 0.9)
    degenerate = degenerate.float()
    return _whole(degenerate + factor * (picture.float() - degenerate))


def _moved(picture: Tensor, matrix: list[list[float]]) -> Tensor:
    """The picture whose pixel (x, y) is the old one at `matrix` · (x, y, 1), bilinear.

    Pixels are FILL if they lie outside, even by a part of a pixel, as in TensorFlow Addons.
    """
    height, width = picture.shape[1:]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    places = torch.stack([x, y, torch.ones_like(x)], -1).double().to(picture.device)
    at = places @ torch.tensor(matrix, dtype=torch.float64, device=picture.device).T  # (H, W, 2)
    last = torch.tensor([width - 1, height - 1], dtype=torch.float64, device=picture.device)
    inside = ((at >= 0) & (at <= last)).all(-1)
    grid = (at / last.clamp(min=1) * 2 - 1)[None]
    values = F.grid_sample(
        picture[None].double(), grid, mode="bilinear", padding_mode="border", align_corners=True
    )[0]
    fill = torch.tensor(FILL, device=picture.device)
    if len(picture) == 1:
        fill = (fill * torch.tensor(LUMA, device=picture.device)).sum()[None]
    # the grid's coordinates are rounded: a whole value must not lose one
    return torch.where(inside, _whole(values + 1e-6), fill.view(-1, 1, 1).to(torch.uint8))
