"""Masks drawn over a picture, for figures and `crate segment`."""

import numpy as np

OPACITY = 0.45
# Okabe & Ito's colours as bytes, those of the figures
COLOURS = (
    (0, 114, 178),
    (230, 159, 0),
    (0, 158, 115),
    (204, 121, 167),
    (86, 180, 233),
    (213, 94, 0),
)


def overlay(image: np.ndarray, masks: list[np.ndarray]) -> np.ndarray:
    """uint8 (H, W, 3) with each bool (H, W) mask as a translucent colour with an outline."""
    drawn = image.copy()
    width = max(1, round(max(image.shape[:2]) / 300))
    for number, mask in enumerate(masks):
        colour = np.array(COLOURS[number % len(COLOURS)])
        drawn[mask] = (drawn[mask] * (1 - OPACITY) + colour * OPACITY).round()
    for number, mask in enumerate(masks):  # outlines last: no mask hides another's
        drawn[mask & ~_eroded(mask, width)] = COLOURS[number % len(COLOURS)]
    return drawn


def _eroded(mask: np.ndarray, times: int) -> np.ndarray:
    """`mask` less its pixels that touch others by a side, `times` over; a picture's rim is kept."""
    for _ in range(times):
        smaller = mask.copy()
        smaller[1:] &= mask[:-1]
        smaller[:-1] &= mask[1:]
        smaller[:, 1:] &= mask[:, :-1]
        smaller[:, :-1] &= mask[:, 1:]
        mask = smaller
    return mask
