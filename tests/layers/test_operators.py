"""The fast operators against the literal equations, and against what they are meant to be."""

import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml

from crate import cli
from crate.errors import UsageError
from crate.layers import reference
from crate.layers.attention import MHSA, MSSA, KVCache, plain_attention
from crate.layers.gradients import Attention, SparseCoding, attention_weights, sparse_codes
from crate.layers.operators import ATTENTION, FEEDFORWARD, Operator
from crate.layers.sparse_coding import ISTA, MLP, ODL
from crate.models.build import create_model
from crate.models.flops import macs, parameter_count
from crate.models.zoo import resolve
from crate.records import RunFolder, read_json
from crate.training.loop import read_history
from crate.weights import read_weights

ETA, LAM = 0.3, 0.2
DIM, HEADS, TOKENS = 6, 3, 5


def make(kind):
    if kind in ("MSSA", "MSSA bias", "MSSA causal"):
        options = {"projection_bias": "bias" in kind, "causal": "causal" in kind}
        return MSSA(DIM, HEADS, **options)
    if kind in ("MHSA", "MHSA causal", "MHSA no bias"):
        bias = "no bias" not in kind
        return MHSA(DIM, HEADS, qkv_bias=bias, projection_bias=bias, causal="causal" in kind)
    steps = {"step_size": ETA, "sparsity": LAM}
    if kind == "ISTA":
        return ISTA(DIM, **steps)
    if kind in ("ODL tied", "ODL decoupled"):
        return ODL(DIM, ratio=3, decoupled=kind == "ODL decoupled", **steps)
    return MLP(DIM, ratio=2, gelu="tanh" if "tanh" in kind else "exact")


def by_the_equations(module, z):
    """What `module` should return for one sample z (N, d), token by token."""
    if isinstance(module, MSSA):
        u, projection = module.subspaces.weight, module.projection
        return reference.mssa(
            z, u, projection.weight, projection.bias, module.heads, module.causal
        )[0]
    if isinstance(module, MHSA):
        qkv, projection = module.qkv, module.projection
        return reference.mhsa(
            z, qkv.weight, qkv.bias, projection.weight, projection.bias, HEADS, module.causal
        )[0]
    if isinstance(module, ISTA):
        return torch.stack([reference.ista(x, module.dictionary, ETA, LAM) for x in z])
    if isinstance(module, ODL):
        d = module.dictionary
        d_hat = d if module.decoder is None else module.decoder
        return torch.stack([reference.odl(x, d, d_hat, ETA, LAM) for x in z])
    first, second = module.hidden, module.output
    weights = first.weight, first.bias, second.weight, second.bias
    return torch.stack([reference.mlp(x, *weights, module.approximate == "tanh") for x in z])


OPERATORS = [
    *("MSSA", "MSSA bias", "MSSA causal", "MHSA", "MHSA causal", "MHSA no bias"),
    *("ISTA", "ODL tied", "ODL decoupled", "MLP", "MLP tanh"),
]


@pytest.mark.parametrize("tokens", [1, TOKENS])  # sparse coders take a way of their own for one
@pytest.mark.parametrize("kind", OPERATORS)
def test_fast_equals_reference_in_value_and_gradient(kind, tokens):
    module = make(kind).double()
    x = torch.randn(2, tokens, DIM, dtype=torch.float64, requires_grad=True)
    inputs = [x, *module.parameters()]
    fast = module(x)
    literal = torch.stack([by_the_equations(module, z) for z in x])
    torch.testing.assert_close(fast, literal, rtol=1e-10, atol=1e-10)

    cotangent = torch.randn_like(fast)
    fast_gradients = torch.autograd.grad(fast, inputs, cotangent)
    literal_gradients = torch.autograd.grad(literal, inputs, cotangent)
    assert all(gradient.abs().max() > 0 for gradient in fast_gradients)
    for ours, expected in zip(fast_gradients, literal_gradients, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", OPERATORS)
def test_gradients_by_finite_differences(kind):
    module = make(kind).double()
    x = torch.randn(1, 3, DIM, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, *_: module(x), (x, *module.parameters()))


def proximal_steps(x, dictionary, z, steps):
    """Gradient of ½‖D z − x‖² by autograd, then the proximal operator of λ‖z‖₁ with z ≥ 0."""
    for _ in range(steps):
        z = z.detach().requires_grad_()
        loss = 0.5 * (z @ dictionary.T - x).square().sum()
        (gradient,) = torch.autograd.grad(loss, z)
        z = F.relu(z - ETA * (gradient + LAM))
    return z.detach()


def test_ista_and_odl_are_proximal_gradient_steps_on_the_sparse_coding_objective():
    x = torch.randn(4, TOKENS, DIM, dtype=torch.float64)
    ista = make("ISTA").double()
    expected = proximal_steps(x, ista.dictionary.detach(), x, steps=1)
    torch.testing.assert_close(ista(x), expected)

    for kind in ("ODL tied", "ODL decoupled"):
        odl = make(kind).double()
        d = odl.dictionary.detach()
        codes = proximal_steps(x, d, x.new_zeros(*x.shape[:-1], d.shape[1]), steps=2)
        decoder = d if kind == "ODL tied" else odl.decoder
        record = {}
        torch.testing.assert_close(odl(x, record), codes @ decoder.T)
        torch.testing.assert_close(record["codes"], codes)
        assert 0.05 < (codes == 0).double().mean() < 0.95


@pytest.mark.parametrize("kind", ["MSSA causal", "MHSA causal"])
def test_a_causal_token_sees_no_later_one(kind):
    module = make(kind)
    x = torch.randn(1, TOKENS, DIM)
    changed = x.clone()
    changed[:, 3] += 1
    before, after = module(x), module(changed)
    assert torch.equal(before[:, :3], after[:, :3])
    assert ((before - after)[:, 3:].abs().amax(dim=-1) > 1e-4).all()


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("kind", ["MSSA causal", "MHSA causal", "MSSA", "MHSA"])
def test_a_cache_in_any_portions_changes_nothing(kind, recorded):
    module = make(kind).double()
    x = torch.randn(2, 8, DIM, dtype=torch.float64)
    whole, outputs, cache = module(x), [], KVCache()
    for part in x.split([1, 3, 1, 2, 1], dim=1):
        record = {} if recorded else None
        outputs.append(module(part, record, cache))
        if recorded:
            seen = cache.tensors[0].shape[-2]
            assert record["attention"].shape == (2, HEADS, part.shape[1], seen)
    if "causal" in kind:
        torch.testing.assert_close(torch.cat(outputs, dim=1), whole, rtol=0, atol=1e-12)
    else:  # no mask: what comes last sees all
        torch.testing.assert_close(outputs[-1], whole[:, -1:], rtol=0, atol=1e-12)
    assert len(cache.tensors) == (1 if "MSSA" in kind else 2)
    assert all(tensor.shape == (2, HEADS, 8, DIM // HEADS) for tensor in cache.tensors)


@pytest.mark.parametrize("kind", ["MSSA", "MSSA causal", "MHSA", "MHSA causal"])
def test_recorded_attention_is_what_was_used(kind):
    module = make(kind)
    x = torch.randn(2, TOKENS, DIM)
    record = {}
    output = module(x, record)
    weights = record["attention"]
    assert weights.shape == (2, HEADS, TOKENS, TOKENS)
    assert (weights >= 0).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, HEADS, TOKENS))
    if "causal" in kind:
        assert torch.equal(weights, weights.tril())

    values = module.subspaces(x) if "MSSA" in kind else module.qkv(x)[..., 2 * DIM :]
    mixed = torch.einsum("bkij,bjkc->bikc", weights, values.view(2, TOKENS, HEADS, -1))
    torch.testing.assert_close(output, module.projection(mixed.reshape(2, TOKENS, DIM)))
    torch.testing.assert_close(output, module(x))


@pytest.mark.parametrize("causal", [False, True])
def test_the_fused_kernel_is_the_same_function(causal):
    q, k, v = torch.randn(3, 2, HEADS, TOKENS, 4, dtype=torch.float64)
    fused = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    torch.testing.assert_close(plain_attention(q, k, v, causal)[0], fused)


def by_hand_or_autograd(causal, recompute):
    """Functions with and without a backward pass of their own, and their inputs, in float64."""
    q, k, v = torch.randn(3, HEADS, TOKENS, 4, dtype=torch.float64)
    q = q[:, -2:]  # fewer queries than keys
    x, d = torch.randn(TOKENS, DIM).double(), torch.randn(DIM, 3 * DIM).double()
    decoder = torch.randn_like(d)
    yield (
        lambda *inputs: Attention.apply(*inputs, causal, recompute),
        lambda q, k, v: attention_weights(q, k, causal) @ v,
        [q, k, v],
    )
    yield (
        lambda *inputs: SparseCoding.apply(*inputs, ETA, LAM, recompute),
        lambda x, d, decoder: sparse_codes(x, d, ETA, LAM)[2] @ decoder.t(),
        [x, d, decoder],
    )
    yield (
        lambda x, d: SparseCoding.apply(x, d, d, ETA, LAM, recompute),
        lambda x, d: sparse_codes(x, d, ETA, LAM)[2] @ d.t(),
        [x, d],
    )


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_gradients_by_hand_are_autograds(causal, recompute):
    for by_hand, plain, inputs in by_hand_or_autograd(causal, recompute):
        inputs = [each.requires_grad_() for each in inputs]
        ours, expected = by_hand(*inputs), plain(*inputs)
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)
        cotangent = torch.randn_like(expected)
        for mine, theirs in zip(
            torch.autograd.grad(ours, inputs, cotangent),
            torch.autograd.grad(expected, inputs, cotangent),
            strict=True,
        ):
            assert theirs.abs().max() > 0
            torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)
        assert torch.autograd.gradcheck(by_hand, inputs)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("kind", ["MSSA", "MSSA causal", "MHSA", "ODL tied", "ODL decoupled"])
def test_recomputing_keeps_less_and_changes_no_bit(kind, autocast):
    module = make(kind)
    x = torch.randn(2, 40, DIM, requires_grad=True)
    inputs, found = [x, *module.parameters()], []
    for recompute in (False, True):
        module.recompute, kept = recompute, {}

        def keep(tensor, kept=kept):
            kept[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
            return tensor

        with (
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
            torch.autocast("cpu", torch.bfloat16, enabled=autocast),
        ):
            output = module(x)
        gradients = torch.autograd.grad(output.float().square().sum(), inputs)
        found.append((sum(kept.values()), output, *gradients))
    (whole, *expected), (less, *ours) = found
    assert all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))
    if autocast or "ODL" in kind:  # else the fused kernel keeps no weights anyway
        assert less < 0.8 * whole


@pytest.mark.parametrize("kind", OPERATORS)
def test_bfloat16_autocast_stays_near_float32(kind):
    module = make(kind)
    x = torch.randn(2, TOKENS, DIM)
    exact = module(x)
    with torch.autocast("cpu", torch.bfloat16):
        rough = module(x)
    assert (rough.float() - exact).norm() < 0.02 * exact.norm() + 1e-3


@pytest.mark.parametrize("make_it", [lambda: MSSA(10, 3), lambda: MHSA(10, 3), lambda: MSSA(4, 0)])
def test_heads_must_divide_the_width(make_it):
    with pytest.raises(UsageError, match="is not divisible by heads"):
        make_it()


@pytest.mark.parametrize("make_it", [lambda: ISTA(0), lambda: ODL(4, ratio=0), lambda: MLP(-1)])
def test_widths_must_be_positive(make_it):
    with pytest.raises(UsageError, match="must be at least 1"):
        make_it()


# --- one more operator -----------------------------------------------------------


class SoftThresholding(torch.nn.Module):
    """x: (B, N, d) → what is left of W x, (B, N, d), after entries within ±λ became 0."""

    def __init__(self, dim: int, *, sparsity: float):
        super().__init__()
        self.linear, self.sparsity = torch.nn.Linear(dim, dim, bias=False), sparsity

    def forward(self, x, record=None):
        codes = F.softshrink(self.linear(x), self.sparsity)
        if record is not None:
            record["codes"] = codes
        return codes


ENTRY = Operator(
    source=f"{__name__}:SoftThresholding",
    options=lambda s: {"sparsity": s.sparsity},
    settings=("sparsity",),
    parameters=lambda s: s.dim**2,
    macs=lambda s: s.dim**2,
)
SMALL = {"dim": 32, "depth": 2, "heads": 2, "patch_size": 7}  # what smoke makes of it
STEP = {
    "task": "classification", "dataset": "imagenet1k", "follows": ["start"],
    "updates": 2, "batch_size": 8, "lr": 1e-3,
}  # fmt: skip


def test_an_operator_is_a_class_and_one_entry(folder, monkeypatch, capsys):
    monkeypatch.setitem(FEEDFORWARD, "soft", ENTRY)
    changes = {"feedforward": "soft", "residual": True, "sparsity": 0.01}
    spec = resolve("crate_base_patch16", **SMALL, **changes)
    own = {"soft": {"base": "crate_base_patch16"} | changes}
    (folder / "models.yaml").write_text(yaml.safe_dump(own))
    (folder / "steps" / "two_updates.yaml").write_text(yaml.safe_dump(STEP))
    path = "results/smoke/runs/soft/seed0/two_updates"

    sizes = {"image_size": 28, "num_classes": 10}
    model = create_model("crate_base_patch16", **sizes | SMALL | changes)
    assert isinstance(model.blocks[0].feedforward, SoftThresholding)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == parameter_count(spec, **sizes)
    assert cli.main(["plan", path]) == 0
    assert f" {count / 1e6:.2f} " in capsys.readouterr().out

    assert cli.main(["run", path]) == 0
    run = RunFolder(Path(path))
    metrics = read_json(run.metrics)["metrics"]
    assert metrics["flops"] == 2 * macs(spec, **sizes)
    ista = macs(resolve("crate_base_patch16", **SMALL), **sizes)
    assert macs(spec, **sizes) == ista - 2 * 17 * 2 * 32**2  # one product a token, not three
    assert metrics["train_flops"] == 3 * metrics["flops"] * 2 * 64
    assert read_history(run)[-1]["step"] == 2
    name = "blocks.1.feedforward.linear.weight"
    assert read_weights(run.weights)[name].shape == (32, 32)


def test_an_operator_that_does_not_exist_is_refused_at_once(folder, monkeypatch, capsys):
    monkeypatch.setitem(FEEDFORWARD, "soft", ENTRY)
    told = "unknown feedforward 'soff'; did you mean 'soft'?"
    with pytest.raises(UsageError, match=re.escape(told)):
        resolve("crate_base_patch16", feedforward="soff")
    own = {"soft": {"base": "crate_base_patch16", "feedforward": "soff"}}
    (folder / "models.yaml").write_text(yaml.safe_dump(own))
    path = "results/smoke/runs/soft/seed0/imagenet21k"
    for command in ("plan", "run"):
        assert cli.main([command, path]) == 2
        assert told in capsys.readouterr().err
    assert not Path("results").exists()
    with pytest.raises(UsageError, match="unknown feedforward 'IST'; did you mean 'ISTA'"):
        FEEDFORWARD["IST"]


@pytest.mark.parametrize("kind", ["attention", "feedforward"])
def test_each_operator_is_built_and_counted_from_its_entry(kind):
    """`test_flops.py` compares the counts of all with torch's."""
    for name, entry in {"attention": ATTENTION, "feedforward": FEEDFORWARD}[kind].items():
        spec = resolve("vit_base_patch16", **{kind: name})
        assert entry.load().__name__ == name
        assert entry.parameters(spec) > 0
        assert entry.macs(spec) > 0
        assert set(entry.settings) <= set(vars(spec))
