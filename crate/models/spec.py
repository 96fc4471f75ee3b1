"""The specification of a model: every choice in which the models differ. No torch."""

import math
from dataclasses import dataclass, fields, replace

from crate.errors import UsageError, unknown
from crate.layers.operators import ATTENTION, FEEDFORWARD

CHOICES = {
    "attention": ATTENTION,
    "feedforward": FEEDFORWARD,
    "stem": ("conv", "linear"),
    "pool": ("token", "mean"),
    "init": ("alpha", "crate", "vit"),
    "gelu": ("exact", "tanh"),
    "decoder": ("none", "inverse", "blocks"),
    "mask_tokens": ("encoder", "decoder"),
}
# The kinds of models (`ModelSpec.kind`), in words.
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


# The blocks of CLIPA's text tower "H" (arXiv 2305.07017); UCSC-VLAA/CRATE-alpha:
# models/text_transformer.py.
TEXT = {
    "attention": "MHSA",
    "feedforward": "MLP",
    "decoupled": False,
    "projection_bias": True,
    "qkv_bias": True,
    "gelu": "tanh",
}


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
    pool               input of the head: "token", the class token, or "mean" of the patch tokens
    init               "alpha", "crate" or "vit": initialisation (vision.py, `initialise`);
                       autoencoders have their own
    causal             no token sees later ones (language models)
    final_norm         language models: a LayerNorm before the head; vision models always have one
    decoder            masked autoencoders (autoencoder.py): "inverse" blocks, or "blocks" like the
                       encoder's; "none" for all other models
    decoder_dim        width of the decoder; None, here and in the next two: as the encoder
    decoder_depth      number of the decoder's blocks
    decoder_heads      number of the decoder's attention heads; divides its width
    mask_tokens        whether masked patches become mask tokens before the "encoder", or before
                       the "decoder", so that the encoder sees the visible patches only
    outer_bias         vision models: biases in the patch embedding and in the head
    embed_dim          contrastive models (contrastive.py): width of the shared space of images and
                       texts; None for all other models
    text_dim           width of the text tower; None, here and in the next two: no text tower
    text_depth         number of the text tower's blocks
    text_heads         number of the text tower's attention heads; divides its width

    Fields that the chosen operators do not read have no effect (`zoo.without_effect`). Language
    models (language.py) ignore `patch_size`, `stem`, `pool`, `init` and `outer_bias`. An
    autoencoder's encoder and a contrastive model's vision tower are vision models of the same
    specification, which ignore `decoder…`, `mask_tokens`, `embed_dim` and `text_…`.

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
                    # plain YAML reads 1e-6 as text
                    hint = "; in YAML write 1.0e-6, not 1e-6" if _is_number_text(value) else ""
                    raise UsageError(f"{name} must be a number, got {_describe(value)}{hint}")
                if not (math.isfinite(value) and value >= 0):
                    raise UsageError(f"{name} must be finite and at least 0, got {value}")
                object.__setattr__(self, name, float(value))
            elif field.type is str:
                if type(value) is not str:
                    raise UsageError(f"{name} must be a string, got {_describe(value)}")
                if value not in CHOICES[name]:
                    error = unknown(name, value, CHOICES[name])
                    own = name in ("attention", "feedforward")
                    hint = (
                        "; the setting 'plugins' names the file of one of your own" if own else ""
                    )
                    raise UsageError(f"{error}{hint}")
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
            raise UsageError("give all of embed_dim, text_dim, text_depth and text_heads, or none")
        if self.text_dim and self.text_dim % self.text_heads:
            raise UsageError(
                f"text_dim {self.text_dim} is not divisible by text_heads {self.text_heads}"
            )
        if self.embed_dim and (self.causal or self.decoder != "none"):
            raise UsageError("a model with a text tower cannot be causal or have a decoder")

    @property
    def kind(self) -> str:
        """The kind of model, a key of `MODEL_KINDS`."""
        if self.causal:
            return "language"
        if self.decoder != "none":
            return "autoencoder"
        return "vision" if self.embed_dim is None else "contrastive"

    @property
    def text_spec(self) -> "ModelSpec":
        """The specification of the text tower's blocks: CLIPA's (arXiv 2305.07017), see `TEXT`."""
        return ModelSpec(dim=self.text_dim, depth=self.text_depth, heads=self.text_heads, **TEXT)

    @property
    def decoder_spec(self) -> "ModelSpec":
        """The specification of the decoder's blocks: the encoder's choices, the decoder's sizes."""
        return replace(
            self,
            dim=self.decoder_dim or self.dim,
            depth=self.decoder_depth or self.depth,
            heads=self.decoder_heads or self.heads,
            decoder="none",
        )

    @property
    def embeds_decoder(self) -> bool:
        """Whether a linear map projects the encoder's tokens to the decoder's width."""
        return self.mask_tokens == "decoder" or self.decoder_spec.dim != self.dim

    def grid(self, image_size: int) -> int:
        """Patches along one side of a square image. Raises `UsageError` unless they fill it."""
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
