"""Checks a finished decoder against its source model, as transformers computes it."""
