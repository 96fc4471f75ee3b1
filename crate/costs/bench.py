"""The speed of a target's work on the device at hand, measured for `crate plan`.

Each distinct workload (`crate.costs.cost.workloads`: a model, a kind of step, sizes) is timed on
random data of the right shapes: whole updates of one process, as training makes them, or batches
of an evaluation. Reading and augmenting data, and what several processes tell each other, is not
in it.
What is measured stands in results/bench/<device>.json as soon as it is, so that an interrupted
command goes on where it stood.
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
from crate.errors import RunError, UsageError
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

Work = Callable[[int], object]  # does it once, with so many examples

REPEATS = 5  # timed, of which the median counts


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
    if on_gpu:  # the peak of these batches, not of one that did not fit
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
    """A function that makes one update of so many examples, and how many one process has."""
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
    """A function that looks at so many examples, and how many of them the task takes at once."""
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
