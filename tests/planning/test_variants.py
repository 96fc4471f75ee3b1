"""Steps with other values, the rows that a sweep makes of them, and rows that settings choose."""

import pytest

from crate.errors import UsageError
from crate.planning.loader import Experiments
from crate.planning.plan import Plan
from crate.planning.variants import changes_of, flat, stage_name, with_values
from crate.runs import Run, parse_path, recipe_of, step_of

PLAIN = "crate_base_patch32_plain"
CHAIN = ("imagenet21k", "imagenet1k")


def open_plan(folder=None, **settings) -> tuple:
    experiments = Experiments(folder) if folder else Experiments()
    chosen = experiments.settings(settings)
    return Plan(experiments, chosen), chosen


def labels(plan, table="ablation") -> list[str]:
    return [row.label for row in plan.table(table).rows]


# --- names -----------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"lr": 8e-3}, "imagenet1k@lr=0.008"),
        ({"lr": 1e-5, "epochs": 2}, "imagenet1k@epochs=2@lr=1e-05"),
        ({"epochs": 2.5, "flip": False}, "imagenet1k@epochs=2.5@flip=false"),
        ({"layers": [0, 2], "clip_grad": None}, "imagenet1k@clip_grad=null@layers=[0,2]"),
        ({"compute": {"threads": 2}}, "imagenet1k@compute.threads=2"),
        ({"lr": 0.1 + 0.2}, "imagenet1k@lr=0.30000000000000004"),
    ],
)
def test_a_name_says_its_values_and_is_read_back(values, name):
    assert stage_name("imagenet1k", flat(values)) == name
    assert changes_of(name) == values
    assert step_of(name) == step_of(f"from-vit_tiny-{name}") == "imagenet1k"
    assert recipe_of(f"from-vit_tiny-{name}") == name
    run = Run("mini", PLAIN, 0, ("imagenet21k", name))
    assert parse_path(str(run.folder("results")))[0] == run


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("imagenet1k@lr=8e-3", "write it as imagenet1k@lr=0.008"),
        ("imagenet1k@lr=0.008@epochs=2", "write it as imagenet1k@epochs=2@lr=0.008"),
        ("imagenet1k@lr", "'lr' is not KEY=VALUE"),
        ("imagenet1k@", "'' is not KEY=VALUE"),
        ("imagenet1k@task=probe", "'task' cannot be another"),
        ("imagenet1k@lrr=1", "unknown key 'lrr'; did you mean 'lr'"),
        ("imagenet1k@lr=fast", "imagenet1k@lr=fast: lr: 'fast' should be a valid number"),
        ("imagenet1@lr=1", "unknown step 'imagenet1'"),
    ],
)
def test_a_mistaken_value_is_one_line(plan, name, told):
    with pytest.raises(UsageError, match=r"^[^\n]+$") as caught:
        plan.resolve(Run("mini", PLAIN, 0, ("imagenet21k", name)))
    assert told in str(caught.value)


def test_other_values_are_another_run_on_the_same_parent(plan):
    usual = plan.resolve(Run("mini", PLAIN, 0, CHAIN))
    changed = plan.resolve(Run("mini", PLAIN, 0, (CHAIN[0], "imagenet1k@lr=0.008")))
    assert changed.recipe == usual.recipe.model_copy(update={"lr": 8e-3})
    assert changed.run.parent == usual.run.parent
    assert changed.identity != usual.identity
    # a child of the changed step follows as it would follow the step
    after = plan.resolve(Run("mini", PLAIN, 0, (CHAIN[0], "imagenet1k@lr=0.008", "cifar10")))
    assert after.run.parent == changed.run


def test_set_on_the_command_line_is_the_run_of_that_name():
    path = f"results/mini/runs/{PLAIN}/seed0/imagenet21k"
    assert with_values(path, {"lr": 8e-3}) == (f"{path}@lr=0.008", {})
    assert with_values(f"{path}@lr=0.008", {"epochs": 2}) == (f"{path}@epochs=2@lr=0.008", {})
    trial = f"results/mini/trials/t/runs/{PLAIN}/seed0/imagenet21k"
    assert with_values(trial, {"lr": 8e-3}) == (trial, {"lr": 8e-3})


# --- rows of a sweep -----------------------------------------------------------


def test_a_sweep_adds_rows_below_those_it_changes():
    plan, settings = open_plan(set={"imagenet1k": {"lr": [4e-3, 8e-3], "epochs": [1.5, 2]}})
    changed = ["epochs 2", "lr 0.008", "lr 0.008, epochs 2"]
    assert labels(plan)[:4] == ["CRATE", *(f"CRATE, {words}" for words in changed)]
    assert labels(plan)[-2:] == ["CRATE-alpha, untrained", "chance level"]
    assert len(labels(plan)) == 6 + 4 * 3
    chains = {"/".join(run.chain) for run in plan.table_runs("ablation", settings)}
    assert chains == {
        "imagenet21k", "imagenet21k/imagenet1k", "imagenet21k/imagenet1k@lr=0.008",
        "imagenet21k/imagenet1k@epochs=2", "imagenet21k/imagenet1k@epochs=2@lr=0.008",
        "imagenet21k_untrained", "imagenet1k_untrained",
    }  # fmt: skip
    assert "imagenet1k: lr 0.004; imagenet1k: epochs 1.5" in plan.table("ablation").note
    assert not any(row.paper for row in plan.table("ablation").rows if ", lr" in row.label)


def test_a_changed_step_changes_what_follows_it():
    plan, settings = open_plan(set={"imagenet21k": {"lr": 8e-3}})
    runs = plan.table_runs("ablation", settings)
    assert Run("mini", PLAIN, 0, ("imagenet21k@lr=0.008", "imagenet1k")) in runs
    values = {
        (row.label, key): run.chain
        for row, key, run, _ in plan.cells(plan.table("ablation"), "mini", [0])
    }
    assert values["CRATE, lr 0.008", "imagenet21k"] == ("imagenet21k@lr=0.008",)


def test_a_list_is_one_value_where_the_recipe_takes_a_list():
    plan, _ = open_plan(scale="paper", set={"ade20k": {"resize": [1024, 512]}})
    assert "CRATE-alpha-B/32, resize [1024,512]" in " ".join(labels(plan, "segmentation"))
    plan, _ = open_plan(scale="paper", set={"ade20k": {"resize": [[1024, 512], [512, 512]]}})
    assert sum("resize" in label for label in labels(plan, "segmentation")) == 2 * sum(
        "resize" not in label and not row.control
        for label, row in zip(
            labels(plan, "segmentation"), plan.table("segmentation").rows, strict=True
        )
    )


@pytest.mark.parametrize(
    ("wanted", "told"),
    [
        ({"imagenet1kk": {"lr": 1.0}}, "set: unknown step 'imagenet1kk'; did you mean"),
        ({"imagenet1k": {"lrr": 1.0}}, "unknown key 'lrr'; did you mean 'lr'"),
        ({"imagenet1k": {"lr": [1.0, "fast"]}}, "lr: 'fast' should be a valid number"),
        ({"pets": {"lr": 1.0}}, "set: no row of ablation goes through 'pets'; they go through: im"),
    ],
)
def test_a_mistaken_sweep_is_one_line(wanted, told):
    def runs():
        plan, settings = open_plan(set=wanted)
        return plan.runs("table_ablation", settings)

    with pytest.raises(UsageError, match=r"^[^\n]+$") as caught:
        runs()
    assert told in str(caught.value)


# --- rows of a scale, of official weights -----------------------------------------------------


@pytest.fixture
def own_row(folder):
    path = folder / "tables/ablation.yaml"
    row = (
        "  - label: CRATE, twice the rate\n"
        f"    model: {PLAIN}\n"
        "    chain: imagenet21k/imagenet1k@lr=0.008\n"
        "    scales: [mini]\n"
    )
    path.write_text(path.read_text().replace("rows:\n", f"rows:\n{row}", 1))
    return folder


def test_a_row_of_one_scale_is_not_in_the_table_of_another(own_row):
    mini, settings = open_plan(own_row, scale="mini")
    assert labels(mini)[0] == "CRATE, twice the rate"
    shown = {k: r for row, k, r, _ in mini.cells(mini.table("ablation"), "mini", [0]) if row.scales}
    assert shown["imagenet21k"].chain == ("imagenet21k",)
    assert shown["imagenet1k"].chain == ("imagenet21k", "imagenet1k@lr=0.008")
    paper, settings = open_plan(own_row, scale="paper")
    assert labels(paper)[0] == "CRATE"
    assert not any("@" in str(run) for run in paper.table_runs("ablation", settings))


def test_a_row_of_an_unknown_scale_names_its_line(own_row):
    path = own_row / "tables/ablation.yaml"
    path.write_text(path.read_text().replace("[mini]", "[minni]"))
    with pytest.raises(UsageError, match=r"ablation.yaml: line \d+: .*did you mean 'mini'"):
        Experiments(own_row).table("ablation")


def test_released_rows_train_nothing():
    plan, settings = open_plan(rows="released", scale="paper")
    assert plan.tables == ["imagenet", "zeroshot"]
    for name in plan.tables:
        content = plan.table(name)
        assert list(content.columns) == ["released"]
        for _, _, run, _ in plan.cells(content, "paper", [0]):
            recipes = [plan.resolve(stage).recipe for stage in run.lineage]
            assert recipes[0].task == "released"
            assert not any(getattr(recipe, "trains", False) for recipe in recipes)
    assert plan.runs("all", settings) == []  # no file is here
    reasons = plan.unavailable("table_imagenet", settings)
    assert set(reasons) == {"crate_alpha_base_patch16", "crate_alpha_large_patch14"}
    assert all("are not here" in reason for reason in reasons.values())


def test_released_rows_of_a_table_or_scale_without_any():
    plan, settings = open_plan(rows="released", scale="paper")
    with pytest.raises(UsageError, match=r"ablation shows no row .*tables that do: imagenet, zero"):
        plan.runs("table_ablation", settings)
    plan, settings = open_plan(rows="released", scale="mini")
    with pytest.raises(UsageError, match="official weights have the sizes of scale=paper"):
        plan.runs("all", settings)


def test_a_released_file_that_is_not_as_expected_is_said_in_the_plan(tmp_path):
    file = tmp_path / "released/crate_alpha_B16.pth"
    file.parent.mkdir()
    file.write_bytes(b"0" * 1000)
    plan, settings = open_plan(scale="paper", data_root=str(tmp_path))
    reasons = plan.unavailable("table_imagenet", settings)
    assert list(reasons) == ["crate_alpha_base_patch16"]
    assert f"{file}: half-downloaded? 1,000 of 289,348,353 bytes" in str(reasons)
