"""Trains retrievers (ROPG) and selects among them (RSPG)."""
