"""A model with the weights of a file, ours or official, at the sizes of the file."""

from pathlib import Path

from torch import nn

from crate.checkpoints.convert import infer_sizes, ours_or_converted
from crate.checkpoints.finished import stated
from crate.checkpoints.read import read_checkpoint
from crate.errors import RunError, UsageError
from crate.models.build import build, build_autoencoder, build_contrastive, build_language
from crate.models.spec import ModelSpec
from crate.models.transfer import transfer_weights

BUILDERS = {
    "vision": build,
    "language": build_language,
    "autoencoder": build_autoencoder,
    "contrastive": build_contrastive,
}


def load_model(
    path: str | Path,
    spec: ModelSpec,
    name: str,
    *,
    sizes: dict,
    drop_path: float = 0.0,
    as_stated: bool = False,
) -> nn.Module:
    """Build a model of `spec` with the weights of a file; see `crate.models.create_model`.

    Args:
        path: a file of any layout that `read_checkpoint` and `ours_or_converted` read.
        name: of the model, for messages.
        sizes: arguments of its builder that replace the file's: another `num_classes` gets a newly
            initialised head, another `image_size` interpolated positions.
        as_stated: take the specification that the file states for this model in place of `spec`.

    Raises:
        UsageError: there is no such file, or its weights are not those of the model.
        RunError: the file cannot be read.
    """
    facts = stated(path) if as_stated else {}
    if facts.get("model") == name:
        spec = ModelSpec(**facts["spec"])
    state = ours_or_converted(read_checkpoint(path), spec, name=name, where=path)
    try:
        found = infer_sizes(state, spec)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None
    new_head = sizes.get("num_classes", found.get("num_classes")) != found.get("num_classes")
    kind = kind_of(spec, found)
    for size in sizes if kind != spec.kind else ():
        if size not in found:
            raise UsageError(f"{path}: holds the vision part alone of {name}, which has no {size}")
    model = BUILDERS[kind](spec, **(found | sizes), drop_path=drop_path)
    try:
        transfer_weights(model, state, ["head"] if new_head else [])
    except RunError as error:
        message = str(error).replace("the parent's", "its").split("; ")[0]
        raise UsageError(
            f"{path}: not the weights of {name}, or of it at another size: {message}"
        ) from None
    return model


def kind_of(spec: ModelSpec, sizes: dict[str, int]) -> str:
    """The kind of model that has these sizes: of some specifications, the vision part alone."""
    return "vision" if "num_classes" in sizes else spec.kind
