"""Defaults keep their meaning.

A run is identified by what differs from the defaults. Changing a default would change what every
finished run means without making one stale: add a new key instead, or rename the old one.
"""

import dataclasses

from pydantic_core import PydanticUndefined

from crate.models.spec import ModelSpec
from crate.tasks.classification.recipe import Classification

STEP = {
    "evaluate": "test",
    "optimizer": "adamw",
    "min_lr": 0.0,
    "warmup_epochs": 0.0,
    "betas": [0.9, 0.999],
    "eps": 1e-8,
    "weight_decay": 0.0,
    "decay": "all",
    "clip_grad": None,
    "drop_path": 0.0,
    "dont_load": [],
    "task": "classification",
    "image_size": 224,
    "eval_resize": None,
    "crop_area_min": 1.0,
    "flip": True,
    "randaugment": None,
    "label_smoothing": 0.0,
    "mixup": 0.0,
    "cutmix": 0.0,
    "mix_switch": 0.5,
}
MODEL = {
    "patch_size": 16,
    "attention": "MSSA",
    "feedforward": "ODL",
    "residual": True,
    "dictionary_ratio": 4,
    "decoupled": True,
    "mlp_ratio": 4,
    "step_size": 0.1,
    "sparsity": 0.1,
    "stem": "conv",
    "projection_bias": False,
    "qkv_bias": False,
    "norm_eps": 1e-6,
    "init": "alpha",
    "causal": False,
    "decoder": "none",
    "decoder_dim": None,
    "decoder_depth": None,
    "decoder_heads": None,
    "mask_tokens": "encoder",
}


def test_the_defaults_of_a_recipe_mean_what_they_meant():
    now = {
        name: field.default
        for name, field in Classification.model_fields.items()
        if field.default is not PydanticUndefined and name != "compute"
    }
    assert {k: now.get(k) for k in STEP} == STEP


def test_the_defaults_of_a_model_mean_what_they_meant():
    now = {
        field.name: field.default
        for field in dataclasses.fields(ModelSpec)
        if field.default is not dataclasses.MISSING
    }
    assert {k: now.get(k) for k in MODEL} == MODEL
