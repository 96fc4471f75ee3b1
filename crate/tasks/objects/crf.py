"""Refines a mask along the edges of its image by a dense CRF (Krähenbühl & Koltun 2011).

Parameters as in CutLER. The package is optional: `pydensecrf2` provides `pydensecrf`.
"""

import importlib.util

import numpy as np

from crate.errors import UsageError

ITERATIONS = 10
SMOOTHNESS = {"sxy": 3, "compat": 7}  # standard deviation in pixels, weight
APPEARANCE = {"sxy": 50, "srgb": 5, "compat": 10}  # and in grey levels


def available() -> bool:
    """Whether the package is installed."""
    return importlib.util.find_spec("pydensecrf") is not None


def refine(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The more probable of background and foreground at each pixel, by mean-field inference.

    image uint8 (H, W, 3), mask bool (H, W) -> bool (H, W). The unary terms are a softmax of the
    logits 1 and 0: the mask has a probability of 73 %.
    Raises `UsageError` if the package is missing.
    """
    if not available():
        raise UsageError("crf: true needs the package pydensecrf; 'make crf' installs it")
    from pydensecrf.densecrf import DenseCRF2D

    height, width = mask.shape
    logits = np.stack([~mask, mask]).astype(np.float32)  # (2, H, W): background, foreground
    energies = np.log(np.exp(logits).sum(axis=0)) - logits  # −log softmax
    field = DenseCRF2D(width, height, 2)
    field.setUnaryEnergy(np.ascontiguousarray(energies.reshape(2, -1)))
    field.addPairwiseGaussian(**SMOOTHNESS)
    field.addPairwiseBilateral(**APPEARANCE, rgbim=np.array(image, order="C"))
    probable = np.array(field.inference(ITERATIONS)).reshape(2, height, width)
    return probable[1] > probable[0]
