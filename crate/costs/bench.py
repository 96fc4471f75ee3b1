"""`crate bench`: measures how fast this machine's device does a target's work, for `crate plan`.

Each distinct workload (`crate.costs.cost.workloads`: a model, a kind of stage, sizes) is timed on
random data of the right shapes: whole optimizer updates of one process, or batches of an
evaluation. Reading and augmenting data and communication between processes are not included.
Each measurement is written to results/bench/<device>.json at once, so that an interrupted command
resumes.
"""

import functools
import importlib
import os
import re
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import torch

from crate import runtime
from crate.costs.budget import bench_folder, read_bench, workload_key
from crate.costs.cost import cost, shard_size, workloads
from crate.data.catalogue import get_dataset
from crate.errors import RunError, UsageError, told
from crate.planning.plan import Plan
from crate.planning.settings import Settings
from crate.records import now, write_json
from crate.runtime import Runtime
from crate.tasks import cost_of
from crate.tasks.base import Resolved
from crate.tasks.cost import TrainingCost
from crate.tasks.stage import TrainingStage
from crate.training.loop import spread, update
from crate.training.optim import make_optimizer

Work = Callable[[int], object]  # does the work once, on so many examples

REPEATS = 5  # timed repetitions; their median counts


def bench(
    plan: Plan, target: str, settings: Settings, *, seconds: float = 2.0, again: bool = False
) -> Path:
    """Measure the workloads of a target that are not measured yet; returns the file.

    Args:
        seconds: approximate time of one measurement; a batch that takes longer, or does not fit
            into the device's memory, is made smaller.
        again: repeat all measurements.

    Raises:
        UsageError: the target has nothing to measure, or the device's file was not written by
            `crate bench`.
        RunError: no workload of the target could be measured.
    """
    wanted: dict[str, tuple[dict, Resolved]] = {}
    for run in plan.runs(target, settings):
        resolved = plan.resolve(run)
        for workload in workloads(resolved, cost(plan, run)).values():
            wanted.setdefault(workload_key(workload), (workload, resolved))
    if not wanted:
        raise UsageError(f"{target}: nothing to measure; no run depends on the device's speed")
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    if load > cores:
        print(
            f"warning: this machine is busy (load {load:.1f} on {cores} cores); speeds measured "
            "on a CPU now will be too low",
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
            except (RuntimeError, RunError) as error:  # out of memory, or a missing input
                reason = str(error) if isinstance(error, RunError) else told(error)
                print(f"{what}: not measured ({reason})", file=sys.stderr, flush=True)
                continue
        origin = {"workload": workload, "run": str(resolved.run), "at": now()}
        record |= {key: machine[key] for key in ("device", "device_type", "python", "torch")}
        record["measured"][key] = entry | origin | {"torch": torch.__version__}
        write_json(path, record)
        speed, peak = entry["examples_per_second"], entry["peak_bytes"]
        size = f"batches of {entry['batch']:,}"
        if entry["batch"] < entry["whole_batch"]:
            size += f" instead of {entry['whole_batch']:,}"
        memory = "" if peak is None else f", {peak / 2**30:.2f} GiB"
        unit = examples_of(resolved)
        print(f"{what}: {speed:,.1f} {unit}/s, {size}{memory}", file=sys.stderr, flush=True)
    missing = sum(key not in record["measured"] for key in wanted)
    print(f"{len(wanted) - missing} of {len(wanted)} measured ({known} before): {path}")
    if missing == len(wanted):
        raise RunError(f"{target}: nothing could be measured; the lines above say why")
    scale = "" if "/" in target else f" --scale {settings.scale}"
    print(f"next: crate plan {target}{scale} --device {path.stem}")
    return path


def examples_of(resolved: Resolved) -> str:
    """What speeds count: images, pairs, or sequences of a language model's tokens."""
    dataset = get_dataset(resolved.recipe.dataset)
    return "sequences" if resolved.spec.causal else dataset.unit


def slug(device: str) -> str:
    """A device's name as a file name: "NVIDIA H100 80GB HBM3" → "nvidia-h100-80gb-hbm3"."""
    return re.sub(r"[^a-z0-9]+", "-", re.sub(r"\((r|tm)\)", "", device.lower())).strip("-")


def measure(resolved: Resolved, kind: str, here: Runtime, seconds: float) -> dict:
    """Time one workload: examples/s, batch size, peak bytes of a GPU's memory.

    kind: "train" or "evaluate". The batch is that of one process in the recipe, or the part of it
    that fits into `seconds` and memory. The speed is the median of `REPEATS`, after warm-up runs.
    """
    on_gpu = here.device.type == "cuda"
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(here.device)
    torch.manual_seed(0)
    prepare = training if kind == "train" else evaluation
    work, most = prepare(resolved, here)
    counted = cost_of(resolved.recipe.task)
    forward = 2 * counted.complexity(resolved)[1]
    flops = counted.training_flops(resolved) if kind == "train" else forward

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
    if on_gpu:  # peak memory of these batches, not of one that did not fit
        timed(size)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(here.device)
    times = [timed(size) for _ in range(REPEATS)]
    autocast = kind == "train" or not isinstance(counted, TrainingCost)
    return {
        "examples_per_second": float(f"{size / statistics.median(times):.5g}"),
        "flops": flops,  # of one example, as `crate.costs.cost` counts them
        "batch": size,
        "whole_batch": most,
        "peak_bytes": torch.cuda.max_memory_allocated(here.device) if on_gpu else None,
        "precision": str(here.dtype if autocast else torch.float32).removeprefix("torch."),
        "threads": torch.get_num_threads(),
    }


def training(resolved: Resolved, here: Runtime) -> tuple[Work, int]:
    """A function that makes one update on so many examples, and the batch of one process."""
    recipe, stage = resolved.recipe, _stage(resolved, here)
    model = stage.build().to(here.device)
    optimizer, trained = make_optimizer(model, recipe), spread(model, recipe, here)
    micro = recipe.compute.micro_batch if stage.MICRO_BATCHES else None
    batch = functools.lru_cache(maxsize=1)(functools.partial(stage.random_batch, model))
    model.train()

    def work(size: int) -> None:
        update(trained, optimizer, stage.loss, batch(size), micro, recipe, here)

    return work, shard_size(recipe)


def evaluation(resolved: Resolved, here: Runtime) -> tuple[Work, int]:
    """A function that evaluates so many examples, and the task's batch size."""
    task = _task(resolved)
    if hasattr(task, "evaluation_work"):
        return task.evaluation_work(resolved, here)
    stage = _stage(resolved, here)
    model = stage.build().to(here.device).eval()
    batch = functools.lru_cache(maxsize=1)(functools.partial(stage.random_batch, model))

    def work(size: int) -> None:
        with torch.inference_mode():
            stage.evaluate_batch(model, batch(size))

    return work, stage.evaluation_batch(model)


def _task(resolved: Resolved) -> ModuleType:
    return importlib.import_module(f"crate.tasks.{resolved.recipe.task}.task")


def _stage(resolved: Resolved, here: Runtime) -> TrainingStage:
    return _task(resolved).STAGE(resolved, here, data_root="")
