"""Exports text encoders for retrieval on the device."""
