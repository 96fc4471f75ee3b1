"""Layouts of language models, whose head is the token embedding transformer.wte.

gpt2        Hugging Face's GPT2LMHeadModel, with or without the prefix "transformer.": weights as
            (in, out)
nanogpt     nanoGPT's GPT, under "model" in its checkpoints: the same keys, weights as (out, in),
            biases or none
crate-gpt   the overview paper's model/crate_gpt.py: prenorm_1 and prenorm_2, c_attn (d, d),
            ista.weight (d, d), no last norm

A vocabulary that was padded to 50,304 rows for speed is cut to GPT-2's 50,257, and attention's
masks (attn.bias) are buffers, not weights. No file shows which GELU a model has (nanoGPT's is
exact, GPT-2's is not): the caller knows, who names the model.

Sources: Hugging Face's modeling_gpt2.py; karpathy/nanoGPT, model.py; Ma-Lab-Berkeley/CRATE.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from crate.checkpoints.layouts.base import Layout, Part, Parts, affine, transpose
from crate.errors import UsageError
from crate.models.spec import ModelSpec

if TYPE_CHECKING:
    import torch

EMBEDDING, HEAD = "transformer.wte.weight", "lm_head.weight"
FUSED = "transformer.h.0.attn.c_attn.weight"  # query, key and value
PADDED_VOCABULARY, VOCABULARY = 50_304, 50_257  # rows; GPT-2's tokens


def has_gpt2(spec: ModelSpec) -> bool:
    """GPT-2."""
    black = (spec.attention, spec.feedforward) == ("MHSA", "MLP")
    return black and spec.qkv_bias and spec.projection_bias and spec.final_norm


def has_crate_gpt(spec: ModelSpec) -> bool:
    """CRATE-GPT."""
    white = (spec.attention, spec.feedforward) == ("MSSA", "ISTA")
    return white and spec.projection_bias and not spec.final_norm


def conv1d(there: str, here: str, outputs: int, inputs: int) -> Parts:
    """Hugging Face's Conv1D: a linear map whose weight is (in, out)."""
    parts = affine(there, here, outputs, inputs)
    parts[f"{there}.weight"] = Part(f"{here}.weight", (inputs, outputs), transpose)
    return parts


def gpt2_parts(spec: ModelSpec, vocab_size: int, block_size: int) -> Parts:
    return gpt_parts(spec, vocab_size, block_size, linear=conv1d)


def nanogpt_parts(spec: ModelSpec, vocab_size: int, block_size: int) -> Parts:
    return gpt_parts(spec, vocab_size, block_size, linear=affine)


def gpt_parts(
    spec: ModelSpec, vocab_size: int, block_size: int, linear: Callable[..., Parts]
) -> Parts:
    """GPT-2's names; `linear`: the parts of a linear map."""
    d, hidden = spec.dim, spec.mlp_ratio * spec.dim
    parts = embeddings(d, vocab_size, block_size)
    for layer in range(spec.depth):
        there, here = f"transformer.h.{layer}", f"blocks.{layer}"
        parts |= affine(f"{there}.ln_1", f"{here}.norm1", d)
        parts |= linear(f"{there}.attn.c_attn", f"{here}.attention.qkv", 3 * d, d)
        parts |= linear(f"{there}.attn.c_proj", f"{here}.attention.projection", d, d)
        parts |= affine(f"{there}.ln_2", f"{here}.norm2", d)
        parts |= linear(f"{there}.mlp.c_fc", f"{here}.feedforward.hidden", hidden, d)
        parts |= linear(f"{there}.mlp.c_proj", f"{here}.feedforward.output", d, hidden)
    return parts | affine("transformer.ln_f", "norm", d)


def crate_gpt_parts(spec: ModelSpec, vocab_size: int, block_size: int) -> Parts:
    d = spec.dim
    parts = embeddings(d, vocab_size, block_size)
    for layer in range(spec.depth):
        there, here = f"transformer.h.{layer}", f"blocks.{layer}"
        parts |= affine(f"{there}.prenorm_1", f"{here}.norm1", d)
        parts[f"{there}.attn.c_attn.weight"] = Part(f"{here}.attention.subspaces.weight", (d, d))
        parts |= affine(f"{there}.attn.c_proj", f"{here}.attention.projection", d, d)
        parts |= affine(f"{there}.prenorm_2", f"{here}.norm2", d)
        parts[f"{there}.ista.weight"] = Part(f"{here}.feedforward.dictionary", (d, d))
    return parts


def embeddings(width: int, vocab_size: int, block_size: int) -> Parts:
    return {
        EMBEDDING: Part("token_embedding.weight", (vocab_size, width)),
        "transformer.wpe.weight": Part("position_embedding.weight", (block_size, width)),
    }


def is_nanogpt(weights: Mapping[str, Any]) -> bool:
    """Whether query, key and value are (3d, d): Hugging Face's are (d, 3d)."""
    shape = tuple(getattr(weights.get(FUSED), "shape", ()))
    return shape[:1] > shape[1:]


def own_weights(weights: dict[str, Any]) -> dict[str, Any]:
    """The weights, each once: without masks, padding and the tied head."""
    masks = (".attn.bias", ".attn.masked_bias")
    weights = {key: value for key, value in weights.items() if not key.endswith(masks)}
    embedding, head = weights.get(EMBEDDING), weights.pop(HEAD, None)
    if embedding is None:
        return weights
    if head is not None:
        from crate.weights import require_dense

        require_dense(head, HEAD)
        require_dense(embedding, EMBEDDING)
    tied = head is None or (
        tuple(head.shape) == tuple(embedding.shape) and bool((head == embedding).all())
    )
    if not tied:
        raise UsageError(f"'{HEAD}' is not '{EMBEDDING}': models here have one tensor for both")
    if tuple(embedding.shape[:1]) == (PADDED_VOCABULARY,):
        weights[EMBEDDING] = embedding[:VOCABULARY]
    return weights


def with_biases(weights: dict[str, Any]) -> dict[str, Any]:
    """As `own_weights`; by default nanoGPT has no biases: as if they were 0."""
    weights = dict(weights)
    norms = [key for key in weights if ".ln_" in key and key.endswith(".weight")]
    linear = [key for key in weights if ".c_" in key and key.endswith(".weight")]
    for key in (*norms, *linear):
        bias = key.removesuffix("weight") + "bias"
        weights.setdefault(bias, weights[key].new_zeros(len(weights[key])))
    return own_weights(weights)


def tied_head(spec: ModelSpec, official: Mapping[str, "torch.Tensor"]) -> dict:
    return {HEAD: official[EMBEDDING]}


def tied_head_and_masks(spec: ModelSpec, official: Mapping[str, "torch.Tensor"]) -> dict:
    import torch

    tokens = len(official["transformer.wpe.weight"])
    mask = torch.ones(tokens, tokens).tril()[None, None]  # one tensor, once in a file
    masks = {f"transformer.h.{layer}.attn.bias": mask for layer in range(spec.depth)}
    return tied_head(spec, official) | masks


SIZES = {"vocab_size": EMBEDDING, "block_size": "transformer.wpe.weight"}

LAYOUTS = (
    Layout(
        name="crate-gpt",
        kind="language",
        sign="transformer.h.0.prenorm_1.weight",
        fits=has_crate_gpt,
        parts=crate_gpt_parts,
        sized_by=SIZES,
        exported=True,
        prefix="transformer.",
        tidy=own_weights,
        beside=tied_head_and_masks,
    ),
    Layout(
        name="nanogpt",
        kind="language",
        sign="transformer.h.0.ln_1.weight",
        fits=has_gpt2,
        parts=nanogpt_parts,
        sized_by=SIZES,
        prefix="transformer.",
        confirm=is_nanogpt,
        tidy=with_biases,
    ),
    Layout(
        name="gpt2",
        kind="language",
        sign="transformer.h.0.ln_1.weight",
        fits=has_gpt2,
        parts=gpt2_parts,
        sized_by=SIZES,
        exported=True,
        prefix="transformer.",
        tidy=own_weights,
        beside=tied_head,
    ),
)
