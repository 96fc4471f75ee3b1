"""Masks drawn over pictures."""

import numpy as np

from crate.reporting.overlay import overlay


def test_an_overlay_tints_masks_and_draws_their_outlines():
    image = np.full((60, 80, 3), 200, np.uint8)
    lower, upper = np.zeros((2, 60, 80), bool)
    lower[10:40, 10:40] = True
    upper[30:50, 30:50] = True
    drawn = overlay(image, [lower, upper])
    assert (image == 200).all()  # the caller's is left alone
    assert (drawn[~(lower | upper)] == 200).all()
    first, second = (0, 114, 178), (230, 159, 0)
    assert tuple(drawn[10, 20]) == tuple(drawn[39, 35]) == first  # an outline stays in sight
    assert tuple(drawn[49, 45]) == second
    tint = [round(0.55 * 200 + 0.45 * c) for c in first]
    assert drawn[20, 20].tolist() == tint
    assert (overlay(image, []) == image).all()
