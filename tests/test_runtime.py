"""Where a run computes: seeds, precision with its reason, and libraries that do not fit."""

import builtins
from importlib import metadata

import pytest
import torch

from crate import environment
from crate.errors import UsageError
from crate.recipes import Compute
from crate.runtime import Runtime, autocast_dtype, generator_for, seed_for, start

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


SEEDS = (1829853113658518448, 8401410035462850704, 6652612566522261948, 8238016292129134938)
DRAWN = [232, 659, 284, 857]


def test_seeds_never_change():
    # Written down once: another value would change every result of every run.
    assert seed_for(0, "order", 0) == SEEDS[0]
    assert seed_for(1, "order", 0) == SEEDS[1]
    assert seed_for(0, "update", 7, 1) == SEEDS[2]
    assert seed_for() == SEEDS[3]
    assert all(0 <= seed < 2**63 for seed in SEEDS)
    drawn = torch.randint(1000, (4,), generator=generator_for(0, "order", 0))
    assert drawn.tolist() == DRAWN


@pytest.mark.parametrize(
    ("capabilities", "dtype", "reason"),
    [
        ({"amx_bf16": True, "avx512_bf16": True}, torch.bfloat16, "the CPU has amx_bf16"),
        ({"amx_bf16": False, "avx512_bf16": True}, torch.bfloat16, "the CPU has avx512_bf16"),
        ({"sve_bf16": True}, torch.bfloat16, "the CPU has sve_bf16"),
        ({"avx2": True}, torch.float32, "the CPU has no bfloat16 instructions"),
    ],
)
def test_precision_follows_the_cpus_instructions(monkeypatch, capabilities, dtype, reason):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert autocast_dtype(CPU, "auto") == (dtype, reason)


@pytest.mark.parametrize(
    ("capability", "dtype", "reason"),
    [
        ((9, 0), torch.bfloat16, "has bfloat16 units"),
        ((8, 0), torch.bfloat16, "has bfloat16 units"),
        ((7, 5), torch.float32, "has no bfloat16 units"),
    ],
)
def test_precision_follows_the_gpu(monkeypatch, capability, dtype, reason):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    chosen, why = autocast_dtype(GPU, "auto")
    assert chosen == dtype
    assert reason in why


def test_precision_asked_for_is_given():
    assert autocast_dtype(CPU, "float32") == (torch.float32, "asked for")
    assert autocast_dtype(GPU, "bfloat16") == (torch.bfloat16, "asked for")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_computes_in_the_chosen_dtype(dtype):
    matrix = torch.eye(8)
    with Runtime(CPU, dtype, "test").autocast():
        assert (matrix @ matrix).dtype == dtype


def test_start_sets_threads_and_tells_what_it_chose(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    before = torch.get_num_threads()
    try:
        with start(Compute(threads=2, autocast="float32")) as here:
            told = here.describe()
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert told["threads"] == 2
    assert told["processes"] == 1
    assert (told["autocast"], told["autocast_reason"]) == ("float32", "asked for")
    assert told["device_type"] == "cpu"


# --- libraries that do not fit -----------------------------------------------------------


def pretend_versions(monkeypatch, **versions: str) -> None:
    def version(name: str) -> str:
        if name not in versions:
            raise metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(metadata, "version", version)


def break_torchvision(monkeypatch, error: Exception) -> None:
    real = builtins.__import__

    def fail(name, *arguments, **keys):
        if name.startswith("torchvision"):
            raise error
        return real(name, *arguments, **keys)

    monkeypatch.setattr(builtins, "__import__", fail)


def test_fitting_builds_pass(monkeypatch):
    pretend_versions(monkeypatch, torch="2.15.0", torchvision="0.29.2")
    assert environment.mismatch() == ""
    pretend_versions(monkeypatch, torch="2.15.0+cpu", torchvision="0.29.2+cpu")
    assert environment.mismatch() == ""


def test_a_foreign_torch_build_is_named_in_one_line(monkeypatch):
    pretend_versions(monkeypatch, torch="2.15.0+cpu", torchvision="0.29.2")
    break_torchvision(monkeypatch, RuntimeError("operator torchvision::nms does not exist\nmore"))
    with pytest.raises(UsageError) as caught:
        environment.import_torchvision()
    message = str(caught.value)
    for part in ("2.15.0+cpu", "0.29.2", "torchvision::nms", "make setup"):
        assert part in message
    assert "\n" not in message


def test_torchvision_of_another_release_is_told_in_one_line(monkeypatch):
    pretend_versions(monkeypatch, torch="2.15.0", torchvision="0.20.0")  # no tag tells
    break_torchvision(monkeypatch, RuntimeError("operator torchvision::nms does not exist\nmore"))
    with pytest.raises(UsageError, match=r"torchvision::nms does not exist") as caught:
        environment.import_torchvision()
    assert "\n" not in str(caught.value)


def test_missing_torchvision_is_told(monkeypatch):
    pretend_versions(monkeypatch, torch="2.15.0")
    break_torchvision(monkeypatch, ModuleNotFoundError("No module named 'torchvision'"))
    with pytest.raises(UsageError, match="torchvision is not installed; run 'make setup'"):
        environment.import_torchvision()
