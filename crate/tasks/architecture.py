"""The size of a published model: depth, width, heads, parameters, FLOPs. No data, no torch."""

from pathlib import Path

from crate.data.registry import get_dataset
from crate.models.complexity import macs, parameter_count
from crate.plan import Resolved
from crate.records import RunFolder


def run(
    resolved: Resolved,
    *,
    runtime: None,
    folder: RunFolder,
    identity: str,
    parent: Path | None,
    data_root: Path,
) -> tuple[dict, dict]:
    """Count one model with a head for the step's data set.

    Returns:
        metrics (parameters of the whole model; FLOPs of one image's forward pass, two for a
        multiply-accumulate) and no details.
    """
    step, spec = resolved.step, resolved.spec
    shape = {"image_size": step.image_size, "num_classes": get_dataset(step.dataset).classes}
    return {
        "depth": spec.depth,
        "width": spec.dim,
        "heads": spec.heads,
        "parameters": parameter_count(spec, **shape),
        "flops": 2 * macs(spec, **shape),
    }, {}
