"""One folder for each kind of step: its recipe, its cost, its task.

May import training, checkpoints, models, layers, data and the ground.

    <kind>/recipe.py   the schema: a `Recipe`, named RECIPE; no torch
    <kind>/cost.py     what a run of it costs; no torch
    <kind>/task.py     run(resolved, *, runtime, folder, identity, parent, data_root), which returns
                       the numbers of metrics.json and the details that run.json records

A folder with a recipe is a kind of step: nothing else lists it.
"""

import functools
import importlib
from pathlib import Path
from typing import TYPE_CHECKING

from crate.recipes import Recipe

if TYPE_CHECKING:
    from crate.tasks.cost import KindCost


@functools.cache
def recipe_types() -> dict[str, type[Recipe]]:
    """Kind of step → schema of its recipes."""
    kinds = sorted(path.parent.name for path in Path(__file__).parent.glob("*/recipe.py"))
    return {kind: importlib.import_module(f"crate.tasks.{kind}.recipe").RECIPE for kind in kinds}


def cost_of(kind: str) -> "KindCost":
    """What the runs of a kind of step cost."""
    return importlib.import_module(f"crate.tasks.{kind}.cost").COST
