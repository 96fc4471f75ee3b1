"""Model names and what they mean; no torch until a model is built.

A `ModelSpec` holds every choice that tells the models of these papers apart. A name is a family
(CRATE, its ablation rows, CRATE-alpha, ViT) x a size x a patch size: `crate_alpha_base_patch16`.
Language models (CRATE-GPT, CRATE-alpha-GPT, GPT-2) have no patches: `crate_gpt_base`. Masked
autoencoders (CRATE-MAE, ViT-MAE) come with patches of 16 pixels: `crate_mae_base`. Contrastive
models (CLIPA) have a text tower beside the vision one: `crate_alpha_clipa_large_patch14`.
"""

import math
from dataclasses import dataclass, fields, replace
from fnmatch import fnmatchcase

from crate.errors import UsageError, unknown

CHOICES = {
    "attention": ("MSSA", "MHSA"),  # classes of attention.py
    "feedforward": ("ISTA", "ODL", "MLP"),  # classes of sparse_coding.py
    "stem": ("conv", "linear"),
    "pool": ("token", "mean"),
    "init": ("alpha", "crate", "vit"),
    "gelu": ("exact", "tanh"),
    "decoder": ("none", "inverse", "blocks"),
    "mask_tokens": ("encoder", "decoder"),
}
# What a specification may describe (`ModelSpec.kind`), in words.
MODEL_KINDS = {
    "vision": "a vision model",
    "language": "a language model",
    "autoencoder": "a masked autoencoder",
    "contrastive": "a contrastive model",
}


def check_positive_int(name: str, value: object) -> None:
    """Raise `UsageError` unless `value` is an int of at least 1 (a bool is not an int here)."""
    if type(value) is not int:
        raise UsageError(f"{name} must be an integer, got {_describe(value)}")
    if value < 1:
        raise UsageError(f"{name} must be at least 1, got {value}")


def _describe(value: object) -> str:
    return f"{value!r} ({type(value).__name__})"


@dataclass(frozen=True)
class ModelSpec:
    """The architecture of one model; the defaults are CRATE-alpha's choices.

    dim                width d of the tokens; a multiple of `heads`
    depth              number of blocks L
    heads              number of attention heads (subspaces) K
    patch_size         side of a square patch, in pixels
    attention          "MSSA" (one tied projection) or "MHSA" (query, key and value)
    feedforward        "ISTA" (complete dictionary), "ODL" (overcomplete) or "MLP"
    residual           a residual connection around the feed-forward; attention always has one
    dictionary_ratio   ODL: atoms over width, the dictionary is d x (ratio d)
    decoupled          ODL: decode with a dictionary of its own
    mlp_ratio          MLP: hidden width over d
    gelu               MLP: "exact", or GPT-2's "tanh" approximation
    step_size          η of ISTA and ODL
    sparsity           λ of ISTA and ODL
    stem               "conv", or "linear" = LayerNorm, Linear, LayerNorm on flattened patches
    projection_bias    a bias in attention's output projection
    qkv_bias           MHSA: a bias in the query, key and value projections
    norm_eps           ε of every LayerNorm
    pool               what the head sees: "token", the class token, or "mean" of the patch tokens
    init               "alpha", "crate" or "vit": how weights start (vision.py, `initialise`);
                       autoencoders start in their own way
    causal             no token sees later ones (language models)
    final_norm         language models: a LayerNorm before the head; vision models have one
    decoder            masked autoencoders (autoencoder.py): "inverse" blocks, or "blocks" as the
                       encoder's; "none" for all other models
    decoder_dim        width of the decoder's tokens; None, here and below: as the encoder's
    decoder_depth      number of the decoder's blocks
    decoder_heads      their number of attention heads; divides their width
    mask_tokens        where a masked patch becomes the mask token: before the "encoder", or before
                       the "decoder", so that the encoder sees the kept patches alone
    outer_bias         vision models: biases in the patch embedding and in the head
    embed_dim          contrastive models (contrastive.py): width of the space that images and texts
                       are embedded in; None for all other models
    text_dim           width of the text tower's tokens; None, here and below: there is none
    text_depth         number of its blocks
    text_heads         their number of attention heads; divides their width

    A field that the chosen operators do not use has no effect; on language models (language.py),
    neither have `patch_size`, `stem`, `pool`, `init` and `outer_bias`. An autoencoder's encoder and
    a contrastive model's vision tower are vision models of the same specification, on which
    `decoder…`, `mask_tokens`, `embed_dim` and `text_…` have no effect.

    Raises `UsageError` for a wrong type, a value out of range or an unknown choice.
    """

    dim: int
    depth: int
    heads: int
    patch_size: int = 16
    attention: str = "MSSA"
    feedforward: str = "ODL"
    residual: bool = True
    dictionary_ratio: int = 4
    decoupled: bool = True
    mlp_ratio: int = 4
    step_size: float = 0.1
    sparsity: float = 0.1
    stem: str = "conv"
    projection_bias: bool = False
    qkv_bias: bool = False
    norm_eps: float = 1e-6
    pool: str = "token"
    init: str = "alpha"
    causal: bool = False
    gelu: str = "exact"
    final_norm: bool = True
    decoder: str = "none"
    decoder_dim: int | None = None
    decoder_depth: int | None = None
    decoder_heads: int | None = None
    mask_tokens: str = "encoder"
    outer_bias: bool = True
    embed_dim: int | None = None
    text_dim: int | None = None
    text_depth: int | None = None
    text_heads: int | None = None

    def __post_init__(self):
        for field in fields(self):
            name, value = field.name, getattr(self, field.name)
            if field.type is int or (field.type == int | None and value is not None):
                check_positive_int(name, value)
            elif field.type is bool and type(value) is not bool:
                raise UsageError(f"{name} must be true or false, got {_describe(value)}")
            elif field.type is float:
                if type(value) not in (int, float):
                    # YAML reads 1e-6 as text: say how to write it.
                    hint = "; in YAML write 1.0e-6, not 1e-6" if _is_number_text(value) else ""
                    raise UsageError(f"{name} must be a number, got {_describe(value)}{hint}")
                if not (math.isfinite(value) and value >= 0):
                    raise UsageError(f"{name} must be finite and at least 0, got {value}")
                object.__setattr__(self, name, float(value))
            elif field.type is str:
                if type(value) is not str:
                    raise UsageError(f"{name} must be a string, got {_describe(value)}")
                if value not in CHOICES[name]:
                    raise unknown(name, value, CHOICES[name])
        if self.norm_eps == 0:
            raise UsageError("norm_eps must be positive, got 0")
        if self.dim % self.heads:
            raise UsageError(f"dim {self.dim} is not divisible by heads {self.heads}")
        if self.decoder != "none":
            dim, heads = self.decoder_dim or self.dim, self.decoder_heads or self.heads
            if dim % heads:
                raise UsageError(f"the decoder's dim {dim} is not divisible by its heads {heads}")
        tower = (self.embed_dim, self.text_dim, self.text_depth, self.text_heads)
        if any(tower) and not all(tower):
            raise UsageError("embed_dim, text_dim, text_depth and text_heads belong together")
        if self.text_dim and self.text_dim % self.text_heads:
            raise UsageError(
                f"text_dim {self.text_dim} is not divisible by text_heads {self.text_heads}"
            )
        if self.embed_dim and (self.causal or self.decoder != "none"):
            raise UsageError("a text tower stands beside a vision model: not causal, no decoder")

    @property
    def kind(self) -> str:
        """Which of `MODEL_KINDS` it is."""
        if self.causal:
            return "language"
        if self.decoder != "none":
            return "autoencoder"
        return "vision" if self.embed_dim is None else "contrastive"

    @property
    def text_spec(self) -> "ModelSpec":
        """What the blocks of a text tower are made of: CLIPA's (arXiv 2305.07017), see TEXT."""
        return ModelSpec(dim=self.text_dim, depth=self.text_depth, heads=self.text_heads, **TEXT)

    @property
    def decoder_spec(self) -> "ModelSpec":
        """What the decoder's blocks are made of: the encoder's choices at the decoder's sizes."""
        return replace(
            self,
            dim=self.decoder_dim or self.dim,
            depth=self.decoder_depth or self.depth,
            heads=self.decoder_heads or self.heads,
            decoder="none",
        )

    @property
    def embeds_decoder(self) -> bool:
        """Whether a linear map leads from the encoder's tokens to the decoder's."""
        return self.mask_tokens == "decoder" or self.decoder_spec.dim != self.dim

    def grid(self, image_size: int) -> int:
        """Patches along one side of a square image; `UsageError` unless the patches fill it."""
        check_positive_int("image_size", image_size)
        if image_size % self.patch_size:
            raise UsageError(
                f"image_size {image_size} is not divisible by patch_size {self.patch_size}"
            )
        return image_size // self.patch_size


def _is_number_text(value: object) -> bool:
    try:
        return isinstance(value, str) and math.isfinite(float(value))
    except ValueError:
        return False


# What each family chooses. The ablation rows of CRATE-alpha (Figure 1, left) each change one thing.
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

# Language models. CRATE-GPT as the overview paper's code has it (Ma-Lab-Berkeley/CRATE,
# model/crate_gpt.py); that of CRATE-alpha was never published: its block, as in vision.
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

# Masked autoencoders. CRATE-MAE and, beside it, ViT-MAE as the CRATE authors' code has them
# (Ma-Lab-Berkeley/CRATE, model/crate_ae): mask tokens before the encoder, the ViT's blocks by
# timm's defaults. Its ViT-MAE-Small was never published; these sizes have the printed 47.6M
# parameters. He et al.'s own is asymmetric: mask tokens and a narrow decoder (arXiv 2111.06377).
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

# Contrastive models. CRATE-alpha's vision tower without biases at its ends, beside the text tower
# "H" of CLIPA (arXiv 2305.07017), whatever the vision tower's size; ViT-H/14 is CLIPA's own, which
# pools by the mean (its code has fixed sin-cos positions; here they are learned).
# UCSC-VLAA/CRATE-alpha: configs/crate/clipa, models/text_transformer.py.
TEXT = {
    "attention": "MHSA",
    "feedforward": "MLP",
    "decoupled": False,
    "projection_bias": True,
    "qkv_bias": True,
    "gelu": "tanh",
}
TEXT_HUGE = {"embed_dim": 1024, "text_dim": 1024, "text_depth": 24, "text_heads": 16}
CRATE_ALPHA_CLIPA = {"outer_bias": False, **TEXT_HUGE}
VIT_CLIPA = {**VIT, "pool": "mean", "outer_bias": False, **TEXT_HUGE}

# Sizes: (dim, heads, depth). The papers give the same size names different widths.
BASE_AND_LARGE = {"base": (768, 12, 12), "large": (1024, 16, 24)}
HUGE = {"huge": (1280, 16, 32)}
CRATE_SIZES = {"tiny": (384, 6, 12), "small": (576, 12, 12), **BASE_AND_LARGE}
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
    return sorted(name for name in MODELS if fnmatchcase(name, pattern))


def without_effect(spec: ModelSpec) -> dict[str, str]:
    """Fields that change nothing of this architecture, each with what it would need."""
    needs = {
        "feedforward ODL": ("dictionary_ratio", "decoupled"),
        "feedforward ISTA or ODL": ("step_size", "sparsity"),
        "feedforward MLP": ("mlp_ratio", "gelu"),
        "attention MHSA": ("qkv_bias",),
        "a vision model": ("patch_size", "stem", "pool", "init", "outer_bias"),
        "a language model": ("final_norm",),
        "a decoder": ("decoder_dim", "decoder_depth", "decoder_heads", "mask_tokens"),
        "a text tower": ("text_dim", "text_depth", "text_heads"),
    }
    has = {f"feedforward {spec.feedforward}", f"attention {spec.attention}"}
    has.add("a language model" if spec.causal else "a vision model")
    if spec.decoder != "none":
        has.add("a decoder")
    if spec.embed_dim is not None:
        has.add("a text tower")
    if spec.feedforward in ("ISTA", "ODL"):
        has.add("feedforward ISTA or ODL")
    return {key: need for need, keys in needs.items() if need not in has for key in keys}


def resolve(name: str, **overrides: object) -> ModelSpec:
    """The `ModelSpec` of a model name, with some of its fields replaced.

    Raises `UsageError` for an unknown name, an unknown field, a value that makes no sense, or one
    that would change nothing.
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
            raise UsageError(f"{name}: {key} needs {need}: here it would change nothing")
    return spec


# What `create_model` takes, and by default.
VISION_SIZES = {"num_classes": 1000, "image_size": 224}
LANGUAGE_SIZES = {"vocab_size": 50_257, "block_size": 1024}  # GPT-2's
AUTOENCODER_SIZES = {"image_size": 224, "normalise_patches": False}
CONTRASTIVE_SIZES = {"image_size": 224, "vocab_size": 32_000, "context_length": 32}  # CLIPA's


def create_model(
    name: str,
    *,
    num_classes: int | None = None,
    image_size: int | None = None,
    vocab_size: int | None = None,
    block_size: int | None = None,
    normalise_patches: bool | None = None,
    context_length: int | None = None,
    drop_path: float = 0.0,
    **overrides: object,
):
    """Build a model by name, freshly initialised: `resolve`, then one of the four `build…`.

    A vision model has `num_classes` (1,000) and an `image_size` (224 pixels), a language model a
    `vocab_size` (50,257) and a `block_size` (1,024 tokens), an autoencoder an `image_size` (224
    pixels) and `normalise_patches` (no), a contrastive model an `image_size` (224 pixels), a
    `vocab_size` (32,000) and a `context_length` (32 tokens). Raises `UsageError`, also for a size
    that only another kind of model has.
    """
    spec = resolve(name, **overrides)
    defaults, construct = {
        "vision": (VISION_SIZES, build),
        "language": (LANGUAGE_SIZES, build_language),
        "autoencoder": (AUTOENCODER_SIZES, build_autoencoder),
        "contrastive": (CONTRASTIVE_SIZES, build_contrastive),
    }[MODELS[name].kind]
    given = {
        "num_classes": num_classes,
        "image_size": image_size,
        "vocab_size": vocab_size,
        "block_size": block_size,
        "normalise_patches": normalise_patches,
        "context_length": context_length,
    }
    given = {key: value for key, value in given.items() if value is not None}
    for key in given:
        if key not in defaults:
            kind = MODEL_KINDS[MODELS[name].kind]
            raise UsageError(f"{name} is {kind} and has no {key}; it has {' and '.join(defaults)}")
    return construct(spec, **(defaults | given), drop_path=drop_path)


def build(spec: ModelSpec, *, num_classes: int, image_size: int, drop_path: float = 0.0):
    """Build the `VisionTransformer` of a spec, for square images of `image_size` pixels a side.

    drop_path: the last block's stochastic-depth rate, in [0, 1). Raises `UsageError`.
    """
    from crate.models.vision import VisionTransformer

    return VisionTransformer(
        spec, num_classes=num_classes, image_size=image_size, drop_path=drop_path
    )


def build_language(spec: ModelSpec, *, vocab_size: int, block_size: int, drop_path: float = 0.0):
    """Build the `LanguageModel` of a spec, for blocks of at most `block_size` tokens.

    drop_path: the last block's stochastic-depth rate, in [0, 1). Raises `UsageError`.
    """
    from crate.models.language import LanguageModel

    return LanguageModel(spec, vocab_size=vocab_size, block_size=block_size, drop_path=drop_path)


def build_autoencoder(
    spec: ModelSpec, *, image_size: int, normalise_patches: bool = False, drop_path: float = 0.0
):
    """Build the `MaskedAutoencoder` of a spec, for square images of `image_size` pixels a side.

    normalise_patches: the loss compares with patches of mean 0 and variance 1.
    drop_path: the last encoder block's stochastic-depth rate, in [0, 1). Raises `UsageError`.
    """
    from crate.models.autoencoder import MaskedAutoencoder

    return MaskedAutoencoder(
        spec, image_size=image_size, normalise_patches=normalise_patches, drop_path=drop_path
    )


def build_contrastive(
    spec: ModelSpec,
    *,
    image_size: int,
    vocab_size: int,
    context_length: int,
    drop_path: float = 0.0,
):
    """Build the `ContrastiveModel` of a spec, for square images and texts of `context_length`.

    vocab_size: token ids are smaller. drop_path: of the vision tower's last block, in [0, 1).
    Raises `UsageError`.
    """
    from crate.models.contrastive import ContrastiveModel

    return ContrastiveModel(
        spec,
        image_size=image_size,
        vocab_size=vocab_size,
        context_length=context_length,
        drop_path=drop_path,
    )
