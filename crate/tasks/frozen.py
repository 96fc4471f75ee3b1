"""What evaluations share that look with a frozen network."""

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
from crate.models.vision import VisionTransformer
from crate.recipes import Recipe
from crate.runtime import Runtime, seed_for
from crate.tasks.base import Resolved
from crate.tasks.cost import PICTURE
from crate.weights import read_weights

Work = Callable[[int], object]  # does the work once, with so many examples


def parents_network(resolved: Resolved, parent: Path | None, runtime: Runtime) -> VisionTransformer:
    """The network that an evaluation looks with: its parent's weights, or a new one without any."""
    run, recipe = resolved.run, resolved.recipe
    torch.manual_seed(seed_for(run.seed, "init", *run.chain))
    weights = None if parent is None else read_weights(parent)
    return pretrained(resolved.spec, weights, image_size=recipe.image_size).to(runtime.device)


@contextlib.contextmanager
def precision(recipe: Recipe, device: torch.device) -> Iterator[None]:
    """Full float32 (no TF32 on a GPU), unless a recipe asks for bfloat16 by name.

    Thresholds feel the difference.
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


def spaced(count: int, wanted: int) -> np.ndarray:
    """`wanted` of `count` indices, or all where there are fewer: evenly spaced, int64."""
    chosen = min(wanted, count)
    return np.arange(chosen) * count // chosen


def look_at_noise(look: Callable[[Tensor], object], recipe: Recipe, runtime: Runtime) -> Work:
    """For `crate bench`: looking at so many pictures of noise, as an evaluation does."""
    size, device = recipe.image_size, runtime.device
    noise = functools.lru_cache(maxsize=1)(
        lambda count: torch.randn(count, 3, size, size, device=device)
    )

    def work(count: int) -> None:
        with torch.inference_mode(), precision(recipe, device):
            look(noise(count))

    return work


def sample_picture(recipe: Recipe, dataset: Dataset) -> Image.Image:
    """For `crate bench`: a picture of noise, of the shape that a set's pictures usually have."""
    shape = (recipe.image_size, recipe.image_size) if dataset.embedded else PICTURE
    return Image.effect_noise((16, 12), 100).convert("RGB").resize(shape)
