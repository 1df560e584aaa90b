"""Writes a traced graph to each runtime's file in each precision, with the libraries' exporters. Knows no models."""

# n images, S side in pixels

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from bigr_repr.features.exported.manifest import Manifest

__all__ = ["WRITERS", "Calibration"]

Calibration = NDArray[np.float32]  # (n, 3, S, S) in [0, 1]
_OPSET: Final = 20
_BATCH: Final = 8
_KEY: Final = "bigr_repr"  # key of the manifest in a graph's metadata


def _onnx(program: Any, manifest: Manifest, file: Path, calibration: Calibration | None) -> None:
    import torch

    written = torch.onnx.export(
        program, input_names=["images"], output_names=list(manifest.outputs), opset_version=_OPSET, dynamo=True,
        verbose=False,
    )  # fmt: skip
    assert written is not None
    if calibration is None:
        written.model.metadata_props[_KEY] = manifest.text()
        written.save(file)
        return
    import onnx

    written.save(file)
    network = onnx.load(file)
    quantized = _quantized(network, manifest, calibration, _before_bits_onnx(network))
    onnx.helper.set_model_props(quantized, {_KEY: manifest.text()})
    onnx.save(quantized, file)


def _openvino(program: Any, manifest: Manifest, file: Path, calibration: Calibration | None) -> None:
    import openvino

    network = openvino.convert_model(program)
    side = manifest.config.image_size
    network.inputs[0].set_names({"images"})
    network.reshape({"images": openvino.PartialShape([-1, 3, side, side])})
    for output, name in zip(network.outputs, manifest.outputs, strict=True):
        output.set_names({name})
    if calibration is not None:
        network = _quantized(network, manifest, calibration, _before_bits_openvino(network))
    network.set_rt_info(manifest.text(), [_KEY])
    openvino.save_model(network, file, compress_to_fp16=False)


def _torch(program: Any, manifest: Manifest, file: Path, calibration: Calibration | None) -> None:
    import torch._inductor

    settings = {"aot_inductor.metadata": {_KEY: manifest.text()}}
    torch._inductor.aoti_compile_and_package(program, package_path=str(file), inductor_configs=settings)


def _before_bits_onnx(network: Any) -> list[str]:
    """Names of the tokenizer's nodes: those before the comparison that makes bits."""
    makers = {output: node for node in network.graph.node for output in node.output}
    (last,) = (node for node in network.graph.node if node.op_type == "Greater")
    return _names(last, lambda node: [makers[name] for name in node.input if name in makers], lambda node: node.name)


def _before_bits_openvino(network: Any) -> list[str]:
    """The same for an OpenVINO network."""
    (last,) = (node for node in network.get_ops() if node.get_type_name() == "Greater")
    return _names(
        last, lambda node: [each.get_source_output().get_node() for each in node.inputs()],
        lambda node: node.get_friendly_name(),
    )  # fmt: skip


def _names(last: Any, before: Callable[[Any], list[Any]], name: Callable[[Any], str]) -> list[str]:
    found, open_nodes = {name(last): None}, [last]
    while open_nodes:
        for node in before(open_nodes.pop()):
            if name(node) not in found:
                found[name(node)] = None
                open_nodes.append(node)
    return list(found)


def _quantized(network: Any, manifest: Manifest, calibration: Calibration, tokenizer: list[str]) -> Any:
    """The network with 8-bit weights and activations, by NNCF. tokenizer: names of its nodes."""
    import nncf  # sets the level of its logger

    batches = [calibration[start : start + _BATCH] for start in range(0, len(calibration), _BATCH)]
    scope = nncf.IgnoredScope(names=tokenizer, validate=False) if manifest.tokenizer != "int8" else None
    with _warnings_only("nncf"):
        return nncf.quantize(
            network, nncf.Dataset(batches, lambda batch: {"images": batch}), subset_size=len(batches),
            model_type=nncf.ModelType.TRANSFORMER, ignored_scope=scope,
        )  # fmt: skip


@contextmanager
def _warnings_only(name: str) -> Iterator[None]:
    """Make a logger leave out what is less than a warning."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(max(level, logging.WARNING))
    try:
        yield
    finally:
        logger.setLevel(level)


Writer = Callable[[Any, Manifest, Path, Calibration | None], None]
WRITERS: Final[dict[str, Writer]] = {"onnx": _onnx, "openvino": _openvino, "torch": _torch}
