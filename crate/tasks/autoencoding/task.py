"""Masked autoencoders: trained to tell hidden patches from the others, and judged by it."""

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from crate.data.augment import normalise
from crate.data.catalogue import get_dataset
from crate.data.datasets import ImageSet, odd_count
from crate.data.examples import EXAMPLES, write_examples
from crate.data.images import MemoryImages, StreamedImages, open_split
from crate.errors import UsageError
from crate.models.autoencoder import MaskedAutoencoder
from crate.models.build import build_autoencoder
from crate.models.features import class_attention
from crate.models.flops_autoencoder import autoencoder_macs
from crate.models.transfer import transfer_weights
from crate.records import RunFolder, read_json
from crate.runtime import Runtime, generator_for, seed_for
from crate.tasks.autoencoding.recipe import Autoencoding
from crate.tasks.base import Resolved
from crate.training.loop import fit, read_weights, save_weights

Images = MemoryImages | StreamedImages

EVALUATION_BATCH = 500
HIDDEN = 128  # the grey of a hidden patch in an example


def run(
    resolved: Resolved,
    *,
    runtime: Runtime,
    folder: RunFolder,
    identity: str,
    parent: Path | None,
    data_root: str | Path,
) -> tuple[dict, dict]:
    """Train (if the recipe asks for it) and evaluate one model; weights are left in `folder`.

    Args:
        parent: weights of an autoencoder to start from; None starts anew.

    Returns:
        metrics (reconstruction: mean squared error of hidden pixels, in the units of the network's
        images, over the evaluated split after the last update; train_reconstruction: the same over
        as many training pictures, seen as the evaluated ones are; FLOPs of one image's forward
        pass, and of training since the chain's start, three forward passes an image) and details
        for run.json.
    """
    recipe, seed = resolved.recipe, resolved.run.seed
    dataset = get_dataset(recipe.dataset)
    torch.manual_seed(seed_for(seed, "init", *resolved.run.chain))
    model = build_autoencoder(
        resolved.spec,
        image_size=recipe.image_size,
        normalise_patches=recipe.normalise_patches,
        drop_path=recipe.drop_path,
    )
    details: dict = {}
    if parent is not None:
        details["carried"] = transfer_weights(model, read_weights(parent), recipe.dont_load)
    model.to(runtime.device)

    opened = {"size": recipe.image_size, "runtime": runtime, "data_root": data_root}
    evaluated = open_split(dataset, recipe.evaluate, **opened)
    source = open_split(dataset, "train", held_out_for=recipe.evaluate, **opened)
    details["training_images"] = len(source)
    if runtime.main and (warning := odd_count(dataset, len(source))):
        print(f"warning: {warning}", file=sys.stderr)
    trained_on = source.select(spaced(len(source), len(evaluated)))

    updates = 0
    if recipe.trains:
        per_epoch = len(source) // recipe.batch_size
        updates = recipe.total_updates(per_epoch)
        if not per_epoch or not updates:
            raise UsageError(
                f"{resolved.run}: {len(source):,} images in batches of {recipe.batch_size:,} are not "
                "a single update"
            )
        details |= fit(
            model,
            loss=lambda network, batch: hidden_loss(network, batch, recipe),
            batches=lambda first: training_batches(
                source, recipe, seed, range(first, updates), patches_of(model), dataset, runtime
            ),
            steps_per_epoch=per_epoch,
            recipe=recipe,
            runtime=runtime,
            folder=folder,
            identity=identity,
            seed=seed,
            name=str(resolved.run),
            watch=lambda: {"reconstruction": evaluate(model, evaluated, recipe, dataset, runtime)},
            size=len(source),
        )
    if runtime.main:
        save_weights(model, folder)
        write_examples(folder.examples, examples(model, evaluated, recipe, dataset, runtime))
    forward = 2 * autoencoder_macs(
        resolved.spec, image_size=recipe.image_size, mask_ratio=recipe.mask_ratio
    )
    before = read_json(parent.with_name("metrics.json"))["metrics"] if parent else {}
    return {
        "reconstruction": evaluate(model, evaluated, recipe, dataset, runtime),
        "train_reconstruction": evaluate(model, trained_on, recipe, dataset, runtime),
        "images": len(evaluated),
        "flops": forward,
        "train_flops": before.get("train_flops", 0) + 3 * forward * updates * recipe.batch_size,
    }, details


def spaced(count: int, wanted: int) -> np.ndarray:
    """`wanted` of `count` indices, or all where there are fewer: evenly spaced, int64."""
    chosen = min(wanted, count)
    return np.arange(chosen) * count // chosen


def patches_of(model: MaskedAutoencoder) -> int:
    return model.spec.grid(model.image_size) ** 2


# --- training -----------------------------------------------------------


def training_batches(
    source: Images,
    recipe: Autoencoding,
    seed: int,
    updates: range,
    patches: int,
    dataset: ImageSet,
    runtime: Runtime,
) -> Iterator[tuple[Tensor, Tensor]]:
    """This rank's images (B, 3, S, S) of each update, and the noise (B, N) that masks them."""
    pictures = source.training(recipe, seed, updates.start, updates.stop)
    for index, (pixels, _) in zip(updates, pictures, strict=True):
        # drawn for the whole batch: ranks and micro-batches change nothing
        noise = torch.rand(recipe.batch_size, patches, generator=generator_for(seed, "mask", index))
        yield normalise(pixels, dataset), runtime.shard(noise).to(pixels.device)


def hidden_loss(network: nn.Module, batch: tuple[Tensor, ...], recipe: Autoencoding) -> Tensor:
    """Mean squared error of a batch's hidden patches."""
    images, noise = batch
    return network(images, recipe.mask_ratio, noise)[0]


# --- evaluation -----------------------------------------------------------


def fixed_noise(places: range | np.ndarray, patches: int) -> Tensor:
    """The noise (B, N) that masks pictures by their places in a split, whatever model and seed."""
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
    """Mean squared error of the hidden patches of all pictures of all ranks, in float32."""
    model.eval()
    sums = torch.zeros(2, dtype=torch.float64, device=runtime.device)
    place = runtime.rank
    most = min(recipe.compute.micro_batch or EVALUATION_BATCH, EVALUATION_BATCH)
    for pixels, _ in source.evaluation(recipe, most):
        after = place + len(pixels) * runtime.world
        noise = fixed_noise(range(place, after, runtime.world), patches_of(model))
        place = after
        loss, _, _ = model(normalise(pixels, dataset), recipe.mask_ratio, noise.to(pixels.device))
        sums[0] += loss.double() * len(pixels)  # as many patches are hidden in each picture
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
    """A few pictures of a split, with the masks that `evaluate` gives them, on this rank alone.

    "image" uint8 (S, S, 3) as the network sees it; "masked" with its hidden patches grey;
    "reconstruction" with those patches as predicted; "attention" float16 (K, S/p, S/p), of the
    class token to each patch in the encoder's last block, by head, nothing hidden.
    """
    model.eval()
    places = spaced(len(source), EXAMPLES)
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
    """The way back from `normalise`, cut off at black and white: uint8 (B, 3, H, W)."""
    mean = torch.tensor(dataset.mean, device=images.device).view(1, -1, 1, 1)
    std = torch.tensor(dataset.std, device=images.device).view(1, -1, 1, 1)
    return ((images * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
