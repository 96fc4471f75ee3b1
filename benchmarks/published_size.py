"""CRATE-alpha's block at published size on a CPU: use of the arithmetic units, time, memory.

`python benchmarks/published_size.py /tmp/base` prints a Markdown table; /tmp/base is another
checkout (`git worktree add /tmp/base <commit>`). Forward and backward pass together. All variants
run in turns in one process and ratios are medians over the turns: a busy machine slows all alike.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from blocks import (
    SIZES,
    blocks,
    kept_bytes,
    make_block,
    product,
    product_flops,
    train_step,
)
from checkouts import Checkout

HERE = Path(__file__).resolve().parents[1]


def turns(runs: dict[str, Callable], count: int, clock: Callable[[], float]) -> dict[str, list]:
    """Times of all functions in each of `count` turns."""
    times: dict[str, list] = {name: [] for name in runs}
    for turn in range(count + 1):
        for name, run in runs.items():
            start = clock()
            run()
            if turn:  # the first turn warms up
                times[name].append(clock() - start)
    return times


def ratio(times: dict[str, list], first: str, second: str) -> float:
    return statistics.median(a / b for a, b in zip(times[first], times[second], strict=True))


def measure(size: str, batch: int, dtype: torch.dtype, base: Path, count: int, clock) -> dict:
    dim, heads, _, tokens = SIZES[size]
    here, there = Checkout(HERE), Checkout(base)
    torch.manual_seed(0)
    x = torch.randn(batch, tokens, dim, requires_grad=True)
    with there():
        before = make_block(dim, heads)
    with here():
        official, ours = blocks(size)
        _, less = blocks(size, recompute=True)
    modules = {"official": official, "base": before, "ours": ours, "recompute": less}
    with torch.no_grad():
        for module in (before, less):
            module.load_state_dict(ours.state_dict())
    steps = {name: train_step(module, x, dtype) for name, module in modules.items()}
    multiply, flops = product(batch * tokens, dim, dtype, "cpu")
    wide = train_step(official, x, torch.float32)
    times = turns(steps | {"product": multiply, "official float32": wide}, count, clock)
    kept = {name: kept_bytes(module, x, dtype) for name, module in modules.items()}
    # the multiplications that a step needs without recomputation, at the speed of a product alone
    work = product_flops(steps["ours"]) / flops
    return {
        "share": {name: work * ratio(times, "product", name) for name in ("base", "ours")},
        "official float32 / ours": ratio(times, "official float32", "ours"),
        "official / ours": ratio(times, "official", "ours"),
        "ours / base": ratio(times, "ours", "base"),
        "recompute / base": ratio(times, "recompute", "base"),
        "kept / official": {n: kept[n] / kept["official"] for n in ("base", "ours", "recompute")},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("base", type=Path, help="another checkout of this repository")
    parser.add_argument("--size", default="B/16", choices=SIZES)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--processor-time", action="store_true", help="of one thread, if busy")
    parser.add_argument("--output", type=Path, help="a JSON file for the ratios")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    dtype, clock = getattr(torch, options.dtype), time.perf_counter
    if options.processor_time:
        clock = time.thread_time
    found = measure(options.size, options.batch, dtype, options.base, options.turns, clock)
    print(f"| {options.size}, {options.dtype}, {options.threads} threads | |\n|---|---|")
    for name, value in found.items():
        for part, number in (value if isinstance(value, dict) else {"": value}).items():
            print(f"| {name}{': ' * bool(part)}{part} | {number:.2f} |")
    if options.output:
        options.output.write_text(json.dumps(vars(options) | found, indent=2, default=str) + "\n")


if __name__ == "__main__":
    main()
