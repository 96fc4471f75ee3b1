"""Official checkpoints: which are known, how they are read, and their weights as ours and back.

Layouts of image classifiers, told apart by their keys (d width, p patch size, K heads):

    alpha-torch   CRATE-alpha's PyTorch classes: conv1.weight (d, 3, p, p), to_out without a bias,
                  dictionaries D and D1 (d, 4d), of which D encodes and D1 decodes; the rows of its
                  ablation have D alone, (d, 4d) or (d, d)
    alpha-jax     the .npz of CRATE-alpha's JAX code: the same under params/, kernels as (in, out),
                  those of attention as (d, K, d/K) and (K, d/K, d)
    crate-torch   the 2023 CRATE code: to_patch_embedding = LayerNorm, Linear, LayerNorm on a patch
                  flattened as (p, p, 3), to_out with a bias, a dictionary weight (d, d)

of masked autoencoders, in one frame (patch_embed.proj, cls_token, mask_token, decoder_pred):

    crate-mae     the CRATE repository's model/crate_ae: blocks.{i}.layers.0.0 is the attention and
                  .1 the dictionary, in decoder_blocks the other way round
    vit-mae       facebookresearch/mae, and the ViT-MAE beside CRATE-MAE: timm's blocks

of contrastive models (CLIPA), whose two towers are (w width of the text tower, e of their space)

    clipa-torch   CRATE-alpha's torch_inference/model/clipa_model.py, as its files were published:
                  visual.conv1 without a bias, an in_proj_weight (3d, d) that is MSSA's projection
                  three times, parameters c_fc, which encodes, and c_proj, which decodes (d, 4d);
                  visual.proj (d, e), text_projection (e, w), CLIP's text transformer
    clipa-layers  what the authors' conversion of their JAX code writes: the vision tower as
                  alpha-torch under visual., the text tower as clipa-torch
    clipa-jax     that code's .npz: params/img as alpha-jax's params, params/txt, params/t

and of language models, whose head is the token embedding transformer.wte:

    gpt2          Hugging Face's GPT2LMHeadModel, with or without the prefix "transformer.": weights
                  as (in, out)
    nanogpt       nanoGPT's GPT, under "model" in its checkpoints: the same keys, weights as
                  (out, in)
    crate-gpt     the overview paper's model/crate_gpt.py: prenorm_1 and prenorm_2, c_attn (d, d),
                  ista.weight (d, d), no last norm

A vocabulary that was padded to 50,304 rows for speed is cut to GPT-2's 50,257, and attention's
masks (attn.bias) are no weights.

What has no weights leaves no trace in a file: whether the feed-forward has a residual connection
(CRATE-alpha, or its row "+ decoupled"), which GELU (nanoGPT's is exact, GPT-2's is not), or whether
a text sees what follows (CLIPA's does, CLIP's does not), is for the caller to know, who names the
model.
torch is imported only where weights are read or converted: planning looks files up here.
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from crate.errors import RunError, UsageError
from crate.models.build import CONTRASTIVE_SIZES
from crate.models.spec import MODEL_KINDS, ModelSpec
from crate.models.zoo import MODELS, resolve

if TYPE_CHECKING:
    import torch

SIGNS = {  # layout → a key that only it has
    "alpha-torch": "conv1.weight",
    "alpha-jax": "params/embedding/kernel",
    "crate-torch": "to_patch_embedding.2.weight",
    "clipa-layers": "visual.cls_token",
    "clipa-torch": "visual.conv1.weight",  # the other has it too: asked for after it
    "clipa-jax": "params/img/embedding/kernel",
    "crate-mae": "decoder_blocks.0.layers.0.0.fn.weight",
    "vit-mae": "decoder_blocks.0.attn.qkv.weight",
    "crate-gpt": "transformer.h.0.prenorm_1.weight",
    "gpt2": "transformer.h.0.ln_1.weight",
    "nanogpt": "transformer.h.0.ln_1.weight",  # told from gpt2 by the shape of c_attn
}
AUTOENCODER_LAYOUTS = ("crate-mae", "vit-mae")
# Layout → its names of the image positions, the token embedding and the text positions.
CONTRASTIVE_LAYOUTS = {
    "clipa-torch": (
        "visual.positional_embedding",
        "token_embedding.weight",
        "positional_embedding",
    ),
    "clipa-layers": ("visual.pos_embedding", "token_embedding.weight", "positional_embedding"),
    "clipa-jax": (
        "params/img/pos_embedding",
        "params/txt/Embed_0/embedding",
        "params/txt/pos_embedding",
    ),
}
OUR_CONTRASTIVE = ("vision.positions", "text.token_embedding.weight", "text.positions")
LANGUAGE_LAYOUTS = ("crate-gpt", "gpt2", "nanogpt")
PADDED_VOCABULARY, VOCABULARY = 50_304, 50_257  # rows; GPT-2's tokens


class _Part(NamedTuple):
    """Our name of an official tensor, its official shape, and how it becomes ours.

    back: how ours becomes the official one, where that is not `turn` once more (transposing).
    Several tensors with one name of ours are its rows, in their order.
    """

    ours: str
    shape: tuple[int, ...]
    turn: Callable[["torch.Tensor"], "torch.Tensor"] | None = None
    back: Callable[["torch.Tensor"], "torch.Tensor"] | None = None

    @property
    def our_shape(self) -> tuple[int, ...]:
        import torch

        turned = self.turn(torch.empty(self.shape, device="meta")) if self.turn else self
        return tuple(turned.shape)


def convert(
    weights: Mapping[str, Any], model: str | ModelSpec, *, where: str | Path = "the checkpoint"
) -> dict[str, "torch.Tensor"]:
    """Official weights under our names, for `load_state_dict(strict=True)`; all or nothing.

    The image size and the number of classes, if any, or the vocabulary and the length of a text are
    the checkpoint's (`infer_sizes` tells them). float16 and bfloat16 (in a .npz: two bytes of void) are
    widened exactly.

    Args:
        weights: tensors or numpy arrays by name, in one of the layouts of this module; bare, or
            under "state_dict" or "model"; with or without the prefixes "module." (of a parallel
            model) and "_orig_mod." (of a compiled one).
        model: a name of the registry, or a specification.
        where: the file, for messages.

    Returns:
        float32 tensors that share no memory with `weights`.

    Raises:
        UsageError: the weights are another model's: the first key that is missing, foreign or of
            another shape, with both shapes; or its head is not tied to the token embedding, the
            positions of an autoencoder's halves differ, or query, key and value do in MSSA's place.
        RunError: a value is no tensor, not of a floating type, or not finite.
    """
    spec, label = _named(model)
    flat = _flat(weights, where)
    layout = _layout_of_keys(flat, where)
    if layout in ("alpha-jax", "clipa-jax"):
        flat = _jax_params(flat)
    _check_tensors(flat, where)
    if layout in LANGUAGE_LAYOUTS:
        layout, flat = _language_weights(layout, flat, where)
    shapes = {key: tuple(value.shape) for key, value in flat.items()}
    expected = _expected(spec, layout, shapes) if layout in _layouts(spec) else None
    complaint = _complaint(expected, shapes, layout)
    if complaint:
        fitting = [
            name
            for name, other in MODELS.items()
            if layout in _layouts(other)
            and not _complaint(_expected(other, layout, shapes), shapes, layout)
        ]
        fits = f"; the weights fit {' or '.join(fitting)}" if fitting else ""
        if layout in CONTRASTIVE_LAYOUTS and spec.kind != "contrastive":
            other = "a classifier" if spec.kind == "vision" else MODEL_KINDS[spec.kind]
            raise UsageError(f"{where}: is a contrastive (CLIPA) model, not {other}{fits}")
        raise UsageError(f"{where}: not the weights of {label}: {complaint}{fits}")
    encoder_masks = layout in AUTOENCODER_LAYOUTS and spec.mask_tokens == "encoder"
    if encoder_masks and not (flat["pos_embed"] == flat["decoder_pos_embed"]).all():
        raise UsageError(
            f"{where}: 'pos_embed' is not 'decoder_pos_embed', which the official encoder adds "
            "instead: an encoder here has its own"
        )
    return _converted(expected, flat, where)


def convert_text(
    weights: Mapping[str, Any], model: str | ModelSpec, *, where: str | Path = "the checkpoint"
) -> dict[str, "torch.Tensor"]:
    """Our `text.*` and `logit_scale` of an official contrastive model, whatever its vision tower.

    As `convert`, from any of the layouts; and from open_clip's, whose text_projection is (w, e).
    Which of the two it is, the vision tower tells: only the files of CRATE-alpha have it turned.

    Raises:
        UsageError: there is no text tower, or one of other sizes (vocabulary and context are the
            checkpoint's).
        RunError: as `convert`.
    """
    spec, label = _named(model)
    flat = _flat(weights, where)
    layout, images = "clipa-torch", "visual."
    if any(key.startswith("params/txt/") for key in flat):
        flat = _jax_params(flat)
        layout, images = "clipa-jax", "params/img/"
    block = "visual.transformer.resblocks.0.mlp.c_fc", "visual.transformer.layers.0.0.fn.qkv.weight"
    turned = layout == "clipa-torch" and not any(key in flat for key in block)
    text = {key: value for key, value in flat.items() if not key.startswith(images)}
    _check_tensors(text, where)
    shapes = {key: tuple(value.shape) for key, value in text.items()}
    if CONTRASTIVE_LAYOUTS[layout][1] not in text:
        first = next(iter(flat))
        raise UsageError(f"{where}: holds no CLIP or CLIPA text tower; its first key is '{first}'")
    if turned and len(text) == len(flat):
        raise UsageError(
            f"{where}: holds a text tower alone: which way round its text_projection is, only the "
            "vision tower of the file would tell"
        )
    _, vocab_size, context_length = _contrastive_sizes(spec, shapes, CONTRASTIVE_LAYOUTS[layout])
    expected = _text_parts(spec, layout, vocab_size, context_length)
    if turned:
        part = expected["text_projection"]
        expected["text_projection"] = _Part(part.ours, part.shape[::-1], lambda w: w.t())
    complaint = _complaint(expected, shapes, layout)
    if complaint:
        raise UsageError(f"{where}: its text tower is not that of {label}: {complaint}")
    return _converted(expected, text, where)


def _converted(
    expected: dict[str, _Part], flat: Mapping[str, Any], where: str | Path
) -> dict[str, "torch.Tensor"]:
    """Tensors that have the right names and shapes, as ours."""
    import torch

    converted: dict[str, torch.Tensor] = {}
    for key, part in expected.items():
        tensor = _float32(flat[key], key, where)
        if part.turn is _first_third and not torch.equal(tensor, _thrice(_first_third(tensor))):
            raise UsageError(
                f"{where}: the thirds of '{key}' differ: it has a query, a key and a value, where "
                "CRATE-alpha has one projection"
            )
        tensor = part.turn(tensor) if part.turn else tensor
        if part.ours in converted:
            tensor = torch.cat([converted[part.ours], tensor])
        converted[part.ours] = tensor.contiguous()
    return converted


def to_official(
    state: Mapping[str, "torch.Tensor"], model: str | ModelSpec
) -> dict[str, "torch.Tensor"]:
    """Our weights in the layout of the model's PyTorch code; the inverse of `convert`, bit for bit.

    alpha-torch for CRATE-alpha and the rows of its ablation, crate-torch for the 2023 CRATE,
    crate-mae and vit-mae for the autoencoders, clipa-torch for CRATE-alpha-CLIPA, crate-gpt for
    CRATE-GPT (its code's causal masks included) and gpt2 for GPT-2.
    Heads, η, λ, ε, the GELU and the residual stand in that code, not in a file of weights.

    Raises:
        UsageError: no official code has this architecture (ViT, CRATE-alpha-GPT, ViT-MAE-Small,
            ViT-CLIPA), or the weights are another's.
    """
    spec, label = _named(model)
    layout = next((name for name in _layouts(spec) if name != "alpha-jax"), None)
    if layout is None:
        code = "code that was published" if spec.causal else "official CRATE code"
        raise UsageError(f"{label}: no {code} has this architecture")
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    if spec.causal:
        official = _language_parts(
            spec, layout, *_rows(shapes, "token_embedding.weight", "position_embedding.weight")
        )
    elif spec.decoder != "none":
        tokens, _ = _tokens_and_classes(spec, shapes, "positions", "")
        official = _autoencoder_parts(spec, layout, tokens)
    elif spec.kind == "contrastive":
        official = _contrastive_parts(
            spec, layout, *_contrastive_sizes(spec, shapes, OUR_CONTRASTIVE)
        )
    else:
        tokens, classes = _tokens_and_classes(spec, shapes, "positions", "head.weight")
        official = _torch_parts(spec, tokens, classes)
    ours = {part.ours: part._replace(shape=part.our_shape) for part in official.values()}
    complaint = _complaint(ours, shapes, "")
    if complaint:
        raise UsageError(f"not the weights of {label}: {complaint}")
    converted = {}
    for key, part in official.items():
        tensor = state[part.ours].detach().cpu().clone()
        back = part.back or part.turn
        converted[key] = back(tensor).contiguous() if back else tensor
    if spec.causal:
        converted |= _beside_weights(spec, layout, converted)
    return converted


def infer_sizes(state: Mapping[str, "torch.Tensor"], model: str | ModelSpec) -> dict[str, int]:
    """`{"num_classes": …, "image_size": …}` of our weights, to build a model that they fit.

    Of an autoencoder the image size alone; of a language model
    `{"vocab_size": …, "block_size": …}`; of both towers of a contrastive model
    `{"image_size": …, "vocab_size": …, "context_length": …}`.
    Raises `UsageError` where there is no head, or the positions are no square grid's.
    """
    spec, label = _named(model)
    told = {"num_classes": ("head.weight", 2), "image_size": ("positions", 3)}  # by which rows
    if spec.causal:
        told = {
            "vocab_size": ("token_embedding.weight", 2),
            "block_size": ("position_embedding.weight", 2),
        }
    elif spec.decoder != "none" and "mask_token" in state:
        told = {"image_size": ("positions", 3)}
    elif spec.kind == "contrastive" and "logit_scale" in state:
        told = {
            "image_size": ("vision.positions", 3),
            "vocab_size": ("text.token_embedding.weight", 2),
            "context_length": ("text.positions", 3),
        }
    found = {}
    for size, (key, axes) in told.items():
        if key not in state or state[key].dim() != axes:
            raise UsageError(f"not the weights of {label}: no '{key}' with {axes} axes")
        shape = tuple(state[key].shape)
        found[size] = shape[-2]
        if size == "image_size":
            grid = _grid(shape)
            if grid is None:
                raise UsageError(f"'{key}' should be (1, 1 + n², {spec.dim}), got {shape}")
            found[size] = grid * spec.patch_size
    return found


def _named(model: str | ModelSpec) -> tuple[ModelSpec, str]:
    if isinstance(model, str):
        return resolve(model), model
    return model, f"a {model.attention}-{model.feedforward} model of width {model.dim}"


def _layouts(spec: ModelSpec) -> tuple[str, ...]:
    """The official layouts that an architecture has; none for ViT and for mixtures."""
    operators = (spec.attention, spec.feedforward)
    if spec.causal:
        if operators == ("MSSA", "ISTA") and spec.projection_bias and not spec.final_norm:
            return ("crate-gpt",)
        biases = spec.qkv_bias and spec.projection_bias
        if operators == ("MHSA", "MLP") and biases and spec.final_norm:
            return "gpt2", "nanogpt"
        return ()
    if spec.decoder != "none":
        if spec.stem != "conv" or not spec.projection_bias:
            return ()
        white = (*operators, spec.decoder) == ("MSSA", "ISTA", "inverse")
        if white and not spec.embeds_decoder:
            return ("crate-mae",)
        black = (*operators, spec.decoder) == ("MHSA", "MLP", "blocks")
        if black and (spec.mask_tokens == "decoder" or not spec.embeds_decoder):
            return ("vit-mae",)
        return ()  # CRATE's code with mask tokens before the encoder has one width
    if spec.kind == "contrastive":
        white = operators == ("MSSA", "ODL") and spec.decoupled and spec.stem == "conv"
        biases = spec.projection_bias or spec.outer_bias
        return tuple(CONTRASTIVE_LAYOUTS) if white and not biases else ()
    if not spec.outer_bias:
        return ()  # official classifiers have biases
    if spec.attention != "MSSA" or spec.feedforward == "MLP":
        return ()
    if spec.stem == "conv" and not spec.projection_bias:
        return "alpha-torch", "alpha-jax"
    if spec.stem == "linear" and spec.projection_bias and spec.feedforward == "ISTA":
        return ("crate-torch",)
    return ()


def _flat(weights: Mapping[str, Any], where: str | Path) -> dict[str, Any]:
    """The tensors by name, without a wrapper and without the prefixes of one."""
    inner = weights.get("state_dict", weights.get("model", weights))
    if not isinstance(inner, Mapping) or not inner or not all(isinstance(k, str) for k in inner):
        raise RunError(f"{where}: holds no mapping of names to tensors")
    for prefix in ("module.", "_orig_mod."):
        if all(key.startswith(prefix) for key in inner):
            inner = {key.removeprefix(prefix): value for key, value in inner.items()}
    if "wte.weight" in inner:  # GPT2Model without its head: OpenAI's own files
        inner = {f"transformer.{key}": value for key, value in inner.items()}
    return dict(inner)


def _layout_of_keys(flat: dict[str, Any], where: str | Path) -> str:
    for layout, key in SIGNS.items():
        if key in flat:
            return layout
    first = next(iter(flat))
    own = ("patch_embedding.projection.weight", "token_embedding.weight", OUR_CONTRASTIVE[0])
    if any(key in flat for key in own):
        raise UsageError(f"{where}: is in this suite's own layout already")
    if any(key.startswith(("visual.", "params/img/")) for key in flat):
        raise UsageError(f"{where}: is a contrastive model of a layout not read here ('{first}')")
    raise UsageError(
        f"{where}: no official CRATE checkpoint: it has none of "
        f"{', '.join(dict.fromkeys(SIGNS.values()))}; its first key is '{first}'"
    )


def _jax_params(flat: dict[str, Any]) -> dict[str, Any]:
    """What is under params/, the last norm directly so: big_vision nests it in the encoder."""
    params = {key: value for key, value in flat.items() if key.startswith("params/")}

    def place(key: str) -> str:
        direct = key.replace("/Transformer/encoder_norm/", "/encoder_norm/")
        return key if direct in params else direct

    return {place(key): value for key, value in params.items()}


def _expected(spec: ModelSpec, layout: str, shapes: dict[str, tuple]) -> dict[str, _Part]:
    """The parts of an official checkpoint, with the sizes of the one given."""
    if layout in LANGUAGE_LAYOUTS:
        rows = _rows(shapes, "transformer.wte.weight", "transformer.wpe.weight")
        return _language_parts(spec, layout, *rows)
    if layout in AUTOENCODER_LAYOUTS:
        tokens, _ = _tokens_and_classes(spec, shapes, "pos_embed", "")
        return _autoencoder_parts(spec, layout, tokens)
    if layout in CONTRASTIVE_LAYOUTS:
        found = _contrastive_sizes(spec, shapes, CONTRASTIVE_LAYOUTS[layout])
        return _contrastive_parts(spec, layout, *found)
    if layout == "alpha-jax":
        head, positions = "params/head/bias", "params/pos_embedding"
        return _jax_parts(spec, *_tokens_and_classes(spec, shapes, positions, head))
    tokens, classes = _tokens_and_classes(spec, shapes, "pos_embedding", "mlp_head.1.weight")
    # the ablation's vanilla row, in the words of either code
    atoms = "weight" if "transformer.layers.0.1.fn.weight" in shapes else "D"
    return _torch_parts(spec, tokens, classes, atoms)


def _grid(positions: tuple[int, ...]) -> int | None:
    """n of (1, 1 + n², d); None for another shape."""
    n = math.isqrt(max(positions[1] - 1, 0)) if len(positions) == 3 else 0
    return n if n and positions[:2] == (1, 1 + n * n) else None


def _tokens_and_classes(
    spec: ModelSpec, shapes: dict[str, tuple], positions: str, head: str
) -> tuple[int, int]:
    grid = _grid(shapes.get(positions, ())) or 224 // spec.patch_size
    classes = shapes.get(head) or (1000,)
    return 1 + grid * grid, classes[0]


def _contrastive_sizes(
    spec: ModelSpec, shapes: dict[str, tuple], names: tuple[str, str, str]
) -> tuple[int, int, int]:
    """Image tokens, vocabulary and context, from the three tensors of `names`; else CLIPA's."""
    images, *texts = names
    # (1 + n², d) or (1, 1 + n², d)
    tokens, _ = _tokens_and_classes(spec, {images: (1, *shapes.get(images, ()))[-3:]}, images, "")
    vocab_size, context_length = (
        shapes[name][-2] if len(shapes.get(name, ())) > 1 else CONTRASTIVE_SIZES[size]
        for name, size in zip(texts, ("vocab_size", "context_length"), strict=True)
    )
    return tokens, vocab_size, context_length


def _check_tensors(flat: dict[str, Any], where: str | Path) -> None:
    for key, value in flat.items():
        if not hasattr(value, "shape"):
            raise RunError(f"{where}: '{key}' is no tensor but {type(value).__name__}")


def _complaint(expected: dict[str, _Part] | None, shapes: dict[str, tuple], layout: str) -> str:
    """What is wrong first: a missing key, a wrong shape, a foreign key; nothing if all fits."""
    if expected is None:
        return f"'{SIGNS[layout]}' is of the {layout} layout, which it does not have"
    for key, part in expected.items():
        if key not in shapes:
            return f"there is no '{key}', which should be {part.shape}"
        if shapes[key] != part.shape:
            return f"'{key}' is {shapes[key]}, and should be {part.shape}"
    foreign = next((key for key in shapes if key not in expected), None)
    return f"it has no '{foreign}' ({shapes[foreign]})" if foreign else ""


def _torch_parts(spec: ModelSpec, tokens: int, classes: int, atoms: str = "D") -> dict[str, _Part]:
    """Official PyTorch names → parts, alpha-torch or crate-torch as the stem says."""
    d, p = spec.dim, spec.patch_size
    parts = {
        "cls_token": _Part("class_token", (1, 1, d)),
        "pos_embedding": _Part("positions", (1, tokens, d)),
    }

    def both(there: str, here: str, weight: tuple[int, ...], bias: int) -> None:
        parts[f"{there}.weight"] = _Part(f"{here}.weight", weight)
        parts[f"{there}.bias"] = _Part(f"{here}.bias", (bias,))

    if spec.stem == "conv":
        both("conv1", "patch_embedding.projection", (d, 3, p, p), d)
    else:
        pixels = 3 * p * p
        both("to_patch_embedding.1", "patch_embedding.norm1", (pixels,), pixels)
        both("to_patch_embedding.2", "patch_embedding.projection", (d, pixels), d)
        both("to_patch_embedding.3", "patch_embedding.norm2", (d,), d)
        atoms = "weight"
    for layer in range(spec.depth):
        there, here = f"transformer.layers.{layer}", f"blocks.{layer}"
        both(f"{there}.0.norm", f"{here}.norm1", (d,), d)
        both(f"{there}.1.norm", f"{here}.norm2", (d,), d)
        subspaces, out = f"{there}.0.fn.qkv.weight", f"{there}.0.fn.to_out.0"
        parts[subspaces] = _Part(f"{here}.attention.subspaces.weight", (d, d))
        parts[f"{out}.weight"] = _Part(f"{here}.attention.projection.weight", (d, d))
        if spec.projection_bias:
            parts[f"{out}.bias"] = _Part(f"{here}.attention.projection.bias", (d,))
        _dictionaries(parts, spec, f"{there}.1.fn.", f"{here}.feedforward.", atoms)
    both("mlp_head.0", "norm", (d,), d)
    both("mlp_head.1", "head", (classes, d), classes)
    if not spec.outer_bias:
        del parts["conv1.bias"], parts["mlp_head.1.bias"]
    return parts


def _dictionaries(parts: dict, spec: ModelSpec, there: str, here: str, atoms: str = "D") -> None:
    d = spec.dim
    if spec.feedforward == "ISTA":
        parts[f"{there}{atoms}"] = _Part(f"{here}dictionary", (d, d))
        return
    parts[f"{there}D"] = _Part(f"{here}dictionary", (d, spec.dictionary_ratio * d))
    if spec.decoupled:
        parts[f"{there}D1"] = _Part(f"{here}decoder", (d, spec.dictionary_ratio * d))


def _jax_parts(spec: ModelSpec, tokens: int, classes: int) -> dict[str, _Part]:
    """Names of the JAX code → parts; a Dense kernel is (in, out), a Conv's (p, p, in, out)."""
    d, p, k = spec.dim, spec.patch_size, spec.heads
    parts = {
        "params/cls": _Part("class_token", (1, 1, d)),
        "params/pos_embedding": _Part("positions", (1, tokens, d)),
        "params/embedding/kernel": _Part(
            "patch_embedding.projection.weight", (p, p, 3, d), lambda w: w.permute(3, 2, 0, 1)
        ),
        "params/embedding/bias": _Part("patch_embedding.projection.bias", (d,)),
    }

    def norm(there: str, here: str) -> None:
        parts[f"{there}/scale"] = _Part(f"{here}.weight", (d,))
        parts[f"{there}/bias"] = _Part(f"{here}.bias", (d,))

    for layer in range(spec.depth):
        there, here = f"params/Transformer/encoderblock_{layer}/", f"blocks.{layer}."
        norm(f"{there}LayerNorm_0", f"{here}norm1")
        norm(f"{there}LayerNorm_1", f"{here}norm2")
        attention = f"{there}MultiHeadDotProductSubspaceAttention_0/"
        parts[f"{attention}proj/kernel"] = _Part(
            f"{here}attention.subspaces.weight", (d, k, d // k), lambda w: w.flatten(1).t()
        )
        parts[f"{attention}out/kernel"] = _Part(
            f"{here}attention.projection.weight", (k, d // k, d), lambda w: w.flatten(0, 1).t()
        )
        block = "ISTABlock_0/" if spec.feedforward == "ISTA" else "OvercompleteISTABlock_0/"
        _dictionaries(parts, spec, f"{there}{block}", f"{here}feedforward.")
    norm("params/encoder_norm", "norm")
    parts["params/head/kernel"] = _Part("head.weight", (d, classes), lambda w: w.t())
    parts["params/head/bias"] = _Part("head.bias", (classes,))
    if not spec.outer_bias:
        del parts["params/embedding/bias"], parts["params/head/bias"]
    return parts


def _contrastive_parts(
    spec: ModelSpec, layout: str, tokens: int, vocab_size: int, context_length: int
) -> dict[str, _Part]:
    """Official names → parts of a contrastive model: vision tower, text tower, scale."""
    if layout == "clipa-jax":
        tower = {
            there.replace("params/", "params/img/"): part
            for there, part in _jax_parts(spec, tokens, spec.embed_dim).items()
        }
    elif layout == "clipa-layers":
        tower = {
            f"visual.{there}": part
            for there, part in _torch_parts(spec, tokens, spec.embed_dim).items()
        }
        positions = _Part("positions", (tokens, spec.dim), _one_more, _one_less)
        tower["visual.pos_embedding"] = positions
    else:
        tower = _clipa_vision_parts(spec, tokens)
    tower = {there: part._replace(ours=f"vision.{part.ours}") for there, part in tower.items()}
    return tower | _text_parts(spec, layout, vocab_size, context_length)


def _clipa_vision_parts(spec: ModelSpec, tokens: int) -> dict[str, _Part]:
    """Names of clipa-torch → parts of the vision tower."""
    d, p = spec.dim, spec.patch_size
    atoms = (d, spec.dictionary_ratio * d)
    parts = {
        "visual.class_embedding": _Part(
            "class_token", (d,), lambda w: w[None, None], lambda w: w[0, 0]
        ),
        "visual.positional_embedding": _Part("positions", (tokens, d), _one_more, _one_less),
        "visual.conv1.weight": _Part("patch_embedding.projection.weight", (d, 3, p, p)),
    }

    def norm(there: str, here: str) -> None:
        parts[f"{there}.weight"] = _Part(f"{here}.weight", (d,))
        parts[f"{there}.bias"] = _Part(f"{here}.bias", (d,))

    for layer in range(spec.depth):
        there, here = f"visual.transformer.resblocks.{layer}", f"blocks.{layer}"
        norm(f"{there}.ln_1", f"{here}.norm1")
        parts[f"{there}.attn.in_proj_weight"] = _Part(
            f"{here}.attention.subspaces.weight", (3 * d, d), _first_third, _thrice
        )
        parts[f"{there}.attn.out_proj.weight"] = _Part(
            f"{here}.attention.projection.weight", (d, d)
        )
        norm(f"{there}.ln_2", f"{here}.norm2")
        parts[f"{there}.mlp.c_fc"] = _Part(f"{here}.feedforward.dictionary", atoms)
        parts[f"{there}.mlp.c_proj"] = _Part(f"{here}.feedforward.decoder", atoms)
    norm("visual.ln_post", "norm")
    parts["visual.proj"] = _Part("head.weight", (d, spec.embed_dim), lambda w: w.t())
    return parts


def _text_parts(
    spec: ModelSpec, layout: str, vocab_size: int, context_length: int
) -> dict[str, _Part]:
    """Official names → parts of a text tower, and the scale of the logits."""
    if layout == "clipa-jax":
        return _jax_text_parts(spec, vocab_size, context_length)
    text = spec.text_spec
    w, hidden = text.dim, text.mlp_ratio * text.dim
    parts = {
        "token_embedding.weight": _Part("text.token_embedding.weight", (vocab_size, w)),
        "positional_embedding": _Part("text.positions", (context_length, w), _one_more, _one_less),
    }

    def both(there: str, here: str, *weight: int) -> None:
        parts[f"{there}.weight"] = _Part(f"{here}.weight", weight)
        parts[f"{there}.bias"] = _Part(f"{here}.bias", weight[:1])

    for layer in range(text.depth):
        there, here = f"transformer.resblocks.{layer}", f"text.blocks.{layer}"
        both(f"{there}.ln_1", f"{here}.norm1", w)
        parts[f"{there}.attn.in_proj_weight"] = _Part(f"{here}.attention.qkv.weight", (3 * w, w))
        parts[f"{there}.attn.in_proj_bias"] = _Part(f"{here}.attention.qkv.bias", (3 * w,))
        both(f"{there}.attn.out_proj", f"{here}.attention.projection", w, w)
        both(f"{there}.ln_2", f"{here}.norm2", w)
        both(f"{there}.mlp.c_fc", f"{here}.feedforward.hidden", hidden, w)
        both(f"{there}.mlp.c_proj", f"{here}.feedforward.output", w, hidden)
    both("ln_final", "text.norm", w)
    parts["text_projection"] = _Part("text.head.weight", (spec.embed_dim, w))
    parts["logit_scale"] = _Part("logit_scale", ())
    return parts


def _jax_text_parts(spec: ModelSpec, vocab_size: int, context_length: int) -> dict[str, _Part]:
    """As `_text_parts`, for the names of the JAX code."""
    text = spec.text_spec
    w, k, hidden = text.dim, text.heads, text.mlp_ratio * text.dim
    parts = {
        "params/txt/Embed_0/embedding": _Part("text.token_embedding.weight", (vocab_size, w)),
        "params/txt/pos_embedding": _Part("text.positions", (1, context_length, w)),
    }

    def norm(there: str, here: str) -> None:
        parts[f"{there}/scale"] = _Part(f"{here}.weight", (w,))
        parts[f"{there}/bias"] = _Part(f"{here}.bias", (w,))

    def dense(there: str, here: str, into: int, out: int) -> None:
        parts[f"{there}/kernel"] = _Part(f"{here}.weight", (into, out), lambda w: w.t())
        parts[f"{there}/bias"] = _Part(f"{here}.bias", (out,))

    for layer in range(text.depth):
        there = f"params/txt/Transformer/encoderblock_{layer}"
        here, attention = f"text.blocks.{layer}", f"{there}/MultiHeadDotProductAttention_0"
        norm(f"{there}/LayerNorm_0", f"{here}.norm1")
        for name in ("query", "key", "value"):  # the rows of ours, in turn
            parts[f"{attention}/{name}/kernel"] = _Part(
                f"{here}.attention.qkv.weight", (w, k, w // k), lambda w: w.flatten(1).t()
            )
            parts[f"{attention}/{name}/bias"] = _Part(
                f"{here}.attention.qkv.bias", (k, w // k), lambda w: w.flatten()
            )
        parts[f"{attention}/out/kernel"] = _Part(
            f"{here}.attention.projection.weight", (k, w // k, w), lambda w: w.flatten(0, 1).t()
        )
        parts[f"{attention}/out/bias"] = _Part(f"{here}.attention.projection.bias", (w,))
        norm(f"{there}/LayerNorm_1", f"{here}.norm2")
        dense(f"{there}/MlpBlock_0/Dense_0", f"{here}.feedforward.hidden", w, hidden)
        dense(f"{there}/MlpBlock_0/Dense_1", f"{here}.feedforward.output", hidden, w)
    norm("params/txt/encoder_norm", "text.norm")
    parts["params/txt/head/kernel"] = _Part(
        "text.head.weight", (w, spec.embed_dim), lambda w: w.t()
    )
    parts["params/t"] = _Part("logit_scale", (1,), lambda t: t[0])
    return parts


def _one_more(w: "torch.Tensor") -> "torch.Tensor":
    return w[None]


def _one_less(w: "torch.Tensor") -> "torch.Tensor":
    return w[0]


def _first_third(w: "torch.Tensor") -> "torch.Tensor":
    return w[: len(w) // 3].clone()  # not a view: the rest need not be kept


def _thrice(w: "torch.Tensor") -> "torch.Tensor":
    return w.repeat(3, 1)


def _autoencoder_parts(spec: ModelSpec, layout: str, tokens: int) -> dict[str, _Part]:
    """Official names → parts of a masked autoencoder."""
    decoder = spec.decoder_spec
    d, e, p = spec.dim, decoder.dim, spec.patch_size
    parts: dict[str, _Part] = {}

    def both(there: str, here: str, *weight: int) -> None:
        parts[f"{there}.weight"] = _Part(f"{here}.weight", weight)
        parts[f"{there}.bias"] = _Part(f"{here}.bias", weight[:1])

    def white(block: str, width: int, inverse: bool) -> None:
        """CRATE-MAE's; its two parts, and ours, in the order of their work."""
        first, second = f"{block}.layers.0.0", f"{block}.layers.0.1"
        both(f"{first}.norm", f"{block}.norm1", width)
        both(f"{second}.norm", f"{block}.norm2", width)
        dictionary = f"{block}.dictionary" if inverse else f"{block}.feedforward.dictionary"
        attention, atoms = (second, first) if inverse else (first, second)
        subspaces = _Part(f"{block}.attention.subspaces.weight", (width, width))
        parts[f"{attention}.fn.qkv.weight"] = subspaces
        both(f"{attention}.fn.to_out.0", f"{block}.attention.projection", width, width)
        parts[f"{atoms}.fn.weight"] = _Part(dictionary, (width, width))

    def timm(block: str, width: int) -> None:
        hidden = spec.mlp_ratio * width
        both(f"{block}.norm1", f"{block}.norm1", width)
        both(f"{block}.attn.qkv", f"{block}.attention.qkv", 3 * width, width)
        if not spec.qkv_bias:
            del parts[f"{block}.attn.qkv.bias"]
        both(f"{block}.attn.proj", f"{block}.attention.projection", width, width)
        both(f"{block}.norm2", f"{block}.norm2", width)
        both(f"{block}.mlp.fc1", f"{block}.feedforward.hidden", hidden, width)
        both(f"{block}.mlp.fc2", f"{block}.feedforward.output", width, hidden)

    parts["cls_token"] = _Part("class_token", (1, 1, d))
    parts["pos_embed"] = _Part("positions", (1, tokens, d))
    parts["mask_token"] = _Part("mask_token", (1, 1, e))
    parts["decoder_pos_embed"] = _Part("decoder_positions", (1, tokens, e))
    both("patch_embed.proj", "patch_embedding.projection", d, 3, p, p)
    for layer in range(spec.depth):
        if layout == "crate-mae":
            white(f"blocks.{layer}", d, inverse=False)
        else:
            timm(f"blocks.{layer}", d)
    both("norm", "norm", d)
    both("decoder_embed", "decoder_embedding", e, d)
    for layer in range(decoder.depth):
        if layout == "crate-mae":
            white(f"decoder_blocks.{layer}", e, inverse=True)
        else:
            timm(f"decoder_blocks.{layer}", e)
    both("decoder_norm", "decoder_norm", e)
    both("decoder_pred", "decoder_prediction", 3 * p * p, e)
    return parts


def _language_weights(
    layout: str, flat: dict[str, Any], where: str | Path
) -> tuple[str, dict[str, Any]]:
    """Which layout of language models it is, and its weights: each once, and without padding.

    Raises `UsageError` where the head is not tied to the token embedding.
    """
    fused = flat.get("transformer.h.0.attn.c_attn.weight")
    if layout == "gpt2" and fused is not None and tuple(fused.shape[:1]) > tuple(fused.shape[1:]):
        layout = "nanogpt"
        norms = [key for key in flat if ".ln_" in key and key.endswith(".weight")]
        linear = [key for key in flat if ".c_" in key and key.endswith(".weight")]
        for key in (*norms, *linear):  # by default nanoGPT has no biases: as if they were 0
            bias = key.removesuffix("weight") + "bias"
            flat.setdefault(bias, flat[key].new_zeros(len(flat[key])))
    masks = (".attn.bias", ".attn.masked_bias")
    flat = {key: value for key, value in flat.items() if not key.endswith(masks)}
    embedding, head = flat.get("transformer.wte.weight"), flat.pop("lm_head.weight", None)
    if head is None or embedding is None:
        tied = True
    else:
        tied = tuple(head.shape) == tuple(embedding.shape) and bool((head == embedding).all())
    if not tied:
        raise UsageError(
            f"{where}: 'lm_head.weight' is not 'transformer.wte.weight': models here have one "
            "tensor for both"
        )
    if embedding is not None and tuple(embedding.shape[:1]) == (PADDED_VOCABULARY,):
        flat["transformer.wte.weight"] = embedding[:VOCABULARY]
    return layout, flat


def _rows(shapes: dict[str, tuple], *keys: str) -> list[int]:
    """Rows of the token and the position embedding; GPT-2's where there is no such tensor."""
    usual = (VOCABULARY, 1024)
    return [
        shapes[key][0] if shapes.get(key) else rows for key, rows in zip(keys, usual, strict=True)
    ]


def _language_parts(
    spec: ModelSpec, layout: str, vocab_size: int, block_size: int
) -> dict[str, _Part]:
    """Official names → parts of a language model; its head is the token embedding."""
    d, hidden = spec.dim, spec.mlp_ratio * spec.dim
    parts = {
        "transformer.wte.weight": _Part("token_embedding.weight", (vocab_size, d)),
        "transformer.wpe.weight": _Part("position_embedding.weight", (block_size, d)),
    }

    def norm(there: str, here: str) -> None:
        parts[f"{there}.weight"] = _Part(f"{here}.weight", (d,))
        parts[f"{there}.bias"] = _Part(f"{here}.bias", (d,))

    def linear(there: str, here: str, out: int, into: int, bias: bool = True) -> None:
        part = _Part(f"{here}.weight", (out, into))
        if layout == "gpt2":
            part = _Part(f"{here}.weight", (into, out), lambda w: w.t())
        parts[f"{there}.weight"] = part
        if bias:
            parts[f"{there}.bias"] = _Part(f"{here}.bias", (out,))

    for layer in range(spec.depth):
        there, here = f"transformer.h.{layer}", f"blocks.{layer}"
        if layout == "crate-gpt":
            norm(f"{there}.prenorm_1", f"{here}.norm1")
            linear(f"{there}.attn.c_attn", f"{here}.attention.subspaces", d, d, bias=False)
            linear(f"{there}.attn.c_proj", f"{here}.attention.projection", d, d)
            norm(f"{there}.prenorm_2", f"{here}.norm2")
            parts[f"{there}.ista.weight"] = _Part(f"{here}.feedforward.dictionary", (d, d))
        else:
            norm(f"{there}.ln_1", f"{here}.norm1")
            linear(f"{there}.attn.c_attn", f"{here}.attention.qkv", 3 * d, d)
            linear(f"{there}.attn.c_proj", f"{here}.attention.projection", d, d)
            norm(f"{there}.ln_2", f"{here}.norm2")
            linear(f"{there}.mlp.c_fc", f"{here}.feedforward.hidden", hidden, d)
            linear(f"{there}.mlp.c_proj", f"{here}.feedforward.output", d, hidden)
    if layout != "crate-gpt":
        norm("transformer.ln_f", "norm")
    return parts


def _beside_weights(
    spec: ModelSpec, layout: str, official: Mapping[str, "torch.Tensor"]
) -> dict[str, "torch.Tensor"]:
    """What a state dict of the official class holds beside its weights: the tied head and masks."""
    import torch

    beside = {"lm_head.weight": official["transformer.wte.weight"]}
    if layout == "crate-gpt":
        tokens = len(official["transformer.wpe.weight"])
        mask = torch.ones(tokens, tokens).tril()[None, None]  # one tensor, once in a file
        beside |= {f"transformer.h.{layer}.attn.bias": mask for layer in range(spec.depth)}
    return beside


def _float32(value: Any, key: str, where: str | Path) -> "torch.Tensor":
    """A copy as float32, exactly; `RunError` for what is no finite float of at most that width."""
    import numpy as np
    import torch

    if isinstance(value, np.ndarray):
        if value.dtype.kind == "V" and value.dtype.itemsize == 2:  # how numpy keeps bfloat16
            bits = np.ascontiguousarray(value).view(np.int16)
            tensor = torch.tensor(bits).view(torch.bfloat16)
        elif value.dtype.kind == "f" and value.dtype.itemsize <= 4:
            tensor = torch.tensor(value.astype(value.dtype.newbyteorder("="), copy=False))
        else:
            raise RunError(f"{where}: '{key}' is {value.dtype}, not float32, float16 or bfloat16")
    else:
        tensor = value.detach().cpu().clone()
    if tensor.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise RunError(f"{where}: '{key}' is {tensor.dtype}, not float32, float16 or bfloat16")
    tensor = tensor.float()
    if not tensor.isfinite().all():
        raise RunError(f"{where}: '{key}' holds values that are not finite")
    return tensor
