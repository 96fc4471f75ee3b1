"""Language models: masks, GPT-2 and CRATE-GPT as published, caches, and what is drawn from them."""

import dataclasses
import json
import math

import pytest
import safetensors
import torch

from crate import cli
from crate.checkpoints.convert import convert, infer_sizes, to_official
from crate.errors import RunError, UsageError
from crate.models.build import build_language, create_model
from crate.models.language import Cache, choose, generate
from crate.models.transfer import transfer_weights
from crate.models.zoo import list_models, resolve
from crate.records import RunFolder, write_json
from crate.runs import Run
from crate.weights import read_weights, save_weights

NAMES = [name for name in list_models("*gpt*") if name.endswith("_base")]  # one a family
SMALL = {"dim": 24, "heads": 3, "depth": 3}
VOCABULARY, BLOCK = 19, 12
GPT2, CRATE_GPT, ALPHA_GPT = "gpt2_base", "crate_gpt_base", "crate_alpha_gpt_base"


def shaken(module):
    """Weights, biases and norms that are not at their start."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return module


def small(name, block_size=BLOCK, **overrides):
    model = create_model(name, vocab_size=VOCABULARY, block_size=block_size, **SMALL | overrides)
    return shaken(model).double().eval()


def some_ids(*shape, vocab_size=VOCABULARY):
    return torch.randint(vocab_size, shape)


# --- the frame ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("path", ["fused", "recorded", "bfloat16"])
def test_no_logit_and_no_gradient_knows_a_later_token(name, path):
    model = small(name).float()
    if path == "bfloat16":  # plain products on a CPU
        model = model.bfloat16()

    def logits(ids):
        records = [] if path == "recorded" else None
        x = model.forward_features(ids, records)
        return model.head(records[-1]["output"] if path == "recorded" else x)

    ids = some_ids(2, BLOCK)
    before = logits(ids)
    for place in range(1, BLOCK):
        changed = ids.clone()
        changed[:, place] = (changed[:, place] + 1) % VOCABULARY
        after = logits(changed)
        assert torch.equal(before[:, :place], after[:, :place])
        assert not torch.equal(before[:, place], after[:, place])

    embedded = []
    model.token_embedding.register_forward_hook(lambda *call: embedded.append(call[-1]))
    output = logits(ids)
    for place in range(BLOCK):
        chosen = output[:, place] * torch.randn_like(output[:, place])
        (gradient,) = torch.autograd.grad(chosen.sum(), embedded[0], retain_graph=True)
        assert not gradient[:, place + 1 :].any()
        assert gradient[:, : place + 1].abs().amax(-1).all()


@pytest.mark.parametrize("name", NAMES)
def test_layer_records_hold_every_layer(name):
    model = small(name)
    ids = some_ids(2, 7)
    records = model.layer_records(ids)
    assert [record["attention"].shape for record in records] == [(2, 3, 7, 7)] * 3
    assert all(torch.equal(record["attention"].tril(), record["attention"]) for record in records)
    x = model.token_embedding(ids) + model.position_embedding(torch.arange(7))
    for block, record in zip(model.blocks, records, strict=True):
        x = block(x)
        torch.testing.assert_close(record["output"], x)
        assert ("codes" in record) == (name != GPT2)
    x = x if name == CRATE_GPT else model.norm(x)
    torch.testing.assert_close(model(ids), x @ model.token_embedding.weight.T)
    assert "head.weight" not in model.state_dict()


def spread(tensor):
    return tensor.detach().double().std().item()


@pytest.mark.parametrize("name", NAMES)
def test_initialisation(name):
    model = create_model(
        name, dim=192, heads=3, depth=2, vocab_size=200, block_size=100, drop_path=0.3
    )
    assert [block.drop_path.rate for block in model.blocks] == pytest.approx([0, 0.3])
    end = 0.02 / math.sqrt(2 * 2)
    for key, tensor in model.state_dict().items():
        if key.endswith("bias"):
            assert not tensor.any()
        elif "norm" in key:
            assert (tensor == 1).all()
        else:
            expected = 0.02
            if key.endswith(("attention.projection.weight", "feedforward.output.weight")):
                expected = end
            elif key.endswith(("dictionary", "decoder")):
                expected = math.sqrt(2 / 192)
                assert tensor.abs().max() <= math.sqrt(6 / 192)
            assert spread(tensor) == pytest.approx(expected, rel=0.03), key
    assert (model.norm is None) == (name == CRATE_GPT)
    assert model.blocks[0].norm1.eps == (1e-6 if name == ALPHA_GPT else 1e-5)
    # a new model's guess is near uniform
    ids = some_ids(4, 100, vocab_size=200)
    loss = torch.nn.functional.cross_entropy(model(ids).flatten(0, 1), ids.roll(-1, 1).flatten())
    assert loss.item() == pytest.approx(math.log(200), abs=0.6)


def test_what_does_not_fit_is_one_line():
    model = small(CRATE_GPT)
    told = r"a language model takes ids \(B, T\) int64, T ≥ 1; got "
    with pytest.raises(UsageError, match=told + r"\(3,\) int64"):
        model(some_ids(3))
    with pytest.raises(UsageError, match=told + r"\(2, 0\) int64"):
        model(some_ids(2, 0))
    with pytest.raises(UsageError, match=told + r"\(1, 2\) float32"):
        model(torch.zeros(1, 2))
    with pytest.raises(UsageError, match=r"^13 tokens do not fit into a block of 12$"):
        model(some_ids(1, 13))
    cache = Cache(model)
    model(some_ids(1, 10), cache)
    with pytest.raises(UsageError, match=r"^3 tokens after 10 cached ones do not fit into a block"):
        model(some_ids(1, 3), cache)
    assert cache.length == 10


def test_weights_are_carried_by_name():
    parent, child = small(ALPHA_GPT).float(), small(ALPHA_GPT).float()
    assert transfer_weights(child, parent.state_dict(), []) == {"new": [], "resized": []}
    ids = some_ids(1, 5)
    assert torch.equal(parent(ids), child(ids))
    with pytest.raises(RunError, match=r"position_embedding\.weight"):
        transfer_weights(small(ALPHA_GPT, block_size=4), parent.state_dict(), [])


# --- as published ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hugging_face():
    """A GPT2LMHeadModel of three layers; transformers takes seconds to import."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    options = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    options |= {"n_embd": 24, "n_head": 3, "n_layer": 3, "bos_token_id": 0, "eos_token_id": 0}
    config = GPT2Config(vocab_size=VOCABULARY, n_positions=BLOCK, **options)
    return shaken(GPT2LMHeadModel(config)).eval()


def loaded(state, name, **overrides):
    spec = resolve(name, **SMALL | overrides)
    model = build_language(spec, **infer_sizes(state, spec))
    model.load_state_dict(state, strict=True)
    return model.double().eval()


def test_gpt2_equals_transformers(hugging_face):
    theirs = hugging_face.state_dict()
    spec = resolve(GPT2, **SMALL)
    state = convert(theirs, spec)
    ours, reference = loaded(state, GPT2), hugging_face.double()
    ids = some_ids(2, BLOCK)
    for tokens in (ids, ids[:, :1]):
        torch.testing.assert_close(ours(tokens), reference(tokens).logits, rtol=0, atol=1e-11)

    weights = ours.token_embedding.weight, reference.transformer.wte.weight
    outputs = ours(ids).square().sum(), reference(ids).logits.square().sum()
    first, second = map(torch.autograd.grad, outputs, weights)
    torch.testing.assert_close(first[0], second[0], rtol=1e-10, atol=1e-10)

    hugging_face.float()
    # OpenAI's file: no prefix, no head, buffers
    bare = {key.removeprefix("transformer."): value for key, value in theirs.items()}
    del bare["lm_head.weight"]
    bare |= {"h.0.attn.bias": torch.ones(1, 1, 4, 4), "h.0.attn.masked_bias": torch.tensor(-1e4)}
    again = convert(bare, spec)
    assert all(torch.equal(state[key], again[key]) for key in state)
    back = to_official(state, spec)
    hugging_face.load_state_dict(back, strict=True)
    assert all(torch.equal(back[key], value) for key, value in theirs.items())

    exact = loaded(state, GPT2, gelu="exact")(ids)
    assert 1e-6 < (exact - ours(ids)).abs().max() < 0.1  # it does matter


def test_nanogpt_is_gpt2_the_other_way_round(hugging_face):
    theirs, spec = hugging_face.state_dict(), resolve(GPT2, **SMALL)
    expected = convert(theirs, spec)
    turned = {
        f"_orig_mod.{key}": value.t() if ".c_" in key and value.dim() == 2 else value
        for key, value in theirs.items()
    }
    state = convert({"model": turned, "iter_num": 5, "config": {"n_layer": 3}}, spec)
    assert all(torch.equal(state[key], value) for key, value in expected.items())
    # by default it has no biases: as if all were 0
    bare = {key: value for key, value in turned.items() if not key.endswith(".bias")}
    assert len(bare) < len(turned)
    state = convert({"model": bare}, spec)
    for key, value in expected.items():
        wanted = torch.zeros_like(value) if key.endswith("bias") else value
        assert torch.equal(state[key], wanted), key


def official_crate_gpt_weights(vocab_size=VOCABULARY, d=24, depth=3):
    """Names and shapes of the official CRATE-GPT; random weights."""

    def noise(*shape, near=0.0, scale=0.3):
        return near + scale * torch.randn(shape)

    state = {
        "transformer.wte.weight": noise(vocab_size, d),
        "transformer.wpe.weight": noise(BLOCK, d),
    }
    for layer in range(depth):
        here = f"transformer.h.{layer}"
        for norm in ("prenorm_1", "prenorm_2"):
            state[f"{here}.{norm}.weight"] = noise(d, near=1.0)
            state[f"{here}.{norm}.bias"] = noise(d)
        state[f"{here}.attn.bias"] = torch.ones(BLOCK, BLOCK).tril()[None, None]
        state[f"{here}.attn.c_attn.weight"] = noise(d, d)
        state[f"{here}.attn.c_proj.weight"] = noise(d, d)
        state[f"{here}.attn.c_proj.bias"] = noise(d)
        state[f"{here}.ista.weight"] = noise(d, d)
    return state | {"lm_head.weight": state["transformer.wte.weight"]}


def crate_gpt_by_its_equations(state, ids, heads=3, depth=3):
    """Logits of one sequence ids (T,), token by token and head by head, from official weights."""
    s = {key: value.double() for key, value in state.items()}

    def norm(x, name):
        centred = x - x.mean()
        unit = centred / (centred.square().mean() + 1e-5).sqrt()
        return unit * s[f"{name}.weight"] + s[f"{name}.bias"]

    tokens = [
        s["transformer.wte.weight"][token] + s["transformer.wpe.weight"][place]
        for place, token in enumerate(ids.tolist())
    ]
    for layer in range(depth):
        here = f"transformer.h.{layer}"
        w = [s[f"{here}.attn.c_attn.weight"] @ norm(x, f"{here}.prenorm_1") for x in tokens]
        w = [list(x.chunk(heads)) for x in w]
        attended = []
        for i in range(len(tokens)):
            parts = []
            for k in range(heads):
                scores = [w[i][k] @ w[j][k] / math.sqrt(len(w[i][k])) for j in range(i + 1)]
                shares = torch.stack(scores).softmax(0)
                parts.append(sum(a * w[j][k] for j, a in enumerate(shares)))
            out = s[f"{here}.attn.c_proj.weight"] @ torch.cat(parts)
            attended.append(tokens[i] + out + s[f"{here}.attn.c_proj.bias"])
        d = s[f"{here}.ista.weight"]
        tokens = []
        for x in attended:
            y = norm(x, f"{here}.prenorm_2")
            tokens.append((y - 0.1 * d.T @ (d @ y - y) - 0.1 * 0.1).clamp(min=0))
    return torch.stack([s["lm_head.weight"] @ x for x in tokens])


def test_crate_gpt_equals_its_equations():
    official, spec = official_crate_gpt_weights(), resolve(CRATE_GPT, **SMALL)
    state = convert(official, spec)
    ids = some_ids(2, BLOCK)
    expected = torch.stack([crate_gpt_by_its_equations(official, row) for row in ids])
    torch.testing.assert_close(loaded(state, CRATE_GPT)(ids), expected, rtol=1e-10, atol=1e-10)
    back = to_official(state, spec)
    assert back.keys() == official.keys()
    assert all(torch.equal(back[key], value) for key, value in official.items())


def test_a_padded_vocabulary_is_cut():
    small = {"dim": 4, "heads": 1, "depth": 1}
    official = official_crate_gpt_weights(50_304, d=4, depth=1)
    state = convert(official, resolve(CRATE_GPT, **small))
    assert infer_sizes(state, resolve(CRATE_GPT, **small)) == {
        "vocab_size": 50_257,
        "block_size": BLOCK,
    }
    embedding = official["transformer.wte.weight"]
    assert torch.equal(state["token_embedding.weight"], embedding[:50_257])


def test_other_weights_are_refused():
    official = official_crate_gpt_weights()

    def told(state, name=CRATE_GPT, **overrides):
        with pytest.raises(UsageError) as error:
            convert(state, resolve(name, **SMALL | overrides), where="x.pt")
        assert "\n" not in str(error.value)
        return str(error.value)

    spec = resolve(CRATE_GPT, **SMALL)
    for key, odd, reason in (
        ("lm_head.weight", torch.zeros(VOCABULARY, 24).to_sparse(), "is a sparse or nested tensor"),
        ("transformer.wte.weight", torch.zeros(2, 24, device="meta"), "has a shape and no values"),
    ):
        with pytest.raises(RunError, match=f"'{key}' {reason}"):
            convert(official | {key: odd}, spec)
    assert "'lm_head.weight' is not 'transformer.wte.weight'" in told(
        official | {"lm_head.weight": torch.zeros(VOCABULARY, 24)}
    )
    assert "'transformer.h.0.prenorm_1.weight' is of the crate-gpt layout" in told(official, GPT2)
    assert "crate-gpt layout (a language model), which this m" in told(official, ALPHA_GPT)
    assert "unexpected 'transformer.h.2.prenorm_1.weight'" in told(official, depth=2)
    assert "'transformer.h.1.ista.weight' has shape (24, 3), expected (24, 24)" in told(
        official | {"transformer.h.1.ista.weight": torch.zeros(24, 3)}
    )
    assert "own layout already" in told(small(CRATE_GPT).state_dict())
    with pytest.raises(UsageError, match="no published code has this architecture"):
        to_official(small(ALPHA_GPT).state_dict(), resolve(ALPHA_GPT, **SMALL))
    with pytest.raises(UsageError, match=r"no 'position_embedding\.weight' with 2 axes"):
        infer_sizes({"token_embedding.weight": torch.zeros(3, 24)}, CRATE_GPT)


# --- crate weights --------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "layout"), [(GPT2, "gpt2"), (CRATE_GPT, "crate-gpt")])
def test_weights_go_out_and_come_in(folder, tmp_path, capsys, name, layout):
    """A finished run as the official code's file, and that file as ours again."""
    own = f"\nmine: {{base: {name}, dim: 24, heads: 3, depth: 3}}\n"
    with (folder / "models.yaml").open("a", encoding="utf-8") as file:
        file.write(own)
    model = small(name).float()
    run = RunFolder(Run("paper", "mine", 0, ("text",)).folder(tmp_path / "results"))
    run.folder.mkdir(parents=True)
    save_weights(model, run)
    spec = dataclasses.asdict(model.spec)
    write_json(run.record, {"config": {"model": spec, "data": {"tokenizer": "bytes"}}})
    run.finish({"loss": 1.0}, {})

    def weights(*words):
        status = cli.main(["weights", *map(str, words)])
        return status, *capsys.readouterr()

    facts = f"mine, {sum(p.numel() for p in model.parameters()):,} parameters, vocabulary 19, blo"
    status, out, errors = weights("export", run.folder, "--to", "torch-official", "--out", "m.pth")
    assert (status, errors) == (0, "")
    assert out.startswith(f"m.pth: {facts}ck 12; sha256 ")
    theirs = torch.load("m.pth", weights_only=True)
    assert ("transformer.ln_f.weight" in theirs) == (layout == "gpt2")
    status, out, errors = weights("import", "m.pth", "--model", "mine", "--out", "a.safetensors")
    assert (status, errors) == (0, "")
    assert out.startswith(f"a.safetensors: {facts}ck 12; sha256 of m.pth ")
    state = read_weights(tmp_path / "a.safetensors")
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())

    assert weights("export", run.folder, "--to", "safetensors", "--out", "b.safetensors")[0] == 0
    with safetensors.safe_open("b.safetensors", "pt") as file:
        stated = json.loads(file.metadata()["crate"])
    assert (stated["tokenizer"], stated["vocab_size"], stated["block_size"]) == ("bytes", 19, 12)
    status, _, errors = weights("export", run.folder, "--to", "onnx", "--out", "m.onnx")
    assert (status, errors.count("\n")) == (2, 1)
    assert "ONNX is for image classifiers" in errors


# --- generating -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_cache_changes_no_logit(name):
    model = small(name)
    ids = some_ids(2, BLOCK)
    whole = model(ids)
    for portions in ([1] * BLOCK, [5, 1, 4, 2], [BLOCK]):
        cache = Cache(model)
        parts = [model(part, cache) for part in ids.split(portions, dim=1)]
        torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=0, atol=1e-12)
        assert cache.length == BLOCK
        kept = 2 if name == GPT2 else 1  # keys and values, or w: float64 of 2 sequences
        assert cache.bytes == kept * 3 * 2 * BLOCK * 24 * 8


def random(seed):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", NAMES)
def test_generating_follows_the_logits_and_the_seed(name):
    model = small(name)
    prompt, count = [3, 1, 4], 3 * BLOCK  # the block is full three times and more
    for options in ({"temperature": 0}, {}, {"temperature": 0.7, "top_k": 4}):

        def drawn(seed=1, options=options, **more):
            return list(generate(model, prompt, count, generator=random(seed), **options | more))

        ids = drawn()
        assert len(ids) == count
        assert ids == drawn()
        assert (ids == drawn(seed=2)) == ("temperature" in options and options["temperature"] == 0)
        cache = Cache(model)
        assert ids == drawn(cache=cache)
        assert BLOCK // 2 <= cache.length <= BLOCK
    greedy = drawn(temperature=0, top_k=None)
    assert greedy == drawn(temperature=2.0, top_k=1, seed=5)

    context, expected = list(prompt), []
    for _ in range(count):
        if len(context) == BLOCK + 1:
            context = context[-(BLOCK // 2) :]
        expected.append(model(torch.tensor([context]))[0, -1].argmax().item())
        context.append(expected[-1])
    assert greedy == expected
    assert prompt == [3, 1, 4]


def test_what_is_drawn_has_the_softmax_s_shares():
    logits, generator = torch.tensor([0.0, 2.0, -1.0, 1.0]), random(0)
    for temperature, top_k, shares in (
        (1.0, None, logits.softmax(0)),
        (2.0, 9, (logits / 2).softmax(0)),
        (0.5, 2, (2 * logits).masked_fill(logits < 1, -math.inf).softmax(0)),
    ):
        drawn = [choose(logits, temperature, top_k, generator) for _ in range(4000)]
        counts = torch.tensor(drawn).bincount(minlength=4) / 4000
        torch.testing.assert_close(counts, shares, rtol=0, atol=0.03)
        assert not counts[shares == 0].any()
    assert choose(1e300 * logits.double(), 1e-300, None, generator) == 1
    with pytest.raises(RunError, match="logits are not finite"):
        choose(torch.tensor([0.0, math.nan]), 1.0, None, generator)


def test_generating_stops_and_leaves_the_caller_alone():
    model = small(CRATE_GPT)
    ids = list(generate(model, [0], 20, generator=random(3)))
    last = ids[10]
    before = ids[: ids.index(last)]
    assert list(generate(model, [0], 20, generator=random(3), stop=last)) == before
    assert list(generate(model, [0], 0)) == []
    assert len(list(generate(small(GPT2, block_size=1), [0], 5))) == 5
    for _ in generate(model, [0] * BLOCK, 2):
        assert torch.is_grad_enabled()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ids": []}, "the prompt is empty"),
        ({"ids": [0] * 13}, "the prompt has 13 tokens, more than the block of 12"),
        ({"ids": [19]}, "token 19 is outside the vocabulary of 19"),
        ({"ids": [0, -1]}, "token -1 is outside"),
        ({"stop": 50_256}, "token 50256 is outside"),
        ({"count": -1}, "count must be at least 0, got -1"),
        ({"temperature": -0.5}, "temperature must be finite and at least 0, got -0.5"),
        ({"temperature": math.nan}, "temperature must be finite"),
        ({"top_k": 0}, "top_k must be at least 1, got 0"),
    ],
)
def test_requests_that_make_no_sense_are_refused_at_once(change, message):
    options = {"ids": [0], "count": 1} | change
    with pytest.raises(UsageError) as error:
        generate(small(CRATE_GPT), **options)
    assert message in str(error.value)
