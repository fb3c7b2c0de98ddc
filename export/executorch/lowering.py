"""Lowers the torch model to an ExecuTorch program: exports it, delegates it to XNNPACK and serializes it."""

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
"""Maximum number of tokens per call."""
MAX_RANK = 1024

# The plain kernels compute cosines and sines of positions: XNNPACK's are only accurate for small angles.
_LEFT_OUT = ("cos.default", "sin.default")
# This key selects the only XNNPACK pass that a decoder needs. The others match patterns of vision models and take half
# of the lowering time.
_FEW_PASSES = CompileSpec("dqlinear_partitioner", b"")


def lower(model: DecoderModel) -> bytes:
    """Make the `.pte` file of a decoder.

    Args:
        model: the decoder in evaluation mode; its context length limits the capacity of its caches.

    Returns:
        The program. Its `forward(token_ids, positions, rows, *caches, *adapter)` is `DecoderModel.forward`, flattened.
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
    # The example sizes differ, so torch.export does not merge their symbols. All layers share one symbol for the rank:
    # each symbol slows down every step of lowering, and the program does not compare ranks.
    for index, site in enumerate(model.lora_sites):
        width, rank = sum(size for _, size in site.projections), torch.export.Dim(f"rank_{site.name}", max=MAX_RANK)
        shapes += [(1, site.in_features, index + 5), (1, index + 5, width)]
        ranks += [{2: rank}, {1: rank}]
    # torch.export would merge a tensor that is passed twice into one input.
    caches = [torch.zeros(cache_shape) for _ in range(2 * a.layers)]
    adapter = [torch.zeros(shape) for _ in range(a.layers) for shape in shapes]
    return torch.export.export(
        model,
        (torch.zeros(1, 3, dtype=torch.int64), torch.arange(1, 4), torch.arange(2), caches, adapter),
        dynamic_shapes=({1: tokens}, {0: tokens}, {0: wanted}, [{1: capacity}] * 2 * a.layers, ranks * a.layers),
        strict=False,
    )


class _SegmentPartitioner(Partitioner):
    """Delegates all operations that XNNPACK supports, in as few pieces as their order allows.

    XNNPACK's own partitioner finds these operations, but splits them into more pieces.
    """

    def __init__(self) -> None:
        super().__init__()
        configs = [config for config in ALL_PARTITIONER_CONFIGS if config.target_name not in _LEFT_OUT]
        self._xnnpack = XnnpackPartitioner(configs=configs)
        self._spec = DelegationSpec(self._xnnpack.delegation_spec.backend_id, [_FEW_PASSES])

    def ops_to_not_decompose(
        self, ep: ExportedProgram
    ) -> tuple[list[torch._ops.OpOverload], Callable[[Node], bool] | None]:
        """Return the operations that XNNPACK takes undecomposed."""
        operators, _ = self._xnnpack.ops_to_not_decompose(ep)
        return operators, None

    def partition(self, exported_program: ExportedProgram) -> PartitionResult:
        """Tag every delegated node with its segment."""
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
    """Number each delegated node by how often execution must switch to the delegate until it runs.

    No path between two nodes with the same number leaves the delegate, so they can be one piece.
    """
    given = set(program.graph_signature.user_inputs)
    depth: dict[Node, int] = {}
    constant: list[Node] = []  # computed from weights only, such as a dequantized matrix
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
