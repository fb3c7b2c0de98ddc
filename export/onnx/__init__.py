"""Exports decoders as ONNX graphs."""
