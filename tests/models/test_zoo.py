import itertools
import subprocess
import sys
from dataclasses import asdict

import pytest

from crate.errors import UsageError
from crate.models.build import create_model
from crate.models.spec import ModelSpec
from crate.models.zoo import list_models, resolve


def changes(a, b):
    a, b = asdict(a), asdict(b)
    return {key: (a[key], b[key]) for key in a if a[key] != b[key]}


@pytest.mark.parametrize("size", ["tiny", "small", "base", "large", "huge"])
def test_each_ablation_row_changes_exactly_one_thing(size):
    stem = f"crate_{size}_patch32"
    rows = [f"{stem}_plain", f"{stem}_overcomplete", f"{stem}_overcomplete_decoupled"]
    specs = [resolve(name) for name in [*rows, f"crate_alpha_{size}_patch32"]]
    assert [changes(*pair) for pair in itertools.pairwise(specs)] == [
        {"feedforward": ("ISTA", "ODL")},
        {"decoupled": (False, True)},
        {"residual": (False, True)},
    ]


def test_families_hold_the_published_choices():
    assert resolve("crate_alpha_base_patch16") == ModelSpec(768, 12, 12, 16)
    assert changes(resolve("crate_base_patch16_plain"), resolve("crate_base_patch16")) == {
        "stem": ("conv", "linear"),
        "projection_bias": (False, True),
        "norm_eps": (1e-6, 1e-5),
        "init": ("alpha", "crate"),
    }
    assert changes(resolve("crate_tiny_patch8"), resolve("crate_cpal_tiny_patch8")) == {
        "dim": (384, 192),
        "heads": (6, 3),
    }
    assert changes(resolve("crate_base_patch16"), resolve("crate_gpt_base")) == {
        "stem": ("linear", "conv"),
        "init": ("crate", "alpha"),  # of no effect
        "causal": (False, True),
        "final_norm": (True, False),
    }
    assert changes(resolve("crate_alpha_base_patch16"), resolve("crate_alpha_gpt_base")) == {
        "causal": (False, True)
    }
    assert changes(resolve("crate_base_patch16"), resolve("crate_mae_base")) == {
        "stem": ("linear", "conv"),
        "sparsity": (0.1, 0.5),
        "decoder": ("none", "inverse"),
    }
    text = {"text_dim": (None, 1024), "text_depth": (None, 24), "text_heads": (None, 16)}
    tower = {"embed_dim": (None, 1024), "outer_bias": (True, False)} | text
    alpha = resolve("crate_alpha_huge_patch14"), resolve("crate_alpha_clipa_huge_patch14")
    assert changes(*alpha) == tower
    vits = resolve("vit_huge_patch14"), resolve("vit_clipa_huge_patch14")
    assert changes(*vits) == tower | {"pool": ("token", "mean")}
    assert changes(resolve("vit_large_patch14"), alpha[1].text_spec) == {
        "patch_size": (14, 16),  # of no effect, as the next
        "init": ("vit", "alpha"),
        "gelu": ("exact", "tanh"),
    }
    assert changes(resolve("vit_mae_base"), resolve("vit_mae_base_asymmetric")) == {
        "qkv_bias": (False, True),
        "norm_eps": (1e-5, 1e-6),
        "decoder_dim": (None, 512),
        "mask_tokens": ("encoder", "decoder"),
    }
    vit = resolve("vit_huge_patch14")
    assert (vit.dim, vit.depth, vit.heads, vit.attention, vit.feedforward, vit.residual) == (
        (1280, 32, 16, "MHSA", "MLP", True)
    )


def test_list_models_matches_patterns_and_every_name_resolves():
    assert list_models("crate_alpha_*_patch14") == [
        *("crate_alpha_base_patch14", "crate_alpha_clipa_base_patch14"),
        *("crate_alpha_clipa_huge_patch14", "crate_alpha_clipa_large_patch14"),
        *(f"crate_alpha_{size}_patch14" for size in ("huge", "large", "small", "tiny")),
    ]
    assert len(list_models("*_overcomplete_decoupled")) == 20
    assert list_models("nothing") == []
    names = list_models()
    assert names == sorted(set(names))
    for name in names:
        spec = resolve(name)
        assert spec.causal == ("gpt" in name)
        assert (spec.decoder != "none") == ("_mae_" in name)
        assert (spec.kind == "contrastive") == ("_clipa_" in name)
        patch = spec.causal or "_mae_" in name or f"patch{spec.patch_size}" in name
        assert patch, name
    assert list_models("*gpt*") == [
        *("crate_alpha_gpt_base", "crate_alpha_gpt_small", "crate_gpt_base"),
        *("gpt2_base", "gpt2_small"),
    ]


def test_overrides_replace_fields():
    spec = resolve("crate_alpha_base_patch16", dim=64, heads=4, depth=2, step_size=1)
    assert (spec.dim, spec.heads, spec.depth, spec.patch_size) == (64, 4, 2, 16)
    assert type(spec.step_size) is float  # 1 and 1.0 are one configuration


NAME, GPT = "crate_alpha_base_patch16", "crate_gpt_base"


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("crate_alhpa_base_patch16", {}, "unknown model 'crate_alhpa_base_patch16'; did you mean"),
        (NAME, {"detph": 3}, f"{NAME}: unknown model setting 'detph'; did you mean 'depth'?"),
        (NAME, {"heads": 7}, "dim 768 is not divisible by heads 7"),
        (NAME, {"depth": 0}, "depth must be at least 1, got 0"),
        (NAME, {"dim": -768}, "dim must be at least 1, got -768"),
        (NAME, {"depth": True}, "depth must be an integer, got True (bool)"),
        (NAME, {"depth": 3.0}, "depth must be an integer, got 3.0 (float)"),
        (NAME, {"depth": "3"}, "depth must be an integer, got '3' (str)"),
        (NAME, {"residual": 1}, "residual must be true or false, got 1 (int)"),
        (NAME, {"norm_eps": "1e-6"}, "in YAML write 1.0e-6"),
        (NAME, {"norm_eps": 0}, "norm_eps must be positive"),
        (NAME, {"sparsity": float("nan")}, "sparsity must be finite"),
        (NAME, {"step_size": False}, "step_size must be a number, got False (bool)"),
        (NAME, {"feedforward": "ITSA"}, "unknown feedforward 'ITSA'; did you mean 'ISTA'?"),
        (NAME, {"stem": None}, "stem must be a string, got None"),
        (NAME, {"image_size": 100}, "image_size 100 is not divisible by patch_size 16"),
        (NAME, {"image_size": 0}, "image_size must be at least 1, got 0"),
        (NAME, {"num_classes": 0}, "num_classes must be at least 1, got 0"),
        (NAME, {"num_classes": 10.0}, "num_classes must be an integer"),
        (NAME, {"drop_path": 1}, "drop_path must be a number in [0, 1), got 1"),
        (NAME, {"drop_path": "a"}, "drop_path must be a number in [0, 1), got 'a'"),
        (NAME, {"causal": True}, "cannot be causal"),
        (NAME, {"vocab_size": 9}, f"{NAME} is a vision model and has no vocab_size; it has num_cl"),
        (NAME, {"block_size": 9}, "has no block_size"),
        (GPT, {"num_classes": 9}, f"{GPT} is a language model and has no num_classes; it has voca"),
        (GPT, {"image_size": 32}, "has no image_size"),
        (GPT, {"vocab_size": 0}, "vocab_size must be at least 1, got 0"),
        (GPT, {"block_size": 8.0}, "block_size must be an integer, got 8.0 (float)"),
        (GPT, {"drop_path": 1}, "drop_path must be a number in [0, 1), got 1"),
        (GPT, {"causal": False}, "a language model must be causal"),
        (GPT, {"gelu": "tahn"}, "unknown gelu 'tahn'; did you mean 'tanh'?"),
    ],
)
def test_bad_requests_are_one_line_that_says_what_is_wrong(name, options, message):
    with pytest.raises(UsageError) as error:
        create_model(name, **options)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_names_and_closed_forms_need_no_torch():
    program = """
import sys
from crate.models.build import create_model
from crate.models.zoo import list_models
from crate.models.zoo import resolve
from crate.models.flops import autoencoder_macs, autoencoder_parameter_count
from crate.models.flops import contrastive_parameter_count, image_macs, text_macs
from crate.models.flops import language_macs, language_parameter_count, macs, parameter_count
for name in list_models():
    spec = resolve(name)
    if spec.causal:
        language_macs(spec, vocab_size=10, tokens=8)
        language_parameter_count(spec, vocab_size=10, block_size=8)
        continue
    if spec.decoder != "none":
        autoencoder_macs(spec, image_size=224)
        autoencoder_parameter_count(spec, image_size=224)
    if spec.kind == "contrastive":
        size = {"image_size": 28 * spec.patch_size}
        contrastive_parameter_count(spec, **size, vocab_size=10, context_length=8)
        image_macs(spec, **size), text_macs(spec, context_length=8)
    macs(spec, image_size=224, num_classes=10)
    parameter_count(spec, image_size=224, num_classes=10)
try:
    resolve("vit_bass_patch16")
except Exception as error:
    assert "vit_base_patch16" in str(error)
assert "torch" not in sys.modules and "numpy" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def without_effect(setting: str, need: str) -> str:
    return f"{setting} has no effect on this model; it needs {need}"


@pytest.mark.parametrize(
    ("name", "setting", "told"),
    [
        (
            "crate_gpt_base",
            {"dictionary_ratio": 2},
            without_effect("dictionary_ratio", "feedforward ODL"),
        ),
        ("crate_base_patch16", {"mlp_ratio": 2}, without_effect("mlp_ratio", "feedforward MLP")),
        (
            "vit_base_patch16",
            {"step_size": 0.2},
            without_effect("step_size", "feedforward ISTA or ODL"),
        ),
        (
            "crate_alpha_base_patch16",
            {"qkv_bias": True},
            without_effect("qkv_bias", "attention MHSA"),
        ),
        ("gpt2_base", {"pool": "mean"}, without_effect("pool", "a vision model")),
        (
            "vit_base_patch16",
            {"final_norm": False},
            without_effect("final_norm", "a language model"),
        ),
        ("crate_base_patch16", {"decoder_depth": 2}, without_effect("decoder_depth", "a decoder")),
        ("gpt2_base", {"outer_bias": False}, without_effect("outer_bias", "a vision model")),
        (
            "vit_base_patch16",
            {"text_depth": 2},
            "give all of embed_dim, text_dim, text_depth and text_heads",
        ),
    ],
)
def test_a_setting_that_would_change_nothing_is_refused(name, setting, told):
    """A row of one's own must not be another row under a new name."""
    with pytest.raises(UsageError, match=told):
        resolve(name, **setting)


def test_a_setting_may_come_with_what_it_needs():
    spec = resolve("crate_gpt_base", feedforward="ODL", dictionary_ratio=2)
    assert (spec.feedforward, spec.dictionary_ratio) == ("ODL", 2)
    resolve("gpt2_base", step_size=0.1)  # as it is: nothing is asked for
