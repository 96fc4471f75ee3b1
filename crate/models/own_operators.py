"""Operators from files of one's own, compared with their reference before anything is trained."""

import torch

from crate.errors import UsageError, told
from crate.layers.operators import ATTENTION, FEEDFORWARD, Operator
from crate.models.blocks import make_attention, make_feedforward
from crate.models.spec import ModelSpec

TOLERANCE = 1e-8  # of double precision, relative and absolute


def check_operators(spec: ModelSpec) -> None:
    """Compare values and the number of parameters with what the operators' entries say.

    Raises:
        UsageError: they differ, or cannot be compared; names the operator.
    """
    for kind, entry, make in (
        (f"attention '{spec.attention}'", ATTENTION[spec.attention], make_attention),
        (f"feedforward '{spec.feedforward}'", FEEDFORWARD[spec.feedforward], make_feedforward),
    ):
        if entry.reference is None:  # of the suite: tests compare it
            continue
        try:
            problem = _difference(entry, make, spec)
        except Exception as error:
            problem = f"cannot be compared with its reference ({told(error)})"
        if problem:
            raise UsageError(f"{kind}: {problem}")


def _difference(entry: Operator, make, spec: ModelSpec) -> str:
    """What is wrong with an operator; "" if nothing."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():  # the run's draws stay the same
        torch.manual_seed(0)
        module = make(spec).double().eval()
        x = torch.randn(2, 5, spec.dim, dtype=torch.float64)
        fast = module(x)
        literal = torch.stack([entry.reference(module, z) for z in x])
    count, stated = sum(each.numel() for each in module.parameters()), entry.parameters(spec)
    if count != stated:
        return f"has {count:,} parameters, its 'parameters' says {stated:,}"
    if fast.shape != literal.shape:
        return f"gives {tuple(fast.shape)}, its reference {tuple(literal.shape)}"
    if not torch.allclose(fast, literal, rtol=TOLERANCE, atol=TOLERANCE):
        return f"differs from its reference by up to {(fast - literal).abs().max():.2g}"
    return ""
