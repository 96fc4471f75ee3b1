"""The speed of kernels, precisions and threads for the operators on this machine's CPU.

`python benchmarks/operators.py` prints a Markdown table of time ratios, forward and backward
together. Both variants run in turns within one process, and each value is the median of its turns,
so a busy machine slows both alike; absolute times do not compare between machines and are left out.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from crate.layers.attention import plain_attention
from crate.models.blocks import make_blocks
from crate.models.zoo import resolve

# width d: heads K, batch B, tokens N. Small images, but 224 pixels at the papers' width.
SHAPES = {64: (4, 64, 65), 128: (4, 64, 65), 256: (4, 32, 65), 768: (12, 2, 197)}


def seconds(run: Callable[[], object], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    return (time.perf_counter() - start) / repeats


def ratio(first: Callable[[], object], second: Callable[[], object], budget: float) -> float:
    """Time of `first` over time of `second`: medians of interleaved turns, `budget` s in all."""
    first(), second()
    once = seconds(first, 1) + seconds(second, 1)
    repeats = max(1, round(0.02 / once))  # a turn of at least some 20 ms, against timer noise
    turns = min(101, max(7, round(budget / (once * repeats))))
    times = [(seconds(first, repeats), seconds(second, repeats)) for _ in range(turns)]
    a, b = (statistics.median(side) for side in zip(*times, strict=True))
    return a / b


def train_step(function: Callable[[], torch.Tensor], bfloat16: bool) -> Callable[[], None]:
    def run() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            output = function()
        output.float().square().mean().backward()

    return run


def with_threads(threads: int, run: Callable[[], None]) -> Callable[[], None]:
    def wrapped() -> None:
        torch.set_num_threads(threads)
        run()
        torch.set_num_threads(1)

    return wrapped


def attention_pair(width: int, bfloat16: bool) -> tuple[Callable[[], None], Callable[[], None]]:
    heads, batch, tokens = SHAPES[width]
    dtype = torch.bfloat16 if bfloat16 else torch.float32  # what the projection hands over
    x = torch.randn(batch, tokens, width, dtype=dtype, requires_grad=True)

    def split() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        w = x.unflatten(-1, (heads, -1)).transpose(1, 2)  # (B, K, N, d/K)
        return w, w, w

    plain = train_step(lambda: plain_attention(*split())[0], bfloat16)
    fused = train_step(lambda: F.scaled_dot_product_attention(*split()), bfloat16)
    return plain, fused


def block_step(width: int, bfloat16: bool) -> Callable[[], None]:
    heads, batch, tokens = SHAPES[width]
    block = make_blocks(resolve("crate_alpha_base_patch16", dim=width, heads=heads, depth=1))[0]
    x = torch.randn(batch, tokens, width, requires_grad=True)
    return train_step(lambda: block(x), bfloat16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--seconds", type=float, default=3.0, help="time spent on each ratio")
    budget = parser.parse_args().seconds
    torch.set_num_threads(1)
    torch.manual_seed(0)

    rows = []
    for width in (64, 256, 768):
        for bfloat16 in (False, True):
            plain, fused = attention_pair(width, bfloat16)
            precision = "bfloat16" if bfloat16 else "float32"
            rows.append(("attention: fused / plain", width, precision, ratio(fused, plain, budget)))
    for width in SHAPES:
        pair = block_step(width, False), block_step(width, True)
        rows.append(("alpha block: float32 / bfloat16", width, "both", ratio(*pair, budget)))
    for width in SHAPES:
        for bfloat16 in (False, True):
            step = block_step(width, bfloat16)
            value = ratio(with_threads(1, step), with_threads(2, step), budget)
            precision = "bfloat16" if bfloat16 else "float32"
            rows.append(("alpha block: one thread / two", width, precision, value))

    print("Above 1, the second is faster. Forward and backward, one thread unless said otherwise.")
    print("Two threads wait for each other: where other work keeps a core busy, they lose.\n")
    print("| time of | d | K | B | N | precision | ratio |")
    print("|---|---|---|---|---|---|---|")
    for name, width, precision, value in rows:
        heads, batch, tokens = SHAPES[width]
        print(f"| {name} | {width} | {heads} | {batch} | {tokens} | {precision} | {value:.2f} |")


if __name__ == "__main__":
    main()
