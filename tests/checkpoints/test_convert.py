"""Official checkpoints: read safely, converted strictly, and computing what the official code does.

The three official forward passes are written here from the papers' equations and the names of the
keys, on the official tensors themselves; ours must give the same logits.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from crate.checkpoints.convert import convert, infer_sizes, to_official
from crate.checkpoints.layouts import LAYOUTS
from crate.checkpoints.manifest import manifest
from crate.checkpoints.read import read_checkpoint
from crate.errors import RunError, UsageError
from crate.models.build import build
from crate.models.zoo import MODELS, resolve

ROOT = Path(__file__).parents[2]
SMALL = {"dim": 24, "heads": 3, "depth": 3, "patch_size": 8}
ALPHA_ROWS = {
    "plain": "crate_base_patch32_plain",
    "overcomplete": "crate_base_patch32_overcomplete",
    "decoupled": "crate_base_patch32_overcomplete_decoupled",
    "alpha": "crate_alpha_base_patch32",
}


def small(row: str):
    return resolve(ALPHA_ROWS.get(row, "crate_base_patch16"), **SMALL)


# --- official checkpoints with random weights: names and shapes as published ----------------------


def norm(state: dict, there: str, d: int, names=("weight", "bias"), dot=".") -> None:
    state[f"{there}{dot}{names[0]}"] = 1 + 0.2 * torch.randn(d)
    state[f"{there}{dot}{names[1]}"] = 0.2 * torch.randn(d)


def torch_checkpoint(row: str, d=24, depth=3, p=8, grid=4, classes=7) -> dict:
    """CRATE-alpha's PyTorch names (row: a key of ALPHA_ROWS), or the 2023 CRATE's ("2023")."""
    state = {
        "cls_token": torch.randn(1, 1, d),
        "pos_embedding": torch.randn(1, 1 + grid**2, d),
    }
    if row == "2023":
        norm(state, "to_patch_embedding.1", p * p * 3)
        state["to_patch_embedding.2.weight"] = 0.1 * torch.randn(d, p * p * 3)
        state["to_patch_embedding.2.bias"] = 0.1 * torch.randn(d)
        norm(state, "to_patch_embedding.3", d)
    else:
        state["conv1.weight"] = 0.1 * torch.randn(d, 3, p, p)
        state["conv1.bias"] = 0.1 * torch.randn(d)
    for i in range(depth):
        layer = f"transformer.layers.{i}"
        norm(state, f"{layer}.0.norm", d)
        norm(state, f"{layer}.1.norm", d)
        state[f"{layer}.0.fn.qkv.weight"] = 0.3 * torch.randn(d, d)
        state[f"{layer}.0.fn.to_out.0.weight"] = 0.3 * torch.randn(d, d)
        if row == "2023":
            state[f"{layer}.0.fn.to_out.0.bias"] = 0.3 * torch.randn(d)
            state[f"{layer}.1.fn.weight"] = 0.3 * torch.randn(d, d)
        elif row == "plain":
            state[f"{layer}.1.fn.D"] = 0.3 * torch.randn(d, d)
        else:
            state[f"{layer}.1.fn.D"] = 0.3 * torch.randn(d, 4 * d)
            if row != "overcomplete":
                state[f"{layer}.1.fn.D1"] = 0.3 * torch.randn(d, 4 * d)
    norm(state, "mlp_head.0", d)
    state["mlp_head.1.weight"] = torch.randn(classes, d)
    state["mlp_head.1.bias"] = torch.randn(classes)
    return state


def jax_checkpoint(
    row: str, d=24, heads=3, depth=3, p=8, grid=4, classes=7, place="params/"
) -> dict[str, np.ndarray]:
    """CRATE-alpha's JAX names, parameters only; `place` of the last norm as big_vision may nest."""
    state = {
        "params/cls": torch.randn(1, 1, d),
        "params/pos_embedding": torch.randn(1, 1 + grid**2, d),
        "params/embedding/kernel": 0.1 * torch.randn(p, p, 3, d),
        "params/embedding/bias": 0.1 * torch.randn(d),
    }
    for i in range(depth):
        block = f"params/Transformer/encoderblock_{i}"
        attention = f"{block}/MultiHeadDotProductSubspaceAttention_0"
        norm(state, f"{block}/LayerNorm_0", d, ("scale", "bias"), "/")
        norm(state, f"{block}/LayerNorm_1", d, ("scale", "bias"), "/")
        state[f"{attention}/proj/kernel"] = 0.3 * torch.randn(d, heads, d // heads)
        state[f"{attention}/out/kernel"] = 0.3 * torch.randn(heads, d // heads, d)
        if row == "plain":
            state[f"{block}/ISTABlock_0/D"] = 0.3 * torch.randn(d, d)
        else:
            state[f"{block}/OvercompleteISTABlock_0/D"] = 0.3 * torch.randn(d, 4 * d)
            if row != "overcomplete":
                state[f"{block}/OvercompleteISTABlock_0/D1"] = 0.3 * torch.randn(d, 4 * d)
    norm(state, f"{place}encoder_norm", d, ("scale", "bias"), "/")
    state["params/head/kernel"] = torch.randn(d, classes)
    state["params/head/bias"] = torch.randn(classes)
    return {key: value.numpy() for key, value in state.items()}


# --- the official forward passes, in float64 ------------------------------------------------------


def layer_norm(x, weight, bias, eps):
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt() * weight + bias


def official_torch(state: dict, images: torch.Tensor, row: str, heads=3) -> torch.Tensor:
    """Logits of a PyTorch checkpoint: CRATE-alpha with ε 1e-6, the 2023 CRATE with torch's 1e-5."""
    s = {key: value.double() for key, value in state.items()}
    eps = 1e-5 if row == "2023" else 1e-6
    b, _, side, _ = images.shape

    def normed(x, name):
        return layer_norm(x, s[f"{name}.weight"], s[f"{name}.bias"], eps)

    if row == "2023":
        p = round((s["to_patch_embedding.1.weight"].numel() / 3) ** 0.5)
        vectors = []  # a patch's pixels row by row, the three channels of each together
        for i in range(0, side, p):
            for j in range(0, side, p):
                pixels = [images[:, c, i + u, j + v] for u in range(p) for v in range(p)
                          for c in range(3)]  # fmt: skip
                vectors.append(torch.stack(pixels, dim=-1))
        x = normed(torch.stack(vectors, dim=1), "to_patch_embedding.1")
        x = x @ s["to_patch_embedding.2.weight"].T + s["to_patch_embedding.2.bias"]
        x = normed(x, "to_patch_embedding.3")
    else:
        p = s["conv1.weight"].shape[-1]
        x = F.conv2d(images, s["conv1.weight"], s["conv1.bias"], stride=p)
        x = x.reshape(b, x.shape[1], -1).permute(0, 2, 1)
    x = torch.cat([s["cls_token"].expand(b, 1, -1), x], dim=1) + s["pos_embedding"]
    depth = 1 + max(int(key.split(".")[2]) for key in s if key.startswith("transformer."))
    for i in range(depth):
        layer = f"transformer.layers.{i}"
        y = normed(x, f"{layer}.0.norm")
        w = (y @ s[f"{layer}.0.fn.qkv.weight"].T).chunk(heads, dim=-1)
        out = [torch.softmax(u @ u.mT * u.shape[-1] ** -0.5, dim=-1) @ u for u in w]
        out = torch.cat(out, dim=-1) @ s[f"{layer}.0.fn.to_out.0.weight"].T
        x = out + s.get(f"{layer}.0.fn.to_out.0.bias", 0) + x
        y = normed(x, f"{layer}.1.norm")
        if row in ("2023", "plain"):
            atoms = s[f"{layer}.1.fn.weight" if row == "2023" else f"{layer}.1.fn.D"]
            gradient = F.linear(F.linear(y, atoms) - y, atoms.T)  # Dᵀ(D y − y)
            x = F.relu(y - 0.1 * gradient - 0.1 * 0.1)
            continue
        encode = s[f"{layer}.1.fn.D"]
        decode = s.get(f"{layer}.1.fn.D1", encode)
        z = F.relu(0.1 * torch.einsum("pm,bnp->bnm", encode, y) - 0.1 * 0.1)
        error = torch.einsum("pm,bnm->bnp", encode, z) - y
        z = F.relu(z - 0.1 * torch.einsum("pm,bnp->bnm", encode, error) - 0.1 * 0.1)
        decoded = torch.einsum("pm,bnm->bnp", decode, z)
        x = decoded + x if row == "alpha" else decoded
    return normed(x[:, 0], "mlp_head.0") @ s["mlp_head.1.weight"].T + s["mlp_head.1.bias"]


def official_jax(state: dict, images: np.ndarray, row: str, place="params/") -> np.ndarray:
    """Logits of a JAX checkpoint, in numpy; flax's LayerNorm has ε 1e-6. images: (B, H, W, 3)."""
    s = {key: value.astype(np.float64) for key, value in state.items()}

    def normed(x, name):
        mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
        return (x - mean) / np.sqrt(variance + 1e-6) * s[f"{name}/scale"] + s[f"{name}/bias"]

    kernel = s["params/embedding/kernel"]
    p, d, (b, side, _, _) = len(kernel), kernel.shape[-1], images.shape
    cut = images.reshape(b, side // p, p, side // p, p, 3)
    x = np.einsum("bhiwjc,ijcd->bhwd", cut, kernel).reshape(b, -1, d) + s["params/embedding/bias"]
    x = np.concatenate([np.tile(s["params/cls"], (b, 1, 1)), x], axis=1)
    x = x + s["params/pos_embedding"]
    depth = sum(key.endswith("proj/kernel") for key in s)
    for i in range(depth):
        block = f"params/Transformer/encoderblock_{i}"
        attention = f"{block}/MultiHeadDotProductSubspaceAttention_0"
        w = np.einsum(
            "bnd,dkc->bknc", normed(x, f"{block}/LayerNorm_0"), s[f"{attention}/proj/kernel"]
        )
        logits = np.einsum("bkic,bkjc->bkij", w, w) / np.sqrt(w.shape[-1])
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        mixed = np.einsum("bkij,bkjc->bkic", weights, w)
        x = x + np.einsum("bknc,kcd->bnd", mixed, s[f"{attention}/out/kernel"])
        y = normed(x, f"{block}/LayerNorm_1")
        if row == "plain":
            atoms = s[f"{block}/ISTABlock_0/D"]
            gradient = (y @ atoms.T - y) @ atoms  # D y is y Dᵀ for rows; so is Dᵀ(·) (·) D
            x = np.maximum(y - 0.1 * gradient - 0.01, 0)
            continue
        encode = s[f"{block}/OvercompleteISTABlock_0/D"]
        decode = s.get(f"{block}/OvercompleteISTABlock_0/D1", encode)
        z = np.maximum(0.1 * (y @ encode) - 0.01, 0)
        z = np.maximum(z - 0.1 * ((z @ encode.T - y) @ encode) - 0.01, 0)
        x = z @ decode.T + (x if row == "alpha" else 0)
    x = normed(x, f"{place}encoder_norm")[:, 0]
    return x @ s["params/head/kernel"] + s["params/head/bias"]


def ours(state: dict, spec, images: torch.Tensor) -> torch.Tensor:
    model = build(spec, **infer_sizes(state, spec))
    model.load_state_dict(state, strict=True)
    return model.double().eval()(images)


def some_images(b=2, side=32) -> torch.Tensor:
    return torch.randn(b, 3, side, side, dtype=torch.float64)


@pytest.mark.parametrize("row", ["2023", *ALPHA_ROWS])
def test_a_converted_pytorch_checkpoint_computes_the_official_logits(row):
    official, images = torch_checkpoint(row), some_images()
    state = convert(official, small(row))
    assert all(tensor.dtype == torch.float32 for tensor in state.values())
    expected = official_torch(official, images, row)
    assert expected.std() > 0.1
    torch.testing.assert_close(ours(state, small(row), images), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("place", ["params/", "params/Transformer/"])
@pytest.mark.parametrize("row", ALPHA_ROWS)
def test_a_converted_jax_checkpoint_computes_the_official_logits(tmp_path, row, place):
    official, images = jax_checkpoint(row, place=place), some_images()
    two_bytes = np.arange(6, dtype=np.uint16).view("V2")  # bfloat16 as numpy stores it
    moments = {f"opt/0/mu/{key}": two_bytes for key in official}
    path = tmp_path / "checkpoint.npz"
    np.savez(path, **official, **moments, **{"chrono/accum_train_time": np.float64(1.5)})
    weights = read_checkpoint(path)
    assert set(weights) == set(official)
    state = convert(weights, small(row), where=path)
    expected = official_jax(official, images.permute(0, 2, 3, 1).numpy(), row, place)
    got = ours(state, small(row), images)
    torch.testing.assert_close(got, torch.from_numpy(expected), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("name", "row", "d", "heads", "p", "classes"),
    [
        ("crate_tiny_patch16", "2023", 384, 6, 16, 1000),
        ("crate_alpha_tiny_patch32", "alpha", 192, 3, 32, 19_167),
    ],
)
def test_published_sizes_by_name(name, row, d, heads, p, classes):
    official = torch_checkpoint(row, d=d, depth=12, p=p, grid=64 // p, classes=classes)
    state = convert(official, name)
    assert infer_sizes(state, name) == {"num_classes": classes, "image_size": 64}
    images = some_images(b=1, side=64)
    expected = official_torch(official, images, row, heads=heads)
    got = ours(state, resolve(name), images)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


def prefixed(prefix: str, state: dict) -> dict:
    return {f"{prefix}{key}": value for key, value in state.items()}


# What training scripts write: the mapping that holds weights, by its place in what they save.
WRAPPED = {
    "the 2023 CRATE's main.py": lambda w: {
        "epoch": 3,
        "arch": "CRATE_tiny",
        "state_dict": prefixed("module.", w),
        "best_acc1": torch.tensor(70.0),
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": []},
    },
    "compiled, then parallel": lambda w: {"model": prefixed("module._orig_mod.", w)},
    "parallel, then compiled": lambda w: {"model": prefixed("_orig_mod.module.", w)},
    "one mapping in another": lambda w: {"checkpoint": {"ema": {}, "model": w}},
    "a network in a larger one": lambda w: {
        "state_dict": prefixed("model.", w) | {"criterion.weight": torch.ones(7)},
        "hyper_parameters": {"lr": 1e-3},
    },
    "an unknown name": lambda w: {"our_best_net": w, "epoch": 1},
    "options among the weights": lambda w: w | {"epoch": 1, "note": "best so far"},
}


@pytest.mark.parametrize("kind", WRAPPED)
def test_weights_are_found_wherever_a_script_puts_them(tmp_path, kind):
    official = torch_checkpoint("2023")
    torch.save(WRAPPED[kind](official), tmp_path / "model_best.pth.tar")
    state = convert(read_checkpoint(tmp_path / "model_best.pth.tar"), small("2023"))
    plain = convert(official, small("2023"))
    assert state.keys() == plain.keys()
    assert all(torch.equal(state[key], plain[key]) for key in plain)


@pytest.mark.parametrize(
    ("average", "kept"), [("model_ema", "model"), ("state_dict_ema", "state_dict"), ("ema", "net")]
)
def test_which_of_several_weights_was_taken_is_said_and_can_be_chosen(capsys, average, kept):
    trained, averaged = torch_checkpoint("2023"), torch_checkpoint("2023")
    file = {average: prefixed("module.", averaged), kept: trained}
    state = convert(file, small("2023"), where="a.pth")
    assert torch.equal(state["head.bias"], trained["mlp_head.1.bias"])
    told = f"note: a.pth: took '{kept}', not '{average}'; 'crate weights import --take' chooses\n"
    assert capsys.readouterr().err == told
    state = convert(file, small("2023"), take=average)
    assert torch.equal(state["head.bias"], averaged["mlp_head.1.bias"])
    assert capsys.readouterr().err == ""
    with pytest.raises(UsageError, match=f"unknown weights 'modl'; .*'?{kept}"):
        convert(file, small("2023"), take="modl")
    only = convert({average: averaged, "epoch": 1}, small("2023"))
    assert torch.equal(only["head.bias"], averaged["mlp_head.1.bias"])


def test_what_is_left_out_of_a_larger_network_is_said(capsys):
    content = prefixed("model.", torch_checkpoint("2023")) | {"loss.weight": torch.ones(7)}
    convert(content, small("2023"), where="a.ckpt")
    assert capsys.readouterr().err == "note: a.ckpt: left out 1 tensor beside 'model'\n"


@pytest.mark.parametrize("change", [np.asarray, lambda tensor: tensor])
def test_wider_floats_are_rounded_with_a_note(capsys, change):
    official = {key: value.double() + 1e-12 for key, value in torch_checkpoint("alpha").items()}
    state = convert({k: change(v) for k, v in official.items()}, small("alpha"), where="a.pth")
    assert torch.equal(state["head.weight"], official["mlp_head.1.weight"].float())
    assert capsys.readouterr().err == (
        f"note: a.pth: {len(official)} tensors are float64; rounded to float32\n"
    )


# --- crate-demo.pth -------------------------------------------------------------------------------


def demo_checkpoint(d=24, classes=9) -> dict:
    """The 2023 CRATE's names, with a head of two linear maps."""
    state = torch_checkpoint("2023", d=d, classes=d)
    return state | {"head.weight": torch.randn(classes, d), "head.bias": torch.randn(classes)}


def test_the_demos_two_linear_maps_become_one_head():
    official, images = demo_checkpoint(), some_images()
    state = convert({"model": official}, small("2023"))
    hidden = official_torch(official, images, "2023")
    expected = hidden @ official["head.weight"].double().T + official["head.bias"].double()
    torch.testing.assert_close(ours(state, small("2023"), images), expected, rtol=1e-5, atol=1e-5)


def test_the_demo_is_a_model_of_its_own_and_in_the_manifest():
    spec = resolve("crate_demo_patch8")
    assert (spec.dim, spec.heads, spec.depth, spec.patch_size) == (768, 6, 12, 8)
    entry = manifest(ROOT / "experiments")["crate-demo.pth"]
    assert (entry.model, entry.classes) == ("crate_demo_patch8", 21_842)
    assert LAYOUTS[entry.format].has(spec)


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("head.bias", None, "'head.bias' is missing, or has not 1 axes"),
        ("mlp_head.1.weight", torch.zeros(24), "'mlp_head.1.weight' is missing, or has not 2 axes"),
        ("head.weight", torch.zeros(9, 25), "the shapes of 'mlp_head.1' and 'head' do not fit"),
        ("head.weight", torch.zeros(9, 24).long(), "'head.weight' is int64; weights are float16"),
    ],
)
def test_a_demo_whose_maps_do_not_fit_is_one_line(key, value, reason):
    with pytest.raises((UsageError, RunError)) as caught:
        convert(demo_checkpoint() | {key: value}, small("2023"), where="crate-demo.pth")
    assert str(caught.value).startswith(f"crate-demo.pth: {reason}")


def test_the_plain_rows_dictionary_may_be_called_weight():
    official = torch_checkpoint("plain")
    renamed = {key.replace(".fn.D", ".fn.weight"): value for key, value in official.items()}
    expected, state = (convert(weights, small("plain")) for weights in (official, renamed))
    assert all(torch.equal(state[key], expected[key]) for key in expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened_exactly_and_memory_is_not_shared(dtype):
    official = {key: value.to(dtype) for key, value in torch_checkpoint("alpha").items()}
    state = convert(official, small("alpha"))
    assert torch.equal(state["head.weight"], official["mlp_head.1.weight"].float())
    assert torch.equal(state["head.weight"].to(dtype), official["mlp_head.1.weight"])
    full = torch_checkpoint("alpha")
    kept = full["cls_token"].clone()
    convert(full, small("alpha"))["class_token"].zero_()
    assert torch.equal(full["cls_token"], kept)


def test_bfloat16_parameters_in_an_npz_are_decoded(tmp_path):
    official = jax_checkpoint("alpha")
    bits = {key: (value.view(np.uint32) >> 16).astype(np.uint16) for key, value in official.items()}
    np.savez(tmp_path / "half.npz", **{key: value.view("V2") for key, value in bits.items()})
    state = convert(read_checkpoint(tmp_path / "half.npz"), small("alpha"))
    exact = {k: (v.astype(np.uint32) << 16).view(np.float32) for k, v in bits.items()}
    expected = convert(exact, small("alpha"))
    assert all(torch.equal(state[key], expected[key]) for key in expected)


# --- round trips ----------------------------------------------------------------------------------


@pytest.mark.parametrize("row", ["2023", *ALPHA_ROWS])
def test_there_and_back_is_bit_exact(row):
    official = torch_checkpoint(row)
    again = to_official(convert(official, small(row)), small(row))
    assert set(again) == set(official)
    assert all(torch.equal(again[key], official[key]) for key in official)
    mine = build(small(row), num_classes=7, image_size=32).state_dict()
    returned = convert(to_official(mine, small(row)), small(row))
    assert set(returned) == set(mine)
    assert all(torch.equal(returned[key], mine[key]) for key in mine)


def test_every_model_of_the_registry_has_an_official_layout_but_vit_and_hybrids():
    layouts = set()
    for name in MODELS:
        if MODELS[name].kind != "vision":
            continue  # test_model_language.py, test_model_autoencoder.py, test_model_contrastive.py
        spec = resolve(name, dim=24, heads=3, depth=1)
        state = build(spec, num_classes=3, image_size=spec.patch_size).state_dict()
        if name.startswith("vit_") or name.endswith(("_mlp", "_mhsa")):
            with pytest.raises(UsageError, match="no official CRATE code has this architecture"):
                to_official(state, spec)
            continue
        official = to_official(state, spec)
        layouts.add("conv1.weight" if "conv1.weight" in official else "to_patch_embedding.2.weight")
        assert len(official) == len(state)
    assert layouts == {"conv1.weight", "to_patch_embedding.2.weight"}
    with pytest.raises(UsageError, match="vit_tiny_patch16: no official CRATE code"):
        to_official(state, "vit_tiny_patch16")


# --- weights that do not fit ----------------------------------------------------------------------


def lose(key):
    return lambda state: state.pop(key)


def put(key, *shape):
    return lambda state: state.update({key: torch.zeros(shape)})


LAST = "transformer.layers.2"


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lose(f"{LAST}.1.fn.D1"), f"'{LAST}.1.fn.D1' is missing, expected with shape (24, 96)"),
        (lose("mlp_head.1.weight"), "'mlp_head.1.weight' is missing"),
        (put("transformer.layers.3.0.norm.weight", 24), "unexpected 'transformer.layers.3.0.norm"),
        (put(f"{LAST}.0.fn.to_out.0.bias", 24), f"unexpected '{LAST}.0.fn.to_out.0.bias' with"),
        (put("conv1.weight", 24, 3, 16, 16), "has shape (24, 3, 16, 16), expected (24, 3, 8, 8)"),
        (put("conv1.weight", 24, 8, 8, 3), "has shape (24, 8, 8, 3), expected (24, 3, 8, 8)"),
        (put(f"{LAST}.0.fn.qkv.weight", 72, 24), "has shape (72, 24), expected (24, 24)"),
        (put(f"{LAST}.1.fn.D", 96, 24), f"'{LAST}.1.fn.D' has shape (96, 24), expected (24, 96)"),
        (put("mlp_head.1.weight", 7, 25), "has shape (7, 25), expected (7, 24)"),
        (put("mlp_head.1.bias", 8), "'mlp_head.1.bias' has shape (8,), expected (7,)"),
        (put("pos_embedding", 1, 18, 24), "'pos_embedding' has shape (1, 18, 24), expected (1, "),
        (put("pos_embedding", 17, 24), "'pos_embedding' has shape (17, 24), expected (1, "),
    ],
)
def test_the_first_key_that_does_not_fit_is_named(damage, reason):
    official = torch_checkpoint("alpha")
    damage(official)
    with pytest.raises(UsageError) as caught:
        convert(official, small("alpha"), where="a.pth")
    message = str(caught.value)
    assert message.startswith("a.pth: not the weights of ")
    assert reason in message
    assert "\n" not in message


def test_jax_checkpoints_are_as_strict():
    for key, shape in (
        ("params/Transformer/encoderblock_1/MultiHeadDotProductSubspaceAttention_0/proj/kernel",
         (24, 4, 6)),
        ("params/Transformer/encoderblock_1/OvercompleteISTABlock_0/D", (24, 24)),
        ("params/head/kernel", (7, 24)),
        ("params/extra", (1,)),
    ):  # fmt: skip
        official = jax_checkpoint("alpha") | {key: np.zeros(shape, np.float32)}
        with pytest.raises(UsageError) as caught:
            convert(official, small("alpha"))
        assert f"'{key}'" in str(caught.value)
        assert str(shape) in str(caught.value)


@pytest.mark.parametrize(
    ("row", "name", "reason"),
    [
        ("alpha", "crate_alpha_large_patch14", "'cls_token' has shape (1, 1, 192), expected (1,"),
        ("alpha", "crate_tiny_patch16", "'conv1.weight' is of the alpha-torch layout"),
        ("alpha", "vit_tiny_patch16", "'conv1.weight' is of the alpha-torch layout"),
        ("alpha", "crate_tiny_patch16_overcomplete", "unexpected 'transformer.layers.0.1.fn.D1'"),
        ("overcomplete", "crate_alpha_tiny_patch16", "'transformer.layers.0.1.fn.D1' is missing"),
        ("plain", "crate_alpha_tiny_patch16", "'transformer.layers.0.1.fn.D' has shape (192, 192)"),
        ("alpha", "crate_tiny_patch16_plain", "'transformer.layers.0.1.fn.D' has shape (192, 768)"),
    ],
)
def test_another_architecture_is_refused_with_the_one_that_fits(row, name, reason):
    official = torch_checkpoint(row, d=192, depth=12, p=16, grid=2)
    with pytest.raises(UsageError) as caught:
        convert(official, name)
    message = str(caught.value)
    assert message.startswith(f"the checkpoint: not the weights of {name}: ")
    assert reason in message
    fitting = {"alpha": "crate_alpha_tiny_patch16", "plain": "crate_tiny_patch16_plain"}
    assert message.endswith(fitting.get(row, "crate_tiny_patch16_overcomplete"))


@pytest.mark.parametrize(
    ("weights", "error", "reason"),
    [
        ({"w": torch.zeros(1)}, UsageError, "not an official CRATE checkpoint: it has none of con"),
        (
            {"visual.conv1.weight": torch.zeros(1)},
            UsageError,
            "clipa-torch layout (a contrastive mod",
        ),
        ({"params/img/embedding/kernel": np.zeros(1)}, UsageError, "clipa-jax layout (a contras"),
        ({"patch_embedding.projection.weight": torch.zeros(1)}, UsageError, "own layout already"),
        ({}, RunError, "no mapping of names to tensors"),
        ({"state_dict": [1]}, RunError, "no mapping of names to tensors"),
        ({1: torch.zeros(1)}, RunError, "no mapping of names to tensors"),
    ],
)
def test_other_files_are_refused(weights, error, reason):
    with pytest.raises(error) as caught:
        convert(weights, "crate_alpha_base_patch16", where="x.pth")
    assert str(caught.value).startswith("x.pth: ")
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (3, "is not a tensor but int"),
        (torch.zeros(7, dtype=torch.long), "is int64; weights are float16, bfloat16 or float32"),
        (torch.zeros(7, dtype=torch.bool), "is bool; weights are float16, bfloat16 or float32"),
        (torch.zeros(7, dtype=torch.complex64), "is complex64; weights are float16"),
        (torch.zeros(7).to_sparse(), "is a sparse or nested tensor; have it saved as a dense one"),
        (torch.zeros(7, device="meta"), "has a shape and no values (a meta tensor)"),
        (torch.full((7,), float("nan")), "values that are not finite (NaN or infinity)"),
        (torch.full((7,), float("inf")), "values that are not finite (NaN or infinity)"),
        (torch.full((7,), 1e39, dtype=torch.float64), "values that are not finite"),
        (np.zeros(7, "V3"), "weights are float16, bfloat16 or float32"),
        (np.zeros(7, np.uint8), "is uint8; weights are float16, bfloat16 or float32"),
    ],
)
def test_values_that_are_not_weights_are_refused(value, reason):
    official = torch_checkpoint("alpha") | {"mlp_head.1.bias": value}
    with pytest.raises(RunError) as caught:
        convert(official, small("alpha"))
    assert "'mlp_head.1.bias' " in str(caught.value)
    assert reason in str(caught.value)


def test_ours_to_official_is_strict_too():
    state = convert(torch_checkpoint("alpha"), small("alpha"))
    with pytest.raises(UsageError, match=r"'patch_embedding\.norm1\.weight' is missing"):
        to_official(state, small("2023"))
    state["extra"] = torch.zeros(1)
    with pytest.raises(UsageError, match=r"unexpected 'extra' with shape \(1,\)"):
        to_official(state, small("alpha"))
    with pytest.raises(UsageError, match="no 'positions' with 3 axes"):
        infer_sizes({"head.weight": torch.zeros(7, 24)}, small("alpha"))
