"""The scripts of `benchmarks/`: what they compare is equal, and the one for GPUs works without."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def test_the_official_style_block_is_ours(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    from blocks import blocks

    official, ours = (block.double() for block in blocks("tiny"))
    x = torch.randn(2, 5, 32, dtype=torch.float64, requires_grad=True)
    expected, found = official(x), ours(x)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    gradients = [torch.autograd.grad(each.square().sum(), x)[0] for each in (expected, found)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-10)


@pytest.mark.slow
def test_the_script_for_gpus_works_with_toy_sizes(tmp_path):
    def run(*arguments):
        script = [sys.executable, str(BENCHMARKS / "gpu.py"), *arguments]
        return subprocess.run(script, capture_output=True, text=True, check=True).stdout

    output = tmp_path / "gpu.json"
    shown = run("--tiny", "--output", str(output))
    found = json.loads(output.read_text())
    assert [found[part]["exit"] for part in ("tests", "ddp", "table")] == [0, 0, 0]
    variants = found["speed"]["tiny"]["variants"]
    assert len(variants) == 6
    assert all(entry["images/s"] > 0 for entry in variants.values())
    assert run("--show", str(output)) == shown
