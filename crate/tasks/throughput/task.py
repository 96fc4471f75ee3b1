"""The speed of a published model's forward pass on this machine's device; nothing is trained."""

import time
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from crate.data.catalogue import get_dataset
from crate.models.build import build
from crate.records import RunFolder
from crate.runtime import Runtime
from crate.tasks.base import Resolved


def run(
    resolved: Resolved,
    *,
    runtime: Runtime,
    folder: RunFolder,
    identity: str,
    parent: Path | None,
    data_root: Path,
) -> tuple[dict, dict]:
    """Time one model with normally distributed weights and images.

    Returns:
        metrics (images a second in the run's precision, the median over batches; FLOPs of one
        image's forward pass by torch's counter, a multiply-accumulate being two; parameters) and
        details (images a batch, batches timed, peak bytes of a GPU's memory).
    """
    recipe, device = resolved.recipe, runtime.device
    shape = {"image_size": recipe.image_size, "num_classes": get_dataset(recipe.dataset).classes}
    with torch.device("meta"):
        model = build(resolved.spec, **shape).eval()
    flops = count_flops(model, recipe.image_size)
    # any dense values will do; the published initialisation of a large model would take longest
    model.to_empty(device=device)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.02)
    batch = recipe.batch_size if device.type == "cuda" else 1
    images = torch.randn(batch, 3, recipe.image_size, recipe.image_size, device=device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)

    def forward() -> float:
        began = time.perf_counter()
        with torch.inference_mode(), runtime.autocast():
            model(images)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - began

    began, took = time.perf_counter(), []
    while not took or time.perf_counter() - began < recipe.seconds:
        took.append(forward())
    timed = took[1:] or took  # the first batch is a warm-up
    median = sorted(timed)[len(timed) // 2]
    details = {"batch": batch, "batches": len(timed)}
    if device.type == "cuda":
        details["peak_bytes"] = torch.cuda.max_memory_allocated(device)
    return {
        "images_per_second": round(batch / median, 4),
        "flops": flops,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }, details


def count_flops(model: torch.nn.Module, image_size: int) -> int:
    """FLOPs of one image's forward pass by torch's counter; the model is on the meta device."""
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.empty(1, 3, image_size, image_size))
    return counter.get_total_flops()
