"""One folder for each kind of stage: its recipe, its cost, its task.

May import training, checkpoints, models, layers, data and the ground.

    <kind>/recipe.py   the schema: a subclass of `Recipe`, named RECIPE; no torch
    <kind>/cost.py     the cost of a run: a `KindCost`, named COST; no torch
    <kind>/task.py     run(resolved, *, runtime, folder, identity, parent, data_root), which returns
                       the metrics for metrics.json and the details for run.json

A folder with a recipe.py is a kind of stage; no other file lists the kinds.
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
    """Kind of stage (the key `task`) → schema of its recipes."""
    kinds = sorted(path.parent.name for path in Path(__file__).parent.glob("*/recipe.py"))
    return {kind: importlib.import_module(f"crate.tasks.{kind}.recipe").RECIPE for kind in kinds}


def cost_of(kind: str) -> "KindCost":
    """The closed forms of a kind of stage."""
    return importlib.import_module(f"crate.tasks.{kind}.cost").COST
