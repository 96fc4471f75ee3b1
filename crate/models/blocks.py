"""Builds the operators and blocks of a specification."""

from torch import nn

from crate.layers.block import Block
from crate.layers.operators import ATTENTION, FEEDFORWARD
from crate.models.spec import ModelSpec


def make_attention(spec: ModelSpec) -> nn.Module:
    """The attention operator that a spec names."""
    operator = ATTENTION[spec.attention]
    return operator.load()(
        spec.dim,
        spec.heads,
        projection_bias=spec.projection_bias,
        causal=spec.causal,
        **operator.options(spec),
    )


def make_feedforward(spec: ModelSpec) -> nn.Module:
    """The feed-forward operator that a spec names."""
    operator = FEEDFORWARD[spec.feedforward]
    return operator.load()(spec.dim, **operator.options(spec))


def make_blocks(spec: ModelSpec, drop_path: float = 0.0) -> nn.ModuleList:
    """All blocks of a spec; the drop-path rate grows linearly from 0 to `drop_path` with depth."""
    return nn.ModuleList(
        Block(
            make_attention(spec),
            make_feedforward(spec),
            spec.residual,
            dim=spec.dim,
            norm_eps=spec.norm_eps,
            drop_path=drop_path * layer / max(spec.depth - 1, 1),
        )
        for layer in range(spec.depth)
    )
