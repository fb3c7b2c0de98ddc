"""Decides what may be sent: the gate with its policies, the guard, the ledger and the audit."""

from edge_runtime.context import HistoryItem, PrivateContext, PublicInstruction
from edge_runtime.privacy.gate import Gate, Policy, Released
from edge_runtime.privacy.ledger import Ledger, LedgerEntry

__all__ = [
    "Gate",
    "HistoryItem",
    "Ledger",
    "LedgerEntry",
    "Policy",
    "PrivateContext",
    "PublicInstruction",
    "Released",
]
