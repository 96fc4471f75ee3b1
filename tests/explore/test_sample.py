"""`crate sample`: what is printed is what the model says, and mistakes are one line."""

import contextlib
import dataclasses
from pathlib import Path

import pytest
import torch

from crate.cli import main
from crate.data.tokenizer import get_tokenizer
from crate.models.build import create_model
from crate.models.language import generate
from crate.records import file_sha256, write_json
from crate.runs import Run
from crate.weights import save_tensors

PROMPT = "Größe: "  # letters of two bytes


@pytest.fixture
def spoken(plan, tmp_path):
    """A run that looks finished, of a network that has learnt nothing."""
    run = Run("smoke", "crate_alpha_gpt_base", 0, ("openwebtext",))
    resolved = plan.resolve(run)
    folder = run.folder(tmp_path / "results")
    torch.manual_seed(0)
    sizes = {"dim": resolved.spec.dim, "depth": resolved.spec.depth, "heads": resolved.spec.heads}
    model = create_model(run.model, vocab_size=257, block_size=resolved.recipe.block_size, **sizes)
    finished(run, folder, plan, model.state_dict())
    return folder, model.eval()


def finished(run, folder, plan, state):
    """What a run leaves behind that `crate sample` looks at."""
    save_tensors(state, folder / "weights.safetensors")
    sha256 = file_sha256(folder / "weights.safetensors")
    result = {"metrics": {}, "weights_sha256": sha256}
    record = {"status": "complete", "config": plan.resolve(run).config, "result": result}
    write_json(folder / "run.json", record)
    write_json(folder / "metrics.json", result)


def test_what_is_printed_is_what_is_drawn(spoken, capsys):
    folder, model = spoken
    words = ["--prompt", PROMPT, "--tokens", "50", "--temperature", "0.7", "--top-k", "20"]
    assert main(["sample", "--run", str(folder), *words, "--seed", "3"]) == 0
    printed = capsys.readouterr()
    bytes_ = get_tokenizer("bytes")
    drawn = list(
        generate(
            model,
            bytes_.encode(PROMPT).tolist(),
            50,
            temperature=0.7,
            top_k=20,
            generator=torch.Generator().manual_seed(3),
            stop=256,
        )
    )
    assert printed.out == PROMPT + bytes_.decode(drawn) + "\n"
    assert f"{len(drawn)} tokens, " in printed.err
    # the run knows its model, whatever the scale says by now
    scale = Path("experiments/scales/smoke.yaml")
    scale.write_text(scale.read_text().replace("heads: 2", "heads: 4"))
    assert main(["sample", "--run", str(folder), *words, "--seed", "3"]) == 0
    assert capsys.readouterr().out == printed.out
    assert main(["sample", "--run", str(folder), *words, "--seed", "4"]) == 0
    assert capsys.readouterr().out != printed.out


def test_an_official_gpt2_speaks_too(folder, tmp_path, capsys):
    """A checkpoint in Hugging Face's layout, of a small GPT-2 of one's own."""
    from transformers import GPT2Config, GPT2LMHeadModel

    (folder / "models.yaml").write_text("mine: {base: gpt2_base, dim: 16, depth: 2, heads: 2}\n")
    torch.manual_seed(0)
    theirs = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=32)).eval()
    theirs.save_pretrained(tmp_path / "hub")
    words = ["--weights", str(tmp_path / "hub" / "model.safetensors"), "--model", "mine"]
    words += ["--prompt", "Hello world", "--tokens", "9", "--temperature", "0"]
    assert main(["sample", *words]) == 0
    ids = [15496, 995]
    for _ in range(9):
        ids.append(int(theirs(torch.tensor([ids])).logits[0, -1].argmax()))
    assert capsys.readouterr().out == get_tokenizer("gpt2").decode(ids) + "\n"


def test_weights_of_a_small_scale_need_their_scale(spoken, tmp_path, capsys):
    folder, _ = spoken
    words = ["--weights", str(folder / "weights.safetensors"), "--model", "crate_alpha_gpt_base"]
    assert main(["sample", *words]) == 1
    errors = capsys.readouterr().err
    assert "'token_embedding.weight' has shape (257, 32), this model needs (257, 768)" in errors
    assert errors.endswith("weights of a smaller scale need --scale\n")
    assert main(["sample", *words, "--scale", "smoke", "--tokens", "5", "--temperature", "0"]) == 0
    by_weights = capsys.readouterr().out
    assert main(["sample", "--run", str(folder), "--tokens", "5", "--temperature", "0"]) == 0
    assert capsys.readouterr().out == by_weights


def test_a_screen_that_takes_nothing_is_one_line(spoken, capsys):
    with open("/dev/full", "w") as full, contextlib.redirect_stdout(full):
        assert main(["sample", "--run", str(spoken[0])]) == 1
        with contextlib.suppress(OSError):
            full.close()
    assert (
        capsys.readouterr().err == "failed: the text cannot be written (No space left on device)\n"
    )


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--prompt", "a" * 33], "the prompt has 33 tokens, more than the block of 32"),
        (["--prompt", "a\udcff"], "--prompt: is not UTF-8 (byte 0xFF)"),
        (["--temperature", "-1"], "temperature must be finite and at least 0"),
        (["--top-k", "0"], "top_k must be at least 1"),
        (["--seed", "-1"], "--seed: -1 is not from 0"),
        (["--seed", str(2**80)], "is not from 0 to 2^63 - 1"),
        (["--model", "gpt2_base"], "--model belongs to --weights"),
        (["--weights", "x.pt"], "give either --run or --weights"),
    ],
)
def test_mistakes_are_one_line(spoken, capsys, words, told):
    assert main(["sample", "--run", str(spoken[0]), *words]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: ")
    assert told in errors
    assert errors.count("\n") == 1


def test_what_cannot_speak_says_so(spoken, plan, tmp_path, capsys):
    vision = Run("smoke", "crate_base_patch32_plain", 0, ("imagenet21k",))
    unfinished = dataclasses.replace(vision, model="gpt2_base", chain=("openwebtext_gpt2",))
    counts = dataclasses.replace(unfinished, chain=("openwebtext_bigram",))
    names = ("ngram.tokens", "ngram.pairs", "ngram.counts")
    for run, state in (
        (counts, {name: torch.ones(257) for name in names}),
        (vision, {"head.weight": torch.ones(2, 2)}),
    ):
        finished(run, run.folder(tmp_path / "results"), plan, state)
    for run, told in (
        (vision, "is not a language model"),
        (unfinished, "no such file or folder; check the path, or run it"),
        (counts, "holds counts of tokens, no network"),
    ):
        assert main(["sample", "--run", str(run.folder(tmp_path / "results"))]) == 2
        assert told in capsys.readouterr().err
