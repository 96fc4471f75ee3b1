"""The objective of sparse rate reduction by layer, and what tokens are like: an evaluation."""

import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from crate.data.augment import normalise
from crate.data.catalogue import get_dataset
from crate.data.datasets import ImageSet
from crate.data.examples import EXAMPLES, write_examples
from crate.data.images import open_split
from crate.data.sources import open_scenes
from crate.errors import Stopped, UsageError
from crate.models.objective import layer_terms, principal_colours
from crate.records import RunFolder
from crate.runtime import Runtime, stop_signals
from crate.tasks.base import Resolved
from crate.tasks.frozen import Work, look_at_noise, parents_network, precision, spaced
from crate.tasks.layerwise.recipe import Layerwise
from crate.training.progress import Progress

BATCH = 50  # pictures at once, at most
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
    """Measure every layer on a few pictures of each split; no weights are left.

    Args:
        parent: weights to look with; None: as initialised.

    Returns:
        metrics, means over pictures, of the first and the last layer (compression, the official
        helper's, rate and objective in nats of a picture; sparsity and codes: % of entries that are
        not zero; norm: mean length of a token), of the evaluated split and, as train_…, of training
        pictures; how many % of the steps from a layer to the next lower compression and sparsity
        and raise the objective; and details for run.json: "layers", every term by layer with its
        deviation over pictures, and histograms of tokens.

    Raises:
        UsageError: several processes. RunError: tokens that are not finite, weights of another
        model, a picture that cannot be read.
    """
    recipe, run_ = resolved.recipe, resolved.run
    dataset = get_dataset(recipe.dataset)
    if runtime.world > 1:
        raise UsageError(f"{run_}: this is the work of one process, not of {runtime.world}")
    splits = {"evaluated": recipe.evaluate} | ({} if dataset.scenes else {"train": "train"})
    sources = {
        key: _batches(dataset, split, recipe, runtime, data_root) for key, split in splits.items()
    }  # all first: a later one must not fail after hours
    model = parents_network(resolved, parent, runtime)
    layers: dict = {}
    for key, (count, batches) in sources.items():
        found = _measure(model, count, batches, recipe, dataset, f"{run_} ({splits[key]})")
        layers[key] = {
            term: {"mean": _rounded(values.mean(1)), "std": _rounded(values.std(1, correction=0))}
            for term, values in found["terms"].items()
        }
        if key == "evaluated":
            pictures = count
            layers["histograms"] = {
                "norm": _histogram(found["norms"], logarithmic=True),
                "nonzero": _histogram(found["nonzero"], logarithmic=False),
            }
            write_examples(folder.examples, found["examples"])
    return _metrics(layers) | {"pictures": pictures}, {"layers": layers}


def _batches(
    dataset: ImageSet, split: str, recipe: Layerwise, runtime: Runtime, data_root: str | Path
) -> tuple[int, Iterator[Tensor]]:
    """How many pictures are looked at, and their pixels in batches: uint8 (B, C, H, H)."""
    size = min(recipe.compute.micro_batch or BATCH, BATCH)
    if dataset.scenes:
        scenes = open_scenes(dataset, split, data_root)
        chosen = spaced(len(scenes), recipe.pictures).tolist()
        parts = [chosen[start : start + size] for start in range(0, len(chosen), size)]
        return len(chosen), (_squares(scenes, part, recipe.image_size, runtime) for part in parts)
    opened = {"size": recipe.image_size, "runtime": runtime, "data_root": data_root}
    source = open_split(dataset, split, held_out_for=recipe.evaluate, **opened)
    source = source.select(spaced(len(source), recipe.pictures))
    return len(source), (pixels for pixels, _ in source.evaluation(recipe, size))


def _squares(scenes, chosen: list[int], size: int, runtime: Runtime) -> Tensor:
    squares = [
        np.array(scenes.picture(index).resize((size, size), Image.Resampling.BILINEAR))
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
    """Terms by layer and picture {term: (L, n)}, of tokens {norms, nonzero: (L, n N)}, examples."""
    device = next(model.parameters()).device
    progress = Progress(name, total=count, unit="pictures")
    found: dict[str, list[Tensor]] = {}
    shown: list[tuple[Tensor, Tensor]] = []  # pixels and last tokens of the first pictures
    done = 0
    with torch.inference_mode(), precision(recipe, device), stop_signals() as stop:
        for pixels in batches:
            if stop.asked:
                raise Stopped(
                    f"stopped by {signal.Signals(stop.asked).name} at picture {done:,} of "
                    f"{count:,}; the next start begins anew",
                    stop.asked,
                )
            images = normalise(pixels, dataset)
            by_layer: dict[str, list[Tensor]] = {}
            chosen = {"weight": recipe.weight, "epsilon": recipe.epsilon}
            for terms, record in layer_terms(model, images, **chosen):
                tokens = record["output"]
                terms["norm"] = terms["norms"].mean(-1)
                for term, values in terms.items():
                    by_layer.setdefault(term, []).append(values.flatten().cpu())
            for term, values in by_layer.items():
                found.setdefault(term, []).append(torch.stack(values))
            if sum(len(before) for before, _ in shown) < EXAMPLES:
                shown.append((pixels.cpu(), tokens[:, 1:].cpu()))
            done += len(pixels)
            progress.update(done, "")
    whole = {term: torch.cat(parts, dim=1) for term, parts in found.items()}
    pixels, tokens = (torch.cat(parts)[:EXAMPLES] for parts in zip(*shown, strict=True))
    return {
        "terms": {term: whole[term] for term in TERMS if term in whole},
        "norms": whole["norms"],
        "nonzero": whole["nonzero"],
        "examples": _examples(pixels, tokens),
    }


def _examples(pixels: Tensor, tokens: Tensor) -> list[dict]:
    """Pictures (n, C, H, H), and their patch tokens (n, N, d) as colours."""
    side = round(tokens.shape[1] ** 0.5)
    colours = principal_colours(tokens.flatten(0, 1)).view(len(tokens), side, side, 3)
    images = pixels.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy()
    drawn = (255 * colours).round().to(torch.uint8).numpy()
    return [{"image": images[k], "colours": drawn[k]} for k in range(len(images))]


def _histogram(values: Tensor, *, logarithmic: bool) -> dict:
    """Of tokens (L, n): {"edges": BINS + 1 numbers, "counts": L lists of BINS}.

    The bins are the same in all layers: of a share from 0 to 1, or, logarithmic, from the least
    to the largest that is not zero; zeros are in the first.
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
    """Of the means by layer: the first and the last, and which way they go."""
    means = {term: found["mean"] for term, found in layers["evaluated"].items()}
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
    """Looking at pictures of noise, and how many of them a run looks at at once."""
    recipe, model = resolved.recipe, parents_network(resolved, None, runtime)

    def look(images: Tensor) -> None:
        for _ in layer_terms(model, images, weight=recipe.weight, epsilon=recipe.epsilon):
            pass

    return look_at_noise(look, recipe, runtime), min(recipe.compute.micro_batch or BATCH, BATCH)
