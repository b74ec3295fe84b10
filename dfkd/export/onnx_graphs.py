"""A student as ONNX graphs: float32, and int8 calibrated on synthesised images.

Each is one file without external data. The exporter's paths and stack traces are removed, so the
same student gives the same bytes with the same library versions.
"""

import contextlib
import gc
import logging
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import nn

from dfkd.utils.images import Array, batch

OPSET = 18
"""Version of the ONNX operators."""

FORMAT = 8
"""Version of the file format. With these operators, onnxruntime 1.14 (2023) and later read it."""

INPUT, OUTPUT, EMBEDDING = "pixels", "distances", "embedding"

GraphFunction = Callable[[Array], Array]
"""Maps pixels [N, 3, S, S] float32 in [0, 1] to distances [N, M] or embeddings [N, E], float32."""


def export(student: nn.Module, image_size: int, path: Path, output: str = OUTPUT) -> None:
    """Write `student` (in eval mode, on the CPU) as an ONNX graph with a free batch dimension.

    The input `pixels` is float32 [N, 3, S, S] RGB in [0, 1], the output `distances` float32 [N, M],
    or as `output` names it. The normalisation of the input is part of the graph.
    """
    # Two images, because with one the exporter would fix the batch size at 1.
    example = torch.zeros(2, 3, image_size, image_size)
    with _silenced(), _no_collection():
        program = torch.onnx.export(
            student,
            (example,),
            input_names=[INPUT],
            output_names=[output],
            opset_version=OPSET,
            dynamic_shapes=({0: torch.export.Dim("N")},),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    assert program is not None  # noqa: S101 - for the type checker
    _save(program.model_proto, path)


def quantise(source: Path, path: Path, images: Sequence[npt.NDArray[np.uint8]]) -> None:
    """Quantise the graph at `source` to int8 weights and uint8 activations; write it to `path`.

    Args:
        images: calibration images, [S, S, 3] uint8 each, which set the ranges of activations.
    """
    with _silenced(), tempfile.TemporaryDirectory() as folder:
        prepared, quantised = Path(folder, "prepared.onnx"), Path(folder, "int8.onnx")
        # Batch norms are folded into the convolutions first, so that both are quantised as one.
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
        graph = onnx.load(prepared).graph
        operators = {node.op_type for node in graph.node}
        # Residual sums of transformers have outliers that do not fit int8, so only products are
        # quantised there. Layer norm tells a transformer from a ResNet.
        products = ["Conv", "Gemm", "MatMul"] if "LayerNormalization" in operators else None
        quantize_static(
            prepared,
            quantised,
            _Calibration(images),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=products,  # None is all
            nodes_to_exclude=_last_layer(graph),
            per_channel=True,
            reduce_range=True,  # 7-bit weights: kernels of older processors would overflow
            activation_type=QuantType.QUInt8,  # the fastest kernels with int8 weights
            weight_type=QuantType.QInt8,
        )
        _save(onnx.load(quantised), path)


def _last_layer(graph: onnx.GraphProto) -> list[str]:
    """The names of the nodes from the last matrix product to the output, which stay float32.

    In 8 bits the distances of close classes would be equal, and distances beyond the calibrated
    range would be clipped. In front of the product with the classes' vectors of a tower, the
    projection into their space belongs to it too.
    """
    makers = {output: node for node in graph.node for output in node.output}
    products = 2 if any(node.op_type == "Acos" for node in graph.node) else 1
    found: dict[str, int] = {}
    # Backwards from the output; each tensor with the number of products that are still to be met.
    open_ends = [(graph.output[0].name, products)]
    while open_ends:
        tensor, left = open_ends.pop()
        node = makers.get(tensor)
        if node is None or found.get(node.name, -1) >= left:
            continue
        found[node.name] = left
        left -= node.op_type in ("Gemm", "MatMul")
        if left:
            open_ends += [(name, left) for name in node.input]
    return list(found)


class _Calibration(CalibrationDataReader):  # type: ignore[misc]
    """Gives the calibration images to onnxruntime one at a time."""

    def __init__(self, images: Sequence[npt.NDArray[np.uint8]]) -> None:
        self.remaining = iter(images)

    def get_next(self) -> dict[str, Array] | None:
        """The input of the next run; None after the last image."""
        image = next(self.remaining, None)
        return None if image is None else {INPUT: batch([image])}


def load_graph(path: Path, threads: int) -> GraphFunction:
    """The graph at `path` as a function that runs on the CPU with `threads` threads."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3  # errors only
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(pixels: Array) -> Array:
        output: Array = session.run(None, {INPUT: pixels})[0]
        return output

    return run


def _save(model: onnx.ModelProto, path: Path) -> None:
    """Check a graph and write it without the exporter's notes, which contain local paths."""
    for graph in (model.graph, *model.functions):
        for part in (graph, *graph.node):
            part.ClearField("doc_string")
            part.ClearField("metadata_props")
        for value in graph.value_info:
            value.ClearField("metadata_props")
    for part in (model, *model.graph.input, *model.graph.output, *model.graph.initializer):
        part.ClearField("metadata_props")
    # The exporter states its newest format, and the quantiser domains that no operator is of.
    model.ir_version = FORMAT
    used = {node.domain for graph in (model.graph, *model.functions) for node in graph.node}
    versions = [entry for entry in model.opset_import if entry.domain in {"", *used}]
    model.ClearField("opset_import")
    model.opset_import.extend(versions)
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString(deterministic=True))


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Keep the garbage collector out of `ast.parse`, by which the exporter reads its operators.

    Before Python 3.11.8 a collection there lets another thread or a finaliser parse in between, and
    the first one fails with `SystemError: AST constructor recursion depth mismatch`
    (https://github.com/python/cpython/issues/106905).
    """
    if sys.version_info >= (3, 11, 8) or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    """Suppress log messages and warnings of the libraries; errors are exceptions anyway."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
