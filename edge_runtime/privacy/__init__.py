"""What may be sent: the gate, its policies, the guard and the ledger."""

from edge_runtime.privacy.gate import Gate, Policy, Released
from edge_runtime.privacy.ledger import Ledger, LedgerEntry

__all__ = ["Gate", "Ledger", "LedgerEntry", "Policy", "Released"]
