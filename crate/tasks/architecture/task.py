"""The size of a published model: depth, width, heads, parameters, FLOPs. No data, no torch."""

from pathlib import Path

from crate.records import RunFolder
from crate.tasks.architecture.cost import COST
from crate.tasks.base import Resolved


def run(
    resolved: Resolved,
    *,
    runtime: None,
    folder: RunFolder,
    identity: str,
    parent: Path | None,
    data_root: Path,
) -> tuple[dict, dict]:
    """Count one model with a head, or a vocabulary, for the recipe's data set.

    Returns:
        metrics (parameters of the whole model, a language model's without positions if the recipe
        says so; FLOPs of the forward pass of one image or window of tokens, a multiply-accumulate
        being two; of an autoencoder, depth, width and heads are the encoder's, parameters and
        FLOPs those of encoder and decoder) and no details.
    """
    spec = resolved.spec
    parameters, products = COST.complexity(resolved)
    return {
        "depth": spec.depth,
        "width": spec.dim,
        "heads": spec.heads,
        "parameters": parameters,
        "flops": 2 * products,
    }, {}
