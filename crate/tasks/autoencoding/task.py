"""Masked autoencoders: trained to predict masked patches, and evaluated by that error."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from crate.data.augment import normalise
from crate.data.datasets import ImageSet
from crate.data.examples import EXAMPLES, write_examples
from crate.data.images import MemoryImages, StreamedImages, open_split
from crate.models.autoencoder import MaskedAutoencoder
from crate.models.build import build_autoencoder
from crate.models.features import class_attention
from crate.records import RunFolder
from crate.runtime import Runtime, generator_for
from crate.tasks.autoencoding.cost import COST
from crate.tasks.autoencoding.recipe import Autoencoding
from crate.tasks.base import Resolved
from crate.tasks.frozen import evenly_spaced
from crate.tasks.stage import EVALUATION_BATCH, TrainingStage, warn_odd_count
from crate.training.loop import Batch

Images = MemoryImages | StreamedImages

HIDDEN = 128  # the grey value of a masked patch in an example


def run(
    resolved: Resolved,
    *,
    runtime: Runtime,
    folder: RunFolder,
    identity: str,
    parent: Path | None,
    data_root: str | Path,
) -> tuple[dict, dict]:
    """Train (unless its length is 0) and evaluate one model; saves its weights in `folder`.

    Args:
        parent: weights of an autoencoder to start from; None: as initialised.

    Returns:
        metrics (reconstruction: mean squared error of masked pixels, in units of the normalised
        images, over the evaluated split after the last update; train_reconstruction: the same over
        as many training images, without augmentation; FLOPs of one image's forward pass, and of
        training since the chain's start, three forward passes an image) and details for run.json.
    """
    return STAGE(resolved, runtime, data_root).train(folder, identity, parent)


class AutoencodingStage(TrainingStage):
    COST = COST
    WATCHED = ("reconstruction",)

    def open(self) -> None:
        opened = {
            "size": self.recipe.image_size,
            "runtime": self.runtime,
            "data_root": self.data_root,
        }
        evaluate = self.recipe.evaluate
        self.evaluated = open_split(self.dataset, evaluate, **opened)
        self.source = open_split(self.dataset, "train", held_out_for=evaluate, **opened)
        warn_odd_count(self.dataset, len(self.source), self.runtime)
        chosen = evenly_spaced(len(self.source), len(self.evaluated))
        self.trained_on = self.source.select(chosen)

    def build(self) -> MaskedAutoencoder:
        return build_autoencoder(
            self.spec,
            image_size=self.recipe.image_size,
            normalise_patches=self.recipe.normalise_patches,
            drop_path=self.recipe.drop_path,
        )

    def open_training(self) -> Images:
        return self.source

    def describe(self, source: Images) -> dict:
        return {}  # in `details`, as untrained autoencoders record it too

    def details(self) -> dict:
        return {"training_images": len(self.source)}

    def batches(self, source: Images, first: int, last: int) -> Iterator[Batch]:
        """Images (B, 3, S, S) of each update, and the noise (B, N) that fixes their masks."""
        pictures = source.training(self.recipe, self.seed, first, last)
        for index, (pixels, _) in enumerate(pictures, start=first):
            # drawn for the whole batch, so that it does not depend on ranks and micro-batches
            generator = generator_for(self.seed, "mask", index)
            shape = (self.recipe.batch_size, patches_of(self.model))
            noise = self.runtime.shard(torch.rand(shape, generator=generator))
            yield normalise(pixels, self.dataset), noise.to(pixels.device)

    def loss(self, network: nn.Module, batch: Batch) -> Tensor:
        """Mean squared error of a batch's masked patches, a scalar."""
        images, noise = batch
        return network(images, self.recipe.mask_ratio, noise)[0]

    def _error(self, source: Images) -> float:
        return evaluate(self.model, source, self.recipe, self.dataset, self.runtime)

    def measure(self) -> dict:
        return {"reconstruction": self._error(self.evaluated)}

    def finish(self, metrics: dict, folder: RunFolder) -> dict:
        if self.runtime.main:
            shown = examples(self.model, self.evaluated, self.recipe, self.dataset, self.runtime)
            write_examples(folder.examples, shown)
        return metrics | {
            "train_reconstruction": self._error(self.trained_on),
            "images": len(self.evaluated),
        }

    def random_batch(self, model: nn.Module, count: int) -> Batch:
        noise = torch.rand(count, patches_of(model), device=self.runtime.device)
        return self.random_images(count), noise

    def evaluate_batch(self, model: nn.Module, batch: Batch) -> object:
        images, noise = batch
        return model(images, self.recipe.mask_ratio, noise)


STAGE = AutoencodingStage


def patches_of(model: MaskedAutoencoder) -> int:
    """N, the number of patches of an image."""
    return model.spec.grid(model.image_size) ** 2


# --- evaluation -----------------------------------------------------------


def fixed_noise(places: range | np.ndarray, patches: int) -> Tensor:
    """Noise (B, N) for masks that depend on an image's place in its split, not on model or seed."""
    return torch.stack(
        [torch.rand(patches, generator=generator_for("mask", int(place))) for place in places]
    )


@torch.inference_mode()
def evaluate(
    model: MaskedAutoencoder,
    source: Images,
    recipe: Autoencoding,
    dataset: ImageSet,
    runtime: Runtime,
) -> float:
    """Mean squared error of the masked patches of all images of all ranks, in float32."""
    model.eval()
    sums = torch.zeros(2, dtype=torch.float64, device=runtime.device)
    place = runtime.rank
    most = min(recipe.compute.micro_batch or EVALUATION_BATCH, EVALUATION_BATCH)
    for pixels, _ in source.evaluation(recipe, most):
        after = place + len(pixels) * runtime.world
        noise = fixed_noise(range(place, after, runtime.world), patches_of(model))
        place = after
        loss, _, _ = model(normalise(pixels, dataset), recipe.mask_ratio, noise.to(pixels.device))
        sums[0] += loss.double() * len(pixels)  # every image has as many masked patches
        sums[1] += len(pixels)
    total, images = runtime.all_reduce_sum(sums).tolist()
    return round(total / images, 6)


@torch.inference_mode()
def examples(
    model: MaskedAutoencoder,
    source: Images,
    recipe: Autoencoding,
    dataset: ImageSet,
    runtime: Runtime,
) -> list[dict]:
    """A few images of a split, masked as in `evaluate`; runs on this rank only.

    "image" uint8 (S, S, 3), the network's input; "masked", with masked patches grey;
    "reconstruction", with masked patches as predicted; "attention" float16 (K, S/p, S/p), of the
    class token to each patch in the encoder's last block, by head, without masking.
    """
    model.eval()
    places = evenly_spaced(len(source), EXAMPLES)
    chosen = source.select(places)
    chosen.runtime = dataclasses.replace(runtime, rank=0, world=1)
    ((pixels, _),) = chosen.evaluation(recipe, len(places))
    images = normalise(pixels, dataset)
    noise = fixed_noise(places, patches_of(model)).to(images.device)
    _, prediction, mask = model(images, recipe.mask_ratio, noise)
    restored = model.complete(images, prediction, mask)
    hidden = model.unpatchify(mask[..., None].expand_as(prediction)) > 0
    original = displayed(images, dataset)
    shown = {
        "image": original,
        "masked": original.masked_fill(hidden, HIDDEN),
        "reconstruction": displayed(restored, dataset),
    }
    arrays = {name: t.permute(0, 2, 3, 1).cpu().numpy() for name, t in shown.items()}
    rows = class_attention(model, images, len(model.blocks) - 1)  # (B, K, N)
    side = model.spec.grid(model.image_size)
    arrays["attention"] = rows.unflatten(-1, (side, side)).half().cpu().numpy()
    return [{name: array[k] for name, array in arrays.items()} for k in range(len(places))]


def displayed(images: Tensor, dataset: ImageSet) -> Tensor:
    """The inverse of `normalise`, clipped to 0 … 255: uint8 (B, 3, H, W)."""
    mean = torch.tensor(dataset.mean, device=images.device).view(1, -1, 1, 1)
    std = torch.tensor(dataset.std, device=images.device).view(1, -1, 1, 1)
    return ((images * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
