"""The tables of `experiments/`: every digit of the papers' sizes, every recipe as published."""

from pathlib import Path

import pytest
import torch

from crate.models.build import build
from crate.planning.loader import Experiments
from crate.planning.plan import Plan
from crate.runs import Run
from crate.tasks import cost_of
from crate.tasks.throughput.task import count_flops

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def plan() -> Plan:
    return Plan(Experiments(ROOT / "experiments"))


def sizes(plan: Plan, run: Run) -> dict[str, float]:
    """What the architecture and throughput tasks measure, in closed form."""
    resolved = plan.resolve(run)
    parameters, products = cost_of(resolved.recipe.task).complexity(resolved)
    spec = resolved.spec
    return {
        "depth": spec.depth,
        "width": spec.dim,
        "heads": spec.heads,
        "parameters": parameters,
        "flops": 2 * products,
    }


SIZES = {"models": 49, "crate": 6, "crate_in21k": 4, "scaling": 8, "language": 3, "autoencoding": 4}


@pytest.mark.parametrize("name", SIZES)
def test_sizes_agree_with_the_papers_to_the_printed_digits(plan, name):
    table = plan.table(name)
    compared = 0
    for row, key, run, metric in plan.cells(table, "paper", [0]):
        column, value = table.columns[key], row.paper.get(key)
        if value is None or metric not in ("depth", "width", "heads", "parameters", "flops"):
            continue
        ours = sizes(plan, run)[metric] * column.factor
        if value.unexplained:
            digits = column.decimals
            assert f"{ours:.{digits}f}" in value.unexplained
            assert f"{value.value:g}" in value.unexplained
            continue
        if name == "language":  # printed without decimals
            assert f"{ours:.0f}" == f"{value.value:.0f}"
        elif metric == "flops":
            assert f"{ours / 1e9:.2f}" == f"{value.value / 1e9:.2f}"
        elif value.value == 102.61:  # CPAL rounds 102.604 up
            assert f"{ours:.3f}" == "102.604"
        else:
            assert f"{ours:.{column.decimals}f}" == f"{value.value:.{column.decimals}f}"
        compared += 1
    assert compared == SIZES[name]


def test_torchs_counter_agrees_with_the_closed_form(plan):
    table = plan.table("compute")
    assert len(table.rows) == 14
    for row, _, run, metric in plan.cells(table, "paper", [0]):
        if metric == "flops":
            with torch.device("meta"):
                model = build(plan.resolve(run).spec, image_size=224, num_classes=1000)
            model.blocks[-1].partial = False  # papers count the tokens too that nothing reads
            assert count_flops(model, 224) == sizes(plan, run)["flops"], row.label


# Every cell that paper.md marks known, once more and by hand: table, row, column → printed.
PRINTED = {
    ("imagenet", "CRATE-alpha-B/32", "imagenet1k"): 76.5,
    ("imagenet", "CRATE-alpha-B/16", "imagenet1k"): 81.2,
    ("imagenet", "CRATE-alpha-B/8", "imagenet1k"): 83.2,
    ("imagenet", "CRATE-alpha-L/32", "imagenet1k"): 80.2,
    ("imagenet", "CRATE-alpha-L/14", "imagenet1k"): 83.9,
    ("imagenet", "CRATE-alpha-L/8", "imagenet1k"): 85.1,
    ("imagenet", "CRATE-B/16, ImageNet-1K only", "imagenet1k"): 70.8,
    ("imagenet", "CRATE-L/16, ImageNet-1K only", "imagenet1k"): 71.3,
    ("imagenet", "CRATE-alpha-B/16", "released"): 81.2,
    ("imagenet", "CRATE-alpha-L/14", "released"): 83.9,
}
CRATE = {
    "CRATE-T": (6.09, 66.7, 74.0, 95.5, 78.9, 84.6, 81.4),
    "CRATE-S": (13.12, 69.2, 76.0, 96.0, 81.0, 87.1, 84.9),
    "CRATE-B": (22.80, 70.8, 76.5, 96.8, 82.7, 88.7, 85.3),
    "CRATE-L": (77.64, 71.3, 77.4, 97.2, 83.6, 88.3, 87.4),
    "ViT-T": (5.72, 71.5, 78.3, 96.6, 81.8, 85.1, 88.5),
    "ViT-S": (22.05, 72.4, 78.4, 97.2, 83.2, 88.5, 88.6),
}
IN21K = {
    "CRATE-T/8 (d 192)": (5.74, 62.7, 94.1, 76.7, 82.2, 77.0),
    "CRATE-S/8 (d 384)": (14.12, 74.2, 97.2, 84.1, 92.2, 86.4),
    "CRATE-B/8 (d 768)": (38.83, 79.5, 98.1, 87.9, 96.7, 90.7),
    "ViT-T/8": (10.36, 71.8, 97.2, 84.4, 92.1, 86.2),
    "ViT-B/8": (102.61, 85.8, 98.9, 90.1, 99.5, 91.8),
}
TRANSFERS = ("cifar10", "cifar100", "flowers102", "pets")
OBJECTS = {
    "CRATE-alpha-B/8": (3.5, 1.1, 1.5, 2.2, 1.0, 1.1),
    "CRATE-alpha-L/8": (4.0, 1.7, 2.0, 2.7, 1.1, 1.4),
    "CRATE-B/8": (2.9, 1.0, 1.3, 2.2, 0.7, 1.0),
    "CRATE-S/8 (d 384)": (2.9, 1.0, 1.1, 1.8, 0.7, 0.8),
    "ViT-B/8": (0.8, 0.2, 0.4, 0.7, 0.5, 0.4),
    "ViT-S/8": (0.1, 0.1, 0.0, 0.0, 0.0, 0.0),
}
ATTENTION = {
    "CRATE-S/8 (d 384)": (23.9,),
    "CRATE-B/8": (23.6,),
    "ViT-S/8": (14.1,),
    "ViT-B/8": (19.2,),
}
WHITE_BOX = {
    "CRATE (MSSA, ISTA)": (2.1, 0.7, 0.8, 23.9),
    "CRATE-MLP (MSSA, MLP)": (0.2, 0.2, 0.2, 22.0),
    "CRATE-MHSA (MHSA, ISTA)": (0.1, 0.1, 0.0, 18.4),
    "ViT (MHSA, MLP)": (0.1, 0.1, 0.0, 14.1),
}
LANGUAGE = {
    "GPT-2-base": (124, 2.85),
    "CRATE-base": (60, 3.37),
    "CRATE-alpha-small": (57, 3.28),
    "CRATE-alpha-base": (120, 3.14),
}
ZERO_SHOT = {
    "GPT2-base": (2.85, 4.12, 3.89, 4.63),
    "GPT2-small": (3.04, 4.49, 4.31, 5.15),
    "CRATE-GPT2-base": (3.37, 4.91, 4.61, 5.53),
}
AUTOENCODING = {  # parameters, fine-tuned, probed
    "CRATE-MAE-S": (25.4, 96.2, 79.0, 71.7, 73.7, 79.4, 56.6, 57.7, 40.6),
    "CRATE-MAE-B": (44.6, 96.8, 80.3, 78.5, 76.7, 80.9, 60.1, 61.8, 46.2),
    "ViT-MAE-S": (47.6, 97.6, 83.0, 84.2, 81.7, 79.9, 62.3, 66.8, 51.8),
    "ViT-MAE-B": (143.8, 98.5, 87.0, 92.5, 90.3, 87.9, 68.0, 66.4, 80.1),
}
RECONSTRUCTION = {"CRATE-MAE-B": (0.266, 0.303), "ViT-MAE-B": (0.240, 0.267)}
PROBES = tuple(f"{name}_probe" for name in TRANSFERS)
BOXES = ("box_ap50", "box_ap75", "box_ap")
for rows, table, columns in (
    (CRATE, "crate", ("parameters", "imagenet1k", "real", *TRANSFERS)),
    (IN21K, "crate_in21k", ("parameters", "imagenet1k", *TRANSFERS)),
    (OBJECTS, "objects", (*BOXES, "mask_ap50", "mask_ap75", "mask_ap")),
    (ATTENTION, "attention_segmentation", ("miou",)),
    (WHITE_BOX, "white_box", (*BOXES, "miou")),
    (LANGUAGE, "language", ("parameters", "cross_entropy")),
    (ZERO_SHOT, "language_zeroshot", ("openwebtext", "lambada", "wikitext", "ptb")),
    (AUTOENCODING, "autoencoding", ("parameters", *TRANSFERS, *PROBES)),
    (RECONSTRUCTION, "reconstruction", ("train", "validation")),
):
    PRINTED |= {
        (table, row, column): value
        for row, values in rows.items()
        for column, value in zip(columns, values, strict=True)
    }


def test_the_papers_accuracies_stand_in_their_cells(plan):
    for name in {cell[0] for cell in PRINTED}:
        table = plan.table(name)
        found = {
            (name, row.label, key): value.value
            for row in table.rows
            for key, value in row.paper.items()
        }
        assert found == {cell: value for cell, value in PRINTED.items() if cell[0] == name}
    transfer = plan.table("transfer")
    alpha = [row for row in transfer.rows if "alpha" in row.model and not row.control]
    assert len(alpha) == 2
    assert not any(row.paper for row in alpha)  # not available: never a guess
    for name in ("compute", "segmentation"):
        assert not any(row.paper for row in plan.table(name).rows)


def test_an_untrained_autoencoder_has_the_same_recipes_after_it(plan):
    """The controls differ from their rows in nothing but the pre-training."""
    table = plan.table("autoencoding")
    runs: dict = {}
    for row, key, run, _ in plan.cells(table, "mini", [0]):
        runs.setdefault(row.label, {})[key] = run
    for name in ("CRATE-MAE-B", "ViT-MAE-B"):
        trained, untrained = runs[name], runs[f"{name}, untrained"]
        assert set(untrained) == set(trained) - {"parameters"}
        for key, run in untrained.items():
            assert (run.model, *run.chain[1:]) == (trained[key].model, *trained[key].chain[1:])
            first, other = (plan.resolve(each.parent) for each in (run, trained[key]))
            assert (first.recipe.epochs, first.spec) == (0, other.spec)
            assert other.recipe.epochs > 0


@pytest.mark.parametrize("scale", ["smoke", "mini", "paper"])
def test_every_table_plans_at_every_scale(plan, scale):
    settings = plan.experiments.settings({"scale": scale})
    runs = plan.runs("all", settings)
    assert len(runs) == len(set(runs)) > 100
    for run in runs:
        plan.resolve(run)


# Keys of `paper.md`'s recipes, by step.
RECIPES = {
    "imagenet21k": {
        "optimizer": "adamw",
        "lr": 8e-4,
        "min_lr": 1e-6,
        "batch_size": 4096,
        "epochs": 91,
        "warmup_epochs": 10,
        "betas": [0.9, 0.95],
        "weight_decay": 0.1,
        "decay": "kernels",
        "clip_grad": 1.0,
        "mixup": 0.8,
        "cutmix": 1.0,
        "mix_switch": 0.5,
        "mix_group": 32,
        "pipeline": "tensorflow",
        "last_batch": "carry",
        "schedule": "cosine",
        "warmup_from_zero": True,
        "crop_area_min": 0.08,
        "flip": True,
        "randaugment": None,
        "label_smoothing": 0.0,
        "drop_path": 0.0,
        "dataset": "imagenet21k",
    },
    "imagenet21k_droppath": {"drop_path": 0.1, "mixup": 0.8},
    "imagenet21k_no_mixup": {"drop_path": 0.0, "mixup": 0.0, "cutmix": 0.0},
    "imagenet21k_cpal": {
        "optimizer": "lion",
        "lr": 9.6e-5,
        "weight_decay": 0.05,
        "batch_size": 4096,
        "epochs": 90,
        "center_crop": True,
        "flip": True,
        "mixup": 0.0,
        "dataset": "imagenet21k_fall11",
    },
    "imagenet1k": {
        "lr": 1.6e-4,
        "randaugment": [2, 9],
        "pipeline": "tensorflow",
        "last_batch": "carry",
        "mix_group": 32,
        "label_smoothing": 0.1,
        "mixup": 0.8,
        "epochs": 91,
        "eval_resize": 256,
        "dont_load": ["head"],
    },
    "imagenet1k_lion": {
        "optimizer": "lion",
        "lr": 2.4e-4,
        "weight_decay": 0.5,
        "batch_size": 2048,
        "epochs": 150,
        "warmup_epochs": 5,
        "schedule": "cosine_by_epoch",
        "last_batch": "keep",
        "pipeline": "torchvision",
        "clip_grad": None,
        "label_smoothing": 0.1,
        "mixup": 0.0,
        "randaugment": None,
        "decay": "all",
    },
    "imagenet1k_lion_readme": {
        "optimizer": "lion",
        "lr": 2e-4,
        "weight_decay": 0.05,
        "batch_size": 512,
        "epochs": 200,
        "warmup_epochs": 20,
        "label_smoothing": 0.1,
    },
    "cifar10": {
        "optimizer": "adamw",
        "lr": 5e-5,
        "weight_decay": 0.01,
        "batch_size": 256,
        "epochs": 200,
        "warmup_epochs": 0,
        "betas": [0.9, 0.999],
        "min_lr": 0.0,
        "randaugment": [2, 14],
        "pipeline": "torchvision",
        "last_batch": "keep",
        "crop_area_min": 0.08,
        "eval_resize": None,
        "zero_head": True,
        "dont_load": ["head"],
        "evaluate_epochs": 1,
        "label_smoothing": 0.0,
    },
    "pets_from21k": {"lr": 5e-5, "epochs": 90, "batch_size": 256, "dataset": "pets"},
    "cifar100_crate": {"lr": 5e-5, "epochs": 200, "batch_size": 256, "dataset": "cifar100"},
    "pets_crate": {"lr": 1e-4, "epochs": 400, "batch_size": 256, "dataset": "pets"},
    "flowers102_cpal": {
        "lr": 5e-5,
        "weight_decay": 0.01,
        "batch_size": 256,
        "dataset": "flowers102",
    },
    "flowers102_cpal_base": {"lr": 5e-5, "batch_size": 128, "dataset": "flowers102"},
    "imagenet1k_cpal_base": {
        "lr": 5e-5,
        "weight_decay": 0.01,
        "batch_size": 128,
        "dataset": "imagenet1k",
    },
    "imagenet1k_evaluated": {
        "epochs": 0,
        "dont_load": [],
        "eval_resize": 256,
        "image_size": 224,
        "dataset": "imagenet1k",
    },
    "ade20k": {
        "decoder": "upernet",
        "auxiliary": 0.4,
        "layers": [3, 5, 7, 11],
        "image_size": 512,
        "stride": 341,
        "updates": 160_000,
        "batch_size": 16,
        "optimizer": "adamw",
        "lr": 1e-4,
        "betas": [0.9, 0.999],
        "weight_decay": 0.05,
        "layer_decay": 0.75,
        "schedule": "linear",
        "warmup_updates": 1_500,
        "min_lr": 0.0,
        "drop_path": 0.1,
        "category_max": 0.75,
        "ratio": [0.5, 2.0],
        "dataset": "ade20k",
    },
    "coco_maskcut_cpal": {
        "tau": 0.15,
        "masks": 3,
        "crf": False,
        "layer": 11,
        "feature": "key",
        "dataset": "coco",
    },
    "coco_maskcut_alpha": {
        "tau": 0.3,
        "masks": 3,
        "crf": True,
        "layer": 10,
        "feature": "tokens",
        "image_size": 448,
    },
    "coco_maskcut_alpha_large": {"tau": 0.3, "crf": True, "layer": 20, "image_size": 448},
    "voc2012_attention": {"mass": 0.6, "layer": 11, "dataset": "voc2012"},
    "openwebtext": {
        "dataset": "openwebtext",
        "block_size": 1024,
        "batch_size": 384,
        "updates": 600_000,
        "optimizer": "adamw",
        "betas": [0.9, 0.95],
        "weight_decay": 0.1,
        "decay": "matrices",
        "lr": 6e-4,
        "min_lr": 6e-5,
        "warmup_updates": 2_000,
        "schedule": "cosine",
    },
    "openwebtext_gpt2": {"batch_size": 512, "updates": 600_000, "lr": 6e-4},
    "lambada": {"dataset": "lambada", "updates": 0, "block_size": 1024},
    "wikitext": {"dataset": "wikitext", "updates": 0},
    "ptb": {"dataset": "ptb", "updates": 0},
    "imagenet1k_mae": {
        "optimizer": "adamw",
        "lr": 3e-5,
        "weight_decay": 0.1,
        "batch_size": 4096,
        "epochs": 800,
        "warmup_epochs": 40,
        "mask_ratio": 0.75,
        "normalise_patches": False,
        "interpolation": "bicubic",
        "dataset": "imagenet1k",
    },
    "imagenet1k_mae_scaled": {"lr": 4.8e-4, "batch_size": 4096, "interpolation": "bicubic"},
    "datacomp1b": {
        "tokenizer": "bert_full",
        "pipeline": "tensorflow",
        "crop_area_min": 0.4,
        "warmup_from_zero": True,
        "updates": 2000 * 1281167 // 32768,
    },
    "coco_tokens": {"interpolation": "lanczos"},
    "imagenet1k_real": {
        "epochs": 0,
        "dont_load": [],
        "eval_resize": 256,
        "dataset": "imagenet1k_real",
    },
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_the_published_one(plan, name):
    recipe = plan.experiments.recipe(name, "paper")
    assert {key: getattr(recipe, key) for key in RECIPES[name]} == RECIPES[name]


@pytest.mark.parametrize(
    ("name", "size", "updates"),
    [
        ("flowers102_crate", 1_020, 1_600),  # the last batch of four has 252 images
        ("flowers102", 1_020, 800),
        ("imagenet1k_lion", 1_281_167, 150 * 626),
        ("imagenet1k", 1_281_167, round(91 * 1_281_167 / 4096)),  # epochs are one stream
        ("imagenet1k_mae", 1_281_167, 800 * 312),  # what does not fill a batch is left out
    ],
)
def test_updates_of_a_training_are_those_of_its_code(plan, name, size, updates):
    recipe = plan.experiments.recipe(name, "paper")
    assert recipe.total_updates(recipe.per_epoch(size)) == updates
    seen = {"drop": updates * recipe.batch_size, "keep": recipe.epochs * size}
    seen["carry"] = updates * recipe.batch_size
    assert recipe.seen(updates, size) == seen[recipe.last_batch]


def test_efficient_scaling_shares_one_pre_training(plan):
    settings = plan.experiments.settings({"scale": "paper"})
    runs = plan.runs("table_efficient_scaling", settings)
    pretrained = [run.model for run in runs if run.chain == ("imagenet21k",)]
    assert sorted(pretrained) == [
        "crate_alpha_large_patch14",
        "crate_alpha_large_patch32",
        "crate_alpha_large_patch8",
    ]
    continued = Run(
        "paper",
        "crate_alpha_large_patch8",
        0,
        ("from-crate_alpha_large_patch32-imagenet21k", "imagenet1k"),
    )
    assert continued in runs
    assert continued.parent.model == "crate_alpha_large_patch32"
