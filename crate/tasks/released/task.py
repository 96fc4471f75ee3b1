"""Starts a chain at an official checkpoint: converts its weights to those of a run."""

from pathlib import Path

from crate.checkpoints.convert import convert, infer_sizes
from crate.checkpoints.manifest import locate
from crate.checkpoints.read import read_checkpoint
from crate.data.catalogue import get_dataset
from crate.environment import EXPERIMENTS
from crate.errors import RunError
from crate.models.build import build, build_contrastive
from crate.records import RunFolder, file_sha256
from crate.tasks.base import Resolved
from crate.weights import save_weights


def run(
    resolved: Resolved,
    *,
    runtime: None,
    folder: RunFolder,
    identity: str,
    parent: Path | None,
    data_root: Path,
) -> tuple[dict, dict]:
    """Convert the released weights of the run's model with a head for the recipe's data set.

    A contrastive model needs no head; its sizes are read from the file.

    Returns:
        metrics (parameters) and details (the file and its sha256).

    Raises:
        RunError: the file is missing or damaged, or has another architecture or head.
    """
    classes = get_dataset(resolved.recipe.dataset).classes
    path = locate(resolved.run.model, classes, EXPERIMENTS, data_root)
    state = convert(read_checkpoint(path), resolved.spec, name=resolved.run.model, where=path)
    if resolved.spec.kind == "contrastive":
        model = build_contrastive(resolved.spec, **infer_sizes(state, resolved.spec))
    else:
        model = build(resolved.spec, num_classes=classes, image_size=resolved.recipe.image_size)
        outputs = state["head.weight"].shape[0]
        if outputs != classes:
            raise RunError(f"{path}: its head has {outputs:,} classes, not {classes:,}")
    model.load_state_dict(state, strict=True)
    save_weights(model, folder)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return {"parameters": parameters}, {"file": path.name, "sha256": file_sha256(path)}
