"""Trains retrievers (ROPG) and selectors that choose among them (RSPG)."""
