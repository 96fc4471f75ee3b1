"""Memory and speed of the KV cache in text generation.

`python benchmarks/language.py` prints Markdown tables. Memory: exact bytes of the cache per token.
Time of one more token after M tokens, as ratios: with a cache over without one, and CRATE's models
over GPT-2 of the same width and depth. Both variants run in turns within one process on one thread,
and each value is the median of its turns, so a busy machine slows both alike; absolute times do not
compare between machines and are left out. Weights are random, which does not change the time.
"""

import argparse
from collections.abc import Callable

import torch
from operators import ratio

from crate.models.build import create_model
from crate.models.language import Cache, LanguageModel

GPT2 = "gpt2_base"
NAMES = (GPT2, "crate_gpt_base", "crate_alpha_gpt_base")
CONTEXTS = (64, 256, 1023)  # tokens before the new one, of a block of 1,024


def next_token(model: LanguageModel, ids: torch.Tensor, cached: bool) -> Callable[[], None]:
    """A function that computes logits after ids (1, M + 1), the first M cached if `cached`."""
    cache = Cache(model) if cached else None
    if cached:
        model.forward_features(ids[:, :-1], cache=cache)
        seen = [list(layer.tensors) for layer in cache.layers]

    def run() -> None:
        if cached:
            for layer, tensors in zip(cache.layers, seen, strict=True):
                layer.tensors = tensors  # forget the token of the last turn
        x = model.forward_features(ids[:, -1:] if cached else ids, cache=cache)
        model.head(x[:, -1:])

    return run


def kept(model: LanguageModel) -> int:
    """Bytes of one token in the cache."""
    cache = Cache(model)
    model.forward_features(torch.zeros(1, 1, dtype=torch.int64), cache=cache)
    return cache.bytes


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--seconds", type=float, default=10.0, help="time spent on each ratio")
    parser.add_argument("--dim", type=int, default=768, help="width of every model")
    parser.add_argument("--depth", type=int, default=12, help="blocks of every model")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    size = {"dim": options.dim, "depth": options.depth}
    models = {name: create_model(name, **size).eval() for name in NAMES}

    print(f"float32, d = {options.dim}, L = {options.depth}, one sequence.\n")
    print("| model | cache, bytes a token | of GPT-2's |")
    print("|---|---|---|")
    for name, model in models.items():
        print(f"| {name} | {kept(model):,} | {kept(model) / kept(models[GPT2]):.2f} |")

    print("\nTime of one more token after M; below 1, the first is faster.\n")
    print("| time of | M | ratio |")
    print("|---|---|---|")
    for tokens in CONTEXTS:
        ids = torch.randint(1000, (1, tokens + 1))
        steps = {name: next_token(model, ids, True) for name, model in models.items()}
        for name, model in models.items():
            whole = next_token(model, ids, False)
            value = ratio(steps[name], whole, options.seconds)
            print(f"| {name}: cached / uncached | {tokens:,} | {value:.3f} |")
        for name in NAMES[1:]:
            value = ratio(steps[name], steps[GPT2], options.seconds)
            print(f"| cached: {name} / {GPT2} | {tokens:,} | {value:.2f} |")
        for name in NAMES[1:]:
            pair = [next_token(models[each], ids, False) for each in (name, GPT2)]
            value = ratio(*pair, options.seconds)
            print(f"| uncached: {name} / {GPT2} | {tokens:,} | {value:.2f} |")


if __name__ == "__main__":
    main()
