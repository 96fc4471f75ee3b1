"""Kinds of step: what a folder holds, and that one more folder is all that a new kind takes."""

import importlib
import inspect
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from crate.data.stand_ins import load
from crate.recipes import Recipe, Training
from crate.tasks import cost_of, recipe_types
from crate.tasks.cost import KindCost, TrainingCost
from crate.tasks.stage import TrainingStage

ROOT = Path(__file__).parents[2]
KINDS = sorted(
    path.name for path in (ROOT / "crate/tasks").iterdir() if (path / "task.py").exists()
)


def test_each_folder_is_a_kind_of_step():
    assert sorted(recipe_types()) == KINDS
    assert len(KINDS) >= 14


@pytest.mark.parametrize("kind", KINDS)
def test_recipe_cost_and_task_of_a_kind_fit_together(kind):
    recipe, cost = recipe_types()[kind], cost_of(kind)
    task = importlib.import_module(f"crate.tasks.{kind}.task")
    assert issubclass(recipe, Recipe)
    assert recipe.model_fields["task"].default == kind
    assert recipe.METRICS
    assert isinstance(cost, KindCost)
    if recipe.READS_DATA:  # what decides its speed is read off the recipe
        assert {*cost.FORWARD, *cost.TRAINING} <= set(recipe.model_fields)
    given, *named = inspect.signature(task.run).parameters
    assert given == "resolved"
    assert named == ["runtime", "folder", "identity", "parent", "data_root"]
    trains = issubclass(recipe, Training) and not recipe.TIMED  # not: measures its speed
    assert isinstance(cost, TrainingCost) == trains == hasattr(task, "STAGE")
    if trains:
        assert issubclass(task.STAGE, TrainingStage)
        assert not inspect.isabstract(task.STAGE)
        assert task.STAGE.COST is cost
        assert set(task.STAGE.WATCHED) <= set(recipe.METRICS)


# --- one more kind: a folder, a step, a table -----------------------------------------------

FOLDER = {
    "recipe.py": '''
"""The recipe of measuring how bright pictures are."""

from typing import Literal

from crate.recipes import ImageRecipe


class Brightness(ImageRecipe):
    """Mean value of all pixels of a split."""

    METRICS = ("brightness", "images")

    task: Literal["brightness"] = "brightness"


RECIPE = Brightness
''',
    "cost.py": '''
"""The cost of brightness: pictures are looked at, and no network."""

from crate.tasks.cost import KindCost


class BrightnessCost(KindCost):
    def complexity(self, resolved):
        return 0, 1_000


COST = BrightnessCost()
''',
    "task.py": '''
"""The brightness of pictures."""

from crate.data.catalogue import get_dataset
from crate.data.images import open_split


def run(resolved, *, runtime, folder, identity, parent, data_root):
    recipe = resolved.recipe
    pictures = open_split(
        get_dataset(recipe.dataset),
        recipe.evaluate,
        size=recipe.image_size,
        runtime=runtime,
        data_root=data_root,
    )
    means = [p.double().mean((1, 2, 3)) for p, _ in pictures.evaluation(recipe, 100)]
    total = sum(float(mean.sum()) for mean in means)
    return {"brightness": round(total / len(pictures), 6), "images": len(pictures)}, {}
''',
}
STEP = {"task": "brightness", "dataset": "imagenet1k", "follows": ["start"]}
TABLE = {
    "title": "Brightness",
    "source": "none",
    "columns": {"test": {"label": "mean", "metric": "brightness", "chain": "imagenet1k_bright"}},
    "rows": [{"label": "any model", "model": "vit_tiny_patch16"}],
}


def test_a_kind_of_step_is_one_folder_and_a_table_one_file(folder, tmp_path):
    package = tmp_path / "package"
    shutil.copytree(ROOT / "crate", package / "crate", ignore=shutil.ignore_patterns("__pycache__"))
    kind = package / "crate" / "tasks" / "brightness"
    kind.mkdir()
    for name, text in ({"__init__.py": ""} | FOLDER).items():
        (kind / name).write_text(text.lstrip())
    (folder / "steps" / "imagenet1k_bright.yaml").write_text(yaml.safe_dump(STEP))
    (folder / "tables" / "brightness.yaml").write_text(yaml.safe_dump(TABLE))

    def crate(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "crate", *words],
            env=os.environ | {"PYTHONPATH": str(package), "CUDA_VISIBLE_DEVICES": ""},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    run = "results/smoke/runs/vit_tiny_patch16/seed0/imagenet1k_bright"
    assert "1 run at scale smoke" in crate("plan", run)
    crate("run", run)
    found = json.loads(Path(run, "metrics.json").read_text())
    assert found["metrics"]["images"] == 512
    pixels, _ = load("fashion_mnist_tiny", "test", 512)
    assert found["metrics"]["brightness"] == pytest.approx(pixels.mean(), abs=1e-5)

    crate("tables", "table_brightness", "--partial", "--config", "scale=smoke")
    text = Path("results/smoke/tables/brightness.md").read_text()
    (row,) = [line for line in text.splitlines() if line.startswith("| any model")]
    assert f"{found['metrics']['brightness']:.1f}" in row
