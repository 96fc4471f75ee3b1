"""The models by name, as specifications. No torch.

A name joins a family (CRATE, its ablation rows, CRATE-alpha, ViT), a size and a patch size:
`crate_alpha_base_patch16`. Language models (CRATE-GPT, CRATE-alpha-GPT, GPT-2) have no patches:
`crate_gpt_base`. Masked autoencoders (CRATE-MAE, ViT-MAE) have patches of 16 pixels:
`crate_mae_base`. Contrastive models (CLIPA) have a vision and a text tower:
`crate_alpha_clipa_large_patch14`.
"""

import functools
from dataclasses import fields, replace
from fnmatch import fnmatchcase

from crate.errors import UsageError, unknown
from crate.layers.operators import ATTENTION, FEEDFORWARD
from crate.models.spec import ModelSpec

# The choices of each family. Ablation rows of CRATE-alpha (Figure 1, left) change one thing each.
ALPHA = {}
OVERCOMPLETE_DECOUPLED = {"residual": False}
OVERCOMPLETE = {**OVERCOMPLETE_DECOUPLED, "decoupled": False}
PLAIN = {**OVERCOMPLETE, "feedforward": "ISTA"}
CRATE = {**PLAIN, "stem": "linear", "projection_bias": True, "norm_eps": 1e-5, "init": "crate"}
# CPAL's hybrids: one half of CRATE's block replaced by the transformer's.
CRATE_MLP = {**CRATE, "feedforward": "MLP", "residual": True}
CRATE_MHSA = {**CRATE, "attention": "MHSA"}
VIT = {
    "attention": "MHSA",
    "feedforward": "MLP",
    "decoupled": False,
    "projection_bias": True,
    "qkv_bias": True,
    "init": "vit",
}

# Language models. CRATE-GPT as in the overview paper's code (Ma-Lab-Berkeley/CRATE,
# model/crate_gpt.py). The code of CRATE-alpha's was not published: its block is as in vision.
CRATE_ALPHA_GPT = {"causal": True}
CRATE_GPT = {
    **PLAIN,
    "projection_bias": True,
    "norm_eps": 1e-5,
    "causal": True,
    "final_norm": False,
}
GPT2 = {
    "attention": "MHSA",
    "feedforward": "MLP",
    "decoupled": False,
    "projection_bias": True,
    "qkv_bias": True,
    "norm_eps": 1e-5,
    "causal": True,
    "gelu": "tanh",
}

# Masked autoencoders. CRATE-MAE and ViT-MAE as in the CRATE authors' code (Ma-Lab-Berkeley/CRATE,
# model/crate_ae): mask tokens before the encoder, ViT blocks with timm's defaults. Their
# ViT-MAE-Small was not published; these sizes have the printed 47.6M parameters. He et al.'s model
# is asymmetric: mask tokens before a narrow decoder (arXiv 2111.06377).
CRATE_MAE = {
    **PLAIN,
    "projection_bias": True,
    "norm_eps": 1e-5,
    "sparsity": 0.5,
    "init": "crate",
    "decoder": "inverse",
}
HE_DECODER = {"decoder": "blocks", "decoder_depth": 8, "decoder_heads": 16}
VIT_MAE = {**VIT, **HE_DECODER, "qkv_bias": False, "norm_eps": 1e-5}
VIT_MAE_512 = {**VIT_MAE, "decoder_dim": 512}
VIT_MAE_ASYMMETRIC = {**VIT, **HE_DECODER, "decoder_dim": 512, "mask_tokens": "decoder"}

# Contrastive models. CRATE-alpha's vision tower without biases in stem and head, and the text tower
# "H" of CLIPA (arXiv 2305.07017) at every size of the vision tower. ViT-H/14 is CLIPA's, which
# pools by the mean (its code has fixed sin-cos positions; here they are learned).
# UCSC-VLAA/CRATE-alpha: configs/crate/clipa, models/text_transformer.py.
TEXT_HUGE = {"embed_dim": 1024, "text_dim": 1024, "text_depth": 24, "text_heads": 16}
CRATE_ALPHA_CLIPA = {"outer_bias": False, **TEXT_HUGE}
VIT_CLIPA = {**VIT, "pool": "mean", "outer_bias": False, **TEXT_HUGE}

# Sizes: (dim, heads, depth). The papers give the same size names different widths.
BASE_AND_LARGE = {"base": (768, 12, 12), "large": (1024, 16, 24)}
HUGE = {"huge": (1280, 16, 32)}
CRATE_SIZES = {"tiny": (384, 6, 12), "small": (576, 12, 12), **BASE_AND_LARGE}
DEMO = {"demo": (768, 6, 12)}  # of crate-demo.pth: CRATE-Base with half the heads
CPAL_SIZES = {"tiny": (192, 3, 12)}
ALPHA_SIZES = {"tiny": (192, 3, 12), "small": (576, 12, 12), **BASE_AND_LARGE, **HUGE}
VIT_SIZES = {"tiny": (192, 3, 12), "small": (384, 6, 12), **BASE_AND_LARGE, **HUGE}
GPT_SIZES = {"base": (768, 12, 12)}
SMALL_AND_BASE_GPT = {"small": (512, 8, 12), **GPT_SIZES}
SMALL_MAE, BASE_MAE = {"small": (384, 6, 12)}, {"base": (768, 12, 12)}

PATCHES = (8, 14, 16, 32)
NO_PATCH = (ModelSpec.patch_size,)  # the default, which has no effect
PATCH_16 = (16,)  # of autoencoders, not in the name

FAMILIES = [
    ("crate_{size}_patch{patch}", CRATE, CRATE_SIZES, PATCHES),
    ("crate_cpal_{size}_patch{patch}", CRATE, CPAL_SIZES, (8,)),
    ("crate_{size}_patch{patch}", CRATE, DEMO, (8,)),
    ("crate_{size}_patch{patch}_mlp", CRATE_MLP, CRATE_SIZES, (8,)),
    ("crate_{size}_patch{patch}_mhsa", CRATE_MHSA, CRATE_SIZES, (8,)),
    ("crate_{size}_patch{patch}_plain", PLAIN, ALPHA_SIZES, PATCHES),
    ("crate_{size}_patch{patch}_overcomplete", OVERCOMPLETE, ALPHA_SIZES, PATCHES),
    (
        "crate_{size}_patch{patch}_overcomplete_decoupled",
        OVERCOMPLETE_DECOUPLED,
        ALPHA_SIZES,
        PATCHES,
    ),
    ("crate_alpha_{size}_patch{patch}", ALPHA, ALPHA_SIZES, PATCHES),
    ("vit_{size}_patch{patch}", VIT, VIT_SIZES, PATCHES),
    ("crate_gpt_{size}", CRATE_GPT, GPT_SIZES, NO_PATCH),
    ("crate_alpha_gpt_{size}", CRATE_ALPHA_GPT, SMALL_AND_BASE_GPT, NO_PATCH),
    ("gpt2_{size}", GPT2, SMALL_AND_BASE_GPT, NO_PATCH),
    ("crate_mae_{size}", CRATE_MAE, {"small": (576, 12, 12), **BASE_MAE}, PATCH_16),
    ("vit_mae_{size}", VIT_MAE_512, SMALL_MAE, PATCH_16),
    ("vit_mae_{size}", VIT_MAE, BASE_MAE, PATCH_16),
    ("vit_mae_{size}_asymmetric", VIT_MAE_ASYMMETRIC, SMALL_MAE | BASE_MAE, PATCH_16),
    ("crate_alpha_clipa_{size}_patch{patch}", CRATE_ALPHA_CLIPA, BASE_AND_LARGE | HUGE, (14, 16)),
    ("vit_clipa_{size}_patch{patch}", VIT_CLIPA, BASE_AND_LARGE | HUGE, (14, 16)),
]

MODELS = {
    template.format(size=size, patch=patch): ModelSpec(
        dim=dim, depth=depth, heads=heads, patch_size=patch, **choices
    )
    for template, choices, sizes, patches in FAMILIES
    for size, (dim, heads, depth) in sizes.items()
    for patch in patches
}


def list_models(pattern: str = "*") -> list[str]:
    """The model names that match a shell-style pattern, sorted: `list_models("*_base_*")`."""
    return list(_matching(pattern))


@functools.cache
def _matching(pattern: str) -> tuple[str, ...]:
    return tuple(sorted(name for name in MODELS if fnmatchcase(name, pattern)))


# What a setting needs to have an effect; for operators' settings see layers/operators.py.
NEEDS = {
    "a vision model": ("patch_size", "stem", "pool", "init", "outer_bias"),
    "a language model": ("final_norm",),
    "a decoder": ("decoder_dim", "decoder_depth", "decoder_heads", "mask_tokens"),
    "a text tower": ("text_dim", "text_depth", "text_heads"),
}


def without_effect(spec: ModelSpec) -> dict[str, str]:
    """Fields that have no effect on this architecture → what they would need."""
    has = {"a language model" if spec.causal else "a vision model"}
    if spec.decoder != "none":
        has.add("a decoder")
    if spec.embed_dim is not None:
        has.add("a text tower")
    unused = {key: need for need, keys in NEEDS.items() if need not in has for key in keys}
    for part, operators in (("attention", ATTENTION), ("feedforward", FEEDFORWARD)):
        named = {"attention": spec.attention, "feedforward": spec.feedforward}[part]
        readers: dict[str, list[str]] = {}
        for name, operator in operators.items():
            for key in operator.settings:
                readers.setdefault(key, []).append(name)
        for key, names in readers.items():
            if named not in names:
                unused[key] = f"{part} {' or '.join(names)}"
    return unused


def resolve(name: str, **overrides: object) -> ModelSpec:
    """The `ModelSpec` of a model name, with some of its fields replaced.

    Raises `UsageError` for an unknown name or field, an invalid value, or a field that has no
    effect on this model.
    """
    if name not in MODELS:
        raise unknown("model", name, list_models())
    known = [field.name for field in fields(ModelSpec)]
    for key in overrides:
        if key not in known:
            raise unknown("model setting", key, known, where=name)
    spec = replace(MODELS[name], **overrides)
    for key, need in without_effect(spec).items():
        if overrides.get(key, getattr(MODELS[name], key)) != getattr(MODELS[name], key):
            raise UsageError(f"{name}: {key} has no effect on this model; it needs {need}")
    return spec
