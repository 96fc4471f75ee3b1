"""The speed of a target's work on the device at hand, measured for `crate plan`.

Each distinct workload (`crate.costs.cost.workloads`: a model, a kind of step, sizes) is timed on
random data of the right shapes: whole updates of one process, as training makes them, or batches
of an evaluation. Reading and augmenting data, and what several processes tell each other, is not
in it.
What is measured stands in results/bench/<device>.json as soon as it is, so that an interrupted
command goes on where it stood.
"""

import functools
import os
import re
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from crate import runtime
from crate.costs.budget import bench_folder, read_bench, workload_key
from crate.costs.cost import PICTURE, complexity_of, cost, share_of, training_flops, workloads
from crate.data.captions import VOCABULARIES
from crate.data.catalogue import get_dataset
from crate.data.tokenizer import get_tokenizer
from crate.errors import RunError, UsageError
from crate.models.build import build, build_autoencoder, build_contrastive, build_language
from crate.models.features import image_features, parents_network, precision
from crate.planning.plan import Plan
from crate.planning.settings import Settings
from crate.records import now, write_json
from crate.runtime import Runtime
from crate.tasks.attention_segmentation.recipe import AttentionSegmentation
from crate.tasks.autoencoding.recipe import Autoencoding
from crate.tasks.base import Resolved
from crate.tasks.classification.recipe import Classification
from crate.tasks.classification.task import EVALUATION_BATCH
from crate.tasks.contrastive.recipe import Contrastive
from crate.tasks.layerwise.recipe import Layerwise
from crate.tasks.objects.recipe import Objects
from crate.tasks.probe.recipe import Probe
from crate.tasks.segmentation.recipe import Segmentation
from crate.tasks.zeroshot.recipe import ZeroShot
from crate.training.loop import spread, update
from crate.training.optim import make_optimizer

Batch = tuple[Tensor, ...]
Work = Callable[[int], object]  # does it once, with so many examples

REPEATS = 5  # timed, of which the median counts
LOOKS = Objects | AttentionSegmentation | Probe | ZeroShot | Layerwise  # at a frozen network


def bench(
    plan: Plan, target: str, settings: Settings, *, seconds: float = 2.0, again: bool = False
) -> Path:
    """Measure what of a target is not measured yet; returns the file.

    Args:
        seconds: of one measurement, about; a batch that takes longer is made smaller, and so is one
            that the device's memory does not hold.
        again: measure all anew.

    Raises:
        UsageError: the device's file is none of `crate bench`.
        RunError: nothing of the target could be measured.
    """
    wanted: dict[str, tuple[dict, Resolved]] = {}
    for run in plan.runs(target, settings):
        resolved = plan.resolve(run)
        for workload in workloads(resolved, cost(plan, run)).values():
            wanted.setdefault(workload_key(workload), (workload, resolved))
    if not wanted:
        raise UsageError(f"{target}: nothing of it depends on the speed of a device")
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    if load > cores:
        print(
            f"warning: others keep this machine busy (a load of {load:.1f} on {cores} cores); what "
            "is measured on a CPU now will be too slow",
            file=sys.stderr,
        )
    path, record, known = None, {}, 0
    for place, (key, (workload, resolved)) in enumerate(wanted.items(), start=1):
        with runtime.start(resolved.recipe.compute) as here:
            machine = here.describe()
            path = bench_folder(settings.results) / f"{slug(machine['device'])}.json"
            record = read_bench(path) if path.is_file() else {"measured": {}}
            if not again and record["measured"].get(key, {}).get("torch") == torch.__version__:
                known += 1
                continue
            what = f"[{place}/{len(wanted)}] {resolved.run}, {workload['kind']}"
            try:
                entry = measure(resolved, workload["kind"], here, seconds)
            except (RuntimeError, RunError) as error:  # no memory for it; an input that is not here
                reason = str(error).strip().splitlines()[0]
                print(f"{what}: not measured ({reason})", file=sys.stderr, flush=True)
                continue
        about = {"workload": workload, "run": str(resolved.run), "at": now()}
        record |= {key: machine[key] for key in ("device", "device_type", "python", "torch")}
        record["measured"][key] = entry | about | {"torch": torch.__version__}
        write_json(path, record)
        speed, peak = entry["examples_per_second"], entry["peak_bytes"]
        size = f"batches of {entry['batch']:,}"
        if entry["batch"] < entry["whole_batch"]:
            size += f" in place of {entry['whole_batch']:,}"
        memory = "" if peak is None else f", {peak / 2**30:.2f} GiB"
        print(f"{what}: {speed:,.1f}/s, {size}{memory}", file=sys.stderr, flush=True)
    missing = sum(key not in record["measured"] for key in wanted)
    print(f"{len(wanted) - missing} of {len(wanted)} measured ({known} before): {path}")
    if missing == len(wanted):
        raise RunError(f"{target}: nothing could be measured")
    scale = "" if "/" in target else f" --scale {settings.scale}"
    print(f"next: crate plan {target}{scale} --device {path.stem}")
    return path


def slug(device: str) -> str:
    """A device's name as a file's: "NVIDIA H100 80GB HBM3" → "nvidia-h100-80gb-hbm3"."""
    return re.sub(r"[^a-z0-9]+", "-", re.sub(r"\((r|tm)\)", "", device.lower())).strip("-")


def measure(resolved: Resolved, kind: str, here: Runtime, seconds: float) -> dict:
    """Time one workload, `kind` "train" or "evaluate": speed, batch, a GPU's memory.

    The batch is the recipe's for one process, or as much of it as fits into time and memory; the
    speed that of the median of `REPEATS`, after others that also choose kernels.
    """
    on_gpu = here.device.type == "cuda"
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(here.device)
    torch.manual_seed(0)
    prepare = training if kind == "train" else evaluation
    work, most = prepare(resolved, here)
    flops = training_flops(resolved) if kind == "train" else 2.0 * complexity_of(resolved)[1]

    def timed(size: int) -> float:
        began = time.perf_counter()
        work(size)
        if on_gpu:
            torch.cuda.synchronize(here.device)
        return time.perf_counter() - began

    size = min(2, most)  # BatchNorm needs two
    took = min(timed(size), timed(size))
    while size < most and 2 * took * REPEATS < seconds:
        larger = min(2 * size, most)
        try:
            took = min(timed(larger), timed(larger))
        except torch.OutOfMemoryError:
            break
        size = larger
    if on_gpu:  # the peak of these batches, not of one that did not fit
        timed(size)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(here.device)
    times = [timed(size) for _ in range(REPEATS)]
    autocast = kind == "train" or isinstance(resolved.recipe, LOOKS)
    return {
        "examples_per_second": float(f"{size / statistics.median(times):.5g}"),
        "flops": flops,  # of one example, as `crate.costs.cost` counts them
        "batch": size,
        "whole_batch": most,
        "peak_bytes": torch.cuda.max_memory_allocated(here.device) if on_gpu else None,
        "precision": str(here.dtype if autocast else torch.float32).removeprefix("torch."),
        "threads": torch.get_num_threads(),
    }


# --- training: a network, its loss, and batches of random data ---------------------------------


def training(resolved: Resolved, here: Runtime) -> tuple[Work, int]:
    """A function that makes one update of so many examples, and how many one process has."""
    recipe = resolved.recipe
    model, loss, batch, in_parts = _parts(resolved, here)
    model.to(here.device).train()
    optimizer, trained = make_optimizer(model, recipe), spread(model, recipe, here)
    micro = recipe.compute.micro_batch if in_parts else None
    batch = functools.lru_cache(maxsize=1)(batch)

    def work(size: int) -> None:
        update(trained, optimizer, loss, batch(size), micro, recipe, here)

    return work, share_of(recipe)


def _parts(resolved: Resolved, here: Runtime) -> tuple[nn.Module, Callable, Callable, bool]:
    """Of a kind of step: network, loss of a batch, random batch, and whether parts are averaged."""
    recipe, spec, device = resolved.recipe, resolved.spec, here.device
    dataset = get_dataset(recipe.dataset)
    size = {"image_size": getattr(recipe, "image_size", 0)}

    def images(count: int) -> Tensor:
        return torch.randn(count, 3, recipe.image_size, recipe.image_size, device=device)

    if isinstance(recipe, Classification):
        classes = dataset.classes
        model = build(spec, **size, num_classes=classes, drop_path=recipe.drop_path)

        def labels(count: int) -> Tensor:
            chosen = torch.randint(classes, (count,), device=device)
            return F.one_hot(chosen, classes).float() if recipe.mixup or recipe.cutmix else chosen

        def loss(network: nn.Module, batch: Batch) -> Tensor:
            smoothing = recipe.label_smoothing
            return F.cross_entropy(network(batch[0]).float(), batch[1], label_smoothing=smoothing)

        return model, loss, lambda count: (images(count), labels(count)), True
    if isinstance(recipe, Autoencoding):
        from crate.tasks.autoencoding.task import hidden_loss, patches_of

        model = build_autoencoder(
            spec, **size, normalise_patches=recipe.normalise_patches, drop_path=recipe.drop_path
        )

        def masked(count: int) -> Batch:
            return images(count), torch.rand(count, patches_of(model), device=device)

        return model, functools.partial(hidden_loss, recipe=recipe), masked, True
    if isinstance(recipe, Contrastive):
        from crate.tasks.contrastive.task import clip_loss, matching_loss

        vocabulary, length = VOCABULARIES[recipe.tokenizer], recipe.context_length
        model = build_contrastive(
            spec,
            **size,
            vocab_size=vocabulary,
            context_length=length,
            drop_path=recipe.drop_path,
        )
        if recipe.freeze_text:
            model.freeze_text()
        whole = {"clip_loss": clip_loss(here), "micro": recipe.compute.micro_batch}

        def pairs(count: int) -> Batch:
            return images(count), torch.randint(1, vocabulary, (count, length), device=device)

        return model, functools.partial(matching_loss, **whole), pairs, False
    if isinstance(recipe, Segmentation):
        from crate.models.segmenter import build_segmenter
        from crate.tasks.segmentation.task import segmentation_loss

        model, _ = build_segmenter(spec, recipe, dataset.classes, None)

        def scenes(count: int) -> Batch:
            shape = (count, recipe.image_size, recipe.image_size)
            return images(count), torch.randint(dataset.classes, shape, device=device)

        return (
            model,
            lambda network, batch: segmentation_loss(network(batch[0]), batch[1], recipe.auxiliary),
            scenes,
            True,
        )
    from crate.tasks.language.task import next_token_loss

    vocabulary = get_tokenizer(dataset.tokenizer).vocab_size
    shape = {"vocab_size": vocabulary, "block_size": recipe.block_size}
    model = build_language(spec, **shape, drop_path=recipe.drop_path)

    def windows(count: int) -> Batch:
        ids = torch.randint(vocabulary, (count, recipe.block_size + 1), device=device)
        return ids[:, :-1], ids[:, 1:]

    return model, next_token_loss, windows, True


# --- evaluation -----------------------------------------------------------


def evaluation(resolved: Resolved, here: Runtime) -> tuple[Work, int]:
    """A function that looks at so many examples, and how many of them the task takes at once."""
    recipe, dataset, device = resolved.recipe, get_dataset(resolved.recipe.dataset), here.device
    micro = recipe.compute.micro_batch
    if isinstance(recipe, Objects | AttentionSegmentation):
        model = parents_network(resolved, None, here)
        shape = (recipe.image_size, recipe.image_size) if dataset.embedded else PICTURE
        picture = Image.effect_noise((16, 12), 100).convert("RGB").resize(shape)
        if isinstance(recipe, Objects):
            from crate.tasks.objects import crf
            from crate.tasks.objects.task import find

            refine = recipe.crf and crf.available()
            return lambda _: find(model, picture, recipe, dataset, refine=refine), 1
        from crate.tasks.attention_segmentation.task import attention, attention_masks

        return lambda _: attention_masks(attention(model, picture, recipe, dataset), recipe.mass), 1

    if isinstance(recipe, Probe | ZeroShot | Layerwise):
        most = min(micro or EVALUATION_BATCH, EVALUATION_BATCH)
        if isinstance(recipe, Probe):
            model = parents_network(resolved, None, here)
            answer = functools.partial(image_features, model, kind=recipe.features)
        elif isinstance(recipe, Layerwise):
            from crate.models.objective import layer_terms
            from crate.tasks.layerwise.task import BATCH

            model, most = parents_network(resolved, None, here), min(most, BATCH)
            sizes = {"weight": recipe.weight, "epsilon": recipe.epsilon}

            def answer(images: Tensor) -> None:
                for _ in layer_terms(model, images, **sizes):
                    pass
        else:
            model = build_contrastive(
                resolved.spec,
                image_size=recipe.image_size,
                vocab_size=VOCABULARIES[recipe.tokenizer],
                context_length=recipe.context_length,
            ).to(device)
            answer = model.encode_image

        def look(images: Tensor) -> None:
            with precision(recipe, device):
                answer(images)

        shape = (3, recipe.image_size, recipe.image_size)
        batch = functools.lru_cache(maxsize=1)(lambda n: (torch.randn(n, *shape, device=device),))
    else:
        model, _, batch, _ = _parts(resolved, here)
        model.to(device)
        batch = functools.lru_cache(maxsize=1)(batch)
        look, most = _forward(model, resolved, micro)
    model.eval()

    def work(size: int) -> None:
        with torch.inference_mode():
            look(*batch(size))

    return work, most


def _forward(model: nn.Module, resolved: Resolved, micro: int | None) -> tuple[Callable, int]:
    """What the evaluation of a trained kind of step does with a batch, and of how many examples."""
    recipe = resolved.recipe
    most = min(micro or EVALUATION_BATCH, EVALUATION_BATCH)
    if isinstance(recipe, Classification):
        return lambda images, _: model(images), most
    if isinstance(recipe, Autoencoding):
        return lambda images, noise: model(images, recipe.mask_ratio, noise), most
    if isinstance(recipe, Contrastive):
        most = min(micro or recipe.evaluation_batch, recipe.evaluation_batch)
        return lambda images, ids: (model.encode_image(images), model.encode_text(ids)), most
    if isinstance(recipe, Segmentation):
        from crate.tasks.segmentation.task import EVALUATION_LOGITS, EVALUATION_WINDOWS

        logits = get_dataset(recipe.dataset).classes * recipe.image_size**2
        most = micro or min(max(1, EVALUATION_LOGITS // logits), EVALUATION_WINDOWS)
        return lambda images, _: model(images), most
    from crate.tasks.language.task import EVALUATION_LOGITS

    logits = recipe.block_size * model.token_embedding.num_embeddings
    most = micro or max(1, EVALUATION_LOGITS // logits)
    return lambda ids, targets: F.cross_entropy(model(ids).flatten(0, 1), targets.flatten()), most
