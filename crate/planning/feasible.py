"""What can be known of a run before any run starts: that its numbers fit its data and its model.

A run says the same when it starts; by then its parents have trained. No torch.
"""

from crate.data.datasets import Dataset
from crate.data.splits import withheld
from crate.errors import UsageError, nearest
from crate.models.parameter_names import has_parameter, parameter_names
from crate.models.spec import ModelSpec
from crate.recipes import Recipe, Training

# Kind of stage → kind of its network.
NETWORKS = {
    "classification": "vision",
    "segmentation": "vision",
    "autoencoding": "autoencoder",
    "contrastive": "contrastive",
    "language": "language",
}


def check_feasible(recipe: Recipe, spec: ModelSpec, dataset: Dataset) -> None:
    """Raise `UsageError` about the first number that fits neither the data nor the model."""
    if getattr(recipe, "predictor", "model") != "model":
        return  # a control without a network
    _check_layers(recipe, spec)
    if isinstance(recipe, Training):
        _check_length(recipe, dataset)
        _check_names(recipe, spec)


def _check_layers(recipe: Recipe, spec: ModelSpec) -> None:
    for key in ("layer", "layers"):
        value = getattr(recipe, key, None)
        named = value if isinstance(value, list) else [value] if type(value) is int else []
        named = named[-1:] if getattr(recipe, "decoder", "") == "linear" else named
        if named and max(named) >= spec.depth:
            raise UsageError(
                f"{key}: {max(named)} is not a layer of the model, which has {spec.depth}, counted "
                "from 0"
            )


def _check_length(recipe: Training, dataset: Dataset) -> None:
    """That the training has an update, by the published size of the training part."""
    if not recipe.trains:
        return
    held = dataset.holdout * len(withheld(dataset, recipe.evaluate))
    size, unit = dataset.splits.get("train", 0) - held, dataset.unit
    if dataset.unit == "documents":
        size, unit = getattr(dataset, "tokens", {}).get("train"), "tokens"
        if size is None:
            return
        window = recipe.block_size
        if size <= window:
            raise UsageError(
                f"block_size: one window needs {window + 1:,} tokens, {dataset.title} has {size:,} "
                "to train on"
            )
        per_epoch = max(1, size // (recipe.batch_size * window))
    else:
        per_epoch = recipe.per_epoch(size) if size >= recipe.batch_size else 0
    if not per_epoch:
        raise UsageError(
            f"batch_size: {recipe.batch_size:,} is more than the {size:,} training {unit} of "
            f"{dataset.title}"
        )
    if not recipe.total_updates(per_epoch):
        raise UsageError(
            f"epochs: {recipe.epochs:g} of {size:,} training {unit} in batches of "
            f"{recipe.batch_size:,} are not a single update"
        )


def _check_names(recipe: Training, spec: ModelSpec) -> None:
    kind = NETWORKS.get(recipe.task)
    if kind is None:
        return  # of a kind of one's own: its network has names of its own
    for name in recipe.dont_load:
        if not has_parameter(name, spec, kind):
            near = nearest(name, parameter_names(spec, kind))
            raise UsageError(f"dont_load: the model has no '{name}'{near}")
