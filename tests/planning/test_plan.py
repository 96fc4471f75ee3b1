"""From experiments to runs: paths, chains, identities, costs."""

import dataclasses
from typing import ClassVar

import pytest

from crate.costs.cost import cost, not_counted
from crate.errors import UsageError
from crate.models.spec import ModelSpec
from crate.planning import loader
from crate.planning import plan as plan_module
from crate.planning.loader import Experiments
from crate.planning.plan import Plan
from crate.runs import Run, parse_path
from crate.tasks import recipe_types
from crate.tasks.classification.recipe import Classification

ALPHA = "crate_alpha_base_patch32"


# --- paths -----------------------------------------------------------


@pytest.mark.parametrize("results", ["results", "a/b.c", "/tmp/runs/x", "."])
@pytest.mark.parametrize("ending", ["", "/", "/metrics.json"])
@pytest.mark.parametrize(
    "run",
    [
        Run("mini", ALPHA, 0, ("imagenet21k",)),
        Run("paper", "runs", 12, ("imagenet21k", "imagenet1k", "cifar10")),
        Run("smoke", ALPHA, 3, ("from-vit_base-imagenet21k", "imagenet1k")),
        Run("mini", ALPHA, 1, ("imagenet21k", "imagenet1k"), "imagenet1k-lr=1e-3"),
    ],
)
def test_a_run_is_its_path_and_back(results, ending, run):
    read, found = parse_path(f"{run.folder(results)}{ending}")
    assert read == run
    assert run.folder(found) == run.folder(results)


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("metrics.json", "not the path of a run"),
        ("results/mini/tables/ablation.md", "not the path of a run"),
        ("results/mini/runs/x/seed0", "not the path of a run"),
        ("results/mini/runs/x/0/imagenet21k", "not the path of a run"),
        ("results/mini/runs/x/seedzero/imagenet21k", "the seed 'zero' is not a whole number"),
        ("results/mini/runs/x/seed-1/imagenet21k", "the seed '-1' is not a whole number"),
    ],
)
def test_a_path_that_names_no_run(path, told):
    with pytest.raises(UsageError, match=told):
        parse_path(path)


def test_the_parent_of_a_run():
    chain = ("imagenet21k", "imagenet1k", "cifar10")
    run = Run("mini", "a", 2, chain)
    assert run.stage == "cifar10"
    assert run.parent == Run("mini", "a", 2, chain[:2])
    assert run.parent.folder("r") == run.folder("r").parent
    assert run.ancestors == [Run("mini", "a", 2, chain[:1]), Run("mini", "a", 2, chain[:2])]
    # a trial starts from a regular run: only its last step is tried
    assert dataclasses.replace(run, trial="t").ancestors == run.ancestors
    # from-<model>-<step>: the parent is another model's run
    grown = Run("mini", "a", 2, ("from-b-imagenet21k", "imagenet1k", "cifar10"))
    assert grown.ancestors == [
        Run("mini", "b", 2, ("imagenet21k",)),
        Run("mini", "a", 2, ("from-b-imagenet21k", "imagenet1k")),
    ]


# --- chains -----------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "chain", "told"),
    [
        (ALPHA, "imagenet1k", r"'imagenet1k' cannot begin a chain; it follows: imagenet21k"),
        (ALPHA, "imagenet21k/imagenet21k", r"cannot follow 'imagenet21k'; it follows: start"),
        (ALPHA, "imagenet21k_untrained/imagenet1k", r"cannot follow 'imagenet21k_untrained'"),
        (ALPHA, "imagenet21/imagenet1k", r"unknown step 'imagenet21'; did you mean 'imagenet21k'"),
        (ALPHA, "from-vit/imagenet21k", r"from-<model>-<step>"),
        (
            ALPHA,
            "from-vit_base_patch32-imagenet21k",
            r"'from-vit_base_patch32-imagenet21k' is not of the form from-<model>-<step>",
        ),
        (ALPHA, "from-vit_base_patch3-imagenet21k/imagenet21k", r"unknown model 'vit_base_patch3'"),
        (ALPHA, f"imagenet21k/from-{ALPHA}-imagenet21k/imagenet1k", r"from-<model>-<step>"),
        (ALPHA, f"from-{ALPHA}-imagenet1k/imagenet21k", r"'imagenet1k' cannot begin a chain"),
        ("crate_alpha_base_patch23", "imagenet21k", r"did you mean 'crate_alpha_base_patch\d+'"),
        (f"{ALPHA}_ratio3", "imagenet21k", rf"did you mean '{ALPHA}_ratio2'"),
    ],
)
def test_a_chain_that_makes_no_sense_is_one_line(plan, model, chain, told):
    with pytest.raises(UsageError, match=told) as caught:
        plan.resolve(Run("mini", model, 0, tuple(chain.split("/"))))
    assert "\n" not in str(caught.value)


def test_patches_must_fill_the_picture(plan):
    with pytest.raises(UsageError, match="28 px images do not divide into patches of 5 px"):
        plan.resolve(Run("mini", ALPHA, 0, ("imagenet21k",)), {"model": {"patch_size": 5}})


def test_a_model_continues_another_ones_run(plan):
    run = Run("mini", ALPHA, 0, ("from-crate_base_patch32_plain-imagenet21k", "imagenet1k"))
    assert plan.resolve(run).spec.feedforward == "ODL"
    assert plan.resolve(run.parent).spec.feedforward == "ISTA"


def test_the_ablation_runs_each_ancestor_once_and_first(plan):
    settings = plan.experiments.settings({"seeds": "0,1"})
    runs = plan.runs("table_ablation", settings)
    # four models x (pre-training, fine-tuning), one control x two untrained steps; two seeds
    assert len(runs) == len(set(runs)) == 2 * (4 * 2 + 2)
    for place, run in enumerate(runs):
        assert set(run.ancestors) <= set(runs[:place])
    assert set(plan.runs("all", settings)) >= set(runs)
    single = runs[-1].folder("results")
    assert plan.runs(f"{single}/metrics.json", settings) == [*runs[-1].ancestors, runs[-1]]


def test_an_unknown_target_is_told_with_the_nearest(plan):
    with pytest.raises(UsageError, match="'table_abblation'; did you mean 'table_ablation'"):
        plan.runs("table_abblation", plan.experiments.settings())


# --- identity -----------------------------------------------------------

PRETRAIN = Run("mini", ALPHA, 0, ("imagenet21k",))
FINETUNE = Run("mini", ALPHA, 0, ("imagenet21k", "imagenet1k"))


def test_the_canonical_configuration_holds_only_what_differs(plan):
    resolved = plan.resolve(Run("paper", ALPHA, 7, ("imagenet21k",)))
    # the registry's three sizes have no default; everything else of CRATE-alpha is the default
    assert resolved.config["model"] == {"dim": 768, "depth": 12, "heads": 12, "patch_size": 32}
    assert resolved.config["seed"] == 7
    recipe = resolved.config["step"]
    assert recipe["lr"] == 8e-4
    # optimizer adamw, flip true and mix_switch 0.5 stand in the file and are the defaults
    assert not {"optimizer", "flip", "mix_switch", "compute", "follows"} & set(recipe)


def test_a_new_setting_with_a_default_reruns_nothing(plan, folder, monkeypatch):
    before = plan.resolve(FINETUNE)

    class Newer(Classification):
        colour_jitter: float = 0.0
        METRICS: ClassVar = (*Classification.METRICS, "ece")

    # identity reads a class's code in the package, by its name
    Newer.__module__, Newer.__qualname__ = Classification.__module__, Classification.__qualname__

    @dataclasses.dataclass(frozen=True)
    class NewerSpec(ModelSpec):
        gate: bool = False

    monkeypatch.setitem(recipe_types(), "classification", Newer)
    monkeypatch.setattr(loader, "resolve", lambda name, **o: NewerSpec(**_fields(before.spec) | o))
    newer = Plan(Experiments(folder))
    after = newer.resolve(FINETUNE)
    assert isinstance(after.recipe, Newer)
    assert isinstance(after.spec, NewerSpec)
    assert after.config_json == before.config_json
    assert after.identity == before.identity
    # and the new settings do count once they are used
    assert newer.resolve(FINETUNE, {"colour_jitter": 0.4}).identity != before.identity
    assert newer.resolve(FINETUNE, {"model": {"gate": True}}).identity != before.identity


def _fields(spec):
    return {field.name: getattr(spec, field.name) for field in dataclasses.fields(spec)}


def rewritten(folder, file, change) -> Plan:
    path = folder / file
    text = change(path.read_text())
    assert text != path.read_text()
    path.write_text(text)
    return Plan(Experiments(folder))


def test_order_comments_and_compute_are_no_part_of_the_identity(plan, folder):
    before = plan.resolve(PRETRAIN).identity
    for file in ("steps/imagenet21k.yaml", "scales/mini.yaml"):
        after = rewritten(folder, file, lambda text: _reversed_blocks(text) + "# a comment\n")
        assert after.resolve(PRETRAIN).identity == before
    after = rewritten(folder, "scales/mini.yaml", lambda text: text.replace("gpus: 0", "gpus: 1"))
    assert after.resolve(PRETRAIN).recipe.compute.gpus == 1
    assert after.resolve(PRETRAIN).identity == before


def _reversed_blocks(text):
    """The top-level keys of a YAML file, last first."""
    import yaml

    content = yaml.safe_load(text)
    return yaml.safe_dump(dict(reversed(content.items())), sort_keys=False)


@pytest.mark.parametrize(
    "overrides", [{"lr": 0.5}, {"evaluate": "validation"}, {"model": {"step_size": 0.2}}]
)
def test_what_decides_the_result_is_part_of_the_identity(plan, overrides):
    assert plan.resolve(FINETUNE, overrides).identity != plan.resolve(FINETUNE).identity
    assert plan.resolve(FINETUNE, {"compute": {"gpus": 3}}).identity == (
        plan.resolve(FINETUNE).identity
    )


def test_seed_data_and_code_are_part_of_the_identity(plan, monkeypatch):
    before = plan.resolve(FINETUNE)
    assert before.config["data"]
    identities = {before.identity}
    identities.add(plan.resolve(dataclasses.replace(FINETUNE, seed=1)).identity)
    with monkeypatch.context() as patch:
        patch.setattr(plan_module, "data_identity", lambda _: {"sha256": "another"})
        identities.add(Plan(plan.experiments).resolve(FINETUNE).identity)
    monkeypatch.setattr(plan_module, "task_identity", lambda *_: "another")
    identities.add(Plan(plan.experiments).resolve(FINETUNE).identity)
    assert len(identities) == 4


def test_a_trials_changes_are_checked(plan):
    with pytest.raises(UsageError, match="did you mean 'label_smoothing'"):
        plan.resolve(FINETUNE, {"lable_smoothing": 0.1})
    with pytest.raises(UsageError, match="did you mean 'dim'"):
        plan.resolve(FINETUNE, {"model": {"dmi": 3}})
    with pytest.raises(UsageError, match="model: 3 should be settings of the model"):
        plan.resolve(FINETUNE, {"model": 3})


# --- models of one's own -----------------------------------------------------------


def test_a_model_of_ones_own_is_a_registry_model_with_changes(plan):
    for scale in ("mini", "paper"):
        base, own = (
            plan.experiments.spec(ALPHA, scale),
            plan.experiments.spec(f"{ALPHA}_ratio2", scale),
        )
        assert own == dataclasses.replace(base, dictionary_ratio=2)
        assert base.dictionary_ratio == 4


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ("{base: crate_alpha_base_patch32, dictionary_ration: 2}", "did you mean 'dictionary_rat"),
        (
            "{base: crate_alpha_base_patch32, dictionary_ratio: two}",
            "an integer, got 'two'",
        ),
        ("{base: crate_alpha_base_patch32, heads: 5}", "dim 768 is not divisible by heads 5"),
        ("{base: crate_alfa_base_patch32}", "did you mean 'crate_alpha_base_patch32'"),
        ("{dictionary_ratio: 2}", "the key 'base' is missing"),
        ("crate_alpha_base_patch32", "the key 'base' is missing"),
    ],
)
def test_a_bad_model_of_ones_own_says_why(folder, entry, told):
    (folder / "models.yaml").write_text(f"mine: {entry}\n")
    with pytest.raises(UsageError, match=told) as caught:
        Plan(Experiments(folder)).resolve(Run("paper", "mine", 0, ("imagenet21k",)))
    assert "models.yaml: line 1: mine: " in str(caught.value)


# --- cost -----------------------------------------------------------


def test_the_cost_of_the_published_ablation(plan):
    pretrain = cost(plan, Run("paper", ALPHA, 0, ("imagenet21k",)))
    # the released B32_in21k checkpoint: 351,823,740 bytes of float32 with 19,167 classes
    assert pretrain.parameters == 351_823_740 // 4 == 87_955_935
    # 91 epochs of 13,151,276 - 51,200 held-out images as one stream of batches of 4,096
    assert pretrain.examples == round(91 * 13_100_076 / 4096) * 4096
    assert pretrain.disk_bytes == 4 * 87_955_935 * (1 + 3)  # weights; checkpoint with two moments

    finetune = cost(plan, Run("paper", ALPHA, 0, ("imagenet21k", "imagenet1k")))
    assert finetune.parameters == pytest.approx(73.986e6, abs=1e3)
    forward = 2 * 6.53e9  # the FLOPs of 6.53 GMACs
    assert finetune.eval_flops / 50_000 == pytest.approx(forward, rel=1e-3)
    assert finetune.train_flops == pytest.approx(3 * forward * finetune.examples, rel=1e-3)

    vanilla = Run("paper", "crate_base_patch32_plain", 0, ("imagenet21k", "imagenet1k"))
    assert cost(plan, vanilla).eval_flops / 50_000 == pytest.approx(2 * 1.93e9, rel=3e-3)
    released = cost(plan, vanilla.parent).parameters
    assert 4 * released == 153_642_876  # vanilla_crate_B32_in21k


def test_a_control_is_not_trained(plan):
    control = cost(plan, Run("paper", ALPHA, 0, ("imagenet21k_untrained",)))
    assert (control.examples, control.train_flops) == (0, 0)
    assert control.disk_bytes == 4 * control.parameters


def test_the_cost_of_a_language_model_is_counted_in_windows(plan):
    run = Run("paper", "gpt2_base", 0, ("openwebtext_gpt2",))
    whole = cost(plan, run)
    assert whole.parameters == 124_439_808  # GPT-2's, positions included
    assert whole.examples == 600_000 * 512
    # torch's counter at full size: 2.916e11 FLOPs for a window of 1,024 tokens
    assert whole.train_flops == pytest.approx(3 * 2.916e11 * whole.examples, rel=1e-3)
    looks = 600_000 // 5_000
    assert whole.eval_flops == pytest.approx(2.916e11 * (4_434_897 // 1024) * looks, rel=1e-3)
    for chain in (("openwebtext_bigram",), ("openwebtext_bigram", "lambada")):
        counts = cost(plan, dataclasses.replace(run, chain=chain))
        assert (counts.parameters, counts.disk_bytes) == (0, 0)  # no network
    elsewhere = cost(plan, dataclasses.replace(run, chain=("openwebtext_gpt2", "lambada")))
    assert (elsewhere.examples, elsewhere.eval_flops) == (0, 0)
    lambada = plan.resolve(dataclasses.replace(run, chain=("openwebtext_gpt2", "lambada")))
    assert not_counted(lambada)  # its tokens are not known
    assert not not_counted(plan.resolve(dataclasses.replace(lambada.run, scale="mini")))
    assert not not_counted(plan.resolve(run))


def test_lion_keeps_one_moment(plan):
    run = Run("paper", ALPHA, 0, ("imagenet21k",))
    lion = cost(plan, run, {"optimizer": "lion"})
    assert lion.disk_bytes == 4 * lion.parameters * (1 + 2)


def test_the_stand_ins_of_a_scale(plan):
    assert plan.stand_ins("paper", ["imagenet1k"]) == {}
    assert plan.stand_ins("mini", ["imagenet1k"]) == {
        "imagenet1k": "Fashion-MNIST (10,000 training images)"
    }


def test_the_size_of_a_published_model_is_the_same_at_every_scale(plan):
    def look(scale):
        resolved = plan.resolve(Run(scale, "crate_alpha_base_patch32", 0, ("architecture",)))
        return resolved.spec, resolved.recipe.image_size, resolved.recipe.dataset, resolved.identity

    assert look("smoke") == look("mini") == look("paper")
    assert look("smoke")[0].dim == 768
    assert look("smoke")[1:3] == (224, "imagenet1k")


def test_an_evaluation_does_not_ask_for_the_gpus_of_a_training(plan):
    experiments = plan.experiments
    evaluated = 0
    for name in experiments.recipes:
        base = experiments._recipes[name].get("extends")
        recipe = experiments.recipe(name, "paper")
        if base and not getattr(recipe, "trains", True):
            trained = experiments.recipe(base, "paper")
            if getattr(trained, "trains", False) and trained.compute.gpus > 1:
                evaluated += 1
                assert recipe.compute.nodes == 1, name
                assert recipe.compute.gpus <= 1, name
                assert recipe.compute.hours < trained.compute.hours, name
    assert evaluated >= 5
