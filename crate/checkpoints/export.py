"""`crate weights import` and `export`: official files become ours, runs become files for others.

A file is written whole or not at all, and states its model in the metadata of .safetensors and
.onnx.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from crate.checkpoints.convert import convert, infer_sizes, to_official
from crate.checkpoints.finished import read_finished
from crate.checkpoints.load import BUILDERS, kind_of
from crate.checkpoints.onnx import write_onnx
from crate.checkpoints.read import read_checkpoint
from crate.errors import UsageError
from crate.models.spec import MODEL_KINDS, ModelSpec
from crate.records import atomic_path, canonical_json, file_sha256
from crate.weights import save_tensors


def import_official(
    path: Path, name: str, spec: ModelSpec, out: Path, *, take: str | None = None
) -> str:
    """Write an official checkpoint as our .safetensors; returns one line about it.

    The weights, those at `take` of the file, are loaded strictly into a model of `spec` before
    anything is written.

    Raises:
        UsageError, RunError: as `read_checkpoint` and `convert`.
    """
    content = read_checkpoint(path)
    if _same_file(out, path):
        raise UsageError(f"{out}: is the official file itself; give --out another name")
    state = convert(content, spec, name=name, where=path, take=take)
    sizes = infer_sizes(state, spec)
    with torch.device("meta"):
        model = BUILDERS[kind_of(spec, sizes)](spec, **sizes)
    model.load_state_dict(state, strict=True, assign=True)
    digest = file_sha256(path)
    facts = _facts(name, spec, sizes) | {"source": path.name, "source_sha256": digest}
    save_tensors(state, out, _metadata(facts))
    return f"{out}: {_summary(name, state, sizes)}; sha256 of {path.name} {digest}"


def export_run(path: str, to: str, out: Path) -> str:
    """Write the weights of a finished run for others; returns one line about the file.

    Args:
        path: the run's folder, or its metrics.json.
        to: "safetensors" (our names), "torch-official" (a state dict for the class of the authors'
            PyTorch code; of GPT-2, for Hugging Face's GPT2LMHeadModel) or "onnx" (image
            classifiers: images (B, 3, H, W), normalised → logits, any B).

    Raises:
        UsageError: the run is not finished or left no image classifier, autoencoder, contrastive or
            language model, or `to` does not suit it.
        RunError: the weights are not those its metrics were measured on.
    """
    if to not in FORMATS:
        raise UsageError(f"cannot export to '{to}'; there are: {', '.join(FORMATS)}")
    run, folder, record, spec, state = read_finished(path)
    if _same_file(out, folder.weights):
        raise UsageError(f"{out}: is the run's own file; give --out another name")
    sizes = infer_sizes(state, spec)
    kind = kind_of(spec, sizes)
    model = BUILDERS[kind](spec, **sizes)
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError:
        raise UsageError(f"{run}: its weights are not those of {MODEL_KINDS[kind]}") from None
    of_data = ("tokenizer",) if spec.causal else ("mean", "std")
    facts = _facts(run.model, spec, sizes)
    facts |= {key: record["config"]["data"].get(key) for key in of_data}
    facts |= {"run": str(run), "scale": run.scale}
    facts["weights_sha256"] = record["result"]["weights_sha256"]
    FORMATS[to](model.eval(), spec, facts, out)
    return f"{out}: {_summary(run.model, state, sizes)}; sha256 {file_sha256(out)}"


def _same_file(out: Path, path: Path) -> bool:
    """Whether writing `out` would replace `path`; a link that loops is no file."""
    return out.exists() and out.samefile(path)


def _facts(name: str, spec: ModelSpec, sizes: dict[str, int]) -> dict:
    return {"model": name, "spec": dataclasses.asdict(spec)} | sizes


def _metadata(facts: dict) -> dict[str, str]:
    return {"crate": canonical_json(facts)}  # one key: the order of several is not fixed in a file


def _summary(name: str, state: dict[str, torch.Tensor], sizes: dict[str, int]) -> str:
    """Name, parameters and sizes, in words."""
    words = {
        "vocab_size": "vocabulary {:,}",
        "context_length": "texts of {:,} tokens",
        "block_size": "block {:,}",
        "num_classes": "{:,} classes",
        "image_size": "{} px",
    }
    parameters = sum(tensor.numel() for tensor in state.values())
    parts = [text.format(sizes[size]) for size, text in words.items() if size in sizes]
    return ", ".join([name, f"{parameters:,} parameters", *parts])


def _to_safetensors(model: nn.Module, spec: ModelSpec, facts: dict, out: Path) -> None:
    save_tensors(model.state_dict(), out, _metadata(facts))


def _to_official(model: nn.Module, spec: ModelSpec, facts: dict, out: Path) -> None:
    state = to_official(model.state_dict(), spec)
    with atomic_path(out) as temporary, temporary.open("wb") as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:  # torch hides the OSError of a write that failed
            raise error.__context__ if isinstance(error.__context__, OSError) else error from None


def _to_onnx(model: nn.Module, spec: ModelSpec, facts: dict, out: Path) -> None:
    kind = kind_of(spec, facts)
    if kind != "vision":
        raise UsageError(f"ONNX is for image classifiers; {MODEL_KINDS[kind]} goes to safetensors")
    write_onnx(model, _metadata(facts), out)


FORMATS: dict[str, Callable[[nn.Module, ModelSpec, dict, Path], None]] = {
    "safetensors": _to_safetensors,
    "onnx": _to_onnx,
    "torch-official": _to_official,
}
