"""Text encoders for retrieval on the device."""
