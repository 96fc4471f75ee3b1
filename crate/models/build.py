"""Builds models by name or specification, newly initialised or from a file; imports torch then."""

from pathlib import Path

from crate.errors import UsageError, unknown
from crate.models.spec import MODEL_KINDS, ModelSpec
from crate.models.zoo import MODELS, resolve

# Size arguments of `create_model` by kind of model, and their defaults.
VISION_SIZES = {"num_classes": 1000, "image_size": 224}
LANGUAGE_SIZES = {"vocab_size": 50_257, "block_size": 1024}  # GPT-2's
AUTOENCODER_SIZES = {"image_size": 224, "normalise_patches": False}
CONTRASTIVE_SIZES = {"image_size": 224, "vocab_size": 32_000, "context_length": 32}  # CLIPA's

SIZES = {**VISION_SIZES, **LANGUAGE_SIZES, **AUTOENCODER_SIZES, **CONTRASTIVE_SIZES}

# What other libraries call these arguments.
OTHER_NAMES = {
    "img_size": "image_size",
    "n_classes": "num_classes",
    "drop_path_rate": "drop_path",
}


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
    pretrained: str | Path | None = None,
    **overrides: object,
):
    """Build a model by name, newly initialised: `resolve`, then the `build…` of its kind.

    A vision model has `num_classes` (default 1,000) and `image_size` (224 pixels), a language model
    `vocab_size` (50,257) and `block_size` (1,024 tokens), an autoencoder `image_size` (224 pixels)
    and `normalise_patches` (False), a contrastive model `image_size` (224 pixels), `vocab_size`
    (32,000) and `context_length` (32 tokens).

    Args:
        pretrained: a file of weights: a run's, `torch.save(model.state_dict())` of a model built
            here, or an official checkpoint of any layout (docs/design/checkpoints.md). Sizes are
            then the file's, with any number of classes; so are the model's settings where the file
            states them (what `crate weights export` wrote, a run's weights). `num_classes` other
            than the file's gives a newly initialised head, another `image_size` interpolated
            positions. A file with the vision part alone of an autoencoder or a contrastive model
            gives a classifier.
        overrides: fields of `ModelSpec`.

    Raises:
        UsageError: an unknown name or field, an invalid size, a size that this kind of model does
            not have, no such file, or the weights of another model.
        RunError: the file of weights is damaged, or not one.
    """
    for key in overrides:
        if key in OTHER_NAMES:
            ours = OTHER_NAMES[key]
            raise UsageError(f"{name}: unknown model setting '{key}'; did you mean '{ours}'?")
        fields = ModelSpec.__dataclass_fields__
        if key not in fields:
            raise unknown("model setting", key, [*fields, *SIZES, "pretrained"], where=name)
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
    if pretrained is not None:
        from crate.checkpoints.load import load_model  # the one import of a room above

        return load_model(
            pretrained, spec, name, sizes=given, drop_path=drop_path, as_stated=not overrides
        )
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

    normalise_patches: target patches have mean 0 and variance 1.
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

    vocab_size: token ids are 0 to vocab_size − 1. drop_path: the stochastic-depth rate of the
    vision tower's last block, in [0, 1). Raises `UsageError`.
    """
    from crate.models.contrastive import ContrastiveModel

    return ContrastiveModel(
        spec,
        image_size=image_size,
        vocab_size=vocab_size,
        context_length=context_length,
        drop_path=drop_path,
    )
