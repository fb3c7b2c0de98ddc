"""Two models' distributions become one."""

from edge_runtime.fusion.fuse import Fusion, Strategy
from edge_runtime.fusion.sparse import RowFormat, SparseLogProbs, sparsify

__all__ = ["Fusion", "RowFormat", "SparseLogProbs", "Strategy", "sparsify"]
