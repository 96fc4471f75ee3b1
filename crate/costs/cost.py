"""What a run costs: parameters and FLOPs are counted, disk is estimated. No torch.

Each kind of stage has its own closed forms (`tasks/<kind>/cost.py`). `workloads` lists the settings
that decide a run's speed on a device: `crate bench` measures each distinct workload, and `crate
plan` (budget.py) uses the measured speeds.
"""

from crate.data.catalogue import get_dataset
from crate.data.datasets import TextSet
from crate.planning.plan import Plan
from crate.recipes import Training
from crate.runs import Run
from crate.tasks import cost_of
from crate.tasks.base import Resolved
from crate.tasks.cost import Cost

# Peak dense bfloat16 TFLOP/s of one device, from the makers' data sheets (A6000: NVIDIA RTX A6000,
# the device of CRATE-alpha's Table 8; V100: float16).
DEVICES = {"a100": 312.0, "h100": 989.0, "h200": 989.0, "a6000": 154.8, "v100": 125.0}
# Maximum power of a board in watts, from the same data sheets (A100, H100, H200, V100: the SXM
# boards, A100 with 80 GB). Hosts, cooling and networks are not included.
BOARD_WATTS = {"a100": 400, "h100": 700, "h200": 700, "a6000": 300, "v100": 300}
UTILISATION = 0.35  # assumed share of the peak that training reaches; an estimate


def cost(plan: Plan, run: Run, overrides: dict | None = None) -> Cost:
    """Cost of one run, without the work that `not_counted` names; 0 for controls."""
    resolved = plan.resolve(run, overrides)
    recipes = [resolved.recipe, *(plan.resolve(before).recipe for before in run.ancestors)]
    if any(getattr(recipe, "predictor", "model") != "model" for recipe in recipes):
        return Cost(0, 0, train_flops=0.0, eval_flops=0.0, disk_bytes=0)  # a control: no network
    return cost_of(resolved.recipe.task).cost(resolved)


def not_counted(resolved: Resolved) -> str:
    """The work of a run that has no closed form, in words; "" if all is counted."""
    return cost_of(resolved.recipe.task).not_counted(resolved)


def workloads(resolved: Resolved, price: Cost) -> dict[str, dict]:
    """Kind of work, "train" or "evaluate" → the settings that decide its speed.

    Runs with equal workloads are equally fast on a device, whatever their seed, data or schedule.
    """
    recipe, dataset = resolved.recipe, get_dataset(resolved.recipe.dataset)
    compute, counted = recipe.compute, cost_of(recipe.task)
    settings = recipe.model_dump(mode="json")
    forward = {
        "model": resolved.config["model"],
        "task": recipe.task,
        "outputs": dataset.tokenizer
        if isinstance(dataset, TextSet)
        else getattr(dataset, "classes", 0),
        "threads": compute.threads,
        "autocast": compute.autocast,
        "micro_batch": compute.micro_batch,
    } | {key: settings[key] for key in counted.FORWARD}
    by_kind = {}
    if price.examples:
        update = {key: settings[key] for key in counted.TRAINING}
        update |= {"batch": shard_size(recipe), "compile": compute.compile}
        by_kind["train"] = {"kind": "train"} | forward | update
    if price.evaluated:
        by_kind["evaluate"] = {"kind": "evaluate"} | forward
    return by_kind


def shard_size(recipe: Training) -> int:
    """Examples of one process in a batch (its shard); at least one."""
    return max(1, recipe.batch_size // (recipe.compute.nodes * recipe.compute.processes_per_node))
