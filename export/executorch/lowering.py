"""Turns the model form into an ExecuTorch program: exported, delegated to XNNPACK, serialized."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from executorch.backends.xnnpack.partition.config import ALL_PARTITIONER_CONFIGS
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import EdgeCompileConfig, ExecutorchBackendConfig, to_edge_transform_and_lower
from executorch.exir.backend.compile_spec_schema import CompileSpec
from executorch.exir.backend.partitioner import DelegationSpec, Partitioner, PartitionResult
from executorch.exir.backend.utils import tag_constant_data
from executorch.exir.passes import MemoryPlanningPass

from export.executorch.attention import UseKernel

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch.export import ExportedProgram
    from torch.fx import Node

    from export.executorch.model import DecoderModel

CHUNK = 256
"""Tokens of one call at most."""
MAX_RANK = 1024

# Cosines and sines of positions are taken by the plain kernels: XNNPACK's are made for small angles.
_LEFT_OUT = ("cos.default", "sin.default")
# Of XNNPACK's own passes this key asks for the one that a decoder needs; the others match patterns of vision models,
# and cost half of the time that lowering takes.
_FEW_PASSES = CompileSpec("dqlinear_partitioner", b"")


def lower(model: DecoderModel) -> bytes:
    """Make the `.pte` file of a decoder.

    Args:
        model: the decoder in evaluation mode; its context length is the largest capacity of its caches.

    Returns:
        The program: `forward(token_ids, positions, rows, *caches, *adapter)` as `DecoderModel.forward`, flat.
    """
    with torch.no_grad():
        exported = _export(model)
        edge = to_edge_transform_and_lower(
            exported,
            partitioner=[_SegmentPartitioner()],
            compile_config=EdgeCompileConfig(_check_ir_validity=False, _skip_dim_order=True),
        )
        program = edge.to_executorch(
            ExecutorchBackendConfig(
                passes=[UseKernel()],
                memory_planning_pass=MemoryPlanningPass(alloc_graph_input=False),
            )
        )
    buffer: bytes = program.buffer
    return buffer


def _export(model: DecoderModel) -> ExportedProgram:
    a = model.architecture
    tokens, wanted = torch.export.Dim("tokens", min=1, max=CHUNK), torch.export.Dim("wanted", min=1, max=CHUNK)
    capacity = torch.export.Dim("capacity", min=1, max=a.context_length)
    cache_shape = (1, min(16, a.context_length), a.kv_heads, a.head_dim)
    shapes, ranks = [], []
    # Examples of different sizes, so that no two of them are taken for the same. One rank stands for all layers:
    # a symbol more costs time at every step of lowering, and the program doesn't compare them.
    for index, site in enumerate(model.lora_sites):
        width, rank = sum(size for _, size in site.projections), torch.export.Dim(f"rank_{site.name}", max=MAX_RANK)
        shapes += [(1, site.in_features, index + 5), (1, index + 5, width)]
        ranks += [{2: rank}, {1: rank}]
    # A tensor that is given twice would become one input.
    caches = [torch.zeros(cache_shape) for _ in range(2 * a.layers)]
    adapter = [torch.zeros(shape) for _ in range(a.layers) for shape in shapes]
    return torch.export.export(
        model,
        (torch.zeros(1, 3, dtype=torch.int64), torch.arange(1, 4), torch.arange(2), caches, adapter),
        dynamic_shapes=({1: tokens}, {0: tokens}, {0: wanted}, [{1: capacity}] * 2 * a.layers, ranks * a.layers),
        strict=False,
    )


class _SegmentPartitioner(Partitioner):
    """Delegates everything that XNNPACK can take, in as few pieces as the order of operations allows.

    XNNPACK's own partitioner says what can be delegated, but splits it into more pieces.
    """

    def __init__(self) -> None:
        super().__init__()
        configs = [config for config in ALL_PARTITIONER_CONFIGS if config.target_name not in _LEFT_OUT]
        self._xnnpack = XnnpackPartitioner(configs=configs)
        self._spec = DelegationSpec(self._xnnpack.delegation_spec.backend_id, [_FEW_PASSES])

    def ops_to_not_decompose(
        self, ep: ExportedProgram
    ) -> tuple[list[torch._ops.OpOverload], Callable[[Node], bool] | None]:
        """Operations that XNNPACK wants whole."""
        operators, _ = self._xnnpack.ops_to_not_decompose(ep)
        return operators, None

    def partition(self, exported_program: ExportedProgram) -> PartitionResult:
        """Tag every node that goes to the delegate with its segment."""
        matched = self._xnnpack.get_matched_nodes_from_configs(exported_program)
        delegated = {node for group in matched for node in group if node.op == "call_function"}
        segments = _segments(exported_program, delegated)
        tags = {segment: f"segment_{segment}" for segment in sorted(set(segments.values()))}
        for node, segment in segments.items():
            node.meta["delegation_tag"] = tags[segment]
        tag_constant_data(exported_program)
        return PartitionResult(
            tagged_exported_program=exported_program, partition_tags=dict.fromkeys(tags.values(), self._spec)
        )


def _segments(program: ExportedProgram, delegated: set[Node]) -> Mapping[Node, int]:
    """For each delegated node, how many other operations must have run one after another before it.

    Nodes of the same number never wait for anything outside that waits for them, so they can be one piece.
    """
    given = set(program.graph_signature.user_inputs)
    depth: dict[Node, int] = {}
    constant: list[Node] = []  # made of weights alone, like a matrix before it is multiplied
    for node in program.graph.nodes:
        sources = [source for source in node.all_input_nodes if source in depth]
        if node.op == "placeholder":
            if node.name in given:
                depth[node] = 0
        elif sources or node.op != "call_function":
            depth[node] = max(
                (depth[s] + (node in delegated and s not in delegated and s.op != "placeholder") for s in sources),
                default=0,
            )
        else:
            constant.append(node)
    for node in reversed(constant):
        depth[node] = min((depth[user] for user in node.users), default=0)
    return {node: depth[node] for node in program.graph.nodes if node in delegated}
