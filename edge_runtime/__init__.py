"""What runs on the device: load a bundle, read the private context, write answers, with a cloud or without.

    import edge_runtime
    from cloud_bridge.client import connect

    assistant = edge_runtime.load("bundle")
    cloud = connect("127.0.0.1:50051")
    answer = assistant.generate(instruction, context, mode="fused", cloud=cloud)
    for piece in answer: print(piece, end="")

Nothing here imports torch, transformers, optimum or peft.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edge_runtime.context import HistoryItem, PrivateContext, PublicInstruction
from edge_runtime.errors import CogenesisError
from edge_runtime.fusion.fuse import Fusion, Strategy
from edge_runtime.fusion.sparse import RowFormat
from edge_runtime.generation.options import Mode, Options
from edge_runtime.generation.sampling import Sampling
from edge_runtime.generation.schedule import LearnedSchedule, Schedule
from edge_runtime.privacy.gate import Policy
from edge_runtime.privacy.ledger import Ledger, LedgerEntry

if TYPE_CHECKING:
    from edge_runtime.assistant import Assistant

__all__ = [
    "CogenesisError",
    "Fusion",
    "HistoryItem",
    "LearnedSchedule",
    "Ledger",
    "LedgerEntry",
    "Mode",
    "Options",
    "Policy",
    "PrivateContext",
    "PublicInstruction",
    "RowFormat",
    "Sampling",
    "Schedule",
    "Strategy",
    "load",
]


def load(
    bundle: Path | str,
    backend: str | None = None,
    *,
    threads: int | None = None,
    context_length: int | None = None,
    verify: bool = True,
    adapters: Path | str | None = None,
) -> Assistant:
    """Load a bundle: see `edge_runtime.assistant.load`."""
    # The inference engine is imported here, so that reading a request or a help page does not wait for it.
    from edge_runtime.assistant import load as load_assistant

    return load_assistant(
        bundle, backend, threads=threads, context_length=context_length, verify=verify, adapters=adapters
    )
