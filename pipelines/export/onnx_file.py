"""What is done to an ONNX file behind the exporter: inner values hidden or shown, 16 bits, 8 bits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.export.graph import is_inner


def hide_inner(path: Path) -> list[str]:
    """Make the stages between input and output plain values of the graph; their names stay.

    Returns:
        The names of those that the graph needs, and so still computes.
    """
    import onnx

    model = onnx.load(str(path))
    used = {name for node in model.graph.node for name in node.input}
    inner = [output for output in model.graph.output if is_inner(output.name)]
    for output in inner:
        model.graph.output.remove(output)
        if output.name in used:
            model.graph.value_info.append(output)
    onnx.save(model, str(path))
    return [output.name for output in inner if output.name in used]


def with_inner(path: Path, target: Path, names: Iterable[str]) -> None:
    """A copy of a file that has some inner values as outputs, too."""
    import onnx

    model = onnx.load(str(path))
    known = {info.name: info for info in model.graph.value_info}
    made = {name for node in model.graph.node for name in node.output}
    for name in names:
        if name in made:
            plain = onnx.helper.make_empty_tensor_value_info(name)
            model.graph.output.append(known.get(name, plain))
    onnx.save(model, str(target))


def to_fp16(path: Path) -> None:
    """Weights and activations in 16 bits; inputs and outputs stay as they are."""
    import onnx
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

    model = onnx.load(str(path))
    # Boxes need the range and the steps of 32 bits, and so does what is compared with thresholds.
    blocked = [*DEFAULT_OP_BLOCK_LIST, "NonMaxSuppression", "RoiAlign", "GridSample", "TopK", "Resize"]
    converted = convert_float_to_float16(
        model, keep_io_types=True, op_block_list=blocked, node_block_list=_decoding(model), disable_shape_infer=True
    )
    onnx.save(converted, str(path))


def to_int8(path: Path, images: Sequence[NDArray[Any]]) -> None:
    """Convolutions and matrix products of the network in 8 bits, calibrated on images; decoding stays in 32.

    Args:
        path: Written again.
        images: Of the input's shape and type.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = iter([{"image": batch} for batch in images])

        def get_next(self) -> Any:
            return next(self.batches, None)

    prepared = path.with_name(f".{path.stem}.prepared.onnx")
    try:
        quant_pre_process(str(path), str(prepared), skip_symbolic_shape=True)
        model = onnx.load(str(prepared))
        quantize_static(
            str(prepared),
            str(path),
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=["Conv", "MatMul", "Gemm"],
            nodes_to_exclude=[*_decoding(model), *_last_layers(model)],
        )
    finally:
        prepared.unlink(missing_ok=True)


def _decoding(model: Any) -> list[str]:
    """Nodes that take what the network gives: all behind its raw outputs."""
    behind = {name for node in model.graph.node for name in node.output if name.startswith("raw_")}
    found = []
    for node in model.graph.node:
        if behind.intersection(node.input):
            behind.update(node.output)
            found.append(node.name)
    return found


def _last_layers(model: Any) -> list[str]:
    """The layers that give the raw outputs: the nearest with weights before each."""
    made_by = {name: node for node in model.graph.node for name in node.output}
    waiting = [name for name in made_by if name.startswith("raw_")] or [out.name for out in model.graph.output]
    found, seen = [], set()
    while waiting:
        node = made_by.get(waiting.pop())
        if node is None or id(node) in seen:
            continue
        seen.add(id(node))
        if node.op_type in ("Conv", "MatMul", "Gemm"):
            found.append(node.name)
        else:
            waiting += node.input
    return found


def as_floats(values: Sequence[NDArray[Any]]) -> list[NDArray[np.float32]]:
    """Arrays in 32 bits, whatever the graph computes in."""
    return [np.asarray(value, np.float32) for value in values]
