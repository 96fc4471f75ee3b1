"""What only a GPU can tell, in one script of at most 8 minutes: tests, speed, memory, a table.

`python benchmarks/gpu.py --output gpu.json` on a machine with a GPU writes all results as JSON and
prints them as Markdown tables; `python benchmarks/gpu.py --show gpu.json` prints them again.
Parts: the tests that need CUDA; CRATE-alpha's networks made of blocks in the style of the released
code against ours (eager, each block compiled, with and without recomputation) in bfloat16; one run
over NCCL with one rank; `table_ablation` at scale smoke. A part that fails or is late is reported,
and the others go on. `--tiny` is the same with toy sizes, on a CPU too, to test this script.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from blocks import SIZES, blocks, product, product_flops, train_step
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
SECONDS = {"tests": 90, "speed": 200, "ddp": 60, "table": 120}  # at most
VARIANTS = ("official", "official compiled", "ours", "ours recomputing", "ours compiled",
            "ours compiled, recomputing")  # fmt: skip


def command(arguments: list[str], seconds: float, **environment: str) -> dict:
    """Run a command in the checkout; its time and the end of what it printed."""
    start = time.monotonic()
    try:
        done = subprocess.run(
            arguments, cwd=ROOT, capture_output=True, text=True, timeout=seconds, check=False,
            env=os.environ | environment,
        )  # fmt: skip
        code, text = done.returncode, done.stdout + done.stderr
    except subprocess.TimeoutExpired:
        code, text = None, f"stopped after {seconds:.0f} s"
    return {
        "exit": code,
        "seconds": round(time.monotonic() - start, 1),
        "output": text.strip().splitlines()[-3:],
    }


def run_tests(tiny: bool) -> dict:
    files = ["tests/models/test_architectures.py", "tests/test_runtime.py", "tests/layers"]
    if tiny:
        files = ["tests/layers/test_operators.py::test_heads_must_divide_the_width"]
    visible = {} if tiny else {"CUDA_VISIBLE_DEVICES": "0"}  # the tests hide GPUs by default
    return command([sys.executable, "-m", "pytest", *files], SECONDS["tests"], **visible)


def network(variant: str, size: str, device: str) -> nn.Module:
    """The blocks of a network: as many as it has, each compiled by itself if at all."""
    recompute = "recomputing" in variant
    pick = 0 if variant.startswith("official") else 1
    depth = SIZES[size][2]
    layers = [blocks(size, recompute=recompute)[pick].to(device) for _ in range(depth)]
    if "compiled" in variant:
        backend = "eager" if size == "tiny" else "inductor"
        layers = [torch.compile(each, backend=backend) for each in layers]  # one graph serves all
    return nn.Sequential(*layers)


def seconds_each(run: Callable[[], None], device: str, turns: int) -> float:
    """Median time of a step, after two to warm up."""
    times = []
    for _ in range(turns + 2):
        _synchronise(device)
        start = time.perf_counter()
        run()
        _synchronise(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times[2:])


def _synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def measure(size: str, batch: int, device: str, turns: int, until: float) -> dict:
    """Images a second, peak memory and share of the product's rate of all variants of a size."""
    dim, _, _, tokens = SIZES[size]
    dtype = torch.bfloat16
    multiply, flops = product(batch * tokens, dim, dtype, device)
    rate = flops / seconds_each(multiply, device, 20)
    found: dict = {"batch": batch, "product FLOP/s": rate, "variants": {}}
    needed = None
    for variant in VARIANTS:
        if time.monotonic() > until:
            found["variants"][variant] = {"error": "no time was left"}
            continue
        try:
            found["variants"][variant] = entry = {}
            model = network(variant, size, device)
            x = torch.randn(batch, tokens, dim, device=device, requires_grad=True)
            step = train_step(model, x, dtype)
            if variant == "ours":
                needed = product_flops(step)
            if device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            took = seconds_each(step, device, turns)
            entry |= {"images/s": batch / took, "ms": 1e3 * took}
            if device == "cuda":
                entry["peak GiB"] = torch.cuda.max_memory_allocated() / 2**30
            if needed and variant.startswith("ours"):
                entry["share of product rate"] = needed / took / rate
        except RuntimeError as error:  # out of memory, or what the compiler cannot do
            entry["error"] = str(error).strip().splitlines()[0][:200]
        finally:
            model = x = step = None
            torch.compiler.reset()
            if device == "cuda":
                torch.cuda.empty_cache()
    return found


def run_ddp(tiny: bool) -> dict:
    """A short run of training by DistributedDataParallel with one rank, NCCL on a GPU."""
    return command(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1",
            str(Path(__file__)), "--rank", *(["--tiny"] if tiny else []),
        ],
        SECONDS["ddp"],
        PYTHONPATH=f"{ROOT}",
    )  # fmt: skip


def rank(tiny: bool) -> None:
    """What `run_ddp` starts: three updates of one block, and a sum over all ranks."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.distributed.init_process_group("nccl" if device == "cuda" else "gloo")
    size = "tiny" if tiny else "B/16"
    block = blocks(size)[1].to(device)
    dim, _, _, tokens = SIZES[size]
    wrapped = nn.parallel.DistributedDataParallel(block)
    x = torch.randn(2, tokens, dim, device=device, requires_grad=True)
    for _ in range(3):
        train_step(wrapped, x, torch.bfloat16)()
    total = torch.ones(1, device=device)
    torch.distributed.all_reduce(total)
    print(f"{torch.distributed.get_backend()}, {int(total)} rank")
    torch.distributed.destroy_process_group()


def run_table(tiny: bool) -> dict:
    if tiny:
        return command([sys.executable, "-m", "crate", "--help"], SECONDS["table"])
    with tempfile.TemporaryDirectory() as folder:
        return command(
            [
                str(Path(sys.executable).with_name("snakemake")), "--cores", "all",
                "table_ablation", "--config", "scale=smoke", f"results={folder}/results",
            ],
            SECONDS["table"],
        )  # fmt: skip


def show(found: dict) -> None:
    """Print Markdown tables."""
    print(f"{found['device']}, torch {found['torch']}\n")
    print("| part | result | seconds |\n|---|---|---|")
    for part in ("tests", "ddp", "table"):
        entry = found[part]
        result = "passed" if entry["exit"] == 0 else f"failed: {' '.join(entry['output'])}"
        print(f"| {part} | {result} | {entry['seconds']} |")
    for size, entry in found["speed"].items():
        print(f"\n| {size}, batch {entry['batch']}, bfloat16 | images/s | peak GiB | share |")
        print("|---|---|---|---|")
        for variant, numbers in entry["variants"].items():
            cells = [numbers.get(key) for key in ("images/s", "peak GiB", "share of product rate")]
            shown = [numbers.get("error", "") if each is None else f"{each:.3g}" for each in cells]
            print(f"| {variant} | {' | '.join(shown)} |")


def everything(tiny: bool, output: Path | None) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not tiny:
        sys.exit("this machine has no GPU; --tiny tests the script without one")
    torch.manual_seed(0)
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU, toy sizes"
    found: dict = {"device": name, "torch": torch.__version__, "tiny": tiny, "speed": {}}
    found["tests"] = run_tests(tiny)
    sizes = {"tiny": 2} if tiny else {"B/16": 128, "L/14": 64}  # batch
    for size, batch in sizes.items():
        until = time.monotonic() + SECONDS["speed"] / len(sizes)
        turns = 1 if tiny else 10
        found["speed"][size] = measure(size, batch, device, turns, until)
    found["ddp"] = run_ddp(tiny)
    found["table"] = run_table(tiny)
    if output:
        output.write_text(json.dumps(found, indent=2) + "\n")
    show(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--output", type=Path, help="a JSON file for the results")
    parser.add_argument("--show", type=Path, help="print this file of results, measure nothing")
    parser.add_argument("--tiny", action="store_true", help="toy sizes, to test this script")
    parser.add_argument("--rank", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank:
        rank(options.tiny)
    elif options.show:
        show(json.loads(options.show.read_text()))
    else:
        everything(options.tiny, options.output)


if __name__ == "__main__":
    main()
