"""Names of a network's parameters, as far as they are known without building it. No torch."""

from crate.models.spec import ModelSpec

OPERATORS = ("attention", "feedforward")  # modules of a block, whose parameters the operators name


def has_parameter(name: str, spec: ModelSpec, kind: str) -> bool:
    """Whether a network may have a parameter of this name, or a module.

    kind: of `MODEL_KINDS`; "vision" for the vision part alone of an autoencoder or of a contrastive
    model, with a head.
    """
    exact, open_ended = _names(spec, kind)
    return any(
        known == name or known.startswith(f"{name}.") for known in exact | open_ended
    ) or any(name.startswith(f"{known}.") for known in open_ended)


def parameter_names(spec: ModelSpec, kind: str) -> list[str]:
    """The names that are known, and those of the modules that hold them."""
    parts = [name.split(".") for names in _names(spec, kind) for name in names]
    return sorted({".".join(part[:k]) for part in parts for k in range(1, len(part) + 1)})


def _names(spec: ModelSpec, kind: str) -> tuple[set[str], set[str]]:
    """Names of parameters, and of modules whose parameters have names of their own."""
    if kind == "contrastive":
        vision, text = _names(spec, "vision"), _blocks(spec.text_spec, "blocks")
        exact = {f"vision.{name}" for name in vision[0] - {"head.bias"}} | {"logit_scale"}
        within = {"token_embedding.weight", "positions", "head.weight", *_affine("norm")} | text[0]
        exact |= {f"text.{name}" for name in within}
        return exact, {f"vision.{n}" for n in vision[1]} | {f"text.{n}" for n in text[1]}
    exact, open_ended = _blocks(spec, "blocks")
    if kind == "language":
        exact |= {"token_embedding.weight", "position_embedding.weight"}
        return exact | (_affine("norm") if spec.final_norm else set()), open_ended
    exact |= {"class_token", "positions", *_affine("norm")}
    exact |= _biased("patch_embedding.projection", spec.outer_bias)
    if spec.stem == "linear":
        exact |= _affine("patch_embedding.norm1") | _affine("patch_embedding.norm2")
    if kind == "vision":
        return exact | _biased("head", spec.outer_bias), open_ended
    decoder = _blocks(spec.decoder_spec, "decoder_blocks", inverse=spec.decoder == "inverse")
    exact |= {"mask_token", "decoder_positions", *_affine("decoder_norm")} | decoder[0]
    exact |= _affine("decoder_embedding") | _affine("decoder_prediction")
    return exact, open_ended | decoder[1]


def _blocks(spec: ModelSpec, start: str, *, inverse: bool = False) -> tuple[set[str], set[str]]:
    exact, open_ended = set(), set()
    for layer in range(spec.depth):
        block = f"{start}.{layer}"
        exact |= _affine(f"{block}.norm1") | _affine(f"{block}.norm2")
        exact |= {f"{block}.dictionary"} if inverse else set()
        operators = OPERATORS[:1] if inverse else OPERATORS
        open_ended |= {f"{block}.{operator}" for operator in operators}
    return exact, open_ended


def _affine(name: str) -> set[str]:
    return {f"{name}.weight", f"{name}.bias"}


def _biased(name: str, bias: bool) -> set[str]:
    return _affine(name) if bias else {f"{name}.weight"}
