"""Measures sparse rate reduction by layer, and the norms and non-zeros of tokens."""

import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from crate.data.augment import RESAMPLING, normalise
from crate.data.catalogue import get_dataset
from crate.data.datasets import ImageSet
from crate.data.examples import EXAMPLES, write_examples
from crate.data.images import open_split
from crate.data.sources import open_scenes
from crate.errors import Stopped, UsageError
from crate.models.features import patch_features
from crate.models.objective import layer_terms, principal_colours
from crate.records import RunFolder
from crate.runtime import Runtime, stop_signals
from crate.tasks.base import Resolved
from crate.tasks.frozen import Work, evenly_spaced, frozen_network, noise_evaluation, precision
from crate.tasks.layerwise.recipe import Layerwise
from crate.training.progress import Progress

BATCH = 50  # images at once, at most
BINS = 20  # of a histogram
TERMS = ("compression", "official", "rate", "sparsity", "codes", "objective", "norm")


def run(
    resolved: Resolved,
    *,
    runtime: Runtime,
    folder: RunFolder,
    identity: str,
    parent: Path | None,
    data_root: str | Path,
) -> tuple[dict, dict]:
    """Measure every layer on a few images of each split; no weights are saved.

    Args:
        parent: weights of the network; None: as initialised.

    Returns:
        metrics, means over images, of the first and the last layer (compression, official, rate and
        objective in nats an image; sparsity and codes in % of entries that are not zero; norm: mean
        length of a token), for the evaluated split and, as train_…, for training images; the % of
        layers after the first that lower compression and sparsity and raise the objective; and
        details for run.json: "layers", every term by layer with its standard deviation over images,
        and histograms of tokens.

    Raises:
        UsageError: several processes.
        RunError: tokens are not finite, weights are of another model, or an image cannot be read.
    """
    recipe, run_ = resolved.recipe, resolved.run
    dataset = get_dataset(recipe.dataset)
    if runtime.world > 1:
        raise UsageError(f"{run_}: this stage runs in one process, not in {runtime.world}")
    splits = {"evaluated": recipe.evaluate} | ({} if dataset.scenes else {"train": "train"})
    sources = {
        key: _batches(dataset, split, recipe, runtime, data_root) for key, split in splits.items()
    }  # open all splits first, so that errors come before hours of work
    model = frozen_network(resolved, parent, runtime)
    layers: dict = {}
    for key, (count, batches) in sources.items():
        measured = _measure(model, count, batches, recipe, dataset, f"{run_} ({splits[key]})")
        layers[key] = {
            term: {"mean": _rounded(values.mean(1)), "std": _rounded(values.std(1, correction=0))}
            for term, values in measured["terms"].items()
        }
        if key == "evaluated":
            pictures = count
            layers["histograms"] = {
                "norm": _histogram(measured["norms"], logarithmic=True),
                "nonzero": _histogram(measured["nonzero"], logarithmic=False),
            }
            write_examples(folder.examples, measured["examples"])
    return _metrics(layers) | {"pictures": pictures}, {"layers": layers}


def _batches(
    dataset: ImageSet, split: str, recipe: Layerwise, runtime: Runtime, data_root: str | Path
) -> tuple[int, Iterator[Tensor]]:
    """The number of images to measure, and their pixels in batches: uint8 (B, C, H, H)."""
    size = min(recipe.compute.micro_batch or BATCH, BATCH)
    if dataset.scenes:
        scenes = open_scenes(dataset, split, data_root)
        chosen = evenly_spaced(len(scenes), recipe.pictures).tolist()
        parts = [chosen[start : start + size] for start in range(0, len(chosen), size)]
        return len(chosen), (_squares(scenes, part, recipe, runtime) for part in parts)
    opened = {"size": recipe.image_size, "runtime": runtime, "data_root": data_root}
    source = open_split(dataset, split, held_out_for=recipe.evaluate, **opened)
    source = source.select(evenly_spaced(len(source), recipe.pictures))
    return len(source), (pixels for pixels, _ in source.evaluation(recipe, size))


def _squares(scenes, chosen: list[int], recipe: Layerwise, runtime: Runtime) -> Tensor:
    size = recipe.image_size
    squares = [
        np.array(scenes.picture(index).resize((size, size), RESAMPLING[recipe.interpolation]))
        for index in chosen
    ]
    return torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2).to(runtime.device)


def _measure(
    model: nn.Module,
    count: int,
    batches: Iterator[Tensor],
    recipe: Layerwise,
    dataset: ImageSet,
    name: str,
) -> dict:
    """ "terms" {name: (L, n)} of n images; "norms" and "nonzero" (L, n N) of tokens; "examples"."""
    device = next(model.parameters()).device
    progress = Progress(name, total=count, unit="pictures")
    collected: dict[str, list[Tensor]] = {}
    shown: list[tuple[Tensor, Tensor]] = []  # pixels and last layer's keys of the first images
    done = 0
    with torch.inference_mode(), precision(recipe, device), stop_signals() as stop:
        for pixels in batches:
            if stop.asked:
                raise Stopped(
                    f"stopped by {signal.Signals(stop.asked).name} at picture {done:,} of "
                    f"{count:,}; the next start begins again at the first",
                    stop.asked,
                )
            images = normalise(pixels, dataset)
            by_layer: dict[str, list[Tensor]] = {}
            chosen = {"weight": recipe.weight, "epsilon": recipe.epsilon}
            for terms, _ in layer_terms(model, images, **chosen):
                terms["norm"] = terms["norms"].mean(-1)
                for term, values in terms.items():
                    by_layer.setdefault(term, []).append(values.flatten().cpu())
            for term, values in by_layer.items():
                collected.setdefault(term, []).append(torch.stack(values))
            if sum(len(before) for before, _ in shown) < EXAMPLES:
                keys = patch_features(model, images, len(model.blocks) - 1, "key")
                shown.append((pixels.cpu(), keys.cpu()))
            done += len(pixels)
            progress.update(done, "")
    whole = {term: torch.cat(parts, dim=1) for term, parts in collected.items()}
    pixels, keys = (torch.cat(parts)[:EXAMPLES] for parts in zip(*shown, strict=True))
    return {
        "terms": {term: whole[term] for term in TERMS if term in whole},
        "norms": whole["norms"],
        "nonzero": whole["nonzero"],
        "examples": _examples(pixels, keys),
    }


def _examples(pixels: Tensor, keys: Tensor) -> list[dict]:
    """Images (n, C, H, H), and the keys of their patches (n, N, d) as colours."""
    side = round(keys.shape[1] ** 0.5)
    colours = principal_colours(keys).view(len(keys), side, side, 3)
    images = pixels.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy()
    drawn = (255 * colours).round().to(torch.uint8).numpy()
    return [{"image": images[k], "colours": drawn[k]} for k in range(len(images))]


def _histogram(values: Tensor, *, logarithmic: bool) -> dict:
    """The histogram of values (L, n): {"edges": BINS + 1 numbers, "counts": L lists of BINS}.

    All layers have the same bins: from 0 to 1, or, logarithmic, from the least to the largest
    positive value, with zeros in the first bin.
    """
    edges = np.linspace(0, 1, BINS + 1)
    values = values.numpy()
    if logarithmic:
        positive = values[values > 0]
        low, high = (positive.min(), positive.max()) if len(positive) else (0.5, 2.0)
        if low == high:
            low, high = low / 2, high * 2
        edges = np.geomspace(low, high, BINS + 1)
    inside = values.clip(edges[0], edges[-1])
    counts = [np.histogram(layer, edges)[0].tolist() for layer in inside]
    return {"edges": [float(f"{edge:.6g}") for edge in edges], "counts": counts}


def _rounded(values: Tensor) -> list[float]:
    return [float(f"{value:.9g}") for value in values.tolist()]


def _metrics(layers: dict) -> dict:
    """The means of the first and the last layer, and the share of layers that improve a term."""
    means = {term: values["mean"] for term, values in layers["evaluated"].items()}
    factors = {"sparsity": 100, "codes": 100}  # shares as %
    metrics = {}
    for term, values in means.items():
        for place, value in (("first", values[0]), ("last", values[-1])):
            metrics[f"{term}_{place}"] = round(factors.get(term, 1) * value, 6)
    for term, way, name in (
        ("compression", -1, "compression_falls"),
        ("sparsity", -1, "sparsity_falls"),
        ("objective", 1, "objective_rises"),
    ):
        moves = np.diff(means[term])
        metrics[name] = round(100 * float(np.mean(way * moves > 0)), 6) if len(moves) else 0.0
    for term in ("compression", "sparsity", "objective") if "train" in layers else ():
        value = layers["train"][term]["mean"][-1]
        metrics[f"train_{term}_last"] = round(factors.get(term, 1) * value, 6)
    return metrics


# --- for `crate bench` -----------------------------------------------------------


def evaluation_work(resolved: Resolved, runtime: Runtime) -> tuple[Work, int]:
    """The evaluation of noise images, and a run's batch size."""
    recipe, model = resolved.recipe, frozen_network(resolved, None, runtime)

    def look(images: Tensor) -> None:
        for _ in layer_terms(model, images, weight=recipe.weight, epsilon=recipe.epsilon):
            pass

    return noise_evaluation(look, recipe, runtime), min(recipe.compute.micro_batch or BATCH, BATCH)
