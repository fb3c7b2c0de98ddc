"""Builds an ONNX graph: collects nodes in order and streams constants into one external data file."""

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
_TWO_BIT_OPSET = 25  # the first with 2-bit integers; written only for graphs that have some
_TWO_BIT_IR_VERSION = 12
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
    np.dtype(np.int8): TensorProto.INT8,
}
_NARROW_TYPES = {2: TensorProto.UINT2, 4: TensorProto.UINT4}


class GraphWriter:
    """Collects a graph; writes each constant immediately, so memory holds only one matrix at a time.

    Args:
        directory: directory for `model.onnx` and `model.onnx.data`; it must exist.
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
        self._two_bit = False
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
        """Declare a float32 input with a default value."""
        self.input(name, TensorProto.FLOAT, shape)
        self._constants[name] = numpy_helper.from_array(default, name)
        return name

    def output(self, name: str, shape: Sequence[int | str]) -> None:
        """Declare a float32 graph output."""
        self._outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape)))

    def constant(self, name: str, array: NDArray[Any]) -> str:
        """Store an array, unless the name is already stored."""
        if name in self._constants:
            return name
        array = np.asarray(array, order="C")  # ascontiguousarray would give scalars an axis
        if array.nbytes < _INLINE_BELOW:
            self._constants[name] = numpy_helper.from_array(array, name)
            return name
        return self._external(name, array, _ELEMENT_TYPES[array.dtype], array.shape)

    def narrow_constant(self, name: str, values: NDArray[np.uint8], bits: int) -> str:
        """Store integers of 2 or 4 bits, packed, the first in the lowest bits of a byte."""
        if name in self._constants:
            return name
        per_byte = 8 // bits
        flat = np.ascontiguousarray(values).reshape(-1)
        places = np.pad(flat, (0, -len(flat) % per_byte)).reshape(-1, per_byte)
        packed = np.zeros(len(places), np.uint8)
        for place in range(per_byte):
            packed |= places[:, place] << np.uint8(bits * place)
        self._two_bit = self._two_bit or bits == 2
        element = _NARROW_TYPES[bits]
        if packed.nbytes < _INLINE_BELOW:
            self._constants[name] = TensorProto(
                name=name, data_type=element, dims=values.shape, raw_data=packed.tobytes()
            )
            return name
        return self._external(name, packed, element, values.shape)

    def _external(self, name: str, array: NDArray[Any], element: int, shape: Sequence[int]) -> str:
        offset = self._data.tell()
        padding = -offset % _ALIGNMENT
        self._data.write(b"\0" * padding)
        self._data.write(array.data)
        tensor = TensorProto(name=name, data_type=element, dims=shape)
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", self.data_name), ("offset", offset + padding), ("length", array.nbytes)):
            tensor.external_data.add(key=key, value=str(value))
        self._constants[name] = tensor
        return name

    def half_constant(self, name: str, array: NDArray[np.float32]) -> str:
        """Store float32 values as float16 or bfloat16 if that is exact; onnxruntime widens them at load."""
        if name in self._values:
            return name
        stored = self.short_constant(f"{name}.half", array)
        return self.constant(name, array) if stored is None else self.node("Cast", [stored], name, to=TensorProto.FLOAT)

    def short_constant(self, name: str, array: NDArray[np.float32]) -> str | None:
        """Store float32 values as float16 or bfloat16 if that is exact; otherwise store nothing and return None."""
        if name in self._constants:
            return name
        with np.errstate(over="ignore"):
            half = array.astype(np.float16)
        if np.array_equal(half.astype(np.float32), array):
            return self.constant(name, half)
        words = np.ascontiguousarray(array).view(np.uint16).reshape(*array.shape, 2)
        if words[..., 0].any():
            return None
        return self._external(name, np.ascontiguousarray(words[..., 1]), TensorProto.BFLOAT16, array.shape)

    def has_value(self, name: str) -> bool:
        """Whether a node or constant already defines this value."""
        return name in self._constants or name in self._values

    def node(self, operator: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """Append a node with one output."""
        return self.nodes(operator, inputs, [output], **attributes)[0]

    def nodes(self, operator: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any) -> Sequence[str]:
        """Append a node with several outputs ("" for an unused one)."""
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
        """Write the graph file next to its data file."""
        graph = helper.make_graph(self._nodes, name, self._inputs, self._outputs, list(self._constants.values()))
        opset, version = (_TWO_BIT_OPSET, _TWO_BIT_IR_VERSION) if self._two_bit else (OPSET, IR_VERSION)
        opsets = [helper.make_opsetid("", opset), helper.make_opsetid(_MICROSOFT, 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=version, producer_name="cogenesis-edge")
        self._data.close()
        (self._directory / self.graph_name).write_bytes(model.SerializeToString(deterministic=True))
