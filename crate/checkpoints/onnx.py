"""Image classifiers as ONNX files."""

import contextlib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from crate.errors import UsageError
from crate.records import atomic_path

LIMIT = 2**31 - 1  # bytes of one protobuf message
OPSET = 20  # has Gelu and LayerNormalization


def write_onnx(model: nn.Module, metadata: dict[str, str], out: Path) -> None:
    """Write a classifier: images (B, 3, H, W), normalised → logits (B, classes), for any B.

    Raises:
        UsageError: the packages for it are not installed, or the weights are too large.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401  (torch's exporter needs it)
    except ImportError as error:
        raise UsageError(
            f"ONNX needs the package {error.name}, which is not installed: "
            "pip install --editable '.[export]'"
        ) from None
    size = 4 * sum(tensor.numel() for tensor in model.state_dict().values())
    if size > LIMIT:
        raise UsageError(f"{size:,} bytes of weights are more than one ONNX file holds (2 GiB)")
    images = torch.zeros(2, 3, model.image_size, model.image_size)
    with _quiet():
        program = torch.onnx.export(
            model,
            (images,),
            dynamo=True,
            opset_version=OPSET,
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
            verbose=False,
        )
    proto = program.model_proto
    for part in (*proto.graph.node, *proto.graph.value_info, *proto.graph.initializer):
        part.ClearField("metadata_props")  # traces of the source, with paths of this machine
    onnx.helper.set_model_props(proto, metadata)
    onnx.checker.check_model(proto)
    with atomic_path(out) as temporary:
        temporary.write_bytes(proto.SerializeToString(deterministic=True))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the log and the warnings of torch's exporter; its errors are exceptions."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
