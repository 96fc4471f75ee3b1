"""Pictures of any depth, with a palette or transparency, as 8-bit RGB: one rule for all readers."""

import numpy as np


def to_rgb(image):
    """A PIL image as 8-bit RGB, on white where it is transparent.

    Grey values of more than 8 bits are scaled: integers by 255 / 65,535 (32-bit ones up to 255 are
    8-bit values already), floats from their range.
    """
    from PIL import Image

    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if image.mode != "I" or values.max() > 255:
            values = (values.clip(0, 65_535) * 255 + 32_767) // 65_535
        return Image.fromarray(values.clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        values = np.nan_to_num(np.asarray(image, np.float64), posinf=0.0, neginf=0.0)
        spread = values.max() - values.min()
        values = (values - values.min()) / (spread or 1.0) * 255
        return Image.fromarray(values.round().astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")
