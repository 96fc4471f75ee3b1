"""Finished runs, opened by their path: what they were, with their weights."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import safetensors

from crate.errors import RunError, UsageError
from crate.models.spec import ModelSpec
from crate.records import RunFolder, file_sha256, read_json
from crate.runs import Run, parse_path

if TYPE_CHECKING:
    import torch


class Finished(NamedTuple):
    """A finished run: its folder, its run.json, its architecture and its weights."""

    run: Run
    folder: RunFolder
    record: dict
    spec: ModelSpec
    state: "dict[str, torch.Tensor]"


def read_finished(path: str) -> Finished:
    """Open a finished run.

    Architecture and weights are what the run was, even if `experiments/` has changed since.

    Args:
        path: the run's folder, or its metrics.json.

    Raises:
        UsageError: the path is not a run's, or the run is not finished or leaves no weights.
        RunError: the weights are not those its metrics were measured on.
    """
    run, results = parse_path(path)
    folder = RunFolder(run.folder(results))
    result, record = read_json(folder.metrics), read_json(folder.record) or {}
    if not folder.folder.is_dir():
        raise UsageError(f"{folder.folder}: there is no such folder; check the path, or run it")
    if result is None or record.get("status") != "complete":
        raise UsageError(f"{run}: is not finished; first run {folder.metrics}")
    stated = result.get("weights_sha256")
    if not stated:
        raise UsageError(f"{run}: its recipe leaves no weights")
    if not folder.weights.is_file() or file_sha256(folder.weights) != stated:
        raise RunError(f"{folder.weights}: is not the file its metrics were measured on; run again")
    spec = ModelSpec(**record["config"]["model"])
    from crate.weights import read_weights, require_weights

    state = require_weights(read_weights(folder.weights), folder.weights)
    return Finished(run, folder, record, spec, state)


def stated(path: str | Path) -> dict[str, Any]:
    """What a file says of its model, as {"model": name, "spec": …}; {} if it says nothing.

    `crate weights import` and `export` state it in a .safetensors file; of a run's weights,
    run.json beside them does.
    """
    path = Path(path)
    record = read_json(path.with_name("run.json")) or {}
    if path == RunFolder(path.parent).weights and "config" in record:
        return {"model": str(record.get("run")).split(" ")[0], "spec": record["config"]["model"]}
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            return json.loads((file.metadata() or {})["crate"])
    except Exception:  # another kind of file, or a damaged one, of which `read_checkpoint` speaks
        return {}
