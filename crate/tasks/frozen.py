"""Shared by evaluations of a frozen network: loading it, precision, choice of images, bench."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from crate.data.datasets import Dataset
from crate.models.features import pretrained
from crate.models.initial import PairedDraws
from crate.models.vision import VisionTransformer
from crate.recipes import Recipe
from crate.runtime import Runtime
from crate.tasks.base import Resolved
from crate.tasks.cost import PICTURE
from crate.weights import read_weights

Work = Callable[[int], object]  # does the work once, on so many examples


def frozen_network(resolved: Resolved, parent: Path | None, runtime: Runtime) -> VisionTransformer:
    """The network of an evaluation, with its parent's weights, or initialised without a parent."""
    run, recipe = resolved.run, resolved.recipe
    weights = None if parent is None else read_weights(parent)
    with PairedDraws(run.seed):
        network = pretrained(resolved.spec, weights, image_size=recipe.image_size)
    return network.to(runtime.device)


@contextlib.contextmanager
def precision(recipe: Recipe, device: torch.device) -> Iterator[None]:
    """A context of full float32 (no TF32 on a GPU), unless the recipe sets bfloat16 explicitly.

    Evaluations with thresholds are sensitive to rounding.
    """
    settings = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [setting.allow_tf32 for setting in settings]
    try:
        for setting in settings:
            setting.allow_tf32 = False
        halved = recipe.compute.autocast == "bfloat16"
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=halved):
            yield
    finally:
        for setting, allowed in zip(settings, before, strict=True):
            setting.allow_tf32 = allowed


def evenly_spaced(count: int, wanted: int) -> np.ndarray:
    """min(wanted, count) evenly spaced indices below `count`, int64."""
    chosen = min(wanted, count)
    return np.arange(chosen) * count // chosen


def noise_evaluation(look: Callable[[Tensor], object], recipe: Recipe, runtime: Runtime) -> Work:
    """For `crate bench`: a function that applies `look` to so many noise images."""
    size, device = recipe.image_size, runtime.device
    noise = functools.lru_cache(maxsize=1)(
        lambda count: torch.randn(count, 3, size, size, device=device)
    )

    def work(count: int) -> None:
        with torch.inference_mode(), precision(recipe, device):
            look(noise(count))

    return work


def sample_picture(recipe: Recipe, dataset: Dataset) -> Image.Image:
    """For `crate bench`: a noise image of the usual shape of the data set's images."""
    shape = (recipe.image_size, recipe.image_size) if dataset.embedded else PICTURE
    return Image.effect_noise((16, 12), 100).convert("RGB").resize(shape)
