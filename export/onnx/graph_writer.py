"""An ONNX graph under construction: nodes in order, and constants that stream into one external data file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

OPSET = 21
IR_VERSION = 10
_MICROSOFT = "com.microsoft"
_MICROSOFT_OPERATORS = frozenset(
    {
        "GatherBlockQuantized",
        "GroupQueryAttention",
        "MatMulNBits",
        "MultiHeadAttention",
        "QuickGelu",
        "SkipLayerNormalization",
        "SkipSimplifiedLayerNormalization",
    }
)
_INLINE_BELOW = 1024  # bytes; smaller constants stay in the graph file
_ALIGNMENT = 64
_ELEMENT_TYPES = {
    np.dtype(np.float32): TensorProto.FLOAT,
    np.dtype(np.float16): TensorProto.FLOAT16,
    np.dtype(np.int64): TensorProto.INT64,
    np.dtype(np.int32): TensorProto.INT32,
    np.dtype(np.uint8): TensorProto.UINT8,
}


class GraphWriter:
    """Collects a graph; a constant is written out as it comes, so that memory holds one matrix at a time.

    Args:
        directory: where `model.onnx` and `model.onnx.data` go; it must exist.
    """

    graph_name = "model.onnx"
    data_name = "model.onnx.data"

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}
        self._values: set[str] = set()
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._data = (directory / self.data_name).open("wb")

    def __enter__(self) -> GraphWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._data.close()

    def input(self, name: str, element: int, shape: Sequence[int | str]) -> str:
        """Declare a graph input; `element` is a `TensorProto` type."""
        self._inputs.append(helper.make_tensor_value_info(name, element, list(shape)))
        return name

    def optional_input(self, name: str, shape: Sequence[int | str], default: NDArray[np.float32]) -> str:
        """Declare a float32 input that has a value where the caller gives none."""
        self.input(name, TensorProto.FLOAT, shape)
        self._constants[name] = numpy_helper.from_array(default, name)
        return name

    def output(self, name: str, shape: Sequence[int | str]) -> None:
        """Declare a float32 graph output."""
        self._outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape)))

    def constant(self, name: str, array: NDArray[Any]) -> str:
        """Store an array; a name that is already stored is left as it is."""
        if name in self._constants:
            return name
        array = np.asarray(array, order="C")  # ascontiguousarray would give scalars an axis
        if array.nbytes < _INLINE_BELOW:
            self._constants[name] = numpy_helper.from_array(array, name)
            return name
        offset = self._data.tell()
        padding = -offset % _ALIGNMENT
        self._data.write(b"\0" * padding)
        self._data.write(array.data)
        tensor = TensorProto(name=name, data_type=_ELEMENT_TYPES[array.dtype], dims=array.shape)
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", self.data_name), ("offset", offset + padding), ("length", array.nbytes)):
            tensor.external_data.add(key=key, value=str(value))
        self._constants[name] = tensor
        return name

    def half_constant(self, name: str, array: NDArray[np.float32]) -> str:
        """Store float32 values as float16 where that is exact; onnxruntime widens them when it loads."""
        half = array.astype(np.float16)
        if not np.array_equal(half.astype(np.float32), array):
            return self.constant(name, array)
        stored = self.constant(f"{name}.half", half)
        return self.node("Cast", [stored], name, to=TensorProto.FLOAT)

    def has_value(self, name: str) -> bool:
        """Whether some node or constant already makes this value."""
        return name in self._constants or name in self._values

    def node(self, operator: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """Append a node with one output."""
        return self.nodes(operator, inputs, [output], **attributes)[0]

    def nodes(self, operator: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any) -> Sequence[str]:
        """Append a node with several outputs ("" for one that is not wanted)."""
        named = next(output for output in outputs if output)
        domain = _MICROSOFT if operator in _MICROSOFT_OPERATORS else ""
        self._nodes.append(
            helper.make_node(
                operator, list(inputs), list(outputs), name=f"{named}/{operator}", domain=domain, **attributes
            )
        )
        self._values.update(outputs)
        return outputs

    def save(self, name: str) -> None:
        """Write the graph file beside its data."""
        graph = helper.make_graph(self._nodes, name, self._inputs, self._outputs, list(self._constants.values()))
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(_MICROSOFT, 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="cogenesis-edge")
        self._data.close()
        (self._directory / self.graph_name).write_bytes(model.SerializeToString(deterministic=True))
