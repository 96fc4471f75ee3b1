"""Weights across the border: official files become ours, finished runs become files for others.

`crate weights import` and `crate weights export`. Every file is written at once or not at all, and
states the model it belongs to: in the metadata of .safetensors and .onnx.
"""

import contextlib
import dataclasses
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import safetensors
import safetensors.torch
import torch
from torch import nn

from crate.checkpoints.convert import convert, infer_sizes, to_official
from crate.checkpoints.read import read_checkpoint
from crate.errors import RunError, UsageError
from crate.models.build import build, build_autoencoder, build_contrastive, build_language
from crate.models.spec import ModelSpec
from crate.records import RunFolder, atomic_path, canonical_json, file_sha256, read_json
from crate.runs import Run, parse_path
from crate.weights import read_weights

ONNX_LIMIT = 2**31 - 1  # bytes of one protobuf message
ONNX_OPSET = 20  # has Gelu and LayerNormalization


def import_official(path: Path, name: str, spec: ModelSpec, out: Path) -> str:
    """Write an official checkpoint as our .safetensors; returns one line about it.

    The weights are loaded strictly into a model of `spec` before anything is written.

    Raises:
        UsageError, RunError: as `read_checkpoint` and `convert`.
    """
    if out.resolve() == path.resolve():
        raise UsageError(f"{out}: is the official file itself; give --out another name")
    state = convert(read_checkpoint(path), spec, where=path)
    sizes = infer_sizes(state, spec)
    with torch.device("meta"):
        model = _build(spec, sizes)
    model.load_state_dict(state, strict=True, assign=True)
    digest = file_sha256(path)
    facts = _facts(name, spec, sizes) | {"source": path.name, "source_sha256": digest}
    _write_safetensors(state, facts, out)
    return f"{out}: {_told(name, state, sizes)}; sha256 of {path.name} {digest}"


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
        RunError: the weights are not the ones its metrics were measured on.
    """
    if to not in FORMATS:
        raise UsageError(f"cannot export to '{to}'; there are: {', '.join(FORMATS)}")
    run, folder, record, spec, state = read_finished(path)
    if out.resolve() == folder.weights.resolve():
        raise UsageError(f"{out}: is the run's own file; give --out another name")
    sizes = infer_sizes(state, spec)
    model = _build(spec, sizes)
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError:
        raise UsageError(f"{run}: its weights are not those of {_kind(spec, sizes)}") from None
    stated_data = ("tokenizer",) if spec.causal else ("mean", "std")
    data = {key: record["config"]["data"].get(key) for key in stated_data}
    facts = _facts(run.model, spec, sizes) | data
    stated = record["result"]["weights_sha256"]
    facts |= {"run": str(run), "scale": run.scale, "weights_sha256": stated}
    FORMATS[to](model.eval(), spec, facts, out)
    return f"{out}: {_told(run.model, state, sizes)}; sha256 {file_sha256(out)}"


class Finished(NamedTuple):
    """A run that is finished: its run.json, its architecture and its weights."""

    run: Run
    folder: RunFolder
    record: dict
    spec: ModelSpec
    state: dict[str, torch.Tensor]


def read_finished(path: str) -> Finished:
    """Open a finished run.

    Architecture and weights are what the run was, even if `experiments/` has changed since.

    Raises:
        UsageError: the path names no run, it is not finished, or leaves no weights.
        RunError: the weights are not the ones its metrics were measured on.
    """
    run, results = parse_path(path)
    folder = RunFolder(run.folder(results))
    result, record = read_json(folder.metrics), read_json(folder.record) or {}
    if not folder.folder.is_dir():
        raise UsageError(f"{folder.folder}: is not there: mistyped, or to be run first")
    if result is None or record.get("status") != "complete":
        raise UsageError(f"{run}: is not finished; first run {folder.metrics}")
    stated = result.get("weights_sha256")
    if not stated:
        raise UsageError(f"{run}: a step that leaves no weights")
    if not folder.weights.is_file() or file_sha256(folder.weights) != stated:
        raise RunError(f"{folder.weights}: is not the file its metrics were measured on; run again")
    spec = ModelSpec(**record["config"]["model"])
    return Finished(run, folder, record, spec, read_weights(folder.weights))


def _build(spec: ModelSpec, sizes: dict[str, int]) -> nn.Module:
    kind = _kind(spec, sizes)
    builders = {
        "a language model": build_language,
        "an autoencoder": build_autoencoder,
        "a contrastive model": build_contrastive,
    }
    return builders.get(kind, build)(spec, **sizes)


def _kind(spec: ModelSpec, sizes: dict[str, int]) -> str:
    if spec.causal:
        return "a language model"
    if "context_length" in sizes:
        return "a contrastive model"
    return "an image classifier" if "num_classes" in sizes else "an autoencoder"


def _facts(name: str, spec: ModelSpec, sizes: dict[str, int]) -> dict:
    return {"model": name, "spec": dataclasses.asdict(spec)} | sizes


def _told(name: str, state: dict[str, torch.Tensor], sizes: dict[str, int]) -> str:
    parameters = sum(tensor.numel() for tensor in state.values())
    told = f"{name}, {parameters:,} parameters, "
    if "context_length" in sizes:
        told += f"vocabulary {sizes['vocab_size']:,}, texts of {sizes['context_length']:,} tokens, "
    elif "vocab_size" in sizes:
        return told + f"vocabulary {sizes['vocab_size']:,}, block {sizes['block_size']:,}"
    if "num_classes" in sizes:
        told += f"{sizes['num_classes']:,} classes, "
    return told + f"{sizes['image_size']} px"


def _write_safetensors(state: dict[str, torch.Tensor], facts: dict, out: Path) -> None:
    with atomic_path(out) as temporary:
        try:  # one key: the order of several is not fixed in the file
            safetensors.torch.save_file(state, temporary, {"crate": canonical_json(facts)})
        except safetensors.SafetensorError as error:  # a full disk, in its words
            raise RunError(f"{out}: cannot be written ({error})") from None


def _to_safetensors(model: nn.Module, spec: ModelSpec, facts: dict, out: Path) -> None:
    _write_safetensors(model.state_dict(), facts, out)


def _to_official(model: nn.Module, spec: ModelSpec, facts: dict, out: Path) -> None:
    state = to_official(model.state_dict(), spec)
    with atomic_path(out) as temporary, temporary.open("wb") as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:  # torch's own complaint hides that a write failed, and why
            raise error.__context__ if isinstance(error.__context__, OSError) else error from None


def _to_onnx(model: nn.Module, spec: ModelSpec, facts: dict, out: Path) -> None:
    kind = _kind(spec, facts)
    if kind != "an image classifier":
        raise UsageError(f"ONNX is for image classifiers; {kind} goes to safetensors")
    try:
        import onnx
        import onnxscript  # noqa: F401  (torch's exporter needs it)
    except ImportError as error:
        raise UsageError(
            f"ONNX needs the package {error.name}, which is not installed: "
            "pip install --editable '.[export]'"
        ) from None
    size = 4 * sum(tensor.numel() for tensor in model.state_dict().values())
    if size > ONNX_LIMIT:
        raise UsageError(f"{size:,} bytes of weights are more than one ONNX file holds (2 GiB)")
    images = torch.zeros(2, 3, model.image_size, model.image_size)
    with _quiet():
        program = torch.onnx.export(
            model,
            (images,),
            dynamo=True,
            opset_version=ONNX_OPSET,
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
            verbose=False,
        )
    proto = program.model_proto
    for part in (*proto.graph.node, *proto.graph.value_info, *proto.graph.initializer):
        part.ClearField("metadata_props")  # traces of the source, with paths of this machine
    onnx.helper.set_model_props(proto, {"crate": canonical_json(facts)})
    onnx.checker.check_model(proto)
    with atomic_path(out) as temporary:
        temporary.write_bytes(proto.SerializeToString(deterministic=True))


@contextlib.contextmanager
def _quiet():
    """Silence torch's exporter, which prints its progress; errors are exceptions."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


FORMATS: dict[str, Callable[[nn.Module, ModelSpec, dict, Path], None]] = {
    "safetensors": _to_safetensors,
    "onnx": _to_onnx,
    "torch-official": _to_official,
}
