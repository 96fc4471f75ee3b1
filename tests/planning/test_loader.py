"""`experiments/` is checked before anything runs; each mistake is one line that helps."""

import pytest
import yaml

from crate.errors import UsageError
from crate.planning.loader import Experiments
from crate.planning.plan import Plan
from crate.planning.settings import Settings
from crate.schema import parse
from crate.sources import read_yaml


def validate(folder, scale="paper"):
    """All that the Snakefile checks before it starts."""
    experiments = Experiments(folder)
    plan = Plan(experiments)
    experiments.settings()
    settings = experiments.settings({"scale": scale})
    for name in experiments.scales:
        experiments.scale(name)
    for name in experiments.recipes:
        experiments.recipe(name, scale)
    for name in experiments.tables:
        plan.table_runs(name, settings)
    return plan


def refusal(folder, scale="paper") -> str:
    with pytest.raises(UsageError) as caught:
        validate(folder, scale)
    message = str(caught.value)
    assert "\n" not in message
    return message


def edit(folder, file, old, new):
    """Replace `old`, or add `new` at the end of the file."""
    text = (folder / file).read_text()
    assert old in text
    text = text.replace(old, new, 1) if old else f"{text.rstrip()}\n{new}\n"
    (folder / file).write_text(text)


@pytest.mark.parametrize("scale", ["smoke", "mini", "paper"])
def test_what_is_shipped_is_valid(folder, scale):
    plan = validate(folder, scale)
    assert {"smoke", "mini", "paper"} <= set(plan.experiments.scales)
    assert "ablation" in plan.tables
    for recipe in plan.experiments.recipes:
        assert plan.experiments.recipe(recipe, scale).compute.hours > 0
    for model in plan.experiments.models:
        assert plan.experiments.spec(model, scale).dim > 0


STEP, TABLE = "steps/imagenet21k.yaml", "tables/ablation.yaml"


@pytest.mark.parametrize(
    ("file", "old", "new", "told"),
    [
        # keys
        (STEP, "", "lable_smoothing: 0.1", "'lable_smoothing'; did you mean 'label_smoothing'?"),
        (STEP, "threads:", "treads:", "'compute.treads'; did you mean 'threads'?"),
        (STEP, "epochs: 91", "", "give exactly one of 'epochs' and 'updates'"),
        (STEP, "task: classification", "", "the key 'task' is missing"),
        ("config.yaml", "data_root:", "dataroot:", "'dataroot'; did you mean 'data_root'?"),
        ("scales/paper.yaml", "", "data_sets: {}", "'data_sets'; did you mean 'datasets'?"),
        (TABLE, "unit:", "units:", "'columns.imagenet21k.units'; did you mean 'unit'?"),
        (TABLE, "source: CRATE-alpha README", "sources: X", "sources'; did you mean 'source'?"),
        (TABLE, "control: true", "controls: true", "'rows.4.controls'; did you mean 'control'?"),
        # types
        (STEP, "batch_size: 4096", "batch_size: true", "batch_size: True should be a valid integ"),
        (STEP, "batch_size: 4096", 'batch_size: "3"', "batch_size: '3' should be a valid integer"),
        (STEP, "batch_size: 4096", "batch_size: 0", "batch_size: 0 should be greater than 0"),
        (STEP, "batch_size: 4096", "batch_size: 3.0", "batch_size: 3.0 should be a valid integer"),
        (STEP, "flip: true", "flip: 1", "flip: 1 should be a valid boolean"),
        (STEP, "lr: 8e-4", "lr: fast", "lr: 'fast' should be a valid number"),
        (STEP, "lr: 8e-4", "lr: .inf", "lr: inf should be a finite number"),
        (STEP, "lr: 8e-4", "lr: .nan", "lr: nan should be"),
        (STEP, "[0.9, 0.95]", "[0.9]", "betas: "),
        (STEP, "follows: [start]", "follows: start", "follows: 'start' should be a valid list"),
        (STEP, "optimizer: adamw", "optimizer: adam", "optimizer: 'adam' should be 'adamw' or"),
        (STEP, "threads: 12", "threads: true", "compute.threads: True should be a valid integer"),
        ("config.yaml", "scale: mini ", "scale: 3 ", "line 3: unknown scale '3'"),
        # names
        (STEP, "task: classification", "task: clasification", "did you mean 'classification'?"),
        (STEP, "task: classification", "task: [a]", "unknown task"),
        (STEP, "dataset: imagenet21k", "dataset: imagnet21k", "did you mean 'imagenet21k'?"),
        (STEP, "follows: [start]", "follows: [strat]", "'strat'; did you mean 'start'?"),
        ("steps/imagenet1k.yaml", "extends: imagenet21k", "extends: imagenet21", "imagenet21k'?"),
        ("steps/imagenet1k.yaml", "extends: imagenet21k", "extends: [a]", "extends: ['a'] should"),
        ("scales/mini.yaml", "  imagenet1k: {", "  imagnet1k: {", "did you mean 'imagenet1k'?"),
        ("scales/mini.yaml", "imagenet1k: fashion", "imagnet1k: fashion", "did you mean 'imagen"),
        ("scales/mini.yaml", "k: fashion_", "k: fashoin_", "'fashoin_mnist_pretrain'; did you mea"),
        ("scales/paper.yaml", "", 'models: {"*_bse_*": {dim: 64}}', "'*_bse_*' matches no model"),
        ("scales/paper.yaml", "", 'models: {"*": {dmi: 64}}', "'dmi'; did you mean 'dim'?"),
        ("scales/paper.yaml", "", 'models: {"*": {heads: 7}}', "not divisible by heads 7"),
        (TABLE, "model: crate_alpha", "model: crate_alfa", "'; did you mean 'crate_alpha_base_p"),
        (TABLE, "metric: top1", "metric: top_1", "unknown metric 'top_1'; did you mean 'top1'?"),
        (TABLE, "paper: {imagenet1k", "paper: {imagenet1", "'; did you mean 'imagenet1k'?"),
        (
            TABLE,
            "column: imagenet1k",
            "column: imagenet",
            "figure: column: unknown column 'imagenet'",
        ),
        (TABLE, "chain: imagenet21k/", "chain: imagenet21/", "did you mean 'imagenet21k'?"),
        (TABLE, "+ decoupled", "+ overcomplete", "two rows have the label '+ overcomplete'"),
        (
            TABLE,
            "ImageNet-21K top-1",
            "ImageNet-1K top-1",
            "two columns have the label 'ImageNet-1K",
        ),
    ],
)
def test_a_mistake_is_one_line_with_file_key_and_nearest_name(folder, file, old, new, told):
    edit(folder, file, old, new)
    message = refusal(folder)
    assert file in message
    assert told in message


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("title: x\nlr: 1\nlr: 2\n", "line 3: duplicate key 'lr'"),
        ("a:\n  b: 1\n  b: 1\n", "line 3: duplicate key 'b'"),
        ("a: 1\nb: [1\n", "line 3: did not find expected ',' or ']'"),
        ("a: 1\n\tb: 2\n", "line 2: found a tab character"),
        ("a: 1\nb: *x\n", "line 2: found undefined alias"),
        ("a: !!python/name:os.system\n", "line 1: could not determine a constructor"),
        ("a: \0\n", "control characters are not allowed"),
        ("a: " + "[" * 100_000, "nested too deeply"),
        ("- a\n- b\n", "must be a mapping of names to values"),
        ("? [a, b]\n: 1\n", "line 1: a key must be a name"),
        ("a: &x [*x]\n", "line 1: found unconstructable recursive node"),
        (f"a: {'7' * 5000}\n", "line 1: a number of 5000 characters"),
        (b"a: \xff\n", "not UTF-8 text"),
    ],
)
def test_broken_yaml_is_named_with_its_line(tmp_path, content, told):
    path = tmp_path / "broken.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UsageError) as caught:
        read_yaml(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: {told}")
    assert "\n" not in message


def test_a_missing_file_or_folder_is_said(folder):
    (folder / "models.yaml").unlink()
    assert "models.yaml: cannot be read (No such file" in refusal(folder)
    with pytest.raises(UsageError, match=r"no folder .*gone/ here"):
        Experiments(folder / "gone")


def test_steps_that_extend_each_other_in_a_circle_are_told(folder):
    edit(folder, STEP, "task: classification", "extends: imagenet1k")
    message = refusal(folder)
    assert "imagenet1k → imagenet21k → imagenet1k" in message
    assert f"{folder}/steps/" in message


@pytest.mark.parametrize("text", ["1e-3", "1.E-3", "+1.0e-03", ".1e-2", "0.001"])
def test_numbers_are_read_as_numbers(tmp_path, text):
    path = tmp_path / "numbers.yaml"
    path.write_text(f"lr: {text}\nname: e-3\nhash: 1e3x\n")
    assert read_yaml(path) == {"lr": 0.001, "name": "e-3", "hash": "1e3x"}


@pytest.mark.parametrize(
    ("value", "seeds"),
    [(3, [3]), ("3", [3]), ("0,1, 2", [0, 1, 2]), ("0-2,7", [0, 1, 2, 7]), ([1, 0], [1, 0])],
)
def test_seeds_as_a_command_line_writes_them(value, seeds):
    assert parse(Settings, {"seeds": value}, "here").seeds == seeds


@pytest.mark.parametrize(
    "value", ["a", "", "1,1", "0,0-3", "4-0", "1,", "-1", "1.5", -1, True, [True], [], None, 1.5]
)
def test_seeds_that_are_none(value):
    with pytest.raises(UsageError, match=r"^here: seeds[^\n]*$"):
        parse(Settings, {"seeds": value}, "here")


def write_experiments(folder, files):
    for name, content in files.items():
        path = folder / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(content))
    return Experiments(folder)


def test_who_wins_between_a_step_what_it_extends_and_the_scale(tmp_path):
    first = {
        "task": "classification",
        "dataset": "imagenet1k",
        "follows": ["start"],
        "lr": 1.0,
        "epochs": 10,
        "batch_size": 8,
        "image_size": 224,
        "warmup_epochs": 5,
        "compute": {"nodes": 2, "gpus": 8},
    }
    experiments = write_experiments(
        tmp_path,
        {
            "models": {},
            "steps/first": first,
            "steps/second": {"extends": "first", "lr": 2.0, "compute": {"gpus": 4}},
            "steps/third": {"extends": "second", "image_size": 384},
            "scales/small": {
                "title": "small",
                "datasets": {"imagenet1k": "fashion_mnist_tiny"},
                "defaults": {"batch_size": 4, "image_size": 28},
                "steps": {
                    "first": {"lr": 0.5, "epochs": 3, "batch_size": 2},
                    "second": {"warmup_epochs": 1, "compute": {"nodes": 1}},
                },
            },
        },
    )
    a, b, c = (experiments.recipe(name, "small") for name in ("first", "second", "third"))
    assert (a.lr, a.epochs, a.batch_size, a.image_size, a.warmup_epochs) == (0.5, 3, 2, 28, 5)
    # second: its own lr beats what the scale makes of first's; the scale's word on second is last
    assert (b.lr, b.epochs, b.batch_size, b.image_size, b.warmup_epochs) == (2.0, 3, 2, 28, 1)
    assert (b.compute.nodes, b.compute.gpus) == (1, 4)
    # third: what the scale says of all recipes holds for its own image size too
    assert (c.lr, c.epochs, c.batch_size, c.image_size, c.warmup_epochs) == (2.0, 3, 2, 28, 1)
    assert {s.dataset for s in (a, b, c)} == {"fashion_mnist_tiny"}
    assert experiments.recipe("third", "small", {"lr": 9.0}).lr == 9.0
    assert experiments.recipe("third", "small").lr == 2.0


def test_extending_a_step_twice_is_no_circle(tmp_path, folder):
    edit(folder, "steps/imagenet1k_untrained.yaml", "extends: imagenet1k", "extends: imagenet21k")
    assert Experiments(folder).recipe("imagenet1k_untrained", "paper").epochs == 0
