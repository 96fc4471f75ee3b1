"""The operators that a specification may name: class, options, parameters and FLOPs. No torch.

To add an operator, write its class in `attention.py` or `sparse_coding.py`, its literal form in
`reference.py`, and its entry here. d width, K heads; `s` is a specification (`models/spec.py`).
"""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from crate.errors import UsageError
from crate.registry import Registry, add


@dataclass(frozen=True)
class Operator:
    """An operator's class, options and closed forms.

    source      "module:class"
    options     specification → keyword arguments of the class, beyond those common to its kind
    settings    fields of a specification that only some operators of its kind read
    parameters  specification → number of parameters
    macs        specification → multiply-accumulates of the linear maps for one token, as the paper
                writes them
    reference   of an operator from a file of one's own: (module, z) → what the module returns for
                one sample z (N, d), written token by token
    """

    source: str
    options: Callable[[Any], dict]
    settings: tuple[str, ...]
    parameters: Callable[[Any], int]
    macs: Callable[[Any], int]
    reference: Callable[[Any, Any], Any] | None = None

    def load(self) -> type:
        """The class. Imports torch."""
        module, name = self.source.split(":")
        # identity: an entry's `source` leads to the class
        return getattr(importlib.import_module(module), name)


# Each class takes dim, heads, projection_bias and causal. `block_macs` adds the two N²d products.
ATTENTION = Registry(
    "attention",
    {
        "MSSA": Operator(
            source="crate.layers.attention:MSSA",
            options=lambda s: {},
            settings=(),
            parameters=lambda s: 2 * s.dim**2 + s.dim * s.projection_bias,
            macs=lambda s: 2 * s.dim**2,
        ),
        "MHSA": Operator(
            source="crate.layers.attention:MHSA",
            options=lambda s: {"qkv_bias": s.qkv_bias},
            settings=("qkv_bias",),
            parameters=lambda s: 4 * s.dim**2 + s.dim * s.projection_bias + 3 * s.dim * s.qkv_bias,
            macs=lambda s: 4 * s.dim**2,
        ),
    },
)

# Each class takes dim.
FEEDFORWARD = Registry(
    "feedforward",
    {
        # D x, Dᵀ(D x) and Dᵀx as the paper writes them; the class needs one product
        "ISTA": Operator(
            source="crate.layers.sparse_coding:ISTA",
            options=lambda s: {"step_size": s.step_size, "sparsity": s.sparsity},
            settings=("step_size", "sparsity"),
            parameters=lambda s: s.dim**2,
            macs=lambda s: 3 * s.dim**2,
        ),
        "ODL": Operator(
            source="crate.layers.sparse_coding:ODL",
            options=lambda s: {
                "ratio": s.dictionary_ratio,
                "decoupled": s.decoupled,
                "step_size": s.step_size,
                "sparsity": s.sparsity,
            },
            settings=("dictionary_ratio", "decoupled", "step_size", "sparsity"),
            parameters=lambda s: (1 + s.decoupled) * s.dictionary_ratio * s.dim**2,
            macs=lambda s: 4 * s.dictionary_ratio * s.dim**2,
        ),
        "MLP": Operator(
            source="crate.layers.sparse_coding:MLP",
            options=lambda s: {"ratio": s.mlp_ratio, "gelu": s.gelu},
            settings=("mlp_ratio", "gelu"),
            parameters=lambda s: 2 * s.mlp_ratio * s.dim**2 + s.mlp_ratio * s.dim + s.dim,
            macs=lambda s: 2 * s.mlp_ratio * s.dim**2,
        ),
    },
)


NEEDED = {
    "reference": "(module, z) → what the module returns for one sample, token by token",
    "parameters": "specification → number of parameters",
    "macs": "specification → multiply-accumulates of a token, from which FLOPs are counted",
}


def register(
    kind: Registry[Operator],
    name: str,
    *,
    reference: Callable[[Any, Any], Any] | None = None,
    parameters: Callable[[Any], int] | None = None,
    macs: Callable[[Any], int] | None = None,
    options: Callable[[Any], dict] = lambda s: {},
    settings: tuple[str, ...] = (),
) -> Callable[[type], type]:
    """Adds the class below it to `ATTENTION` or `FEEDFORWARD`, in a file of one's own.

    Raises:
        UsageError: the name is taken, or the reference or a closed form is missing.
    """
    given = {"reference": reference, "parameters": parameters, "macs": macs}
    for key, value in given.items():
        if not callable(value):
            raise UsageError(f"{kind.kind} '{name}': '{key}' is missing: {NEEDED[key]}")

    def decorate(operator: type) -> type:
        source = f"{operator.__module__}:{operator.__name__}"
        entry = Operator(source, options, settings, parameters, macs, reference)
        add(kind, kind.kind, name, entry, operator.__module__)
        return operator

    return decorate


def known_operators(settings: Mapping[str, object]) -> bool:
    """Whether the operators that settings of a model name, if any, are registered."""
    named = ((entries, settings.get(entries.kind)) for entries in (ATTENTION, FEEDFORWARD))
    return all(name in entries for entries, name in named if isinstance(name, str))
