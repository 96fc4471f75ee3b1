"""Probes of a frozen network's features: logistic regression or weighted nearest neighbours.

The features of a split are computed once and cached beside the network's weights, in
`features-<weights>-<key>.safetensors`, for all probes of that network. The file holds its full key
and a digest of its content; a file that is damaged or has another key is computed again.
"""

import contextlib
import functools
import hashlib
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import safetensors
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crate.data.augment import normalise
from crate.data.catalogue import get_dataset
from crate.data.datasets import ImageSet, odd_count
from crate.data.images import MemoryImages, StreamedImages, open_split
from crate.errors import RunError, Stopped, UsageError, reason_of, unknown
from crate.models.features import image_features
from crate.models.probes import LinearProbe, neighbour_votes
from crate.records import RunFolder, atomic_path, canonical_json, file_sha256, lock, short_hash
from crate.runtime import Runtime, stop_signals
from crate.tasks.base import Resolved
from crate.tasks.frozen import Work, frozen_network, noise_evaluation, precision
from crate.tasks.probe.recipe import Probe
from crate.training.progress import Progress

BATCH = 500  # images at once, at most

Part = tuple[Tensor, Tensor]  # features (n, d) float32 and labels (n,) of a split, on the device


def run(
    resolved: Resolved,
    *,
    runtime: Runtime,
    folder: RunFolder,
    identity: str,
    parent: Path | None,
    data_root: str | Path,
) -> tuple[dict, dict]:
    """Fit a probe to the training split, and score it on the evaluated one; no weights are saved.

    Test images choose nothing: the penalty is chosen on the validation split, by probes fitted to
    the training split without it. If the test split is evaluated, the scored probe is fitted to the
    whole training split, including validation images that were held out of it.

    Args:
        parent: weights of the network; None: as initialised.

    Returns:
        metrics (top-1 and top-5 accuracy in %; chance: % of the most frequent class; linear:
        cross-entropy in nats, and the penalty) and details for run.json.

    Raises:
        UsageError: the data set lacks a split or labels, or there are several processes.
        RunError: features are not finite, a fit does not converge, or weights are of another model.
    """
    recipe, run_, device = resolved.recipe, resolved.run, runtime.device
    dataset = get_dataset(recipe.dataset)
    if runtime.world > 1:
        raise UsageError(f"{run_}: a probe runs in one process, not in {runtime.world}")
    if dataset.scenes:
        raise UsageError(f"{run_}: a probe needs one label a picture; {dataset.title} has scenes")
    splits = recipe.splits(dataset)
    for split in splits:
        if split not in dataset.splits:
            raise unknown("split", split, dataset.splits, f"{run_}: {dataset.title}")
    opened = {"size": recipe.image_size, "runtime": runtime, "data_root": data_root}
    sources = {
        split: open_split(dataset, split, held_out_for="validation", **opened) for split in splits
    }  # open all splits first, so that errors come before hours of work
    network = functools.cache(lambda: frozen_network(resolved, parent, runtime))
    parts: dict[str, Part] = {}
    for split, source in sources.items():
        extract = functools.partial(_extract, network, source, recipe, dataset, f"{run_} ({split})")
        features = _kept(extract, _key(resolved, dataset, split, source, parent), parent)
        parts[split] = (features.to(device), _labels(source).to(device))
    network.cache_clear()  # the fit may need its memory

    train, judged = parts["train"], parts[recipe.evaluate]
    whole = train
    if recipe.evaluate == "test" and dataset.held_out("validation"):
        whole = tuple(map(torch.cat, zip(train, parts["validation"], strict=True)))
    details: dict = {"training_images": len(whole[1])}
    if recipe.evaluate == "test" and (warning := odd_count(dataset, len(whole[1]))):
        print(f"warning: {warning}", file=sys.stderr)
    if recipe.method == "knn":
        votes = neighbour_votes(
            judged[0],
            *whole,
            classes=dataset.classes,
            neighbours=recipe.neighbours,
            temperature=recipe.temperature,
        )
        # classes without votes are no predictions
        return accuracy(votes.masked_fill(votes == 0, -torch.inf), judged[1]), details
    penalty = recipe.penalties[0]
    if len(recipe.penalties) > 1:
        penalty, details["validation_top1"] = choose(
            recipe.penalties, train, parts["validation"], classes=dataset.classes
        )
    probe = LinearProbe(*whole, classes=dataset.classes, penalty=penalty)
    details |= {"gradient": probe.gradient, "iterations": probe.iterations}
    logits = probe.logits(judged[0])
    metrics = accuracy(logits, judged[1])
    metrics["cross_entropy"] = round(F.cross_entropy(logits, judged[1]).item(), 6)
    return metrics | {"penalty": penalty}, details


def choose(
    penalties: list[float], train: Part, validation: Part, *, classes: int
) -> tuple[float, dict[str, float]]:
    """The penalty with the best top-1 on validation features, the largest of equals; all top-1."""
    top1s = {}
    for penalty in sorted(penalties, reverse=True):
        probe = LinearProbe(*train, classes=classes, penalty=penalty)
        top1s[penalty] = accuracy(probe.logits(validation[0]), validation[1])["top1"]
    best = max(top1s, key=top1s.get)  # the first of equals
    return best, {f"{penalty:g}": top1 for penalty, top1 in top1s.items()}


def accuracy(scores: Tensor, labels: Tensor) -> dict:
    """Top-1, top-5 and chance in % of scores (B, C) with labels (B,); −∞ is never right."""
    ranked, classes = scores.topk(min(5, scores.shape[1]), dim=1)
    hits = (classes == labels[:, None]) & (ranked > -torch.inf)
    share = 100 / len(labels)
    return {
        "top1": round(share * hits[:, 0].sum().item(), 6),
        "top5": round(share * hits.any(1).sum().item(), 6),
        "chance": round(share * labels.bincount().max().item(), 6),
        "images": len(labels),
    }


# --- features, once for all probes of a network ------------------------------------------


def _extract(
    network: Callable[[], nn.Module],
    source: MemoryImages | StreamedImages,
    recipe: Probe,
    dataset: ImageSet,
    name: str,
) -> Tensor:
    """Features of all images of a split, in order, not augmented: (n, d) float32 on the CPU."""
    model = network()
    device = next(model.parameters()).device
    progress = Progress(name, total=len(source), unit="images")
    parts, done = [], 0
    batches = source.evaluation(recipe, min(recipe.compute.micro_batch or BATCH, BATCH))
    with torch.inference_mode(), precision(recipe, device), stop_signals() as stop:
        for pixels, _ in batches:
            if stop.asked:
                raise Stopped(
                    f"stopped by {signal.Signals(stop.asked).name} at image {done:,} of "
                    f"{len(source):,}; the next start begins this split again",
                    stop.asked,
                )
            features = image_features(model, normalise(pixels, dataset), recipe.features)
            parts.append(features.float().cpu())
            done += len(pixels)
            progress.update(done, "")
    features = torch.cat(parts)
    if len(features) != len(source):
        lost = len(source) - len(features)
        raise RunError(f"{lost} pictures cannot be read; a probe needs each, to know its label")
    if not features.isfinite().all():
        raise RunError("the network's features are not finite")
    return features


def _labels(source: MemoryImages | StreamedImages) -> Tensor:
    if isinstance(source, MemoryImages):
        return source.labels
    return torch.from_numpy(source.pictures.labels)


def _key(
    resolved: Resolved,
    dataset: ImageSet,
    split: str,
    source: MemoryImages | StreamedImages,
    parent: Path | None,
) -> dict:
    """All that features depend on; the labels' digest stands for the list of images."""
    recipe = resolved.recipe
    return {
        "weights": parent and file_sha256(parent),
        "model": resolved.config["model"],
        "code": resolved.code,
        "data": {"name": dataset.name} | resolved.config["data"],
        "split": split,
        "labels": _digest(_labels(source)),
        "image_size": recipe.image_size,
        "eval_resize": recipe.eval_resize,
        "features": recipe.features,
        "precision": "bfloat16" if recipe.compute.autocast == "bfloat16" else "float32",
    }


def _kept(extract: Callable[[], Tensor], key: dict, parent: Path | None) -> Tensor:
    """Features from the cache beside the parent's weights, computed and cached if needed.

    Without a parent, nothing is cached: no other run uses the same network.
    """
    if parent is None:
        return extract()
    text = canonical_json(key)
    weights = key["weights"][:8]
    path = parent.with_name(f"features-{weights}-{short_hash(text)}.safetensors")
    waiting = f"{path.name}: waiting for another process that computes these features"
    with lock(path.with_name(f".{path.stem}.lock"), waiting):
        for other in path.parent.glob("features-*.safetensors"):  # of weights that were replaced
            if not other.name.startswith(f"features-{weights}-"):
                with contextlib.suppress(OSError):
                    other.unlink()
        if path.exists():
            with _warn_unusable(path):
                return _read(path, text)
        features = extract()
        _write(path, text, features)
    return features


@contextlib.contextmanager
def _warn_unusable(path: Path) -> Iterator[None]:
    """Print errors of reading a cached file, so that its features are computed again."""
    try:
        yield
    except (OSError, KeyError, ValueError, safetensors.SafetensorError) as error:
        reason = reason_of(error)
        print(f"{path}: not used ({reason}); computing the features again", file=sys.stderr)


def _read(path: Path, text: str) -> Tensor:
    """Cached features; raises an error of those that `_warn_unusable` catches."""
    with safetensors.safe_open(path, "pt") as file:
        stated, features = file.metadata() or {}, file.get_tensor("features")
    if stated.get("key") != text:
        raise ValueError("features of something else")
    if stated.get("sha256") != _digest(features):
        raise ValueError("damaged: its content does not match its sha256")
    return features


def _write(path: Path, text: str, features: Tensor) -> None:
    stated = {"key": text, "sha256": _digest(features)}
    with atomic_path(path) as temporary:
        try:
            safetensors.torch.save_file({"features": features}, temporary, metadata=stated)
        except safetensors.SafetensorError as error:  # raised on a full disk
            raise RunError(f"{path}: cannot be written ({error})") from None


def _digest(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.cpu().contiguous().numpy()).hexdigest()


# --- for `crate bench` -----------------------------------------------------------


def evaluation_work(resolved: Resolved, runtime: Runtime) -> tuple[Work, int]:
    """The evaluation of noise images, and a run's batch size."""
    recipe, model = resolved.recipe, frozen_network(resolved, None, runtime)
    look = functools.partial(image_features, model, kind=recipe.features)
    return noise_evaluation(look, recipe, runtime), min(recipe.compute.micro_batch or BATCH, BATCH)
